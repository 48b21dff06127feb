/* Dispositions (handlers, flags, masks), blocked masks of each thread, pending signals of each thread and of the
 * process with their siginfo, queued real-time signals with values and order, alternate stacks. */
#include "check.h"

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif

#define THREADS 3
static atomic_int there, finish, seen[65];
static pid_t tids[THREADS];
static sigset_t masks[THREADS];
static unsigned char stacks[THREADS][32768] __attribute__((aligned(4096)));

static void handler(int number) { seen[number]++; }
static void handler_info(int number, siginfo_t *i, void *c) { seen[number] += i && c ? 1 : 1; }

/* As the kernel has it, with flags and restorer, which the C library hides. */
struct kernel_action {
    void *handler;
    unsigned long flags;
    void *restorer;
    uint64_t mask;
};
static struct kernel_action actions[65];

static void get_actions(struct kernel_action *out)
{
    for (int n = 1; n <= 64; n++)
        MUST(syscall(SYS_rt_sigaction, n, NULL, &out[n], 8) == 0);
}

static uint64_t waiting(const char *what)
{
    char text[64], path[64];
    snprintf(path, sizeof path, "/proc/thread-self/status");
    status_field(path, what, text, sizeof text);
    return strtoull(text, NULL, 16);
}

static void queue(pid_t tid, int number, int code, int value)
{
    siginfo_t i;
    memset(&i, 0, sizeof i);
    i.si_signo = number;
    i.si_code = code;
    i.si_pid = getpid() + 100000; /* whatever the sender said has to be kept */
    i.si_uid = 4242;
    i.si_value.sival_ptr = (void *)(0x1234567800000000ul + value);
    if (tid)
        MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, number, &i) == 0);
    else
        MUST(syscall(SYS_rt_sigqueueinfo, getpid(), number, &i) == 0);
}

static void expect(int number, int code, int value)
{
    siginfo_t i;
    sigset_t set;
    struct timespec none = {0, 0};
    sigemptyset(&set);
    sigaddset(&set, number);
    memset(&i, 0xee, sizeof i);
    long got = syscall(SYS_rt_sigtimedwait, &set, &i, &none, 8); /* not the C library, which changes codes */
    SAME(got, number, "pending signal");
    SAME(i.si_code, code, "code");
    if (code == SI_USER || code == SI_TKILL) {
        SAME(i.si_pid, getpid(), "sender");
        SAME(i.si_uid, getuid(), "sender's uid");
        return;
    }
    SAME(i.si_pid, getpid() + 100000, "sender");
    SAME(i.si_uid, 4242, "sender's uid");
    SAME((long)i.si_value.sival_ptr, 0x1234567800000000l + value, "value");
}

static void expect_none(int number)
{
    sigset_t set;
    struct timespec none = {0, 0};
    sigemptyset(&set);
    sigaddset(&set, number);
    CHECK(sigtimedwait(&set, NULL, &none) == -1 && errno == EAGAIN, "signal %d is pending once too often", number);
}

static void verify(int me)
{
    sigset_t mask;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    for (int n = 1; n <= 64; n++)
        CHECK(sigismember(&mask, n) == sigismember(&masks[me], n), "mask of thread %d: signal %d", me, n);
    stack_t s;
    sigaltstack(NULL, &s);
    CHECK(s.ss_sp == stacks[me] && s.ss_size == sizeof stacks[me] - 4096ul * me, "alternate stack of thread %d", me);
    SAME(s.ss_flags, me == 1 ? (int)SS_AUTODISARM : 0, "flags of the alternate stack");
    /* own queue, in the order of sending for one number */
    SAME(waiting("SigPnd") >> (SIGRTMIN + 5 - 1) & 1, 1, "a thread's own pending signal");
    expect(SIGUSR2, SI_TKILL, 0);
    expect_none(SIGUSR2);
    for (int k = 0; k < 5; k++)
        expect(SIGRTMIN + 5, SI_QUEUE, 1000 * me + k);
    expect_none(SIGRTMIN + 5);
    expect(SIGRTMIN + 6, -10 - me, me);
    expect_none(SIGRTMIN + 6);
}

static void prepare(int me)
{
    tids[me] = gettid();
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGCHLD);
    for (int n = SIGRTMIN; n <= SIGRTMIN + 6; n++)
        sigaddset(&set, n);
    sigaddset(&set, SIGRTMAX - me);
    MUST(pthread_sigmask(SIG_SETMASK, &set, NULL) == 0);
    sigprocmask(SIG_BLOCK, NULL, &masks[me]);
    stack_t s = {.ss_sp = stacks[me], .ss_size = sizeof stacks[me] - 4096 * me, .ss_flags = me == 1 ? (int)SS_AUTODISARM : 0};
    MUST(sigaltstack(&s, NULL) == 0);
    MUST(syscall(SYS_tgkill, getpid(), tids[me], SIGUSR2) == 0);
    for (int k = 0; k < 5; k++)
        queue(tids[me], SIGRTMIN + 5, SI_QUEUE, 1000 * me + k);
    queue(tids[me], SIGRTMIN + 6, -10 - me, me);
    there++;
}

static void *work(void *arg)
{
    prepare((int)(long)arg);
    while (!finish)
        short_sleep();
    verify((int)(long)arg);
    return NULL;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_handler = handler;
    MUST(sigaction(SIGHUP, &a, NULL) == 0);
    a.sa_flags = SA_RESTART | SA_ONSTACK | SA_NOCLDSTOP | SA_NOCLDWAIT;
    sigaddset(&a.sa_mask, SIGTERM);
    sigaddset(&a.sa_mask, SIGRTMIN + 3);
    MUST(sigaction(SIGCHLD, &a, NULL) == 0);
    a.sa_flags = SA_SIGINFO | SA_NODEFER;
    a.sa_sigaction = handler_info;
    MUST(sigaction(SIGALRM, &a, NULL) == 0);
    a.sa_flags = SA_RESETHAND;
    a.sa_handler = handler;
    MUST(sigaction(SIGRTMAX - 20, &a, NULL) == 0);
    a.sa_handler = SIG_IGN;
    a.sa_flags = 0;
    MUST(sigaction(SIGINT, &a, NULL) == 0);
    MUST(sigaction(SIGRTMIN + 9, &a, NULL) == 0);
    a.sa_handler = SIG_DFL;
    a.sa_flags = SA_RESTART; /* flags without a handler */
    MUST(sigaction(SIGWINCH, &a, NULL) == 0);
    prepare(0);
    pthread_t t[THREADS];
    for (long i = 1; i < THREADS; i++)
        MUST(pthread_create(&t[i], NULL, work, (void *)i) == 0);
    UNTIL(there == THREADS, 10, "threads");
    /* the process' own queue: SIGUSR1 once although sent twice, SIGRTMIN+1 ten times, in order */
    MUST(kill(getpid(), SIGUSR1) == 0 && kill(getpid(), SIGUSR1) == 0);
    for (int k = 0; k < 10; k++)
        queue(0, SIGRTMIN + 1, k % 2 ? SI_QUEUE : SI_MESGQ, k);
    queue(0, SIGRTMIN + 2, SI_QUEUE, 77);
    get_actions(actions);
    CHECK(actions[SIGCHLD].restorer && actions[SIGCHLD].flags & 0x04000000, "this libc uses no restorer");
    if (WRONG(1))
        expect(SIGRTMIN + 1, SI_MESGQ, 0);
    if (WRONG(2)) {
        a.sa_handler = handler;
        sigaction(SIGWINCH, &a, NULL);
    }
    if (WRONG(3))
        block_signal(SIGTERM);
    if (WRONG(4))
        queue(tids[2], SIGRTMIN + 5, SI_QUEUE, 5);
    ready();
    wait_go();
    struct kernel_action now_actions[65];
    get_actions(now_actions);
    for (int n = 1; n <= 64; n++) {
        CHECK(actions[n].handler == now_actions[n].handler, "handler of signal %d", n);
        SAME(now_actions[n].flags, actions[n].flags, "flags of a disposition");
        SAME(now_actions[n].mask, actions[n].mask, "mask of a disposition");
        CHECK(actions[n].restorer == now_actions[n].restorer, "restorer of signal %d", n);
    }
    finish = 1;
    SAME(waiting("ShdPnd") >> (SIGUSR1 - 1) & 1, 1, "pending for the process");
    verify(0);
    expect(SIGUSR1, SI_USER, 0);
    expect_none(SIGUSR1);
    for (int k = 0; k < 10; k++)
        expect(SIGRTMIN + 1, k % 2 ? SI_QUEUE : SI_MESGQ, k);
    expect_none(SIGRTMIN + 1);
    expect(SIGRTMIN + 2, SI_QUEUE, 77);
    expect_none(SIGRTMIN + 2);
    for (int i = 1; i < THREADS; i++)
        MUST(pthread_join(t[i], NULL) == 0);
    for (int n = 1; n <= 64; n++)
        SAME(seen[n], 0, "a handler ran");
    /* handlers still work, and the reset one resets */
    raise(SIGHUP);
    raise(SIGALRM);
    raise(SIGRTMAX - 20);
    SAME(seen[SIGHUP] + seen[SIGALRM] + seen[SIGRTMAX - 20], 3, "handlers that ran");
    SAME(sigaction(SIGRTMAX - 20, NULL, &a), 0, "sigaction");
    CHECK(a.sa_handler == SIG_DFL, "SA_RESETHAND was lost");
    if (!fork())
        _exit(3);
    short_sleep();
    UNTIL(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, 10, "SA_NOCLDWAIT: no zombie");
    ok();
}
