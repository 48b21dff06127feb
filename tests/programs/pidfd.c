/* pidfds: of a running child, of a zombie, of a child that has been waited for, of the parent, of a shared
 * description, with flags; epoll on one. */
#include "check.h"
#include <sys/epoll.h>
#include <sys/pidfd.h>

#define OPEN(pid, flags) ((int)syscall(SYS_pidfd_open, pid, flags))
static int ready_now(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};
    MUST(poll(&p, 1, 0) >= 0);
    return !!(p.revents & POLLIN);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    pid_t gone = fork();
    if (gone == 0)
        _exit(0);
    int of_gone = OPEN(gone, 0);
    MUST(of_gone >= 0 && waitpid(gone, NULL, 0) == gone);
    pid_t zombie = fork();
    if (zombie == 0)
        _exit(7);
    int of_zombie = OPEN(zombie, O_NONBLOCK);
    MUST(of_zombie >= 0);
    UNTIL(ready_now(of_zombie), 5, "zombie");
    int of_self = OPEN(getpid(), 0);
    MUST(of_self >= 0);
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
            /* The inherited pidfd is of the parent. */
            if (syscall(SYS_pidfd_send_signal, of_self, 0, NULL, 0) != 0)
                _exit(3);
            short_sleep();
        }
    }
    int of_child = OPEN(child, O_NONBLOCK), shared = dup(of_child);
    int set = epoll_create1(0);
    struct epoll_event e = {EPOLLIN, {.u64 = 99}};
    MUST(of_child >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, of_child, &e) == 0);
    ready();
    wait_go();
    if (WRONG(1))
        kill(child, SIGKILL), short_sleep();
    CHECK(ready_now(of_gone) && ready_now(of_zombie) && !ready_now(of_child) && !ready_now(of_self), "readiness");
    SAME(syscall(SYS_pidfd_send_signal, of_gone, 0, NULL, 0), -1, "signal to one that is gone");
    SAME(errno, ESRCH, "signal to one that is gone");
    siginfo_t info;
    SAME(waitid(P_PIDFD, of_gone, &info, WEXITED), -1, "wait for one that is gone");
    SAME(fcntl(of_child, F_GETFL) & O_NONBLOCK, O_NONBLOCK, "flags");
    SAME(fcntl(of_self, F_GETFL) & O_NONBLOCK, 0, "flags");
    SAME(syscall(SYS_kcmp, getpid(), getpid(), 0, of_child, shared), 0, "one description");
    SAME(waitid(P_PIDFD, of_child, &info, WEXITED), -1, "wait without blocking");
    SAME(errno, EAGAIN, "wait without blocking");
    memset(&info, 0, sizeof info);
    MUST(waitid(P_PIDFD, of_zombie, &info, WEXITED) == 0);
    SAME(info.si_pid, zombie, "zombie");
    SAME(info.si_status, 7, "status of the zombie");
    SAME(epoll_wait(set, &e, 1, 0), 0, "epoll");
    MUST(syscall(SYS_pidfd_send_signal, shared, SIGTERM, NULL, 0) == 0);
    SAME(epoll_wait(set, &e, 1, 5000), 1, "epoll");
    SAME(e.data.u64, 99, "epoll");
    MUST(waitid(P_PIDFD, of_child, &info, WEXITED) == 0);
    SAME(info.si_pid, child, "child");
    SAME(info.si_status, SIGTERM, "end of the child");
    ok();
}
