/* Who made what, as UNIX sockets tell it: SO_PEERCRED and SO_PEERGROUPS of pairs, listeners and connections, and senders'
 * identities of messages that wait (SCM_CREDENTIALS). Of processes that live, and of such that are long gone; as root
 * also of other users. Everything is noted before READY and compared afterwards. */
#include "check.h"
#include <grp.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { SEVERAL = 64 };
static struct told {
    int fd, groups;
    struct ucred who;
    gid_t group[32];
    const char *what;
} noted[SEVERAL];
static int count;
static pid_t owner;
static uid_t uid; /* of the helpers below */
static gid_t gid;

static struct told look(int fd, const char *what)
{
    struct told now = {.fd = fd, .what = what};
    socklen_t n = sizeof now.who, g = sizeof now.group;
    MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &now.who, &n) == 0);
    now.groups = getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, now.group, &g) == 0 ? (int)(g / sizeof(gid_t)) : -1;
    return now;
}
/* It is told to be made by that process: note it. */
static void by(pid_t pid, int fd, const char *what)
{
    noted[count] = look(fd, what);
    SAME(noted[count].who.pid, pid, what);
    SAME(noted[count].who.uid, pid == getpid() ? getuid() : uid, what);
    MUST(noted[count].groups >= 0);
    MUST(++count < SEVERAL);
}
static void still(const struct told *was)
{
    struct told now = look(was->fd, was->what);
    SAME(now.who.pid, was->who.pid, was->what);
    SAME(now.who.uid, was->who.uid, was->what);
    SAME(now.who.gid, was->who.gid, was->what);
    SAME(now.groups, was->groups, was->what);
    CHECK(memcmp(now.group, was->group, sizeof now.group) == 0, "%s: other groups", was->what);
}
static int name(struct sockaddr_un *to, const char *base)
{
    memset(to, 0, sizeof *to);
    to->sun_family = AF_UNIX;
    /* abstract, of this run only: the first byte stays 0 */
    return offsetof(struct sockaddr_un, sun_path) + 1 +
           snprintf(to->sun_path + 1, sizeof to->sun_path - 1, "%.80s.%d.%s", go_path, (int)owner, base);
}
static int bound(int type, const char *base)
{
    struct sockaddr_un at;
    int n = name(&at, base), fd = socket(AF_UNIX, type, 0);
    MUST(fd >= 0 && bind(fd, (void *)&at, n) == 0);
    return fd;
}
static void to(int fd, const char *base)
{
    struct sockaddr_un at;
    int n = name(&at, base);
    MUST(connect(fd, (void *)&at, n) == 0);
}
static void send_fds(int over, const int *fds, int n)
{
    char room[CMSG_SPACE(sizeof(int) * 2)] = {0}, c = 'x';
    struct iovec v = {&c, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = CMSG_SPACE(sizeof(int) * n)};
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = SOL_SOCKET;
    h->cmsg_type = SCM_RIGHTS;
    h->cmsg_len = CMSG_LEN(sizeof(int) * n);
    memcpy(CMSG_DATA(h), fds, sizeof(int) * n);
    MUST(sendmsg(over, &m, 0) == 1);
}
static void get_fds(int over, int *fds, int n)
{
    char room[CMSG_SPACE(sizeof(int) * 2)] = {0}, c;
    struct iovec v = {&c, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    MUST(recvmsg(over, &m, 0) == 1);
    memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int) * n);
}
static void be_other(void)
{
    if (getuid())
        return;
    MUST(setgroups(3, (gid_t[]){7, 70, 7000}) == 0 && setresgid(gid, gid, gid) == 0 && setresuid(uid, uid, uid) == 0);
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}
/* In a process that ends at once (`do_` is a statement): its number. */
#define GONE(do_)                                                                                                      \
    ({                                                                                                                 \
        pid_t child_ = fork();                                                                                         \
        if (child_ == 0) {                                                                                             \
            be_other();                                                                                                \
            do_;                                                                                                       \
            _exit(0);                                                                                                  \
        }                                                                                                              \
        int status_;                                                                                                   \
        MUST(waitpid(child_, &status_, 0) == child_ && status_ == 0);                                                  \
        child_;                                                                                                        \
    })
static pid_t pair_of_gone(int type, int *pair)
{
    int post[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, post) == 0);
    pid_t who = GONE({
        int made[2];
        MUST(socketpair(AF_UNIX, type, 0, made) == 0);
        send_fds(post[1], made, 2);
    });
    get_fds(post[0], pair, 2);
    close(post[0]);
    close(post[1]);
    return who;
}
static void put(int fd, const char *what) { SAME(send(fd, what, strlen(what), 0), (long)strlen(what), "send"); }
static void put_as(int fd, const char *what, struct ucred who)
{
    char room[CMSG_SPACE(sizeof who)] = {0};
    struct iovec v = {(void *)what, strlen(what)};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = SOL_SOCKET;
    h->cmsg_type = SCM_CREDENTIALS;
    h->cmsg_len = CMSG_LEN(sizeof who);
    memcpy(CMSG_DATA(h), &who, sizeof who);
    MUST(sendmsg(fd, &m, 0) == (long)v.iov_len);
}
static void get(int fd, const char *want, pid_t pid, uid_t user, gid_t group)
{
    char have[64], room[256];
    struct iovec v = {have, sizeof have};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT);
    CHECK(n == (ssize_t)strlen(want) && memcmp(have, want, n) == 0, "'%s': %zd bytes '%.*s'", want, n,
          (int)(n > 0 ? n : 0), have);
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    CHECK(h && h->cmsg_type == SCM_CREDENTIALS, "'%s': no identity", want);
    struct ucred who;
    memcpy(&who, CMSG_DATA(h), sizeof who);
    SAME(who.pid, pid, want);
    SAME(who.uid, user, want);
    SAME(who.gid, group, want);
}
static void ask(int fd) { MUST(setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)) == 0); }

int main(int argc, char **argv)
{
    begin(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    uid = getuid() ? getuid() : 65534;
    gid = getuid() ? getgid() : 65533;
    if (getuid() == 0)
        MUST(setgroups(2, (gid_t[]){0, 4711}) == 0);
    pid_t me = owner = getpid();

    static const int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
    int own[3][2], gone[3][2];
    for (int i = 0; i < 3; i++) {
        MUST(socketpair(AF_UNIX, types[i], 0, own[i]) == 0);
        by(me, own[i][0], "a pair of mine");
        by(me, own[i][1], "a pair of mine, the other end");
        pid_t who = pair_of_gone(types[i], gone[i]);
        by(who, gone[i][0], "a pair of somebody who is gone");
        by(who, gone[i][1], "a pair of somebody who is gone, the other end");
    }

    /* A listener that several have listened on: who connects is told who did last, and stays told so. */
    int listener = bound(SOCK_STREAM, "listener"), c[5], s[5];
    for (int i = 0; i < 5; i++)
        c[i] = socket(AF_UNIX, SOCK_STREAM, 0);
    pid_t first = GONE(MUST(listen(listener, 8) == 0));
    by(first, listener, "a listener");
    count--;
    pid_t client = GONE(to(c[0], "listener"));
    to(c[1], "listener");
    pid_t second = GONE(MUST(listen(listener, 4) == 0));
    by(second, listener, "a listener that was listened on again");
    to(c[2], "listener");
    for (int i = 0; i < 3; i++)
        MUST((s[i] = accept(listener, NULL, NULL)) >= 0);
    by(first, c[0], "the client of somebody who is gone");
    by(client, s[0], "what was accepted of it");
    by(first, c[1], "a client of mine");
    by(me, s[1], "what was accepted of it");
    by(second, c[2], "a client of the second listener");
    by(me, s[2], "what was accepted of it");
    to(c[3], "listener"); /* and waits */
    by(second, c[3], "a client that waits");

    /* A listener that is gone, too, and a client whose other end is. */
    int past = bound(SOCK_SEQPACKET, "past"), p = socket(AF_UNIX, SOCK_SEQPACKET, 0), q;
    pid_t third = GONE(MUST(listen(past, 1) == 0));
    pid_t fourth = GONE(to(p, "past"));
    MUST((q = accept(past, NULL, NULL)) >= 0);
    close(past);
    by(third, p, "the client of a listener that is gone");
    by(fourth, q, "what was accepted of it");
    close(own[1][0]);
    for (int i = 0; i < count; i++)
        if (noted[i].fd == own[1][0])
            noted[i].fd = own[1][1];

    /* Messages that wait, by several, in one queue: what was sent before the receiver asked is nobody's. */
    int box[3][2];
    pid_t wrote[3];
    for (int i = 0; i < 3; i++) {
        MUST(socketpair(AF_UNIX, types[i], 0, box[i]) == 0);
        put(box[i][0], "early");
        ask(box[i][1]);
        wrote[i] = GONE(put(box[i][0], "gone"));
        put(box[i][0], "mine");
        put_as(box[i][0], "said", (struct ucred){me, getuid(), getgid()});
    }

    /* A child that lives: it has its parent's pairs, a server of its own, and sends. */
    int service = bound(SOCK_STREAM, "service"), go[2], inherited = own[0][1];
    MUST(pipe(go) == 0);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        be_other();
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        MUST(listen(service, 2) == 0);
        put(box[2][0], "child");
        MUST(write(go[1], "r", 1) == 1);
        int fd = accept(service, NULL, NULL);
        struct told was = look(fd, "what the child has accepted"), pair = look(inherited, "the parent's pair");
        SAME(was.who.pid, me, was.what);
        SAME(pair.who.pid, me, pair.what);
        MUST(write(go[1], "a", 1) == 1);
        wait_go();
        still(&was);
        still(&pair);
        SAME(pair.who.pid, getppid(), "the parent's pair");
        put(box[2][0], "later");
        _exit(0);
    }
    char b;
    MUST(read(go[0], &b, 1) == 1);
    to(c[4], "service");
    by(child, c[4], "a client of the child");
    MUST(read(go[0], &b, 1) == 1);

    if (WRONG(1)) { /* a pair of mine in the place of one of somebody else's */
        int other[2];
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, other) == 0);
        MUST(dup2(other[0], gone[0][0]) >= 0);
    }
    if (WRONG(2))
        MUST(listen(listener, 4) == 0);
    if (WRONG(3)) {
        char have[64];
        MUST(recv(box[2][1], have, sizeof have, 0) == 5);
    }
    ready();
    wait_go();

    for (int i = 0; i < count; i++)
        still(&noted[i]);
    MUST((s[3] = accept(listener, NULL, NULL)) >= 0);
    SAME(look(s[3], "").who.pid, me, "accepted of a client that waited");
    SAME(look(s[3], "").who.uid, getuid(), "accepted of a client that waited");
    int late = socket(AF_UNIX, SOCK_STREAM, 0), status;
    to(late, "listener");
    MUST((s[4] = accept(listener, NULL, NULL)) >= 0);
    SAME(look(late, "").who.pid, second, "a new client");
    SAME(look(s[4], "").who.pid, me, "accepted of a new client");
    for (int i = 0; i < 3; i++) {
        get(box[i][1], "early", 0, 65534, 65534);
        get(box[i][1], "gone", wrote[i], uid, gid);
        if (i) {
            get(box[i][1], "mine", me, getuid(), getgid());
            get(box[i][1], "said", me, getuid(), getgid());
        } else /* a stream does not keep apart what one has sent */
            get(box[i][1], "minesaid", me, getuid(), getgid());
    }
    get(box[2][1], "child", child, uid, gid);
    MUST(waitpid(child, &status, 0) == child);
    SAME(status, 0, "the child");
    get(box[2][1], "later", child, uid, gid);
    ok();
}
