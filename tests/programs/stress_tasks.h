/* Tasks: children that work, stop, end and are not waited for; threads; pairs that wake each other all the time. */
#include "stress.h"
#include <linux/futex.h>
#include <netinet/in.h>
#include <semaphore.h>
#include <spawn.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>

/* -- a child that does what it is told over a socketpair. n[0]: stopped. n[1]: what it has counted. n[2] its exit code */

enum { ADD = 'a', LOOK = 'l', END = 'e', GRANDCHILD = 'g', WAIT = 'w', ORPHAN = 'o' };
struct order {
    uint64_t what, value;
};

__attribute__((noreturn)) static void be_a_child(int fd)
{
    struct order order;
    uint64_t sum = 0;
    pid_t grandchild = 0;
    for (;;) {
        read_all(fd, &order, sizeof order);
        switch (order.what) {
        case ADD:
            sum = mix(sum, order.value);
            break;
        case LOOK:
            verify_copies();
            break;
        case GRANDCHILD: /* ends at once, and is a zombie until we are told to wait */
            if (!grandchild && !(grandchild = fork()))
                _exit(order.value & 0x7f);
            break;
        case WAIT:
            if (grandchild) {
                int status;
                DO(waitpid(grandchild, &status, 0) == grandchild);
                DO(WIFEXITED(status));
                sum = mix(sum, WEXITSTATUS(status));
                grandchild = 0;
            }
            break;
        case ORPHAN: { /* of a process that has ended: it says so itself, once it has no parent any more */
            pid_t between = fork();
            DO(between >= 0);
            if (!between) {
                if (fork())
                    _exit(0);
                uint64_t said = mix(order.value, 5);
                struct timespec t = {0, 3000000};
                nanosleep(&t, NULL);
                write_all(fd, &said, 8);
                _exit(0);
            }
            int status;
            DO(waitpid(between, &status, 0) == between && status == 0);
            continue; /* the orphan answers */
        }
        case END:
            _exit(order.value);
        }
        write_all(fd, &sum, 8);
    }
}

static void make_child(struct thing *t)
{
    int ends[2], keeps = one_in(2), group = below(4);
    DO(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    t->pid = fork();
    DO(t->pid >= 0);
    if (!t->pid) {
        if (!keeps)
            leave_all_but(ends[1]); /* else it has everything open that the worker has */
        else
            close(ends[0]);
        if (group == 1)
            DO(setpgid(0, 0) == 0);
        if (group == 2)
            DO(setsid() == getpid());
        if (group == 3)
            prctl(PR_SET_PDEATHSIG, SIGKILL);
        be_a_child(ends[1]);
    }
    DO(close(ends[1]) == 0);
    t->fd[0] = ends[0];
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
}

static uint64_t tell_child(struct thing *t, int what, uint64_t value)
{
    struct order order = {what, value};
    uint64_t said;
    write_all(t->fd[0], &order, sizeof order);
    read_all(t->fd[0], &said, 8);
    return said;
}

static void use_child(struct thing *t)
{
    uint64_t value = chance(), what = below(9);
    int status;
    if (t->n[0] || what == 0) { /* stops and goes on, and its parent hears of both */
        int number = t->n[0] ? SIGCONT : SIGSTOP;
        DO(kill(t->pid, number) == 0);
        if (t->n[0] || t->n[3]++ % 3) {
            EQUAL(waitpid(t->pid, &status, t->n[0] ? WCONTINUED | WUNTRACED : WUNTRACED), t->pid, "waitpid of a child that stops");
            if (t->n[0] && WIFSTOPPED(status)) /* its stop had not been waited for */
                EQUAL(waitpid(t->pid, &status, WCONTINUED), t->pid, "waitpid of a child that goes on");
            DO(t->n[0] ? WIFCONTINUED(status) : WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
        } else
            UNTIL(state_of(t->pid) == 'T', 30, "a child that stops");
        t->n[0] = !t->n[0];
        return;
    }
    if (what < 4)
        EQUAL(tell_child(t, ADD, value), t->n[1] = mix(t->n[1], value), "what a child has counted");
    else if (what < 6)
        EQUAL(tell_child(t, LOOK, 0), t->n[1], "what a child has counted");
    else if (what == 6) {
        EQUAL(tell_child(t, GRANDCHILD, t->n[4] ? 0 : value), t->n[1], "what a child has counted");
        if (!t->n[4])
            t->n[4] = 1 + (value & 0x7f);
    } else if (what == 7) {
        if (t->n[4])
            t->n[1] = mix(t->n[1], t->n[4] - 1);
        t->n[4] = 0;
        EQUAL(tell_child(t, WAIT, 0), t->n[1], "what a child has counted");
    } else
        EQUAL(tell_child(t, ORPHAN, value), mix(value, 5), "what an orphan says");
    fold(t->n[1]);
}

static void end_child(struct thing *t)
{
    if (t->n[0])
        use_child(t);
    uint64_t code = below(100);
    if (t->n[5]) /* a zombie already */
        code = t->n[5] - 1;
    else if (one_in(2)) {
        DO(kill(t->pid, SIGKILL) == 0);
        expect_exit(t->pid, SIGKILL, "a child that was killed");
        DO(close(t->fd[0]) == 0);
        return;
    } else {
        struct order order = {END, code};
        write_all(t->fd[0], &order, sizeof order);
    }
    expect_exit(t->pid, code << 8, "a child that ends");
    DO(close(t->fd[0]) == 0);
    fold(code);
}

static const struct kind child = {"child", 9, make_child, use_child, end_child};

/* -- zombies, and programs executed: nobody waits for them for a while. n[0]: code */

static void make_zombie(struct thing *t)
{
    static char *words[] = {"true", NULL};
    extern char **environ;
    t->sort = below(3);
    t->n[0] = below(100) << 8;
    if (t->sort == 0) {
        DO((t->pid = fork()) >= 0);
        if (!t->pid)
            _exit(t->n[0] >> 8);
    } else if (t->sort == 1) { /* vfork and exec inside */
        t->n[0] = 0;
        DO(posix_spawn(&t->pid, "/bin/true", NULL, NULL, words, environ) == 0);
    } else {
        t->n[0] = SIGUSR2;
        DO((t->pid = fork()) >= 0);
        if (!t->pid) {
            signal(SIGUSR2, SIG_DFL);
            raise(SIGUSR2);
            _exit(0);
        }
    }
}

static void use_zombie(struct thing *t)
{
    siginfo_t info;
    if (one_in(3)) { /* look without waiting */
        DO(waitid(P_PID, t->pid, &info, WEXITED | WNOWAIT) == 0);
        EQUAL(info.si_status, t->n[0] > 255 ? t->n[0] >> 8 : t->n[0], "status of a zombie");
    }
}

static void end_zombie(struct thing *t)
{
    expect_exit(t->pid, t->n[0], "a zombie");
    fold(t->n[0]);
}

static const struct kind zombie = {"zombie", 6, make_zombie, use_zombie, end_zombie};

/* -- a thread that computes when told, and waits in one of several ways. */

struct hand {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    sem_t done;
    uint64_t asked, given, value;
    int way, stop;
    pid_t tid;
};

static void *be_a_thread(void *of)
{
    struct hand *hand = of;
    char name[16];
    sprintf(name, "hand-%d", hand->way);
    prctl(PR_SET_NAME, name);
    pthread_mutex_lock(&hand->mutex);
    hand->tid = syscall(SYS_gettid);
    for (;;) {
        while (hand->asked == hand->given && !hand->stop) {
            struct timespec t;
            if (hand->way == 0)
                pthread_cond_wait(&hand->cond, &hand->mutex);
            else {
                clock_gettime(CLOCK_REALTIME, &t);
                t.tv_nsec += hand->way * 1000000;
                t.tv_sec += t.tv_nsec / 1000000000;
                t.tv_nsec %= 1000000000;
                pthread_cond_timedwait(&hand->cond, &hand->mutex, &t);
            }
        }
        if (hand->stop)
            break;
        double x = hand->value % 1000;
        for (int i = 0; i < 2000; i++)
            x = x * 1.0000001 + 0.5;
        hand->value = mix(hand->value, (uint64_t)(x * 1000));
        hand->given = hand->asked;
        sem_post(&hand->done);
    }
    pthread_mutex_unlock(&hand->mutex);
    prctl(PR_GET_NAME, name);
    CHECK(name[5] - '0' == hand->way, "a thread's name: %s", name);
    CHECK(hand->tid == syscall(SYS_gettid), "a thread's number");
    return (void *)(hand->value + 1);
}

static void make_thread(struct thing *t)
{
    struct hand *hand = calloc(1, sizeof *hand);
    pthread_attr_t small;
    DO(hand);
    t->more = hand;
    hand->way = below(4);
    pthread_mutex_init(&hand->mutex, NULL);
    pthread_cond_init(&hand->cond, NULL);
    sem_init(&hand->done, 0, 0);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 * 1024);
    DO(pthread_create(&hand->thread, &small, be_a_thread, hand) == 0);
}

static void use_thread(struct thing *t)
{
    struct hand *hand = t->more;
    uint64_t value = chance();
    pthread_mutex_lock(&hand->mutex);
    hand->value = mix(hand->value, value);
    hand->asked++;
    pthread_cond_signal(&hand->cond);
    pthread_mutex_unlock(&hand->mutex);
    double x = (t->n[0] = mix(t->n[0], value)) % 1000;
    for (int i = 0; i < 2000; i++)
        x = x * 1.0000001 + 0.5;
    t->n[0] = mix(t->n[0], (uint64_t)(x * 1000));
    while (sem_wait(&hand->done))
        DO(errno == EINTR);
    EQUAL(hand->value, t->n[0], "what a thread computes");
    fold(t->n[0]);
}

static void end_thread(struct thing *t)
{
    struct hand *hand = t->more;
    void *result;
    pthread_mutex_lock(&hand->mutex);
    hand->stop = 1;
    pthread_cond_signal(&hand->cond);
    pthread_mutex_unlock(&hand->mutex);
    DO(pthread_join(hand->thread, &result) == 0);
    EQUAL((uint64_t)result, t->n[0] + 1, "what a thread returns");
    free(hand);
}

static const struct kind thread = {"thread", 7, make_thread, use_thread, end_thread};

/* -- two children that pass a number to and fro, and are asleep in a system call most of the time. */

enum { BY_PIPE, BY_SOCKET, BY_TCP, BY_FUTEX, BY_SEMAPHORE, BY_MESSAGE, BY_SIGNAL, WAYS };
struct table {
    _Atomic uint32_t turn, stop;
    _Atomic uint64_t passed;
    _Atomic int player[2];
};

static void hit(struct thing *t, struct table *table, int side, uint64_t value)
{
    struct {
        long type;
        uint64_t value;
    } message = {1 + !side, value};
    struct sembuf up = {!side, 1, 0};
    switch (t->sort) {
    case BY_FUTEX:
        atomic_store(&table->turn, !side);
        syscall(SYS_futex, &table->turn, FUTEX_WAKE, 1, NULL, NULL, 0);
        break;
    case BY_SEMAPHORE:
        DO(semop(t->n[0], &up, 1) == 0);
        break;
    case BY_MESSAGE:
        DO(msgsnd(t->n[0], &message, 8, 0) == 0);
        break;
    case BY_SIGNAL: {
        union sigval v = {.sival_ptr = (void *)value};
        DO(sigqueue(table->player[!side], SIGRTMIN + 2, v) == 0);
        break;
    }
    default:
        write_all(t->fd[t->sort == BY_PIPE ? 2 * !side + 1 : side], &value, 8);
    }
}

static void receive(struct thing *t, struct table *table, int side, uint64_t want)
{
    struct {
        long type;
        uint64_t value;
    } message;
    uint64_t got = want;
    struct sembuf down = {side, -1, 0};
    switch (t->sort) {
    case BY_FUTEX:
        while (atomic_load(&table->turn) != (uint32_t)side)
            DO(syscall(SYS_futex, &table->turn, FUTEX_WAIT, !side, NULL, NULL, 0) == 0 || errno == EAGAIN);
        break;
    case BY_SEMAPHORE:
        DO(semop(t->n[0], &down, 1) == 0);
        break;
    case BY_MESSAGE:
        DO(msgrcv(t->n[0], &message, 8, 1 + side, 0) == 8);
        got = message.value;
        break;
    case BY_SIGNAL: {
        sigset_t set;
        siginfo_t info;
        sigemptyset(&set);
        sigaddset(&set, SIGRTMIN + 2);
        DO(sigwaitinfo(&set, &info) == SIGRTMIN + 2);
        EQUAL(info.si_pid, table->player[!side], "sender of a signal");
        got = (uint64_t)info.si_value.sival_ptr;
        break;
    }
    default:
        read_all(t->fd[t->sort == BY_PIPE ? 2 * side : side], &got, 8);
    }
    EQUAL(got, want, "what is passed to and fro");
}

/* The second one ends the game, so that nothing is left under way: it passes on 0. */
__attribute__((noreturn)) static void play(struct thing *t, struct table *table, int side)
{
    table->player[side] = getpid();
    UNTIL(table->player[!side], 30, "the other player");
    for (uint64_t k = 1;; k++) {
        if (side == 0) {
            hit(t, table, 0, k);
            receive(t, table, 0, k + 1000000);
            if (table->passed == k && table->stop == 2)
                _exit(0);
        } else {
            receive(t, table, 1, k);
            table->passed = k;
            if (table->stop == 1)
                table->stop = 2;
            int last = table->stop == 2;
            hit(t, table, 1, k + 1000000);
            if (last)
                _exit(0);
        }
        if (side == 0) { /* leave some of the processors to others */
            struct timespec pause = {0, 200000};
            nanosleep(&pause, NULL);
        }
    }
}

static void make_pair(struct thing *t)
{
    struct table *table = shared_memory(PAGE);
    t->more = table;
    t->sort = below(WAYS);
    t->fd[0] = t->fd[1] = t->fd[2] = t->fd[3] = -1;
    key_t key = base_key + 400000 + worker * 100000 + t->id % 100000;
    if (t->sort == BY_PIPE)
        DO(pipe(t->fd) == 0 && pipe(t->fd + 2) == 0);
    else if (t->sort == BY_SOCKET)
        DO(socketpair(AF_UNIX, one_in(2) ? SOCK_STREAM : SOCK_SEQPACKET, 0, t->fd) == 0);
    else if (t->sort == BY_TCP) {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t size = sizeof in;
        int listening = socket(AF_INET, SOCK_STREAM, 0);
        int one = 1;
        DO(setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
        DO(listening >= 0 && bind(listening, (void *)&in, size) == 0 && listen(listening, 1) == 0);
        DO(getsockname(listening, (void *)&in, &size) == 0);
        DO((t->fd[0] = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && connect(t->fd[0], (void *)&in, size) == 0);
        DO((t->fd[1] = accept(listening, NULL, NULL)) >= 0);
        DO(close(listening) == 0);
    } else if (t->sort == BY_SEMAPHORE)
        DO((int)(t->n[0] = semget(key, 2, IPC_CREAT | 0600)) >= 0);
    else if (t->sort == BY_MESSAGE)
        DO((int)(t->n[0] = msgget(key, IPC_CREAT | 0600)) >= 0);
    for (int side = 0; side < 2; side++) {
        pid_t pid = fork();
        DO(pid >= 0);
        if (!pid)
            play(t, table, side);
        t->n[1 + side] = pid;
    }
}

static void use_pair(struct thing *t)
{
    struct table *table = t->more;
    uint64_t now = table->passed;
    if (one_in(4))
        UNTIL(table->passed > now, 60, "two children that pass a number to and fro");
}

static void end_pair(struct thing *t)
{
    struct table *table = t->more;
    table->stop = 1;
    expect_exit(t->n[1], 0, "the first of a pair");
    expect_exit(t->n[2], 0, "the second of a pair");
    if (t->sort == BY_SEMAPHORE)
        DO(semctl(t->n[0], 0, IPC_RMID) == 0);
    if (t->sort == BY_MESSAGE)
        DO(msgctl(t->n[0], IPC_RMID, NULL) == 0);
    for (int i = 0; i < 4; i++)
        if (t->fd[i] >= 0)
            close(t->fd[i]);
    munmap(table, PAGE);
    fold(t->sort);
}

static const struct kind pair = {"pair", 4, make_pair, use_pair, end_pair};

/* -- System V semaphores with undo, message queues, by key. sort 0, 1. n[0] id, n[1], n[2] values */

static void make_sysv(struct thing *t)
{
    key_t key = base_key + 700000 + worker * 100000 + t->id % 100000;
    t->sort = below(2);
    t->n[0] = t->sort ? msgget(key, IPC_CREAT | 0600) : semget(key, 2, IPC_CREAT | 0600);
    DO((int)t->n[0] >= 0);
}

static void use_sysv(struct thing *t)
{
    struct {
        long type;
        char text[600];
    } m;
    if (t->sort == 0) {
        int which = below(2), much = 1 + below(50);
        if (t->n[1 + which] && one_in(2))
            much = -(int)(1 + below(t->n[1 + which]));
        struct sembuf op = {which, much, one_in(2) ? SEM_UNDO : 0};
        DO(semop(t->n[0], &op, 1) == 0);
        t->n[1 + which] += much;
        if (op.sem_flg) /* what is to be undone must not be less than what is there at the end: semaphores go with it */
            t->n[3 + which] += much;
        EQUAL(semctl(t->n[0], which, GETVAL), t->n[1 + which], "a semaphore");
        EQUAL(semctl(t->n[0], which, GETPID), getpid(), "a semaphore's last process");
        fold(t->n[1 + which]);
        return;
    }
    if (one_in(2) && t->n[1] - t->n[2] < 12) {
        size_t size = mix(t->id, t->n[1]) % sizeof m.text;
        m.type = 1 + t->n[1] % 3;
        for (size_t i = 0; i < size; i++)
            m.text[i] = byte_of(t->id + t->n[1], i);
        DO(msgsnd(t->n[0], &m, size, IPC_NOWAIT) == 0);
        t->n[1]++;
    } else if (t->n[2] < t->n[1]) {
        ssize_t n = msgrcv(t->n[0], &m, sizeof m.text, 0, IPC_NOWAIT);
        EQUAL(n, mix(t->id, t->n[2]) % sizeof m.text, "a message's size");
        EQUAL(m.type, 1 + t->n[2] % 3, "a message's type");
        expect_bytes((unsigned char *)m.text, n, t->id + t->n[2], 0, "a message");
        t->n[2]++;
        fold(m.type);
    }
}

static void end_sysv(struct thing *t)
{
    if (t->sort) {
        while (t->n[2] < t->n[1])
            use_sysv(t);
        DO(msgctl(t->n[0], IPC_RMID, NULL) == 0);
    } else {
        EQUAL(semctl(t->n[0], 0, GETVAL), t->n[1], "a semaphore at the end");
        DO(semctl(t->n[0], 0, IPC_RMID) == 0);
    }
}

static const struct kind sysv = {"sysv", 5, make_sysv, use_sysv, end_sysv};
