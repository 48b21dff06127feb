/* A computation in steps, whose result depends on every one of them and on their order.
 *
 *     steps GO STEPS [MILLISECONDS]
 *
 * Prints READY after the first step. When all steps are done it waits for the file GO, then prints its result and OK.
 * If the file GO.crash is there it is deleted, and the program aborts; with GO.exit it exits with status 7.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static const char *go;

static int asked(const char *suffix)
{
    char path[4096];
    snprintf(path, sizeof path, "%s%s", go, suffix);
    return access(path, F_OK) == 0 && (!suffix[0] || unlink(path) == 0);
}

static void look(void)
{
    if (asked(".crash"))
        abort();
    if (asked(".exit"))
        _exit(7);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    go = argv[1];
    long steps = atol(argv[2]), pause = argc > 3 ? atol(argv[3]) : 5;
    struct timespec rest = {pause / 1000, pause % 1000 * 1000000};
    uint64_t *state = malloc(4096 * sizeof *state);
    for (int i = 0; i < 4096; i++)
        state[i] = i * UINT64_C(0x9E3779B97F4A7C15) + 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (long step = 0; step < steps; step++) {
        for (int i = 0; i < 4096; i++) {
            uint64_t x = state[i] ^ state[(i + step) % 4096] << 1;
            x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
            state[i] = x * UINT64_C(0x2545F4914F6CDD1D) + (uint64_t)step;
        }
        if (step == 0)
            printf("READY\n");
        if (step % 100 == 99)
            printf("step %ld\n", step + 1);
        look();
        nanosleep(&rest, NULL);
    }
    while (!asked("")) {
        look();
        nanosleep(&rest, NULL);
    }
    uint64_t sum = 0;
    for (int i = 0; i < 4096; i++)
        sum = sum * 31 + state[i];
    printf("result: %016" PRIx64 "\nOK\n", sum);
    return 0;
}
