/* grow MIB MAPPINGS THREADS PROCESSES: a job of a given size that does next to nothing.
 *
 * MIB of random memory, so many mappings of one page each, so many threads and processes in all. All sleep but the
 * first thread, which every 2 ms looks at the clock and changes one word of the memory. On standard output:
 *
 *   ready                   once
 *   gap BEFORE AFTER        whenever it did not get to look for 20 ms: both looks, as nanoseconds since 1970
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *idle(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return NULL;
}

static char *room(size_t size)
{
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        exit(1);
    return at;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    size_t size = (size_t)atol(argv[1]) << 20;
    long mappings = atol(argv[2]), threads = atol(argv[3]), processes = atol(argv[4]);
    uint64_t state = 88172645463325252ULL ^ (uint64_t)now(), *memory = (uint64_t *)room(size + 4096);
    for (size_t i = 0; i < size / 8; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memory[i] = state;
    }
    /* Neighbours that may not be written alternate with those that may: the kernel cannot join them. */
    char *pages = room((mappings + 1) * 4096);
    for (long i = 0; i < mappings; i++) {
        *(long *)(pages + i * 4096) = i + state;
        if (i % 2 && mprotect(pages + i * 4096, 4096, PROT_READ))
            return 1;
    }
    for (long i = 1; i < processes; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, 9);
            idle(NULL);
        }
        if (pid < 0)
            return 1;
    }
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    for (long i = 1; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, &small, idle, NULL))
            return 1;
    }
    puts("ready");
    fflush(stdout);
    for (int64_t before = now();;) {
        nanosleep(&(struct timespec){0, 2000000}, NULL);
        int64_t after = now();
        ++*memory;
        if (after - before > 20000000) {
            printf("gap %lld %lld\n", (long long)before, (long long)after);
            fflush(stdout);
        }
        before = after;
    }
}
