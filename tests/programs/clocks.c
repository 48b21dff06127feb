/* Clocks: the monotonic and the boot clock never go back and never jump while a job is saved; a loop looks at them all
 * the time through the vDSO and through the kernel. The argument MODE is the longest jump allowed, in seconds. */
#include "check.h"

static atomic_int finish;
static double limit = 1.0, worst[2];
static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME};

static double kernel_now(clockid_t c)
{
    struct timespec t;
    syscall(SYS_clock_gettime, c, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void *watch(void *arg)
{
    long k = (long)arg;
    double last = now(clocks[k]);
    while (!finish) {
        double a = now(clocks[k]), b = kernel_now(clocks[k]), c = now(clocks[k]);
        if (WRONG(1))
            b -= 0.01;
        CHECK(a <= b + 1e-9 && b <= c + 1e-9, "vDSO and kernel disagree: %.9f %.9f %.9f", a, b, c);
        CHECK(a >= last, "clock %d went back from %.9f to %.9f", (int)clocks[k], last, a);
        if (a - last > worst[k])
            worst[k] = a - last;
        last = c;
        short_sleep();
    }
    return NULL;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    if (mode_count)
        limit = atof(mode_args[0]);
    pthread_t t[2];
    for (long k = 0; k < 2; k++)
        MUST(pthread_create(&t[k], NULL, watch, (void *)k) == 0);
    double real_start = now(CLOCK_REALTIME);
    ready();
    wait_go();
    for (int i = 0; i < 20; i++)
        short_sleep();
    finish = 1;
    for (int k = 0; k < 2; k++)
        pthread_join(t[k], NULL);
    for (int k = 0; k < 2; k++)
        CHECK(worst[k] < limit * (WRONG(2) ? 0 : 1), "clock %d jumped by %.3f s", (int)clocks[k], worst[k]);
    CHECK(now(CLOCK_REALTIME) >= real_start, "the wall clock went back");
    CHECK(now(CLOCK_PROCESS_CPUTIME_ID) >= 0, "CPU clock");
    ok();
}
