/* Owner signals: who gets SIGIO (or another signal) for a pipe, a socket and a FIFO: a process, a thread, a group. */
#include "check.h"
#include <sys/socket.h>

static volatile sig_atomic_t got_io, got_rt, rt_fd, rt_tid, got_usr;
static void on_io(int n UNUSED) { got_io++; }
static void on_rt(int n UNUSED, siginfo_t *info, void *u UNUSED)
{
    got_rt++;
    rt_fd = info->si_fd;
    rt_tid = gettid();
}
static void on_usr(int n UNUSED) { got_usr++; }
static pid_t tid;
static void *other(void *u UNUSED)
{
    tid = gettid();
    for (;;)
        short_sleep();
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    signal(SIGIO, on_io);
    signal(SIGUSR1, on_usr);
    struct sigaction act = {.sa_sigaction = on_rt, .sa_flags = SA_SIGINFO};
    sigaction(SIGRTMIN + 3, &act, NULL);
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, other, NULL) == 0);
    UNTIL(tid, 5, "thread");
    int plain[2], to_thread[2], quiet[2], group[2];
    MUST(pipe(plain) == 0 && pipe(to_thread) == 0 && pipe(quiet) == 0 && pipe(group) == 0);
    MUST(fcntl(plain[0], F_SETOWN, getpid()) == 0 && fcntl(plain[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0);
    struct f_owner_ex ex = {F_OWNER_TID, tid};
    MUST(fcntl(to_thread[0], F_SETOWN_EX, &ex) == 0 && fcntl(to_thread[0], F_SETSIG, SIGRTMIN + 3) == 0);
    MUST(fcntl(to_thread[0], F_SETFL, O_ASYNC) == 0);
    MUST(fcntl(quiet[0], F_SETOWN, getpid()) == 0 && fcntl(quiet[0], F_SETSIG, SIGUSR1) == 0);
    MUST(fcntl(group[0], F_SETOWN, -getpgrp()) == 0 && fcntl(group[0], F_SETSIG, SIGUSR1) == 0);
    MUST(fcntl(group[0], F_SETFL, O_ASYNC) == 0);
    ready();
    wait_go();
    if (WRONG(1))
        fcntl(plain[0], F_SETFL, O_NONBLOCK);
    if (WRONG(2))
        fcntl(to_thread[0], F_SETSIG, 0);
    SAME(got_io, 0, "SIGIO before anything");
    MUST(write(plain[1], "x", 1) == 1);
    UNTIL(got_io == 1, 2, "SIGIO");
    MUST(write(to_thread[1], "x", 1) == 1);
    UNTIL(got_rt == 1, 2, "the signal to the thread");
    SAME(rt_fd, to_thread[0], "descriptor of the signal");
    SAME(rt_tid, tid, "thread of the signal");
    MUST(write(quiet[1], "x", 1) == 1);
    SAME(got_usr, 0, "a signal that was not asked for");
    SAME(fcntl(quiet[0], F_GETOWN), getpid(), "owner");
    SAME(fcntl(quiet[0], F_GETSIG), SIGUSR1, "signal");
    SAME(fcntl(group[0], F_GETOWN), -getpgrp(), "owner");
    MUST(write(group[1], "x", 1) == 1);
    UNTIL(got_usr == 1, 2, "the signal to the group");
    SAME(fcntl(plain[0], F_GETFL) & (O_ASYNC | O_NONBLOCK), O_ASYNC | O_NONBLOCK, "flags");
    ok();
}
