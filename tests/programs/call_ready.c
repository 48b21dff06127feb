/* Waiting for descriptors: poll, ppoll, select, pselect, epoll; woken by data, or by their timeout. */
#include "calls.h"
#include <sys/epoll.h>
#include <sys/select.h>

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

static int ends[2], epoll;
static sigset_t mask;

static void write_byte(void) { MUST(write(ends[1], "x", 1) == 1); }

static void did_poll(long got, struct pollfd *p, int timeout)
{
    SAME(got, timeout ? 0 : 1, current->name);
    if (timeout) {
        SAME(p->revents, 0, "events at a timeout");
        check_span(SPAN + WRONG(1));
    } else {
        SAME(p->revents, POLLIN, "events");
        check_woken();
    }
}
static void do_poll(long milliseconds, int timeout)
{
    struct pollfd p = {ends[0], POLLIN, 0x55};
    did_poll(syscall(SYS_poll, &p, 1, milliseconds), &p, timeout);
}
static void do_ppoll(const struct timespec *t, int timeout)
{
    struct pollfd p = {ends[0], POLLIN, 0x55};
    did_poll(ppoll(&p, 1, t, &mask), &p, timeout);
    sigset_t now_mask;
    pthread_sigmask(SIG_BLOCK, NULL, &now_mask);
    CHECK(!sigismember(&now_mask, SIGUSR1), "the mask of ppoll stayed");
}
static void do_select(struct timeval *t, int timeout)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    SAME(syscall(SYS_select, ends[0] + 1, &set, NULL, NULL, t), !timeout, current->name);
    SAME(!!FD_ISSET(ends[0], &set), !timeout, "set");
    if (timeout)
        check_span(SPAN + WRONG(1));
    else
        check_woken();
}
static void do_pselect(const struct timespec *t, int timeout)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    SAME(pselect(ends[0] + 1, &set, NULL, NULL, t, &mask), !timeout, current->name);
    SAME(!!FD_ISSET(ends[0], &set), !timeout, "set");
    if (timeout)
        check_span(SPAN + WRONG(1));
    else
        check_woken();
}
static void did_epoll(long got, struct epoll_event *e, int timeout)
{
    SAME(got, !timeout, current->name);
    if (timeout)
        check_span(SPAN + WRONG(1));
    else {
        SAME(e->data.u64, 0xabcdef0123456789ull, "data of the event");
        SAME(e->events, EPOLLIN, "events");
        check_woken();
    }
}
static void poll_forever(void) { do_poll(-1, 0); }
static void poll_long(void) { do_poll(3600000, 0); }
static void poll_timeout(void) { do_poll((long)(SPAN * 1000), 1); }
static void ppoll_forever(void) { do_ppoll(NULL, 0); }
static void ppoll_long(void) { do_ppoll(&long_span, 0); }
static void ppoll_timeout(void) { do_ppoll(&span, 1); }
static void select_forever(void) { do_select(NULL, 0); }
static void select_long(void)
{
    struct timeval t = {3600, 0};
    do_select(&t, 0);
}
static void select_timeout(void)
{
    struct timeval t = {span.tv_sec, span.tv_nsec / 1000};
    do_select(&t, 1);
}
static void pselect_forever(void) { do_pselect(NULL, 0); }
static void pselect_timeout(void) { do_pselect(&span, 1); }
static void epoll_forever(void)
{
    struct epoll_event e[4];
    did_epoll(syscall(SYS_epoll_wait, epoll, e, 4, -1), e, 0);
}
static void epoll_long(void)
{
    struct epoll_event e[4];
    did_epoll(syscall(SYS_epoll_wait, epoll, e, 4, 3600000), e, 0);
}
static void epoll_timeout(void)
{
    struct epoll_event e[4];
    did_epoll(syscall(SYS_epoll_wait, epoll, e, 4, (long)(SPAN * 1000)), e, 1);
}
static void epoll_pwait_forever(void)
{
    struct epoll_event e[4];
    did_epoll(epoll_pwait(epoll, e, 4, -1, &mask), e, 0);
}
static void epoll_pwait_timeout(void)
{
    struct epoll_event e[4];
    did_epoll(epoll_pwait(epoll, e, 4, (int)(SPAN * 1000), &mask), e, 1);
}
static void epoll_pwait2_forever(void)
{
    struct epoll_event e[4];
    did_epoll(syscall(SYS_epoll_pwait2, epoll, e, 4, NULL, &mask, 8), e, 0);
}
static void epoll_pwait2_timeout(void)
{
    struct epoll_event e[4];
    did_epoll(syscall(SYS_epoll_pwait2, epoll, e, 4, &span, &mask, 8), e, 1);
}

static const struct call calls[] = {
    {"poll", SYS_poll, SYS_restart_syscall, poll_forever, write_byte},
    {"poll-long", SYS_poll, SYS_restart_syscall, poll_long, write_byte},
    {"poll-timeout", SYS_poll, SYS_restart_syscall, poll_timeout, NULL},
    {"ppoll", SYS_ppoll, 0, ppoll_forever, write_byte},
    {"ppoll-long", SYS_ppoll, 0, ppoll_long, write_byte},
    {"ppoll-timeout", SYS_ppoll, 0, ppoll_timeout, NULL},
    {"select", SYS_select, 0, select_forever, write_byte},
    {"select-long", SYS_select, 0, select_long, write_byte},
    {"select-timeout", SYS_select, 0, select_timeout, NULL},
    {"pselect", SYS_pselect6, 0, pselect_forever, write_byte},
    {"pselect-timeout", SYS_pselect6, 0, pselect_timeout, NULL},
    {"epoll_wait", SYS_epoll_wait, 0, epoll_forever, write_byte},
    {"epoll_wait-long", SYS_epoll_wait, 0, epoll_long, write_byte},
    {"epoll_wait-timeout", SYS_epoll_wait, 0, epoll_timeout, NULL},
    {"epoll_pwait", SYS_epoll_pwait, 0, epoll_pwait_forever, write_byte},
    {"epoll_pwait-timeout", SYS_epoll_pwait, 0, epoll_pwait_timeout, NULL},
    {"epoll_pwait2", SYS_epoll_pwait2, 0, epoll_pwait2_forever, write_byte},
    {"epoll_pwait2-timeout", SYS_epoll_pwait2, 0, epoll_pwait2_timeout, NULL},
};

int main(int argc, char **argv)
{
    begin(argc, argv);
    MUST(pipe(ends) == 0);
    epoll = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 0xabcdef0123456789ull};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &e) == 0);
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    run_call(calls, sizeof calls / sizeof *calls);
}
