/* Waiting for children and threads: wait4, waitid, join, vfork. */
#include "calls.h"

static pid_t child;
static pthread_t thread;
static atomic_int *let_go;

static void wake(void) { *let_go = 1; }

static void child_body(void)
{
    while (!*let_go)
        short_sleep();
    _exit(33);
}
static void do_wait4(void)
{
    int status = 0;
    struct rusage usage;
    SAME(wait4(child, &status, 0, &usage), child, "wait4");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 33, "status %#x", status);
    check_woken();
}
static void do_wait_any(void)
{
    int status = 0;
    SAME(waitpid(-1, &status, WUNTRACED), child, "waitpid");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 33, "status %#x", status);
    check_woken();
}
static void do_waitid(void)
{
    siginfo_t i;
    memset(&i, 0, sizeof i);
    SAME(waitid(P_PID, child, &i, WEXITED), 0, "waitid");
    SAME(i.si_pid, child, "pid");
    SAME(i.si_status, 33, "status");
    SAME(i.si_code, CLD_EXITED, "code");
    check_woken();
}
static void *body(void *arg)
{
    while (!*let_go)
        short_sleep();
    return arg;
}
static void do_join(void)
{
    void *result = NULL;
    SAME(pthread_join(thread, &result), 0, "join");
    CHECK(result == (void *)77, "result of a thread");
    check_woken();
}
static const struct call calls[] = {
    {"wait4", SYS_wait4, 0, do_wait4, wake},
    {"waitpid-any", SYS_wait4, 0, do_wait_any, wake},
    {"waitid", SYS_waitid, 0, do_waitid, wake},
    {"join", SYS_futex, 0, do_join, wake},
};
int main(int argc, char **argv)
{
    begin(argc, argv);
    if (mode_count == 0 || is_mode("list"))
        run_call(calls, sizeof calls / sizeof *calls);
    let_go = shared_memory(4096);
    if (is_mode("join"))
        MUST(pthread_create(&thread, NULL, body, (void *)77) == 0);
    else if ((child = fork()) == 0)
        child_body();
    run_call(calls, sizeof calls / sizeof *calls);
}
