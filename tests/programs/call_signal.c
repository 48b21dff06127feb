/* Waiting for a signal: pause, sigsuspend, sigwaitinfo, sigtimedwait; in a thread of its own. */
#include "calls.h"

static atomic_int handled;
static sigset_t usr1;

static void handler(int number)
{
    (void)number;
    handled++;
}
static void wake(void) { MUST(syscall(SYS_tgkill, getpid(), subject_tid, SIGUSR1) == 0); }

static void after_handler(long got)
{
    CHECK(got == -1 && errno == EINTR, "%s returned %ld", current->name, got);
    SAME(handled, 1, "handlers that ran");
    check_woken();
}
static void do_pause(void) { after_handler(syscall(SYS_pause)); }
static void do_suspend(void)
{
    sigset_t now_mask, mask;
    block_signal(SIGUSR1);
    sigemptyset(&mask);
    sigaddset(&mask, SIGHUP);
    after_handler(sigsuspend(&mask));
    pthread_sigmask(SIG_BLOCK, NULL, &now_mask);
    CHECK(sigismember(&now_mask, SIGUSR1) && !sigismember(&now_mask, SIGHUP), "mask after sigsuspend");
}
static void wait_info(const struct timespec *t)
{
    siginfo_t i;
    block_signal(SIGUSR1);
    memset(&i, 0, sizeof i);
    SAME(syscall(SYS_rt_sigtimedwait, &usr1, &i, t, 8), SIGUSR1, "the signal waited for");
    SAME(i.si_code, SI_TKILL, "code");
    SAME(i.si_pid, getpid(), "sender");
    check_woken();
    SAME(handled, 0, "handlers that ran");
}
static void do_wait_info(void) { wait_info(NULL); }
static void do_timed_wait(void) { wait_info(&long_span); }
static void do_timeout(void)
{
    block_signal(SIGUSR1);
    int got = sigtimedwait(&usr1, NULL, &span);
    CHECK(got == -1 && errno == EAGAIN, "sigtimedwait returned %d", got);
    check_span(SPAN + WRONG(1));
}
static const struct call calls[] = {
    {"pause", SYS_pause, 0, do_pause, wake},
    {"sigsuspend", SYS_rt_sigsuspend, 0, do_suspend, wake},
    {"sigwaitinfo", SYS_rt_sigtimedwait, 0, do_wait_info, wake},
    {"sigtimedwait", SYS_rt_sigtimedwait, 0, do_timed_wait, wake},
    {"sigtimedwait-timeout", SYS_rt_sigtimedwait, 0, do_timeout, NULL},
};
int main(int argc, char **argv)
{
    begin(argc, argv);
    struct sigaction a = {.sa_handler = handler};
    MUST(sigaction(SIGUSR1, &a, NULL) == 0);
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    run_call(calls, sizeof calls / sizeof *calls);
}
