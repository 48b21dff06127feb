/* hold MIB THREADS PROCESSES [huge]: a job of a given size that watches its own pauses.
 *
 * So many processes in all, each with MIB of random memory of its own (in pages of 4K, or in huge ones), and so many
 * threads in the first. Each process measures what a fork of itself costs, while all the others wait. Then the first
 * thread looks at the clock about 5,000 times a second. On standard output:
 *
 *   fork NANOSECONDS        once: of each process the median of five forks, added up
 *   ready                   once
 *   gap BEFORE AFTER        whenever it did not get to look for more than a millisecond: both looks, as nanoseconds
 *                           since 1970 (this clock is the same before and after a restart, and outside)
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HUGE ((size_t)2 << 20)

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void nap(long microseconds)
{
    struct timespec t = {0, microseconds * 1000};
    nanosleep(&t, NULL);
}

static void *idle(void *unused)
{
    (void)unused;
    for (;;)
        nap(50000);
    return NULL;
}

static void say(const char *line, int size)
{
    if (write(1, line, size) != size)
        _exit(1);
}

static void fill(size_t size, int huge)
{
    if (!size)
        return;
    char *at = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        _exit(1);
    at = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
    madvise(at, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    uint64_t state = 88172645463325252ULL ^ (uint64_t)now() ^ (uint64_t)getpid() << 40;
    for (size_t i = 0; i < size / 8; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((uint64_t *)at)[i] = state;
    }
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static int64_t fork_time(void)
{
    int64_t took[5];
    for (int i = 0; i < 5; i++) {
        int64_t began = now();
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        took[i] = now() - began;
        waitpid(pid, NULL, 0);
    }
    qsort(took, 5, sizeof *took, by_size);
    return took[2];
}

static void let_go(const int *turn, const int *answer)
{
    for (int i = 0; i < 2; i++) {
        close(turn[i]);
        close(answer[i]);
    }
}

/* A process beside the first: it is ready when it has filled its memory, waits for its turn to measure, and tells. */
static void other(const int *turn, const int *answer, size_t size, int huge)
{
    prctl(PR_SET_PDEATHSIG, 9);
    fill(size, huge);
    int64_t costs = 0;
    if (write(answer[1], &costs, sizeof costs) != sizeof costs || read(turn[0], &costs, 1) != 1)
        _exit(1);
    costs = fork_time();
    if (write(answer[1], &costs, sizeof costs) != sizeof costs)
        _exit(1);
    let_go(turn, answer);
    idle(NULL);
}

int main(int argc, char **argv)
{
    size_t size = argc > 1 ? strtoull(argv[1], NULL, 10) << 20 : 0;
    int threads = argc > 2 ? atoi(argv[2]) : 1, processes = argc > 3 ? atoi(argv[3]) : 1, huge = argc > 4;
    int turn[2], answer[2];
    char line[100];
    int64_t fork_costs = 0, costs;
    if (pipe(turn) || pipe(answer))
        return 1;
    for (int i = 1; i < processes; i++) {
        pid_t pid = fork();
        if (pid == 0)
            other(turn, answer, size, huge);
        if (pid < 0)
            return 1;
    }
    fill(size, huge);
    for (int i = 1; i < processes; i++)
        if (read(answer[0], &costs, sizeof costs) != sizeof costs)
            return 1;
    for (int i = 1; i < processes; i++) {
        if (write(turn[1], "", 1) != 1 || read(answer[0], &costs, sizeof costs) != sizeof costs)
            return 1;
        fork_costs += costs;
    }
    let_go(turn, answer);
    fork_costs += fork_time();
    for (int i = 1; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, idle, NULL))
            return 1;
    }
    say(line, snprintf(line, sizeof line, "fork %lld\nready\n", (long long)fork_costs));
    for (int64_t before = now();;) {
        nap(150);
        int64_t after = now();
        if (after - before > 1000000)
            say(line, snprintf(line, sizeof line, "gap %lld %lld\n", (long long)before, (long long)after));
        before = after;
    }
}
