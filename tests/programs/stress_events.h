/* Events: counters, clocks, signals, watches. */
#include "stress.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

/* -- eventfd: n[0] what it counts, n[1] semaphore */

static void make_counter(struct thing *t)
{
    t->n[1] = one_in(2);
    t->fd[0] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC | (t->n[1] ? EFD_SEMAPHORE : 0));
    DO(t->fd[0] >= 0);
}

static void use_counter(struct thing *t)
{
    uint64_t value = below(1000);
    if (one_in(2)) {
        DO(write(t->fd[0], &value, 8) == 8);
        t->n[0] += value;
        return;
    }
    ssize_t n = read(t->fd[0], &value, 8);
    if (t->n[0] == 0) {
        DO(n == -1 && errno == EAGAIN);
        return;
    }
    EQUAL(n, 8, "read of an eventfd");
    EQUAL(value, t->n[1] ? 1 : t->n[0], "an eventfd");
    t->n[0] = t->n[1] ? t->n[0] - 1 : 0;
    fold(value);
}

static void end_counter(struct thing *t)
{
    use_counter(t);
    DO(close(t->fd[0]) == 0);
}

static const struct kind counter = {"eventfd", 8, make_counter, use_counter, end_counter};

/* -- epoll, nested, on eventfds: fd[0] epoll, fd[1], fd[2] eventfds, fd[3] the outer epoll or -1; n[0], n[1] are they ready */

static void make_poll(struct thing *t)
{
    DO((t->fd[0] = epoll_create1(EPOLL_CLOEXEC)) >= 0);
    t->fd[3] = -1;
    for (int i = 1; i < 3; i++) {
        struct epoll_event e = {.events = EPOLLIN | (i == 2 ? EPOLLOUT : 0), .data.u64 = t->id * 8 + i};
        DO((t->fd[i] = eventfd(0, EFD_CLOEXEC)) >= 0);
        DO(epoll_ctl(t->fd[0], EPOLL_CTL_ADD, t->fd[i], &e) == 0);
    }
    if (one_in(2)) {
        struct epoll_event e = {.events = EPOLLIN, .data.u64 = t->id};
        DO((t->fd[3] = epoll_create1(EPOLL_CLOEXEC)) >= 0);
        DO(epoll_ctl(t->fd[3], EPOLL_CTL_ADD, t->fd[0], &e) == 0);
    }
}

static void use_poll(struct thing *t)
{
    uint64_t one = 1;
    int i = below(2);
    if (one_in(2)) {
        if (t->n[i])
            DO(read(t->fd[1 + i], &one, 8) == 8 && one == 1);
        else
            DO(write(t->fd[1 + i], &one, 8) == 8);
        t->n[i] = !t->n[i];
        return;
    }
    struct epoll_event seen[4];
    if (t->fd[3] >= 0) {
        EQUAL(epoll_wait(t->fd[3], seen, 4, 1000), 1, "the outer epoll");
        EQUAL(seen[0].data.u64, t->id, "data of the outer epoll");
    }
    int n = epoll_wait(t->fd[0], seen, 4, 1000), found = 0;
    EQUAL(n, 1 + (t->n[0] != 0), "events of an epoll");
    for (int k = 0; k < n; k++) {
        int which = seen[k].data.u64 - t->id * 8;
        DO(which == 1 || which == 2);
        EQUAL(seen[k].events, (t->n[which - 1] ? EPOLLIN : 0) | (which == 2 ? EPOLLOUT : 0), "an event of an epoll");
        found += which; /* in whatever order */
    }
    EQUAL(found, n == 2 ? 3 : 2, "who is ready in an epoll");
    fold(n);
}

static void end_poll(struct thing *t)
{
    use_poll(t);
    for (int i = 0; i < 4; i++)
        if (t->fd[i] >= 0)
            DO(close(t->fd[i]) == 0);
}

static const struct kind polled = {"epoll", 6, make_poll, use_poll, end_poll};

/* -- timers: sort 0 timerfd, 1 POSIX timer with a signal, 2 POSIX timer without. n[0]: the earliest moment, in ns. */

static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME};

static uint64_t ns(clockid_t clock)
{
    struct timespec t;
    DO(clock_gettime(clock, &t) == 0);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void make_timer(struct thing *t)
{
    uint64_t after = 1000 + below(60000000);
    clockid_t clock = clocks[below(3)];
    struct itimerspec set = {.it_value = {after / 1000000000, after % 1000000000}};
    timer_t timer;
    t->sort = below(3);
    t->n[1] = clock;
    t->n[0] = ns(clock) + after;
    int absolute = one_in(2) && t->sort == 0;
    if (absolute)
        set.it_value = (struct timespec){t->n[0] / 1000000000, t->n[0] % 1000000000};
    if (t->sort == 0) {
        DO((t->fd[0] = timerfd_create(clock, TFD_CLOEXEC)) >= 0);
        DO(timerfd_settime(t->fd[0], absolute ? TFD_TIMER_ABSTIME : 0, &set, NULL) == 0);
        return;
    }
    struct sigevent how = {.sigev_notify = t->sort == 1 ? SIGEV_SIGNAL : SIGEV_NONE,
                           .sigev_signo = SIGRTMIN + 6,
                           .sigev_value.sival_ptr = (void *)t->id};
    DO(timer_create(clock, &how, &timer) == 0);
    t->more = timer;
    DO(timer_settime(timer, 0, &set, NULL) == 0);
}

/* A timer's signal, wherever it comes from: a bit for each thing that has got its own. */
static uint64_t rung[SLOTS];

static void hear_timers(void)
{
    sigset_t set;
    siginfo_t info;
    struct timespec none = {0, 0};
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 6);
    while (sigtimedwait(&set, &info, &none) > 0) {
        EQUAL(info.si_code, SI_TIMER, "where a timer's signal comes from");
        int found = 0;
        for (int i = 0; i < SLOTS; i++)
            if (things[i].kind && strcmp(things[i].kind->name, "timer") == 0 && things[i].sort == 1 &&
                things[i].id == (uint64_t)info.si_value.sival_ptr)
                found = 1, rung[i]++;
        CHECK(found, "a timer nobody has: %llu (worker %d round %llu)",
              (unsigned long long)info.si_value.sival_ptr, worker, (unsigned long long)round_now);
    }
}

static int has_rung(struct thing *t)
{
    struct itimerspec left;
    if (t->sort == 0) {
        struct pollfd p = {t->fd[0], POLLIN, 0};
        return poll(&p, 1, 0) == 1;
    }
    if (t->sort == 1) {
        hear_timers();
        return rung[t - things] != 0;
    }
    DO(timer_gettime(t->more, &left) == 0);
    return left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0;
}

static void use_timer(struct thing *t)
{
    /* A clock that stood still between two looks may not have moved on since; it never goes early. */
    if (has_rung(t))
        CHECK(ns(t->n[1]) + 1000000 >= t->n[0], "a timer of sort %d clock %d rang %lld ns early (worker %d round %llu)",
              t->sort, (int)t->n[1], (long long)(t->n[0] - ns(t->n[1])), worker, (unsigned long long)round_now);
}

static void end_timer(struct thing *t)
{
    UNTIL(has_rung(t), 30, "a timer");
    use_timer(t);
    if (t->sort == 0) {
        uint64_t value;
        DO(read(t->fd[0], &value, 8) == 8);
        EQUAL(value, 1, "ticks of a timerfd");
        DO(close(t->fd[0]) == 0);
    } else
        DO(timer_delete(t->more) == 0);
    rung[t - things] = 0;
    fold(1);
}

static const struct kind timer = {"timer", 8, make_timer, use_timer, end_timer};

/* -- signals that wait: queued with a value, taken in order. sort 0 sigtimedwait, 1 signalfd. One thing per signal. */

static void make_signals(struct thing *t)
{
    static uint64_t next;
    sigset_t set;
    t->n[2] = SIGRTMIN + 8 + next++ % 16;
    for (struct thing *other = things; other < things + SLOTS; other++)
        if (other->kind && other->kind->make == make_signals && other->n[2] == t->n[2])
            t->n[2] = 0; /* somebody has it: this one does nothing */
    t->sort = below(2);
    sigemptyset(&set);
    if (t->n[2])
        sigaddset(&set, t->n[2]);
    DO((t->fd[0] = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)) >= 0);
}

static void take_signal(struct thing *t)
{
    uint64_t value;
    if (t->sort == 0) {
        sigset_t set;
        siginfo_t info;
        struct timespec none = {0, 0};
        sigemptyset(&set);
        sigaddset(&set, t->n[2]);
        EQUAL(sigtimedwait(&set, &info, &none), t->n[2], "a signal that waits");
        EQUAL(info.si_code, SI_QUEUE, "a signal's code");
        EQUAL(info.si_pid, getpid(), "a signal's sender");
        value = (uint64_t)info.si_value.sival_ptr;
    } else {
        struct signalfd_siginfo info;
        EQUAL(read(t->fd[0], &info, sizeof info), sizeof info, "read of a signalfd");
        EQUAL(info.ssi_signo, t->n[2], "signal of a signalfd");
        value = info.ssi_ptr;
    }
    EQUAL(value, t->id * 100 + t->n[0], "a signal's value");
    t->n[0]++;
    fold(value);
}

static void use_signals(struct thing *t)
{
    if (!t->n[2])
        return;
    if (one_in(2) && t->n[1] - t->n[0] < 5) {
        union sigval value = {.sival_ptr = (void *)(t->id * 100 + t->n[1]++)};
        DO(sigqueue(getpid(), t->n[2], value) == 0);
    } else if (t->n[0] < t->n[1])
        take_signal(t);
}

static void end_signals(struct thing *t)
{
    while (t->n[2] && t->n[0] < t->n[1])
        take_signal(t);
    DO(close(t->fd[0]) == 0);
}

static const struct kind signals = {"signals", 6, make_signals, use_signals, end_signals};

/* -- inotify: a folder is watched; of what happened between checkpoint and restart nothing is known, and what had not been
   read has become an overflow: both documented. So: an event that is asked for is there, or an overflow is. */

static void make_watch(struct thing *t)
{
    sprintf(t->path, "d.%d.%llu", worker, (unsigned long long)t->id);
    DO(mkdir(t->path, 0700) == 0 || errno == EEXIST);
    DO((t->fd[0] = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)) >= 0);
    t->n[0] = inotify_add_watch(t->fd[0], t->path, IN_CLOSE_WRITE);
    DO((int)t->n[0] > 0);
}

static void use_watch(struct thing *t)
{
    char name[128], room[8192] __attribute__((aligned(8)));
    sprintf(name, "%s/%llu", t->path, (unsigned long long)t->n[1]++);
    int fd = open(name, O_CREAT | O_WRONLY | O_CLOEXEC | O_TRUNC, 0600);
    DO(fd >= 0 && close(fd) == 0);
    if (one_in(2))
        return;
    ssize_t n = read(t->fd[0], room, sizeof room);
    CHECK(n > 0, "no event of an inotify (worker %d round %llu)", worker, (unsigned long long)round_now);
    for (ssize_t at = 0; at < n;) {
        struct inotify_event *e = (void *)(room + at);
        DO(e->mask & IN_Q_OVERFLOW || (e->wd == (int)t->n[0] && e->mask == IN_CLOSE_WRITE));
        at += sizeof *e + e->len;
    }
}

static void end_watch(struct thing *t) { DO(close(t->fd[0]) == 0); }

static const struct kind watch = {"inotify", 3, make_watch, use_watch, end_watch};
