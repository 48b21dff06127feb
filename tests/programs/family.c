/* Children that are not simply running: zombies (exit codes, deaths by signal, with and without a core), stopped ones
 * (not yet and already reported), orphans adopted by a subreaper, leaderless groups, vanished session leaders. */
#include "check.h"

static pid_t spawn(void (*body)(void))
{
    pid_t pid = fork();
    MUST(pid >= 0);
    if (!pid) {
        body();
        _exit(0);
    }
    return pid;
}
static atomic_int *finish;
struct orphan {
    pid_t pid, pgid, sid;
    atomic_int there, done;
};
static struct orphan *orphans;

static void exits_7(void) { _exit(7); }
static void exits_0(void) { _exit(0); }
static void dies(void)
{
    raise(SIGKILL);
}
static void dies_abort(void)
{
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    signal(SIGABRT, SIG_DFL);
    raise(SIGABRT);
}
static void stops(void)
{
    raise(SIGSTOP);
    for (;;)
        pause();
}
static atomic_int *continued; /* so often has it been told that it goes on */
static void count_continued(int number)
{
    (void)number;
    ++*continued;
}
static void goes_on(void)
{
    signal(SIGCONT, count_continued);
    stops();
}
static void idle(void)
{
    for (;;)
        pause();
}

static void orphan_body(int k)
{
    orphans[k].pid = getpid();
    orphans[k].pgid = getpgrp();
    orphans[k].sid = getsid(0);
    orphans[k].there = 1;
    while (!*finish)
        short_sleep();
    SAME(getpid(), orphans[k].pid, "pid of an orphan");
    SAME(getppid(), *(pid_t *)(finish + 1), "parent of an orphan (the subreaper)");
    SAME(getpgrp(), orphans[k].pgid, "group of an orphan");
    SAME(getsid(0), orphans[k].sid, "session of an orphan");
    orphans[k].done = 1;
    _exit(60 + k);
}

static void make_orphan(int k)
{
    /* middle ends at once, its child goes to this process, which is a subreaper */
    pid_t middle = fork();
    if (!middle) {
        if (k == 1)
            setsid(); /* session whose leader is gone */
        if (k == 2)
            setpgid(0, 0); /* group whose leader is gone */
        if (!fork())
            orphan_body(k);
        _exit(0);
    }
    int status;
    MUST(waitpid(middle, &status, 0) == middle);
    UNTIL(orphans[k].there, 10, "orphan");
}

static void wait_state(pid_t pid, char want)
{
    UNTIL(state_of(pid) == want, 10, "state of a child");
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    finish = shared_memory(4096);
    orphans = shared_memory(4096);
    continued = shared_memory(4096);
    *(pid_t *)(finish + 1) = getpid();
    prctl(PR_SET_CHILD_SUBREAPER, 1);

    pid_t seven = spawn(exits_7), zero = spawn(exits_0), killed = spawn(dies), aborted = spawn(dies_abort);
    pid_t stopped = spawn(stops), reported = spawn(stops), running = spawn(idle), grouped = spawn(exits_7);
    pid_t going = spawn(goes_on), known = spawn(goes_on); /* nobody has waited for it, or the parent has */
    setpgid(grouped, running); /* may come late for it; what counts is what is seen below */
    wait_state(seven, 'Z');
    wait_state(zero, 'Z');
    wait_state(killed, 'Z');
    wait_state(aborted, 'Z');
    wait_state(grouped, 'Z');
    wait_state(stopped, 'T');
    wait_state(reported, 'T');
    int status;
    MUST(waitpid(reported, &status, WUNTRACED) == reported && WIFSTOPPED(status));
    wait_state(going, 'T');
    wait_state(known, 'T');
    kill(going, SIGCONT);
    kill(known, SIGCONT);
    MUST(waitpid(known, &status, WCONTINUED) == known && WIFCONTINUED(status));
    UNTIL(*continued == 2, 10, "children that go on");
    wait_state(going, 'S');
    for (int k = 0; k < 3; k++)
        make_orphan(k);
    pid_t group_before = getpgid(seven);
    if (WRONG(1))
        MUST(waitpid(seven, &status, 0) == seven);
    if (WRONG(2))
        kill(stopped, SIGCONT);
    if (WRONG(3))
        kill(running, SIGKILL);
    if (WRONG(4))
        MUST(waitpid(going, &status, WCONTINUED) == going);
    ready();
    wait_go();

    SAME(state_of(seven), WRONG(1) ? 'Z' : 'Z', "state of the first zombie");
    SAME(state_of(stopped), 'T', "state of a stopped child");
    SAME(state_of(reported), 'T', "state of another stopped child");
    UNTIL(state_of(running) == 'S', 10, "state of a running child"); /* for a moment it runs on its way back into pause */
    SAME(getpgid(seven), group_before, "group of a zombie");
    SAME(waitpid(seven, &status, 0), seven, "zombie");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "exit code 7 became %#x", status);
    siginfo_t info;
    memset(&info, 0, sizeof info);
    CHECK(waitid(P_PID, zero, &info, WEXITED | WNOWAIT) == 0, "waitid");
    SAME(info.si_code, CLD_EXITED, "code");
    SAME(info.si_status, 0, "status");
    SAME(info.si_pid, zero, "pid in siginfo");
    SAME(info.si_uid, getuid(), "uid in siginfo");
    SAME(waitpid(zero, &status, 0), zero, "zombie");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "exit code 0 became %#x", status);
    SAME(waitpid(killed, &status, 0), killed, "zombie");
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "death by SIGKILL became %#x", status);
    SAME(waitpid(aborted, &status, 0), aborted, "zombie");
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "death by SIGABRT became %#x", status);
    SAME(waitpid(grouped, &status, 0), grouped, "zombie");

    SAME(waitpid(reported, &status, WUNTRACED | WNOHANG), 0, "a stop that had been reported already");
    SAME(waitpid(stopped, &status, WUNTRACED | WNOHANG), stopped, "a stop that had not been reported yet");
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP, "stop became %#x", status);
    SAME(waitpid(running, &status, WUNTRACED | WCONTINUED | WNOHANG), 0, "a running child has something to report");
    SAME(waitpid(going, &status, WUNTRACED | WCONTINUED | WNOHANG), going, "a child goes on, which was not reported yet");
    CHECK(WIFCONTINUED(status), "that it goes on became %#x", status);
    SAME(waitpid(going, &status, WUNTRACED | WCONTINUED | WNOHANG), 0, "it goes on once more");
    SAME(waitpid(known, &status, WUNTRACED | WCONTINUED | WNOHANG), 0, "a child goes on, which had been reported");
    SAME(*continued, 2, "signals that told of it");
    kill(stopped, SIGCONT);
    SAME(waitpid(stopped, &status, WCONTINUED), stopped, "continue");
    CHECK(WIFCONTINUED(status), "continue became %#x", status);
    pid_t ends[] = {stopped, reported, running, going, known};
    for (int i = 0; i < 5; i++) {
        kill(ends[i], SIGKILL);
        UNTIL((waitpid(ends[i], &status, WUNTRACED | WNOHANG) == ends[i]) && WIFSIGNALED(status), 10, "end of a child");
    }
    int reaper = 0;
    prctl(PR_GET_CHILD_SUBREAPER, &reaper);
    SAME(reaper, 1, "subreaper");
    *finish = 1;
    for (int k = 0; k < 3; k++) {
        SAME(waitpid(orphans[k].pid, &status, 0), orphans[k].pid, "orphan is ours to reap");
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 60 + k, "orphan ended with %#x", status);
        SAME(orphans[k].done, 1, "orphan verified");
    }
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a child more than there was");
    ok();
}
