/* wear MIB [huge]: a job that rewrites all of its memory, over and over, and tells how long each time took.
 *
 * On standard output, times in nanoseconds since 1970:
 *
 *   ready                   once, after two rounds
 *   pass BEFORE AFTER CPU   each round; the last one is the processor time that it took
 *
 * SIGUSR1: it forks a child before its next round, which holds the memory as it is until it gets SIGUSR2 (that is what
 * a plain fork costs). SIGUSR2 ends the child.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t wanted, done;

static void want(int number)
{
    if (number == SIGUSR1)
        wanted = 1;
    else
        done = 1;
}

static int64_t now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
    size_t size = (size_t)atol(argc > 1 ? argv[1] : "256") << 20, huge = 2 << 20;
    char *at = mmap(NULL, size + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return 1;
    at = (char *)(((uintptr_t)at + huge - 1) & ~(huge - 1));
    madvise(at, size, argc > 2 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    signal(SIGUSR1, want);
    signal(SIGUSR2, want);
    uint64_t word = now(CLOCK_REALTIME) | 1;
    pid_t child = 0;
    for (int round = 0;; round++) {
        int64_t before = now(CLOCK_REALTIME), used = now(CLOCK_PROCESS_CPUTIME_ID);
        if (wanted && !child) {
            wanted = 0;
            child = fork();
            if (child == 0)
                for (;;)
                    pause();
        }
        if (done && child) {
            done = 0;
            kill(child, SIGKILL);
            waitpid(child, NULL, 0);
            child = 0;
        }
        /* Not the same words in any two pages, nor in any two rounds. */
        for (size_t i = 0; i < size / 8; i++) {
            word = word * 6364136223846793005ull + 1442695040888963407ull;
            ((uint64_t *)at)[i] = word;
        }
        used = now(CLOCK_PROCESS_CPUTIME_ID) - used;
        printf("pass %lld %lld %lld\n", (long long)before, (long long)now(CLOCK_REALTIME), (long long)used);
        if (round == 1)
            puts("ready");
        fflush(stdout);
    }
}
