/* A program that is at every moment in the middle of many things: threads computing in all registers, sleeping,
 * blocked in calls that return EINTR when a tracer is careless, waking each other, a child that is talked to through
 * pipes. Nothing it has changes, so that descriptors, maps, masks and dispositions can be compared from outside. */
#include "check.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static atomic_int finish, last;
static atomic_long rounds[6];
static int to_child[2], from_child[2], event[2], epoll, quiet[2];

/* Whoever watches needs a processor as well: most of the time a thread is in a call, not computing. */
static void breathe(long round, long every)
{
    struct timespec t = {0, 300000};
    if (round % every == 0)
        SAME(nanosleep(&t, NULL), 0, "nanosleep");
}

struct numbers {
    uint64_t a, b;
    double x;
};
__attribute__((noipa)) static struct numbers computed(struct numbers n)
{
    for (int i = 0; i < 10000; i++) {
        n.a = n.a * 6364136223846793005ull + 1442695040888963407ull;
        n.b ^= n.a >> 7;
        n.x = n.x * 1.0000001 + 0.5;
        if (n.x > 1e9)
            n.x = 1;
    }
    return n;
}
static void *compute(void *unused)
{
    (void)unused;
    struct numbers n = {1, 0, 1};
    while (!finish) {
        struct numbers one = computed(n), again = computed(n);
        CHECK(one.a == again.a && one.b == again.b && one.x == again.x, "a computation went wrong");
        n = one;
        breathe(++rounds[0], 1);
    }
    return NULL;
}
static void *sleeps(void *unused)
{
    (void)unused;
    while (!finish) {
        struct timespec t = {0, 3000000};
        double start = mono();
        SAME(syscall(SYS_nanosleep, &t, NULL), 0, "nanosleep");
        CHECK(mono() - start >= 0.00299, "a shortened sleep: %.6f s", mono() - start);
        rounds[1]++;
    }
    return NULL;
}
static void *waits(void *unused)
{
    (void)unused;
    struct epoll_event e;
    for (;;) {
        SAME(epoll_wait(epoll, &e, 1, -1), 1, "epoll_wait");
        if (last)
            return NULL;
        uint64_t v;
        SAME(read(event[0], &v, 8), 8, "eventfd");
        SAME(v, 1, "eventfd");
        v = 1;
        SAME(write(event[1], &v, 8), 8, "eventfd");
        rounds[2]++;
    }
}
static void *wakes(void *unused)
{
    (void)unused;
    while (!finish) {
        uint64_t v = 1;
        SAME(write(event[0], &v, 8), 8, "eventfd");
        SAME(read(event[1], &v, 8), 8, "eventfd");
        breathe(++rounds[3], 8);
    }
    last = 1; /* only this side decides, so that nobody waits for one who has left */
    uint64_t v = 1;
    SAME(write(event[0], &v, 8), 8, "eventfd");
    return NULL;
}
static void *talks(void *unused)
{
    (void)unused;
    for (uint64_t i = 0, back; !finish; i++) {
        SAME(write(to_child[1], &i, 8), 8, "write");
        SAME(read(from_child[0], &back, 8), 8, "read");
        SAME(back, i * 3 + 1, "answer of the child");
        breathe(++rounds[4], 8);
    }
    return NULL;
}
static void *blocked(void *unused)
{
    (void)unused;
    sigset_t set;
    sigfillset(&set);
    sigdelset(&set, SIGUSR2);
    MUST(pthread_sigmask(SIG_SETMASK, &set, NULL) == 0);
    struct timespec hour = {3600, 0};
    rounds[5] = 1;
    siginfo_t i;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 7);
    SAME(syscall(SYS_rt_sigtimedwait, &set, &i, &hour, 8), SIGRTMIN + 7, "sigtimedwait");
    CHECK(finish, "sigtimedwait returned before it was time");
    return NULL;
}
static void handler(int n) { (void)n; }

int main(int argc, char **argv)
{
    begin(argc, argv);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 7);
    MUST(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    MUST(kill(getpid(), SIGUSR1) == 0); /* pending all the time */
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGUSR2, &a, NULL) == 0 && sigaction(SIGWINCH, &a, NULL) == 0);
    signal(SIGHUP, SIG_IGN);
    MUST(pipe(to_child) == 0 && pipe(from_child) == 0 && pipe(quiet) == 0);
    MUST(write(quiet[1], "inside", 6) == 6);
    pid_t child = fork();
    if (!child) {
        uint64_t v;
        close(to_child[1]);
        while (read(to_child[0], &v, 8) == 8) {
            v = v * 3 + 1;
            MUST(write(from_child[1], &v, 8) == 8);
        }
        _exit(7);
    }
    close(to_child[0]);
    close(from_child[1]);
    event[0] = eventfd(0, 0);
    event[1] = eventfd(0, 0);
    epoll = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, event[0], &e) == 0);
    void *(*all[])(void *) = {compute, sleeps, waits, wakes, talks, blocked};
    pthread_t t[6];
    for (int i = 0; i < 6; i++)
        MUST(pthread_create(&t[i], NULL, all[i], NULL) == 0);
    for (int i = 0; i < 6; i++)
        UNTIL(rounds[i] > 0, 10, "threads");
    if (WRONG(1))
        pthread_kill(t[5], SIGUSR2);
    ready();
    wait_go();
    long before[5];
    for (int i = 0; i < 5; i++)
        before[i] = rounds[i];
    for (int i = 0; i < 5; i++)
        UNTIL(rounds[i] > before[i] + 3, 20, "threads go on");
    finish = 1;
    for (int i = 0; i < 5; i++)
        pthread_join(t[i], NULL);
    pthread_kill(t[5], SIGRTMIN + 7);
    pthread_join(t[5], NULL);
    close(to_child[1]);
    int status;
    MUST(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "child ended with %#x", status);
    char b[16];
    SAME(read(quiet[0], b, 16), 6, "pipe");
    ok();
}
