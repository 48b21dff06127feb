/* Timers: setitimer of three kinds, POSIX timers of every clock and kind of notification (ids, overruns, remaining
 * time, disarmed ones), timerfds (clocks, absolute, periodic, expirations not yet read), alarm. What is left of each
 * goes on from where it was: nothing fires early, nothing fires for the time in which the job did not exist, except
 * timers of the wall clock. */
#include "check.h"
#include <sys/timerfd.h>

static timer_t far_timer, periodic, blocked, by_thread, cpu_timer, disarmed, silent;
static volatile sig_atomic_t ticks, alarms, thread_value;
static volatile int periodic_value;
static int fd_mono, fd_real, fd_boot, fd_unread, fd_idle, fd_flags;
static pid_t receiver;
static double start;

static void on_tick(int n, siginfo_t *i, void *c)
{
    (void)n, (void)c;
    CHECK(i->si_code == SI_TIMER, "code of a timer's signal: %d", i->si_code);
    periodic_value = i->si_value.sival_int;
    ticks++;
}
static void on_thread(int n, siginfo_t *i, void *c)
{
    (void)n, (void)c;
    CHECK(gettid() == receiver, "timer's signal went to thread %d", (int)gettid());
    thread_value = i->si_value.sival_int;
}
static void on_alarm(int n)
{
    (void)n;
    alarms++;
}
static double seconds(const struct timespec *t) { return t->tv_sec + t->tv_nsec / 1e9; }
static double left_of(timer_t t)
{
    struct itimerspec s;
    MUST(timer_gettime(t, &s) == 0);
    return seconds(&s.it_value);
}
static timer_t make(clockid_t clock, int notify, int number, int value, double first, double period)
{
    struct sigevent e;
    memset(&e, 0, sizeof e);
    e.sigev_notify = notify;
    e.sigev_signo = number;
    e.sigev_value.sival_int = value;
    if (notify == SIGEV_THREAD_ID)
        e._sigev_un._tid = receiver;
    timer_t t;
    MUST(timer_create(clock, &e, &t) == 0);
    struct itimerspec s = {{(long)period, (long)((period - (long)period) * 1e9)},
                           {(long)first, (long)((first - (long)first) * 1e9)}};
    MUST(timer_settime(t, 0, &s, NULL) == 0);
    return t;
}
static int make_fd(clockid_t clock, int flags, int how, double first, double period)
{
    int fd = timerfd_create(clock, flags);
    MUST(fd >= 0);
    if (how & TFD_TIMER_ABSTIME)
        first += now(clock);
    struct itimerspec s = {{(long)period, (long)((period - (long)period) * 1e9)},
                           {(long)first, (long)((first - (long)first) * 1e9)}};
    MUST(timerfd_settime(fd, how, &s, NULL) == 0);
    return fd;
}
static double fd_left(int fd)
{
    struct itimerspec s;
    MUST(timerfd_gettime(fd, &s) == 0);
    return seconds(&s.it_value);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    struct sigaction a = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART};
    MUST(sigaction(SIGRTMIN, &a, NULL) == 0);
    a.sa_sigaction = on_thread;
    MUST(sigaction(SIGRTMIN + 1, &a, NULL) == 0);
    struct sigaction b = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGALRM, &b, NULL) == 0 && sigaction(SIGPROF, &b, NULL) == 0);
    signal(SIGVTALRM, SIG_IGN);
    receiver = gettid();
    block_signal(SIGRTMIN + 2);

    /* ids: some are deleted so that those that remain are not 0, 1, 2 ... */
    timer_t gaps[5];
    for (int i = 0; i < 5; i++)
        gaps[i] = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0, 0);
    for (int i = 0; i < 4; i++)
        MUST(timer_delete(gaps[i]) == 0);
    start = mono();
    far_timer = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 5, 1, 1000, 0);
    periodic = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN, 4242, 0.01, 0.01);
    blocked = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 2, 77, 0.005, 0.005);
    by_thread = make(CLOCK_BOOTTIME, SIGEV_THREAD_ID, SIGRTMIN + 1, 99, 0.5, 0);
    cpu_timer = make(CLOCK_PROCESS_CPUTIME_ID, SIGEV_NONE, 0, 0, 5000, 0);
    disarmed = make(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 6, 5, 0, 0);
    silent = make(CLOCK_REALTIME, SIGEV_NONE, 0, 0, 2000, 3);
    struct itimerval real = {{100, 0}, {500, 0}}, virtual = {{1, 500000}, {300, 0}}, prof = {{0, 20000}, {400, 0}};
    MUST(setitimer(ITIMER_REAL, &real, NULL) == 0 && setitimer(ITIMER_VIRTUAL, &virtual, NULL) == 0);
    MUST(setitimer(ITIMER_PROF, &prof, NULL) == 0);
    fd_mono = make_fd(CLOCK_MONOTONIC, 0, 0, 700, 7);
    fd_real = make_fd(CLOCK_REALTIME, TFD_CLOEXEC, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, 1700, 0);
    fd_boot = make_fd(CLOCK_BOOTTIME, TFD_NONBLOCK, TFD_TIMER_ABSTIME, 800, 0);
    fd_unread = make_fd(CLOCK_MONOTONIC, TFD_NONBLOCK, 0, 0.001, 0.001);
    fd_idle = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    fd_flags = fcntl(fd_boot, F_GETFL);
    UNTIL(ticks > 3 && mono() > start + 0.06, 10, "ticks");
    struct itimerspec off = {{0, 0}, {0, 0}};
    MUST(timerfd_settime(fd_unread, 0, &off, NULL) == 0);
    struct itimerspec slow = {{900, 0}, {0, 1000000}}; /* fires once and then not for a long time: one to be read */
    MUST(timerfd_settime(fd_unread, 0, &slow, NULL) == 0);
    struct pollfd p = {fd_unread, POLLIN, 0};
    MUST(poll(&p, 1, 5000) == 1);
    if (WRONG(1))
        timer_delete(far_timer);
    if (WRONG(2))
        MUST(timer_settime(periodic, 0, &off, NULL) == 0);
    if (WRONG(3)) {
        uint64_t v;
        MUST(read(fd_unread, &v, 8) == 8);
    }
    ready();
    wait_go();

    struct itimerspec s;
    double passed = mono() - start;
    if (WRONG(4))
        passed += 20;
    CHECK(passed < 120, "the monotonic clock jumped by %.1f s", passed);
#define LEFT(what, left, whole)                                                                                        \
    do {                                                                                                               \
        double l_ = (left), expected_ = (whole) - passed;                                                              \
        CHECK(l_ < expected_ + 1.5 && l_ > expected_ - 1.5, "%s: %.3f s left, expected %.3f s", what, l_, expected_);   \
    } while (0)
    SAME(timer_gettime(far_timer, &s), 0, "POSIX timer");
    LEFT("POSIX timer", left_of(far_timer), 1000);
    SAME(timer_gettime(silent, &s), 0, "POSIX timer");
    CHECK(s.it_interval.tv_sec == 3 && s.it_interval.tv_nsec == 0, "interval of a POSIX timer");
    CHECK(left_of(cpu_timer) > 4000 && left_of(cpu_timer) <= 5000, "timer of CPU time: %.3f s left", left_of(cpu_timer));
    CHECK(left_of(disarmed) == 0, "a disarmed timer is armed");
    SAME(timer_gettime(gaps[4], &s), 0, "POSIX timer with a gap before its id");
    for (int i = 0; i < 4; i++)
        CHECK(syscall(SYS_timer_gettime, (int)(intptr_t)gaps[i], &s) == -1 && errno == EINVAL, "a deleted timer is there");
    int before = ticks;
    UNTIL(ticks > before + 5, 10, "periodic timer goes on");
    SAME(periodic_value, 4242, "value of a timer's signal");
    /* periods count only while the job is: one tick at most for each 10 ms */
    CHECK(ticks <= (mono() - start) / 0.01 + 2, "%d ticks in %.3f s", (int)ticks, mono() - start);
    CHECK(ticks >= 5, "too few ticks");
    UNTIL(thread_value == 99, 10, "timer with a thread to notify");
    CHECK(mono() - start >= 0.4995, "timer with a thread to notify fired early");
    siginfo_t i;
    sigset_t set;
    double since = mono();
    UNTIL(mono() > since + 0.06, 5, "time for overruns");
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2);
    struct timespec soon = {5, 0};
    SAME(syscall(SYS_rt_sigtimedwait, &set, &i, &soon, 8), SIGRTMIN + 2, "blocked signal of a timer");
    SAME(i.si_value.sival_int, 77, "its value");
    double at_most = (mono() - start) / 0.005 + 2;
    CHECK(i.si_overrun >= 5 && i.si_overrun <= at_most, "overrun %d, expected 5 to %.0f", i.si_overrun, at_most);
    struct itimerval v;
    MUST(getitimer(ITIMER_REAL, &v) == 0);
    LEFT("ITIMER_REAL", v.it_value.tv_sec + v.it_value.tv_usec / 1e6, 500);
    SAME(v.it_interval.tv_sec, 100, "interval of ITIMER_REAL");
    MUST(getitimer(ITIMER_VIRTUAL, &v) == 0);
    CHECK(v.it_value.tv_sec > 200 && v.it_value.tv_sec <= 300, "ITIMER_VIRTUAL: %ld s left", (long)v.it_value.tv_sec);
    CHECK(v.it_interval.tv_sec == 1 && v.it_interval.tv_usec == 500000, "interval of ITIMER_VIRTUAL");
    MUST(getitimer(ITIMER_PROF, &v) == 0);
    CHECK(v.it_value.tv_sec > 300 && v.it_value.tv_sec <= 400, "ITIMER_PROF: %ld s left", (long)v.it_value.tv_sec);
    SAME(alarms, 0, "alarms");
    LEFT("timerfd", fd_left(fd_mono), 700);
    MUST(timerfd_gettime(fd_mono, &s) == 0);
    SAME(s.it_interval.tv_sec, 7, "interval of a timerfd");
    LEFT("timerfd of boot time", fd_left(fd_boot), 800);
    SAME(fcntl(fd_boot, F_GETFL), fd_flags, "flags of a timerfd");
    SAME(fcntl(fd_real, F_GETFD), FD_CLOEXEC, "close-on-exec of a timerfd");
    CHECK(fd_left(fd_real) > 0 && fd_left(fd_real) <= 1700, "timerfd of the wall clock: %.3f", fd_left(fd_real));
    uint64_t count = 0;
    SAME(read(fd_unread, &count, 8), 8, "a timerfd that had expired");
    SAME(count, 1, "expirations");
    SAME(read(fd_unread, &count, 8), -1, "a timerfd that has been read");
    CHECK(read(fd_idle, &count, 8) == -1 && errno == EAGAIN, "an idle timerfd has expired");
    SAME(timer_settime(periodic, 0, &off, NULL), 0, "disarm");
    SAME(timer_delete(far_timer), 0, "delete");
    struct itimerval one = {{0, 0}, {0, 20000}};
    MUST(setitimer(ITIMER_REAL, &one, NULL) == 0);
    UNTIL(alarms == 1, 5, "alarm");
    ok();
}
