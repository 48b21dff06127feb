/* Sleeps: each must last its whole time, by the job's clock, and return 0. */
#include "calls.h"


static void plain(void)
{
    SAME(syscall(SYS_nanosleep, &span, NULL), 0, "nanosleep");
    check_span(SPAN + WRONG(1));
}
static void with_rest(void)
{
    struct timespec rest = {-1, -1};
    SAME(nanosleep(&span, &rest), 0, "nanosleep");
    check_span(SPAN + WRONG(1));
}
static void clock_for(clockid_t clock)
{
    struct timespec rest = {-1, -1};
    double start = now(clock);
    SAME(clock_nanosleep(clock, 0, &span, &rest), 0, "clock_nanosleep");
    double took = now(clock) - start;
    CHECK(took >= SPAN - 0.0005 + WRONG(1), "slept %.4f s", took);
}
static void clock_until(clockid_t clock)
{
    struct timespec end;
    clock_gettime(clock, &end);
    end.tv_sec += span.tv_sec;
    end.tv_nsec += span.tv_nsec;
    if (end.tv_nsec >= 1000000000) {
        end.tv_nsec -= 1000000000;
        end.tv_sec++;
    }
    SAME(clock_nanosleep(clock, TIMER_ABSTIME, &end, NULL), 0, "clock_nanosleep");
    double until = end.tv_sec + end.tv_nsec / 1e9;
    CHECK(now(clock) >= until - 0.0000005 + WRONG(1), "woke %.4f s early", until - now(clock));
}
static void monotonic_for(void) { clock_for(CLOCK_MONOTONIC); check_span(SPAN); }
static void monotonic_until(void) { clock_until(CLOCK_MONOTONIC); check_span(SPAN); }
static void boot_for(void) { clock_for(CLOCK_BOOTTIME); }
static void boot_until(void) { clock_until(CLOCK_BOOTTIME); }
static void real_for(void) { clock_for(CLOCK_REALTIME); }
static void real_until(void) { clock_until(CLOCK_REALTIME); }
static void tai_until(void) { clock_until(CLOCK_TAI); }

static const struct call calls[] = {
    {"nanosleep", SYS_nanosleep, SYS_restart_syscall, plain, NULL},
    {"nanosleep-rem", SYS_clock_nanosleep, SYS_nanosleep, with_rest, NULL},
    {"monotonic-for", SYS_clock_nanosleep, 0, monotonic_for, NULL},
    {"monotonic-until", SYS_clock_nanosleep, 0, monotonic_until, NULL},
    {"boottime-for", SYS_clock_nanosleep, 0, boot_for, NULL},
    {"boottime-until", SYS_clock_nanosleep, 0, boot_until, NULL},
    {"realtime-for", SYS_clock_nanosleep, 0, real_for, NULL},
    {"realtime-until", SYS_clock_nanosleep, 0, real_until, NULL},
    {"tai-until", SYS_clock_nanosleep, 0, tai_until, NULL},
};
RUN_CALLS
