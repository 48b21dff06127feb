/* Two processes that wake each other without pause, thousands of times a second, by one means (MODE). A wake-up lost
 * by a checkpoint is a hang, one too many or an EINTR is a failure. */
#include "check.h"
#include <linux/futex.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/signalfd.h>

struct table {
    atomic_long rounds[2];
    atomic_int finish, last;
    atomic_int word[2];
    pid_t pid[2];
    sem_t semaphore[2];
    pthread_mutex_t mutex;
    pthread_cond_t condition;
    int turn;
};
static struct table *t;
static int pipes[2][2], events[2], epolls[2], signals;
static sigset_t usr1, others;
static atomic_int handled;

static void handler(int n)
{
    (void)n;
    handled++;
}
static long futex(atomic_int *at, int op, int value) { return syscall(SYS_futex, at, op, value, NULL, NULL, 0); }

static int uses(const char *what) { return strstr(mode_args[0], what) != NULL; }

static void send_to(int who)
{
    if (uses("futex")) {
        t->word[who] = 1;
        CHECK(futex(&t->word[who], FUTEX_WAKE, 1) >= 0, "wake");
    } else if (uses("semaphore"))
        MUST(sem_post(&t->semaphore[who]) == 0);
    else if (uses("condition")) {
        MUST(pthread_mutex_lock(&t->mutex) == 0);
        t->turn = who;
        MUST(pthread_cond_broadcast(&t->condition) == 0);
        MUST(pthread_mutex_unlock(&t->mutex) == 0);
    } else if (uses("eventfd")) {
        uint64_t one = 1;
        MUST(write(events[who], &one, 8) == 8);
    } else if (uses("sig"))
        MUST(kill(t->pid[who], SIGUSR1) == 0);
    else
        MUST(write(pipes[who][1], "x", 1) == 1);
}

static void wait_as(int me)
{
    char c;
    int fd = uses("eventfd") ? events[me] : pipes[me][0];
    if (uses("futex")) {
        while (t->word[me] == 0) {
            long got = futex(&t->word[me], FUTEX_WAIT, 0);
            CHECK(got == 0 || errno == EAGAIN, "futex");
        }
        t->word[me] = 0;
        return;
    }
    if (uses("semaphore")) {
        CHECK(sem_wait(&t->semaphore[me]) == 0, "sem_wait");
        return;
    }
    if (uses("condition")) {
        MUST(pthread_mutex_lock(&t->mutex) == 0);
        while (t->turn != me)
            MUST(pthread_cond_wait(&t->condition, &t->mutex) == 0);
        MUST(pthread_mutex_unlock(&t->mutex) == 0);
        return;
    }
    if (uses("sigsuspend")) {
        handled = 0;
        CHECK(sigsuspend(&others) == -1 && errno == EINTR, "sigsuspend");
        SAME(handled, 1, "handlers that ran");
        return;
    }
    if (uses("sigwait")) {
        siginfo_t i;
        SAME(syscall(SYS_rt_sigtimedwait, &usr1, &i, NULL, 8), SIGUSR1, "sigwaitinfo");
        SAME(i.si_pid, t->pid[1 - me], "sender");
        return;
    }
    if (uses("signalfd")) {
        struct signalfd_siginfo i;
        SAME(read(signals, &i, sizeof i), (long)sizeof i, "signalfd");
        return;
    }
    if (uses("epoll")) {
        struct epoll_event e;
        SAME(epoll_wait(epolls[me], &e, 1, uses("timeout") ? 60000 : -1), 1, "epoll_wait");
        SAME(e.data.u32, 7u + me, "data");
    } else if (uses("ppoll")) {
        struct pollfd p = {fd, POLLIN, 0};
        struct timespec minute = {60, 0};
        SAME(ppoll(&p, 1, &minute, &others), 1, "ppoll");
    } else if (uses("poll")) {
        struct pollfd p = {fd, POLLIN, 0};
        SAME(poll(&p, 1, uses("timeout") ? 60000 : -1), 1, "poll");
    } else if (uses("select")) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(fd, &set);
        struct timeval minute = {60, 0};
        SAME(select(fd + 1, &set, NULL, NULL, &minute), 1, "select");
    }
    if (uses("eventfd")) {
        uint64_t v;
        SAME(read(fd, &v, 8), 8, "eventfd");
        SAME(v, 1, "eventfd");
    } else
        SAME(read(fd, &c, 1), 1, "pipe");
}

static void play(int me)
{
    for (;;) {
        if (me == 0) {
            if (t->finish) { /* only this side decides, so that nobody waits for one who has left */
                t->last = 1;
                send_to(1);
                return;
            }
            send_to(1);
            wait_as(0);
        } else {
            wait_as(1);
            if (t->last)
                return;
        }
        long r = ++t->rounds[me];
        if (me == 1) {
            CHECK(r == t->rounds[0] + 1, "a wake-up too many");
            send_to(0);
        } else
            CHECK(t->rounds[1] >= r && t->rounds[1] <= r + 1, "a wake-up too many");
    }
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    MUST(mode_count == 1);
    t = shared_memory(sizeof *t);
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigfillset(&others);
    sigdelset(&others, SIGUSR1);
    struct sigaction a = {.sa_handler = handler};
    MUST(sigaction(SIGUSR1, &a, NULL) == 0);
    block_signal(SIGUSR1);
    signals = signalfd(-1, &usr1, 0);
    pthread_mutexattr_t ma;
    pthread_condattr_t ca;
    pthread_mutexattr_init(&ma);
    pthread_condattr_init(&ca);
    pthread_mutexattr_setpshared(&ma, 1);
    pthread_condattr_setpshared(&ca, 1);
    pthread_mutex_init(&t->mutex, &ma);
    pthread_cond_init(&t->condition, &ca);
    t->turn = 0;
    for (int i = 0; i < 2; i++) {
        MUST(pipe(pipes[i]) == 0);
        events[i] = eventfd(0, 0);
        sem_init(&t->semaphore[i], 1, 0);
        epolls[i] = epoll_create1(0);
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = 7 + i};
        MUST(epoll_ctl(epolls[i], EPOLL_CTL_ADD, uses("eventfd") ? events[i] : pipes[i][0], &e) == 0);
    }
    pid_t child[2];
    for (int i = 0; i < 2; i++) {
        child[i] = fork();
        if (!child[i]) {
            t->pid[i] = getpid();
            UNTIL(t->pid[1 - i], 10, "the other");
            play(i);
            _exit(0);
        }
    }
    UNTIL(t->rounds[0] > 50, 20, "rounds");
    if (WRONG(1))
        kill(child[1], SIGSTOP);
    ready();
    wait_go();
    long before = t->rounds[0];
    UNTIL(t->rounds[0] > before + 200, WRONG(1) ? 1 : 20, "rounds afterwards: a wake-up was lost");
    t->finish = 1;
    for (int i = 0; i < 2; i++) {
        int status;
        double end = mono() + 20;
        while (waitpid(child[i], &status, WNOHANG) != child[i]) {
            CHECK(mono() < end, "player %d does not end", i);
            if (t->rounds[1 - i] == 0)
                break;
            short_sleep();
        }
        SAME(status, 0, "player");
    }
    ok();
}
