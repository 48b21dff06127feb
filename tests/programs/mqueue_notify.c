/* Who is to be told of the next message in a POSIX message queue: by signals of all kinds with their values, by threads,
 * not at all; with every right to the queue; in several processes. Nobody is told before there is a message, and then
 * once. */
#include "check.h"
#include <mqueue.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>

enum { CLASSIC, REALTIME, IGNORED, WRITER, BOTH, TWIN, THREAD, OTHER, ATTR, NONE, CHILD, QUEUES };
static char names[QUEUES][64];
static mqd_t q[QUEUES], by[QUEUES]; /* how they are asked through, how they are sent to */
static pid_t child;
static int watch, edges;

static const uint64_t values[QUEUES] = {
    [CLASSIC] = 0x1122334455667788, [REALTIME] = 0xfedcba9876543210, [IGNORED] = 4711, [WRITER] = 1,
    [BOTH] = 0, [TWIN] = 0xffffffffffffffff, [CHILD] = 0x7fffffff};

/* What each has been told. */
static struct heard {
    atomic_int count;
    atomic_int code;
    atomic_int sender;
    atomic_ullong value;
    atomic_int end;
} *heard;

static void clean(void)
{
    for (int i = 0; i < QUEUES; i++)
        if (names[i][0])
            mq_unlink(names[i]);
    if (child > 0)
        kill(child, SIGKILL);
}

static void note(int which, int code, pid_t sender, uint64_t value)
{
    heard[which].code = code;
    heard[which].sender = sender;
    heard[which].value = value;
    heard[which].count++;
}

static void by_value(const siginfo_t *info)
{
    uint64_t value = (uint64_t)(uintptr_t)info->si_value.sival_ptr;
    for (int i = 0; i < QUEUES; i++)
        if ((i < THREAD || i == CHILD) && values[i] == value) {
            note(i, info->si_code, info->si_pid, value);
            return;
        }
    FAIL("signal %d with the value %#llx", info->si_signo, (unsigned long long)value);
}

static void handler(int number, siginfo_t *info, void *unused)
{
    (void)number;
    (void)unused;
    by_value(info);
}

static void thread(union sigval value) { note(THREAD, 0, 0, (uintptr_t)value.sival_ptr); }
static void other(union sigval value) { note(OTHER, 0, 0, (uintptr_t)value.sival_int); }

static void with_attributes(union sigval value)
{
    pthread_attr_t mine;
    size_t size = 0;
    if (pthread_getattr_np(pthread_self(), &mine) == 0)
        pthread_attr_getstacksize(&mine, &size);
    note(ATTR, (int)size, 0, (uintptr_t)value.sival_ptr);
}

static void make(int which, int flags, int sender)
{
    struct mq_attr shape = {.mq_maxmsg = 3, .mq_msgsize = 64};
    snprintf(names[which], 64, "/torpor-test-notify-%d-%d", which, (int)getpid());
    by[which] = mq_open(names[which], O_RDWR | O_CREAT | O_EXCL, 0600, &shape);
    MUST(by[which] >= 0);
    q[which] = flags < 0 ? by[which] : mq_open(names[which], flags);
    MUST(q[which] >= 0);
    if (!sender)
        mq_close(by[which]), by[which] = -1;
}

static void ask(int which, int signal)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signal};
    event.sigev_value.sival_ptr = (void *)(uintptr_t)values[which];
    MUST(mq_notify(q[which], &event) == 0);
}

static void catch(int signal)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    MUST(sigaction(signal, &action, NULL) == 0);
}

static int descriptors(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void mask_is(const sigset_t *want)
{
    sigset_t now;
    MUST(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0);
    CHECK(memcmp(&now, want, 8) == 0, "the signal mask is another");
    MUST(sigpending(&now) == 0);
    for (int i = 1; i < 65; i++)
        CHECK(sigismember(&now, i) != 1, "signal %d is pending", i);
}

/* How read(2) shows it. */
static void shown(mqd_t fd, int kind, int signal, pid_t pid, const char *what)
{
    char room[200] = "";
    int size, notify, signo, owner;
    mqd_t look = fd;
    MUST(pread(look, room, sizeof room - 1, 0) > 0);
    MUST(sscanf(room, "QSIZE:%d NOTIFY:%d SIGNO:%d NOTIFY_PID:%d", &size, &notify, &signo, &owner) == 4);
    SAME(size, 0, what);
    SAME(notify, kind, what);
    SAME(signo, signal, what);
    SAME(owner, pid, what);
}

static void once(int which, int sender, const char *what)
{
    UNTIL(heard[which].count, 10, what);
    SAME(heard[which].value, values[which], what);
    SAME(heard[which].code, SI_MESGQ, what);
    SAME(heard[which].sender, sender, what);
}

static void send_to(int which)
{
    mqd_t fd = mq_open(names[which], O_WRONLY | O_NONBLOCK);
    MUST(fd >= 0);
    MUST(mq_send(fd, "news", 5, 1) == 0);
    MUST(mq_send(fd, "more", 5, 1) == 0); /* no news any more */
    /* Not closed: that would take back what this process asks for. */
}

static int waits_for_signal(pid_t pid)
{
    char path[64];
    long number = -1;
    snprintf(path, sizeof path, "/proc/%d/syscall", (int)pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    if (fscanf(f, "%ld", &number) != 1)
        number = -1;
    fclose(f);
    return number == SYS_rt_sigtimedwait;
}

/* Threads of mq_notify run with no signal blocked. So what is for a descriptor is for a process without. */
static void in_child(void)
{
    /* Asks by a descriptor it cannot send through, for a signal that it blocks and waits for. */
    sigset_t set, by_file;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 3);
    sigprocmask(SIG_BLOCK, &set, NULL);
    ask(CHILD, SIGRTMIN + 3);
    sigemptyset(&by_file);
    sigaddset(&by_file, SIGRTMIN + 4);
    sigprocmask(SIG_BLOCK, &by_file, NULL);
    int signals = signalfd(-1, &by_file, SFD_NONBLOCK | SFD_CLOEXEC);
    ask(BOTH, SIGRTMIN + 4);
    ask(TWIN, SIGRTMIN + 4);
    siginfo_t info;
    if (sigwaitinfo(&set, &info) != SIGRTMIN + 3)
        _exit(2);
    by_value(&info);
    struct signalfd_siginfo each;
    while (!heard[BOTH].count || !heard[TWIN].count)
        if (read(signals, &each, sizeof each) == sizeof each)
            note(each.ssi_ptr == values[BOTH] ? BOTH : TWIN, each.ssi_code, each.ssi_pid, each.ssi_ptr);
        else
            short_sleep();
    while (!heard[CHILD].end)
        short_sleep();
    struct timespec none = {0, 0};
    _exit(sigtimedwait(&set, &info, &none) == -1 && read(signals, &each, sizeof each) == -1 ? 0 : 3);
}

/* One queue, and what keeps its notification from being saved. */
static void one_queue(void)
{
    char room[64];
    sigset_t set;
    int signal = is_mode("stops") ? SIGTSTP : SIGUSR1;
    make(CLASSIC, is_mode("rights") ? O_RDONLY : -1, 1);
    if (is_mode("rights")) {
        mq_close(by[CLASSIC]);
        MUST(fchmod(q[CLASSIC], 0400) == 0);
    }
    if (is_mode("socket")) { /* one that nobody has any more */
        int gone = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0);
        struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_signo = gone, .sigev_value.sival_ptr = room};
        MUST(gone >= 0 && syscall(SYS_mq_notify, q[CLASSIC], &event) == 0);
        if (mode_count > 1)
            MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0) >= 0);
        close(gone);
    } else if (is_mode("leader")) {
        struct sigevent nobody = {.sigev_notify = SIGEV_NONE};
        MUST(mq_notify(q[CLASSIC], &nobody) == 0);
    } else
        ask(CLASSIC, signal);
    if (is_mode("full")) {
        MUST(mq_send(q[CLASSIC], "", 0, 0) == 0);
        UNTIL(heard[CLASSIC].count, 10, "the first message");
        ask(CLASSIC, signal);
    }
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (is_mode("pending"))
        kill(getpid(), SIGUSR1);
    if (is_mode("locked")) {
        struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
        MUST(fcntl(q[CLASSIC], F_SETLK, &lock) == 0);
    }
    ready();
    wait_go();
    struct sigevent nothing = {.sigev_notify = SIGEV_NONE};
    CHECK(mq_notify(q[CLASSIC], &nothing) < 0 && errno == EBUSY, "the notification is gone");
    struct mq_attr a;
    MUST(mq_getattr(q[CLASSIC], &a) == 0);
    SAME(a.mq_curmsgs, is_mode("full"), "messages");
    MUST(sigpending(&set) == 0);
    SAME(sigismember(&set, SIGUSR1), is_mode("pending"), "the signal");
    clean();
    ok();
}

static void *behind_leader(void *unused)
{
    char path[64], state = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)getpid());
    while (state != 'Z') { /* until the first thread has ended */
        FILE *f = fopen(path, "re");
        MUST(f && fscanf(f, "%*d %*s %c", &state) == 1);
        fclose(f);
        short_sleep();
    }
    one_queue();
    return unused;
}

static void *bystander(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return NULL;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    at_failure = clean;
    heard = shared_memory(4096);
    catch(SIGUSR1);
    if (is_mode("leader")) {
        pthread_t second;
        MUST(pthread_create(&second, NULL, behind_leader, NULL) == 0);
        pthread_exit(NULL);
    }
    if (mode_count)
        one_queue();
    catch(SIGRTMAX);
    catch(SIGRTMIN + 5);
    make(CLASSIC, -1, 1);
    make(REALTIME, O_RDONLY | O_NONBLOCK, 1);
    make(IGNORED, O_RDONLY, 0);
    make(WRITER, O_WRONLY, 0);
    make(BOTH, O_RDONLY, 0);
    make(TWIN, O_RDWR | O_NONBLOCK, 0);
    for (int i = THREAD; i < NONE; i++)
        make(i, i == OTHER ? O_WRONLY : O_RDONLY, 0);
    make(NONE, O_RDONLY, 0);
    make(CHILD, O_RDONLY | O_NONBLOCK, 0);
    ask(CLASSIC, SIGUSR1);
    ask(REALTIME, SIGRTMAX);
    ask(IGNORED, SIGURG); /* ignored as long as there is no handler */
    ask(WRITER, SIGRTMIN + 5);
    sigset_t mask;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = thread};
    event.sigev_value.sival_ptr = heard;
    MUST(mq_notify(q[THREAD], &event) == 0);
    event.sigev_notify_function = other;
    event.sigev_value.sival_int = 12345;
    MUST(mq_notify(q[OTHER], &event) == 0);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 1 << 20);
    event.sigev_notify_attributes = &attributes;
    event.sigev_notify_function = with_attributes;
    event.sigev_value.sival_ptr = names;
    MUST(mq_notify(q[ATTR], &event) == 0);
    pthread_attr_destroy(&attributes);
    struct sigevent nothing = {.sigev_notify = SIGEV_NONE};
    MUST(mq_notify(q[NONE], &nothing) == 0);
    child = fork();
    if (!child)
        in_child();
    UNTIL(waits_for_signal(child), 10, "the child");
    watch = epoll_create1(EPOLL_CLOEXEC);
    edges = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < NONE; i++) {
        struct epoll_event in = {.events = EPOLLIN, .data.u32 = i};
        MUST(epoll_ctl(watch, EPOLL_CTL_ADD, q[i], &in) == 0);
        in.events |= EPOLLET;
        MUST(epoll_ctl(edges, EPOLL_CTL_ADD, q[i], &in) == 0);
    }
    pthread_t unused;
    MUST(pthread_create(&unused, NULL, bystander, NULL) == 0);
    MUST(pthread_sigmask(SIG_SETMASK, NULL, &mask) == 0);
    int before = descriptors();
    ready();
    wait_go();

    if (WRONG(1)) {
        mq_send(q[CLASSIC], "", 0, 0);
        char room[64];
        mq_receive(q[CLASSIC], room, 64, NULL);
    }
    if (WRONG(2))
        mq_notify(q[REALTIME], NULL);
    if (WRONG(3)) {
        mq_notify(q[CLASSIC], NULL);
        event.sigev_notify = SIGEV_SIGNAL;
        event.sigev_signo = SIGUSR1;
        event.sigev_value.sival_ptr = (void *)2;
        mq_notify(q[CLASSIC], &event);
    }
    if (WRONG(4)) {
        mq_notify(q[OTHER], NULL);
        event.sigev_notify_function = other;
        event.sigev_notify_attributes = NULL;
        event.sigev_value.sival_int = 54321;
        mq_notify(q[OTHER], &event);
    }
    if (WRONG(5))
        mq_notify(q[NONE], NULL);

    SAME(descriptors(), before, "descriptors");
    mask_is(&mask);
    struct epoll_event out;
    SAME(epoll_wait(watch, &out, 1, 0), 0, "news for epoll");
    SAME(epoll_wait(edges, &out, 1, 0), 0, "news for edge-triggered epoll");
    for (int i = 0; i < QUEUES; i++)
        SAME(heard[i].count, 0, "told for nothing");
    for (int i = 0; i < QUEUES; i++) {
        CHECK(mq_notify(q[i], &nothing) < 0 && errno == EBUSY, "nobody has asked for queue %d", i);
        struct mq_attr a;
        MUST(mq_getattr(q[i], &a) == 0);
        SAME(a.mq_curmsgs, 0, "messages");
    }
    shown(q[CLASSIC], SIGEV_SIGNAL, SIGUSR1, getpid(), "a classic signal");
    shown(q[REALTIME], SIGEV_SIGNAL, SIGRTMAX, getpid(), "a real-time signal");
    shown(q[IGNORED], SIGEV_SIGNAL, SIGURG, getpid(), "an ignored signal");
    shown(q[BOTH], SIGEV_SIGNAL, SIGRTMIN + 4, child, "for a signal descriptor");
    shown(q[TWIN], SIGEV_SIGNAL, SIGRTMIN + 4, child, "for a signal descriptor, too");
    shown(q[CHILD], SIGEV_SIGNAL, SIGRTMIN + 3, child, "of the child");
    shown(q[THREAD], SIGEV_THREAD, 0, getpid(), "a thread");
    shown(q[ATTR], SIGEV_THREAD, 0, getpid(), "a thread with attributes");
    shown(q[NONE], SIGEV_NONE, 0, getpid(), "nothing");

    catch(SIGURG);
    for (int i = 0; i < QUEUES; i++)
        send_to(i);
    once(CLASSIC, getpid(), "a classic signal");
    once(REALTIME, getpid(), "a real-time signal");
    once(IGNORED, getpid(), "a signal that was ignored");
    once(WRITER, getpid(), "who may only send");
    once(CHILD, getpid(), "the child");
    UNTIL(heard[THREAD].count && heard[OTHER].count && heard[ATTR].count, 10, "the threads");
    SAME(heard[THREAD].value, (uintptr_t)heard, "what a thread was told");
    SAME(heard[OTHER].value, 12345, "what the other thread was told");
    SAME(heard[ATTR].value, (uintptr_t)names, "what the thread with attributes was told");
    SAME(heard[ATTR].code, 1 << 20, "its stack");
    once(BOTH, getpid(), "by a descriptor");
    once(TWIN, getpid(), "by a descriptor, too");
    heard[CHILD].end = 1;
    int status;
    SAME(waitpid(child, &status, 0), child, "the child");
    child = 0;
    SAME(status, 0, "its status");
    for (int i = 0; i < QUEUES; i++)
        SAME(heard[i].count, i != NONE, "told more than once");
    for (int i = 0; i < QUEUES; i++)
        CHECK(mq_notify(q[i], &nothing) == 0, "queue %d does not know that it has told", i);
    mask_is(&mask);
    clean();
    ok();
}
