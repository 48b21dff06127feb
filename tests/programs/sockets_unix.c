/* UNIX sockets: pairs, streams, packets and datagrams, with paths, abstract names and none; listeners with connections
 * that wait; half closed, closed, full; descriptors in flight, also of what nobody holds; identities; options; readers
 * and writers blocked in other processes. */
#include "check.h"
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

struct pair {
    int a, b;
};
static char path[90];
static atomic_int *count;

static struct pair make(int type)
{
    int p[2];
    MUST(socketpair(AF_UNIX, type, 0, p) == 0);
    return (struct pair){p[0], p[1]};
}
static socklen_t name(struct sockaddr_un *to, const char *base, int abstract)
{
    memset(to, 0, sizeof *to);
    to->sun_family = AF_UNIX;
    int n = snprintf(to->sun_path, sizeof to->sun_path, "%s%s.%s", abstract ? "@" : "", path, base);
    if (abstract)
        to->sun_path[0] = 0;
    return offsetof(struct sockaddr_un, sun_path) + n + (abstract ? 0 : 1);
}
static int bound(int type, const char *base, int abstract)
{
    struct sockaddr_un at;
    socklen_t n = name(&at, base, abstract);
    int fd = socket(AF_UNIX, type, 0);
    MUST(fd >= 0);
    if (base)
        MUST(bind(fd, (void *)&at, n) == 0);
    return fd;
}
static int to(int type, const char *base, int abstract)
{
    struct sockaddr_un at;
    socklen_t n = name(&at, base, abstract);
    int fd = socket(AF_UNIX, type, 0);
    MUST(fd >= 0 && connect(fd, (void *)&at, n) == 0);
    return fd;
}
static void named(int fd, int peer, const char *base, int abstract, const char *what)
{
    struct sockaddr_un have, want;
    socklen_t n = sizeof have, w = name(&want, base, abstract);
    memset(&have, 0, sizeof have);
    MUST((peer ? getpeername : getsockname)(fd, (void *)&have, &n) == 0);
    SAME(n, w, what);
    CHECK(memcmp(&have, &want, w) == 0, "%s: another name", what);
}
static void put(int fd, const void *data, size_t size) { SAME(send(fd, data, size, MSG_NOSIGNAL), (long)size, "send"); }
static void get(int fd, const char *want, const char *what)
{
    char have[256];
    ssize_t n = recv(fd, have, strlen(want), MSG_DONTWAIT);
    CHECK(n == (ssize_t)strlen(want) && memcmp(have, want, n) == 0, "%s: %zd bytes '%.*s', not '%s'", what, n,
          (int)(n > 0 ? n : 0), have, want);
}
static void empty(int fd, const char *what)
{
    char c;
    CHECK(recv(fd, &c, 1, MSG_DONTWAIT | MSG_PEEK) < 0 && errno == EAGAIN, "%s: not empty", what);
}
static void put_fds(int fd, const char *data, int n, const int *fds)
{
    char room[CMSG_SPACE(64)] = {0};
    struct iovec v = {(void *)data, strlen(data)};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = CMSG_SPACE(4 * n)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(4 * n);
    memcpy(CMSG_DATA(c), fds, 4 * n);
    MUST(sendmsg(fd, &m, 0) == (ssize_t)strlen(data));
}
static int get_fds(int fd, const char *want, int *fds, const char *what)
{
    char have[64], room[CMSG_SPACE(64)];
    struct iovec v = {have, strlen(want)};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT);
    CHECK(n == (ssize_t)strlen(want) && memcmp(have, want, n) == 0, "%s: %zd bytes", what, n);
    int found = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
        if (c->cmsg_type == SCM_RIGHTS) {
            found = (c->cmsg_len - CMSG_LEN(0)) / 4;
            memcpy(fds, CMSG_DATA(c), 4 * found);
        }
    return found;
}
static long option(int fd, int name_)
{
    int v = 0;
    socklen_t n = sizeof v;
    MUST(getsockopt(fd, SOL_SOCKET, name_, &v, &n) == 0);
    return v;
}
static void clean(void)
{
    static const char *all[] = {"listen", "client", "dgram", "seq"};
    struct sockaddr_un at;
    for (int i = 0; i < 4; i++) {
        name(&at, all[i], 0);
        unlink(at.sun_path);
    }
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    at_failure = clean;
    signal(SIGPIPE, SIG_IGN);
    count = shared_memory(4096);
    snprintf(path, sizeof path, "%.60s.%d", go_path, (int)getpid());
    clean();

    struct pair some = make(SOCK_STREAM), packets = make(SOCK_SEQPACKET), grams = make(SOCK_DGRAM);
    put(some.a, "to b", 4);
    put(some.b, "to a", 4);
    put(packets.a, "one", 3);
    put(packets.a, "three", 5);
    put(grams.b, "", 0);
    put(grams.b, "gram", 4);

    struct pair full = make(SOCK_STREAM);
    static uint64_t page[512];
    long filled = 0, turns = 0;
    fcntl(full.a, F_SETFL, O_NONBLOCK);
    for (;; turns++) {
        fill(page, 3000, turns);
        ssize_t n = write(full.a, page, 3000);
        if (n < 0)
            break;
        filled += n;
    }
    MUST(errno == EAGAIN);

    struct pair half = make(SOCK_STREAM), deaf = make(SOCK_STREAM), orphan = make(SOCK_STREAM), rude = make(SOCK_STREAM);
    put(half.a, "half", 4);
    shutdown(half.a, SHUT_WR);
    shutdown(deaf.a, SHUT_RD);
    put(orphan.b, "last words", 10);
    close(orphan.b);
    put(rude.a, "unread", 6);
    close(rude.b);

    int listener = bound(SOCK_STREAM, "listen", 0), hidden = bound(SOCK_SEQPACKET, "seq", 1);
    MUST(listen(listener, 5) == 0 && listen(hidden, 2) == 0);
    struct sockaddr_un at;
    name(&at, "listen", 0);
    MUST(chmod(at.sun_path, 0620) == 0);
    int client = bound(SOCK_STREAM, "client", 0);
    MUST(connect(client, (void *)&at, name(&at, "listen", 0)) == 0);
    int accepted = accept(listener, NULL, NULL);
    put(client, "request", 7);
    put(accepted, "answer", 6);
    int second = to(SOCK_STREAM, "listen", 0), second_in = accept(listener, NULL, NULL);
    int wait1 = to(SOCK_STREAM, "listen", 0), wait2 = to(SOCK_STREAM, "listen", 0), seq = to(SOCK_SEQPACKET, "seq", 1);
    MUST(accepted >= 0 && second_in >= 0);

    int inbox = bound(SOCK_DGRAM, "dgram", 0), sender = bound(SOCK_DGRAM, "sender", 1);
    socklen_t n = name(&at, "dgram", 0);
    MUST(sendto(sender, "first", 5, 0, (void *)&at, n) == 5);
    int nameless = to(SOCK_DGRAM, "dgram", 0);
    put(nameless, "second", 6);
    MUST(connect(sender, (void *)&at, n) == 0);

    /* in flight: the read end of a pipe and a socket that nobody holds otherwise, with another descriptor in it */
    struct pair flight = make(SOCK_STREAM), inner = make(SOCK_DGRAM);
    int p[2];
    MUST(pipe(p) == 0 && write(p[1], "piped", 5) == 5);
    put_fds(inner.a, "deep", 1, p);
    put(flight.a, "plain", 5);
    put_fds(flight.a, "with", 2, (int[]){inner.b, flight.b});
    put(flight.a, "rest", 4);
    close(p[0]);
    close(inner.a);
    close(inner.b);

    struct pair creds = make(SOCK_DGRAM), opts = make(SOCK_STREAM);
    MUST(setsockopt(creds.b, SOL_SOCKET, SO_PASSCRED, &(int){1}, 4) == 0);
    put(creds.a, "who", 3);
    struct timeval tv = {7, 500000};
    MUST(setsockopt(opts.a, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0);
    MUST(setsockopt(opts.a, SOL_SOCKET, SO_SNDBUF, &(int){30000}, 4) == 0);
    long sndbuf = option(opts.a, SO_SNDBUF), other = option(opts.b, SO_SNDBUF);

    /* children: an echo server that is busy all the time, a reader and a writer that block */
    struct pair echo = make(SOCK_STREAM), idle = make(SOCK_SEQPACKET), jam = make(SOCK_STREAM);
    static uint64_t big[1 << 17];
    pid_t child[3];
    for (int c = 0; c < 3; c++) {
        child[c] = fork();
        if (child[c])
            continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (c == 0) {
            close(echo.a);
            char b[512];
            for (ssize_t r; (r = read(echo.b, b, sizeof b)) > 0;)
                put(echo.b, b, r);
            _exit(0);
        }
        if (c == 1) {
            char b[16];
            SAME(read(idle.b, b, 16), 5, "blocked reader");
            put(idle.b, "got it", 6);
            _exit(0);
        }
        close(jam.b);
        fill(big, sizeof big, 9);
        for (size_t done = 0; done < sizeof big;) { /* a stop makes a write that has begun return */
            ssize_t w = write(jam.a, (char *)big + done, sizeof big - done);
            CHECK(w > 0, "blocked writer");
            done += w;
        }
        _exit(0);
    }
    close(jam.a);
    close(echo.b);
    int inside = 0;
    UNTIL(ioctl(jam.b, 0x541B, &inside) == 0 && inside > 100000, 10, "the writer");

    char b[512];
    if (WRONG(1))
        MUST(recv(some.a, b, 1, 0) == 1);
    if (WRONG(2))
        MUST(recv(packets.b, b, 99, 0) == 3);
    if (WRONG(3))
        close(accept(listener, NULL, NULL));
    if (WRONG(4))
        MUST(recv(flight.b, b, 5, 0) == 5);
    if (WRONG(5))
        shutdown(half.b, SHUT_WR);
    ready();
    for (long i = 0; !told() || i < 10; i++) {
        snprintf(b, sizeof b, "message %09ld", i);
        put(echo.a, b, 64);
        char back[64];
        SAME(recv(echo.a, back, 64, MSG_WAITALL), 64, "echo");
        CHECK(memcmp(b, back, 64) == 0, "echo: %s, not %s", back, b);
    }

    get(some.a, "to a", "pair");
    get(some.b, "to b", "pair");
    empty(some.a, "pair");
    SAME(recv(packets.b, b, 99, 0), 3, "packet");
    SAME(recv(packets.b, b, 99, 0), 5, "packet");
    SAME(recv(grams.a, b, 99, 0), 0, "empty datagram");
    SAME(recv(grams.a, b, 99, 0), 4, "datagram");
    CHECK(write(full.a, page, 100) < 0 && errno == EAGAIN, "a full stream takes more");
    for (long i = 0; i < turns; i++) {
        SAME(recv(full.b, page, i < turns - 1 ? 3000 : filled - 3000 * i, MSG_WAITALL),
             i < turns - 1 ? 3000 : filled - 3000 * i, "full stream");
        if (i < turns - 1)
            VERIFY(page, 3000, i, "full stream");
    }
    empty(full.b, "full stream");
    get(half.b, "half", "half closed");
    SAME(recv(half.b, b, 9, 0), 0, "half closed");
    put(half.b, "still", 5);
    get(half.a, "still", "half closed, the other way");
    CHECK(send(half.a, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "half closed: it sends");
    CHECK(send(deaf.b, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "shut for reading: the other sends");
    SAME(recv(deaf.a, b, 9, 0), 0, "shut for reading");
    put(deaf.a, "x", 1);
    get(deaf.b, "x", "shut for reading, the other way");
    get(orphan.a, "last words", "closed peer");
    SAME(recv(orphan.a, b, 9, 0), 0, "closed peer");
    CHECK(recv(rude.a, b, 9, 0) < 0 && errno == ECONNRESET, "peer closed with unread data");
    SAME(recv(rude.a, b, 9, 0), 0, "peer closed with unread data, later");

    named(listener, 0, "listen", 0, "listener");
    named(client, 0, "client", 0, "client");
    named(client, 1, "listen", 0, "client's peer");
    named(accepted, 0, "listen", 0, "accepted");
    named(accepted, 1, "client", 0, "accepted's peer");
    get(accepted, "request", "accepted");
    get(client, "answer", "client");
    put(second, "2", 1);
    get(second_in, "2", "second client");
    name(&at, "listen", 0);
    struct stat st;
    CHECK(stat(at.sun_path, &st) == 0 && S_ISSOCK(st.st_mode), "the listener's file");
    SAME(st.st_mode & 0777, 0620, "the listener's file");
    put(wait1, "1", 1);
    put(wait2, "2", 1);
    fcntl(listener, F_SETFL, O_NONBLOCK);
    for (int i = 1; i <= 2; i++) {
        int fd = accept(listener, NULL, NULL);
        CHECK(fd >= 0, "a connection that waited");
        get(fd, i == 1 ? "1" : "2", "a connection that waited");
    }
    CHECK(accept(listener, NULL, NULL) < 0 && errno == EAGAIN, "one connection too many");
    int fd = accept(hidden, NULL, NULL);
    put(seq, "abstract", 8);
    get(fd, "abstract", "abstract");
    MUST(to(SOCK_STREAM, "listen", 0) >= 0);

    struct sockaddr_un from;
    socklen_t m = sizeof from;
    SAME(recvfrom(inbox, b, 99, 0, (void *)&from, &m), 5, "datagram with a sender");
    n = name(&at, "sender", 1);
    CHECK(m == n && memcmp(&from, &at, n) == 0, "sender of a datagram");
    m = sizeof from;
    SAME(recvfrom(inbox, b, 99, 0, (void *)&from, &m), 6, "datagram without a sender");
    CHECK(m == 0 || m == 2, "a sender without a name: %d", (int)m);
    put(sender, "again", 5);
    get(inbox, "again", "connected datagram socket");

    int fds[4];
    SAME(get_fds(flight.b, "plain", fds, "in front of descriptors"), 0, "in front of descriptors");
    SAME(get_fds(flight.b, "with", fds, "descriptors"), 2, "descriptors in flight");
    SAME(get_fds(flight.b, "rest", fds + 2, "behind descriptors"), 0, "behind descriptors");
    struct stat s2;
    MUST(fstat(fds[1], &st) == 0 && fstat(flight.b, &s2) == 0);
    CHECK(st.st_ino == s2.st_ino, "a socket in its own queue is another one");
    SAME(get_fds(fds[0], "deep", fds + 2, "deeper"), 1, "deeper descriptors");
    SAME(read(fds[2], b, 99), 5, "the pipe");
    MUST(write(p[1], "more", 4) == 4);
    SAME(read(fds[2], b, 99), 4, "the pipe");

    char room[256];
    struct iovec v = {b, 99};
    struct msghdr mh = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    SAME(recvmsg(creds.b, &mh, MSG_DONTWAIT), 3, "message with an identity");
    struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
    CHECK(c && c->cmsg_type == SCM_CREDENTIALS, "identity");
    SAME(((struct ucred *)CMSG_DATA(c))->uid, getuid(), "uid of a sender");
    struct ucred u;
    socklen_t un = sizeof u;
    MUST(getsockopt(some.a, SOL_SOCKET, SO_PEERCRED, &u, &un) == 0);
    SAME(u.uid, getuid(), "SO_PEERCRED");
    SAME(option(opts.a, SO_SNDBUF), sndbuf, "SO_SNDBUF");
    SAME(option(opts.b, SO_SNDBUF), other, "SO_SNDBUF of the other");
    n = sizeof tv;
    MUST(getsockopt(opts.a, SOL_SOCKET, SO_RCVTIMEO, &tv, &n) == 0);
    SAME(tv.tv_sec * 1000000 + tv.tv_usec, 7500000, "SO_RCVTIMEO");

    put(idle.a, "later", 5);
    SAME(recv(idle.a, b, 99, 0), 6, "blocked reader");
    static uint64_t have[1 << 17];
    SAME(recv(jam.b, have, sizeof have, MSG_WAITALL), (long)sizeof have, "blocked writer");
    VERIFY(have, sizeof have, 9, "blocked writer");
    close(echo.a);
    SAME(recv(jam.b, b, 1, 0), 0, "blocked writer, end");
    for (int i = 0; i < 3; i++) {
        int status;
        MUST(waitpid(child[i], &status, 0) == child[i]);
        SAME(status, 0, "child");
    }
    clean();
    ok();
}
