/* POSIX message queues: names, unlinked ones, shapes, modes, messages in their order, descriptions, who waits, who asked
 * to be told. */
#include "check.h"
#include <mqueue.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define MANY 9
static char mixed_name[64], full_name[64], idle_name[64], twice_name[64];
static mqd_t mixed, other, full, idle, gone, twice, quiet;
static pid_t sender, reader;
static int watch;
static atomic_int *let_go;
static atomic_int receiver_tid;
static pthread_t receiver;
static char got[64];
static ssize_t got_size;

/* In the order in which they are sent. */
static const struct {
    unsigned priority;
    int size;
} sent[MANY] = {{3, 100}, {0, 0}, {3, 1}, {32767, 256}, {0, 7}, {3, 256}, {12, 30}, {0, 9}, {12, 31}};
/* In the order in which they must come out: by priority, and the older first. */
static const int order[MANY] = {3, 6, 8, 0, 2, 5, 1, 4, 7};

static void clean(void)
{
    mq_unlink(mixed_name);
    mq_unlink(full_name);
    mq_unlink(idle_name);
    mq_unlink(twice_name);
    if (sender > 0)
        kill(sender, SIGKILL);
    if (reader > 0)
        kill(reader, SIGKILL);
}

static mqd_t make(char *name, const char *what, int flags, mode_t mode, long messages, long size)
{
    struct mq_attr shape = {.mq_maxmsg = messages, .mq_msgsize = size};
    snprintf(name, 64, "/torpor-test-%s-%d", what, (int)getpid());
    mqd_t q = mq_open(name, flags | O_CREAT | O_EXCL, 0600, &shape);
    MUST(q >= 0);
    MUST(fchmod(q, mode) == 0);
    return q;
}

static void text(char *room, int i, int size) { memset(room, 'a' + i, size); }

static void shape(mqd_t q, long flags, long messages, long size, long now, const char *what)
{
    struct mq_attr a;
    CHECK(mq_getattr(q, &a) == 0, "%s: mq_getattr", what);
    SAME(a.mq_flags, flags, what);
    SAME(a.mq_maxmsg, messages, what);
    SAME(a.mq_msgsize, size, what);
    SAME(a.mq_curmsgs, now, what);
}

static void target(mqd_t q, const char *want)
{
    char path[64], room[128];
    snprintf(path, sizeof path, "/proc/self/fd/%d", (int)q);
    ssize_t n = readlink(path, room, sizeof room - 1);
    MUST(n > 0);
    room[n] = 0;
    CHECK(strcmp(room, want) == 0, "descriptor %d is %s, was %s", (int)q, room, want);
}

static int waits_in(pid_t pid, long call)
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
    return number == call;
}

static void *receive(void *unused)
{
    (void)unused;
    receiver_tid = gettid();
    got_size = mq_receive(idle, got, sizeof got, NULL);
    return NULL;
}

/* One queue with two messages, and what makes it special. */
static void one_queue(void)
{
    char room[64];
    mixed = make(mixed_name, "one", O_RDWR, 0600, 3, 64);
    MUST(mq_send(mixed, "first", 6, 2) == 0 && mq_send(mixed, "second", 7, 1) == 0);
    int pair[2] = {-1, -1};
    if (is_mode("flight")) {
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
        char control[CMSG_SPACE(sizeof(int))] = "";
        struct iovec v = {"x", 1};
        struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        mqd_t another = mq_open(mixed_name, O_RDONLY);
        memcpy(CMSG_DATA(c), &another, sizeof(int));
        MUST(sendmsg(pair[0], &m, 0) == 1);
        mq_close(another);
    }
    ready();
    wait_go();
    CHECK(mq_receive(mixed, room, 64, NULL) == 6 && strcmp(room, "first") == 0, "the first message");
    CHECK(mq_receive(mixed, room, 64, NULL) == 7 && strcmp(room, "second") == 0, "the second message");
    shape(mixed, 0, 3, 64, 0, "afterwards");
    clean();
    ok();
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    at_failure = clean;
    let_go = shared_memory(4096);
    char room[256];
    if (mode_count)
        one_queue();
    mixed = make(mixed_name, "mixed", O_RDWR, 0640, 10, 256);
    other = mq_open(mixed_name, O_WRONLY | O_NONBLOCK);
    MUST(other >= 0);
    for (int i = 0; i < MANY; i++) {
        text(room, i, sent[i].size);
        MUST(mq_send(other, room, sent[i].size, sent[i].priority) == 0);
    }
    MUST(read(mixed, room, 10) == 10); /* tells how it stands; the position moves on */
    full = make(full_name, "full", O_RDWR | O_NONBLOCK, 0600, 2, 16);
    MUST(mq_send(full, "one", 4, 1) == 0 && mq_send(full, "two", 4, 1) == 0);
    /* A name that was used for another queue before, which still has a message in it. */
    gone = make(twice_name, "twice", O_RDONLY, 0400, 4, 64);
    mqd_t filler = mq_open(twice_name, O_WRONLY);
    MUST(filler >= 0 || errno == EACCES);
    if (filler < 0) {
        MUST(fchmod(gone, 0600) == 0);
        filler = mq_open(twice_name, O_WRONLY);
        MUST(filler >= 0);
    }
    MUST(mq_send(filler, "still there", 12, 5) == 0 && mq_close(filler) == 0 && mq_unlink(twice_name) == 0);
    twice = make(twice_name, "twice", O_RDWR, 0600, 1, 8192);
    MUST(mq_send(twice, "new", 4, 0) == 0);
    idle = make(idle_name, "idle", O_RDWR, 0666, 10, 64);
    char unused[64];
    quiet = make(unused, "quiet", O_RDWR, 0600, 1, 1);
    MUST(mq_unlink(unused) == 0);
    struct sigevent nothing = {.sigev_notify = SIGEV_NONE};
    MUST(mq_notify(quiet, &nothing) == 0);
    watch = epoll_create1(0);
    struct epoll_event in = {.events = EPOLLIN, .data.u32 = 7};
    MUST(epoll_ctl(watch, EPOLL_CTL_ADD, mixed, &in) == 0);

    sender = fork();
    if (!sender) { /* waits for room */
        mqd_t q = mq_open(full_name, O_WRONLY);
        _exit(q >= 0 && mq_send(q, "three", 6, 2) == 0 ? 0 : 1);
    }
    reader = fork();
    if (!reader) { /* shares descriptions; is told through the idle queue when to look */
        while (!*let_go)
            short_sleep();
        struct sigevent event = {.sigev_notify = SIGEV_NONE};
        if (mq_notify(quiet, &event) != -1 || errno != EBUSY)
            _exit(2);
        _exit(mq_send(idle, "from the child", 15, 9) == 0 ? 0 : 1);
    }
    MUST(pthread_create(&receiver, NULL, receive, NULL) == 0);
    UNTIL(waits_in(sender, SYS_mq_timedsend), 10, "the sender");
    UNTIL(receiver_tid && blocked_in(receiver_tid) == SYS_mq_timedreceive, 10, "the receiver");
    ready();
    wait_go();

    if (WRONG(1)) {
        mq_receive(mixed, room, sizeof room, NULL);
        mq_send(mixed, "another", 7, 32767);
    }
    if (WRONG(2))
        mq_send(mixed, "", 0, 0);
    if (WRONG(3)) {
        struct mq_attr a = {.mq_flags = O_NONBLOCK};
        mq_setattr(mixed, &a, NULL);
    }
    if (WRONG(4))
        fchmod(mixed, 0600);
    if (WRONG(5))
        mq_unlink(mixed_name);

    target(mixed, mixed_name);
    snprintf(room, sizeof room, "%s (deleted)", twice_name);
    target(gone, room);
    target(twice, twice_name);
    shape(mixed, 0, 10, 256, MANY, "mixed");
    shape(other, O_NONBLOCK, 10, 256, MANY, "mixed, its other description");
    shape(full, O_NONBLOCK, 2, 16, 2, "full");
    shape(gone, 0, 4, 64, 1, "unlinked");
    shape(twice, 0, 1, 8192, 1, "twice");
    shape(quiet, 0, 1, 1, 0, "quiet");
    SAME(lseek(mixed, 0, SEEK_CUR), 10, "position");
    SAME(fcntl(other, F_GETFL) & O_ACCMODE, O_WRONLY, "access");
    SAME(fcntl(gone, F_GETFL), O_RDONLY, "flags of the unlinked one");
    struct stat st;
    MUST(fstat(mixed, &st) == 0);
    SAME(st.st_mode & 07777, 0640, "mode");
    SAME(st.st_uid, geteuid(), "owner");
    SAME(st.st_nlink, 1, "links");
    MUST(fstat(gone, &st) == 0);
    SAME(st.st_nlink, 0, "links of the unlinked one");
    mqd_t again = mq_open(mixed_name, O_RDONLY);
    CHECK(again >= 0, "%s is not found by its name", mixed_name);
    shape(again, 0, 10, 256, MANY, "mixed, by its name");
    struct epoll_event out;
    SAME(epoll_wait(watch, &out, 1, 0), 1, "epoll");
    SAME(out.data.u32, 7, "data of the watch");

    unsigned priority;
    for (int i = 0; i < MANY; i++) {
        char want[256];
        text(want, order[i], sent[order[i]].size);
        ssize_t n = mq_receive(mixed, room, sizeof room, &priority);
        SAME(n, sent[order[i]].size, "size of a message");
        SAME(priority, sent[order[i]].priority, "priority of a message");
        CHECK(memcmp(room, want, n) == 0, "message %d differs", i);
    }
    SAME(epoll_wait(watch, &out, 1, 0), 0, "epoll, empty");
    SAME(mq_receive(gone, room, sizeof room, &priority), 12, "the message in the unlinked queue");
    CHECK(strcmp(room, "still there") == 0 && priority == 5, "the message in the unlinked queue differs");
    SAME(mq_receive(twice, (char[8192]){0}, 8192, &priority), 4, "the message in the new queue of that name");
    *let_go = 1;
    int status;
    UNTIL(state_of(sender) == 'S', 10, "the sender waits"); /* for a moment it runs on its way back into mq_send */
    SAME(mq_receive(full, room, 16, &priority), 4, "full");
    CHECK(strcmp(room, "one") == 0, "full: %s comes first", room);
    SAME(waitpid(sender, &status, 0), sender, "the sender");
    SAME(status, 0, "status of the sender");
    SAME(mq_receive(full, room, 16, &priority), 6, "full: what was waiting");
    CHECK(strcmp(room, "three") == 0 && priority == 2, "full: what was waiting differs");
    SAME(mq_receive(full, room, 16, &priority), 4, "full: the second");
    CHECK(mq_receive(full, room, 16, &priority) < 0 && errno == EAGAIN, "full: is not empty");
    SAME(waitpid(reader, &status, 0), reader, "the reader");
    SAME(status, 0, "status of the reader");
    pthread_join(receiver, NULL);
    SAME(got_size, 15, "what the receiver waited for");
    CHECK(strcmp(got, "from the child") == 0, "what the receiver got differs");
    sender = reader = 0;
    clean();
    ok();
}
