/* share MIB: a job that fills MIB of memory, and rewrites one hundredth of it whenever it is told to.
 *
 * SIGUSR1: 1 % in a row; SIGUSR2: every hundredth page. On standard output: `ready`, then `wrote` each time.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE 4096ul

static uint64_t state;

static void fill(uint64_t *page)
{
    for (size_t i = 0; i < PAGE / 8; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        page[i] = state;
    }
}

int main(int argc, char **argv)
{
    size_t pages = (argc > 1 ? strtoul(argv[1], NULL, 10) : 256) << 8;
    char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    state = 88172645463325252ULL ^ (uint64_t)time(NULL);
    sigset_t told;
    sigemptyset(&told);
    sigaddset(&told, SIGUSR1);
    sigaddset(&told, SIGUSR2);
    sigprocmask(SIG_BLOCK, &told, NULL);
    for (size_t i = 0; i < pages; i++)
        fill((uint64_t *)(memory + i * PAGE));
    puts("ready");
    fflush(stdout);
    for (int number; !sigwait(&told, &number);) {
        for (size_t i = 0; i < pages / 100; i++)
            fill((uint64_t *)(memory + (number == SIGUSR1 ? i : i * 100) * PAGE));
        puts("wrote");
        fflush(stdout);
    }
    return 1;
}
