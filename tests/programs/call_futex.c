/* Futex waits: without timeout, relative, absolute, real time, by bit set, priority-inheriting, many at once. */
#include "calls.h"
#include <linux/futex.h>

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
struct waiter {
    uint64_t value, address;
    uint32_t flags, reserved;
};

static atomic_int word = 1, second = 1;
static pthread_mutex_t inherit;

static long futex(atomic_int *at, int op, int value, const struct timespec *t, void *other, int bits)
{
    return syscall(SYS_futex, at, op, value, t, other, bits);
}
static void wake(void)
{
    word = 2;
    CHECK(futex(&word, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0) == 1, "nobody was waiting at the futex");
}
static void wake_bits(void)
{
    word = 2;
    CHECK(futex(&word, FUTEX_WAKE_BITSET_PRIVATE, 10, NULL, NULL, 2) == 0, "woken by a bit it does not wait for");
    CHECK(futex(&word, FUTEX_WAKE_BITSET_PRIVATE, 10, NULL, NULL, 4) == 1, "nobody was waiting at the futex");
}
static void wake_shared(void)
{
    word = 2;
    CHECK(futex(&word, FUTEX_WAKE, 10, NULL, NULL, 0) == 1, "nobody was waiting at the futex");
}
static void woke(long got)
{
    CHECK(got == 0, "%s returned %ld", current->name, got);
    check_woken();
}
static void timed_out(long got)
{
    CHECK(got == -1 && errno == ETIMEDOUT, "%s returned %ld", current->name, got);
    SAME(word, 1, "word");
}
static struct timespec in(clockid_t clock, const struct timespec *t)
{
    struct timespec end;
    clock_gettime(clock, &end);
    end.tv_sec += t->tv_sec;
    end.tv_nsec += t->tv_nsec;
    if (end.tv_nsec >= 1000000000) {
        end.tv_nsec -= 1000000000;
        end.tv_sec++;
    }
    return end;
}
static void forever(void) { woke(futex(&word, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0)); }
static void shared(void) { woke(futex(&word, FUTEX_WAIT, 1, NULL, NULL, 0)); }
static void relative(void) { woke(futex(&word, FUTEX_WAIT_PRIVATE, 1, &long_span, NULL, 0)); }
static void relative_timeout(void)
{
    timed_out(futex(&word, FUTEX_WAIT_PRIVATE, 1, &span, NULL, 0));
    check_span(SPAN + WRONG(1));
}
static void absolute(void)
{
    struct timespec end = in(CLOCK_MONOTONIC, &long_span);
    woke(futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 1, &end, NULL, 4));
}
static void absolute_timeout(void)
{
    struct timespec end = in(CLOCK_MONOTONIC, &span);
    timed_out(futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 1, &end, NULL, 4));
    check_span(SPAN + WRONG(1));
}
static void real_timeout(void)
{
    struct timespec end = in(CLOCK_REALTIME, &span);
    timed_out(futex(&word, FUTEX_WAIT_BITSET_PRIVATE | FUTEX_CLOCK_REALTIME, 1, &end, NULL, -1));
    CHECK(now(CLOCK_REALTIME) >= end.tv_sec + end.tv_nsec / 1e9 - 0.0001 + WRONG(1), "woke early");
}
static void requeue(void)
{
    woke(futex(&word, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0));
    SAME(second, 2, "the word it was moved to");
}
static void wake_requeued(void)
{
    CHECK(futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 0, (void *)1ul, &second, 1) == 1, "nobody to move");
    second = 2;
    CHECK(futex(&second, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0) == 1, "nobody at the second futex");
}
static void lock(void)
{
    SAME(pthread_mutex_lock(&inherit), 0, "lock");
    check_woken();
}
static void unlock(void) { SAME(pthread_mutex_unlock(&inherit), 0, "unlock"); }
static void many(void)
{
    struct waiter w[2] = {{1, (uintptr_t)&word, 0x82, 0}, {1, (uintptr_t)&second, 0x82, 0}};
    long got = syscall(SYS_futex_waitv, w, 2, 0, NULL, CLOCK_MONOTONIC);
    SAME(got, 0, "which of the two woke");
    check_woken();
}

static const struct call calls[] = {
    {"futex", SYS_futex, SYS_restart_syscall, forever, wake},
    {"futex-shared", SYS_futex, SYS_restart_syscall, shared, wake_shared},
    {"futex-relative", SYS_futex, SYS_restart_syscall, relative, wake},
    {"futex-relative-timeout", SYS_futex, SYS_restart_syscall, relative_timeout, NULL},
    {"futex-absolute", SYS_futex, SYS_restart_syscall, absolute, wake_bits},
    {"futex-absolute-timeout", SYS_futex, SYS_restart_syscall, absolute_timeout, NULL},
    {"futex-realtime-timeout", SYS_futex, SYS_restart_syscall, real_timeout, NULL},
    {"futex-requeue", SYS_futex, SYS_restart_syscall, requeue, wake_requeued},
    {"futex-inherit", SYS_futex, 0, lock, unlock},
    {"futex-waitv", SYS_futex_waitv, 0, many, wake},
};
int main(int argc, char **argv)
{
    begin(argc, argv);
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&inherit, &a);
    if (is_mode("futex-inherit"))
        pthread_mutex_lock(&inherit);
    run_call(calls, sizeof calls / sizeof *calls);
}
