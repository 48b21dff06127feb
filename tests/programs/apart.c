/* Two processes of four threads each, with memory of their own and memory that they share. Once told they verify all of
 * it; then they choose by chance what to fill it with, and look for a while whether it stays so: of several copies of
 * this job each must go its own way, and none may see another's memory. Prints SEED and what it has chosen. */
#include "check.h"
#include <sys/random.h>

#define OWN (2ul << 20)
#define MUCH (12ul << 20)
#define SHARED (256ul << 10)
#define THREADS 4

static struct {
    atomic_int verified, chosen, done, failed;
    uint64_t seed;
} *desk;
static unsigned char *own, *much, *anonymous, *mem;
static int me;

static unsigned char *map(int fd, int flags, size_t size)
{
    unsigned char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
    MUST(p != MAP_FAILED);
    return p;
}

static void wait_for(atomic_int *count, int all)
{
    while (*count < all && !desk->failed)
        short_sleep();
    if (desk->failed)
        _exit(1);
}

static void tell_the_other(void) { desk->failed = 1; }

static void *work(void *which)
{
    int thread = (int)(intptr_t)which, number = me * THREADS + thread;
    unsigned char *part = own + OWN / THREADS * thread, *shared = anonymous + SHARED / 8 * number,
                  *file = mem + SHARED / 8 * number;
    wait_go();
    if (WRONG(1) && number == 5)
        part[12345] ^= 1;
    VERIFY(part, OWN / THREADS, 100 + number, "own memory");
    VERIFY(much + MUCH / THREADS * thread, MUCH / THREADS, 400 + number, "own memory, much");
    VERIFY(shared, SHARED / 8, 200 + number, "shared anonymous memory");
    VERIFY(file, SHARED / 8, 300 + number, "memfd");
    desk->verified++;
    wait_for(&desk->chosen, 1);
    uint64_t seed = desk->seed + number;
    fill(part, OWN / THREADS, seed);
    fill(shared, SHARED / 8, seed + 1000);
    fill(file, SHARED / 8, seed + 2000);
    desk->done++;
    wait_for(&desk->done, 2 * THREADS);
    if (WRONG(2) && number == 6)
        mem[777] ^= 1;
    for (int i = 0; i < 100; i++) {
        VERIFY(part, OWN / THREADS, seed, "own memory, new");
        VERIFY(anonymous + SHARED / 8 * (7 - number), SHARED / 8, desk->seed + 7 - number + 1000, "shared memory, new");
        VERIFY(mem + SHARED / 8 * (7 - number), SHARED / 8, desk->seed + 7 - number + 2000, "memfd, new");
        short_sleep();
    }
    return NULL;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    desk = (void *)map(-1, MAP_SHARED | MAP_ANONYMOUS, 4096);
    at_failure = tell_the_other;
    anonymous = map(-1, MAP_SHARED | MAP_ANONYMOUS, SHARED);
    int fd = memfd_create("apart", MFD_CLOEXEC);
    MUST(fd >= 0 && ftruncate(fd, SHARED) == 0);
    mem = map(fd, MAP_SHARED, SHARED);
    own = map(-1, MAP_PRIVATE | MAP_ANONYMOUS, OWN);
    much = map(-1, MAP_PRIVATE | MAP_ANONYMOUS, MUCH);
    pid_t child = fork();
    MUST(child >= 0);
    me = child == 0;
    for (int i = 0; i < THREADS; i++) {
        int number = me * THREADS + i;
        fill(own + OWN / THREADS * i, OWN / THREADS, 100 + number);
        fill(much + MUCH / THREADS * i, MUCH / THREADS, 400 + number);
        fill(anonymous + SHARED / 8 * number, SHARED / 8, 200 + number);
        fill(mem + SHARED / 8 * number, SHARED / 8, 300 + number);
    }
    pthread_t thread[THREADS];
    for (int i = 0; i < THREADS; i++)
        MUST(pthread_create(&thread[i], NULL, work, (void *)(intptr_t)i) == 0);
    if (me == 0) {
        ready();
        wait_for(&desk->verified, 2 * THREADS);
        MUST(getrandom(&desk->seed, sizeof desk->seed, 0) == sizeof desk->seed);
        say("SEED %llx", (unsigned long long)desk->seed);
        desk->chosen = 1;
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    if (me)
        return 0;
    int status;
    MUST(waitpid(child, &status, 0) == child);
    CHECK(status == 0, "the other process: %#x", status);
    say("OK");
    return 0;
}
