/* TCP, UDP and netlink within the job, over IPv4 and IPv6: established with data both ways, more than the window, half
 * closed, closed with data unread, urgent data, connections that wait to be accepted, a listener without room, options,
 * datagrams with senders, readers and writers blocked in other processes. */
#include "check.h"
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

struct name {
    struct sockaddr_storage own, peer;
    socklen_t n, m;
};
struct pair {
    int a, b; /* a has connected, b was accepted */
    struct name na, nb;
};
static int family = AF_INET;

static struct name name_of(int fd)
{
    struct name x;
    memset(&x, 0, sizeof x);
    x.n = x.m = sizeof x.own;
    MUST(getsockname(fd, (void *)&x.own, &x.n) == 0);
    if (getpeername(fd, (void *)&x.peer, &x.m) < 0)
        x.m = 0;
    return x;
}
static void same_name(int fd, const struct name *was, const char *what)
{
    struct name x = name_of(fd);
    CHECK(x.n == was->n && memcmp(&x.own, &was->own, x.n) == 0, "%s: another address (port %d, was %d)", what,
          ntohs(((struct sockaddr_in *)&x.own)->sin_port), ntohs(((struct sockaddr_in *)&was->own)->sin_port));
    CHECK(x.m == was->m && memcmp(&x.peer, &was->peer, x.m) == 0, "%s: another peer (port %d, was %d)", what,
          ntohs(((struct sockaddr_in *)&x.peer)->sin_port), ntohs(((struct sockaddr_in *)&was->peer)->sin_port));
}
static int bound(int type)
{
    struct sockaddr_in a4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 a6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(family, type, 0);
    MUST(fd >= 0);
    /* As servers do: without it, an end by SIGKILL keeps the port for a minute. */
    MUST(type != SOCK_STREAM || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, 4) == 0);
    MUST(bind(fd, family == AF_INET ? (void *)&a4 : (void *)&a6, family == AF_INET ? sizeof a4 : sizeof a6) == 0);
    return fd;
}
static int listening(int backlog)
{
    int fd = bound(SOCK_STREAM);
    MUST(listen(fd, backlog) == 0);
    return fd;
}
static int to(int fd, int type)
{
    struct name x = name_of(fd);
    int k = socket(family, type, 0);
    MUST(k >= 0 && connect(k, (void *)&x.own, x.n) == 0);
    return k;
}
static struct pair make(int listener)
{
    struct pair p;
    p.a = to(listener, SOCK_STREAM);
    p.b = accept(listener, NULL, NULL);
    MUST(p.b >= 0);
    p.na = name_of(p.a);
    p.nb = name_of(p.b);
    return p;
}
static void same_pair(const struct pair *p, const char *what)
{
    same_name(p->a, &p->na, what);
    same_name(p->b, &p->nb, what);
}
static void put(int fd, const void *data, size_t size) { SAME(send(fd, data, size, MSG_NOSIGNAL), (long)size, "send"); }
static void get(int fd, const char *want, const char *what)
{
    char have[256];
    ssize_t n = 0;
    while (n < (ssize_t)strlen(want)) {
        struct pollfd p = {fd, POLLIN, 0};
        CHECK(poll(&p, 1, 5000) == 1, "%s: %zd bytes and no more", what, n);
        ssize_t got = recv(fd, have + n, strlen(want) - n, 0);
        CHECK(got > 0, "%s: %zd after %zd bytes", what, got, n);
        n += got;
    }
    CHECK(n == (ssize_t)strlen(want) && memcmp(have, want, n) == 0, "%s: %zd bytes '%.*s', not '%s'", what, n,
          (int)(n > 0 ? n : 0), have, want);
}
static long stuff(int fd, uint64_t seed)
{
    static uint64_t room[1 << 15];
    fill(room, sizeof room, seed);
    long sent = 0;
    for (;;) {
        ssize_t n = send(fd, (char *)room + sent % sizeof room, sizeof room - sent % sizeof room, MSG_DONTWAIT);
        if (n < 0)
            break;
        sent += n;
    }
    MUST(errno == EAGAIN);
    return sent;
}
static void unstuff(int fd, uint64_t seed, long size, const char *what)
{
    static uint64_t want[1 << 15];
    static char have[sizeof want];
    fill(want, sizeof want, seed);
    for (long done = 0; done < size;) {
        struct pollfd p = {fd, POLLIN, 0};
        CHECK(poll(&p, 1, 5000) == 1, "%s: %ld of %ld bytes and no more", what, done, size);
        size_t at = done % sizeof want, n = sizeof want - at;
        if (n > (size_t)(size - done))
            n = size - done;
        ssize_t got = recv(fd, have, n, 0);
        CHECK(got > 0, "%s: %zd after %ld of %ld", what, got, done, size);
        CHECK(memcmp(have, (char *)want + at, got) == 0, "%s: differs after %ld of %ld", what, done, size);
        done += got;
    }
    CHECK(recv(fd, have, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN, "%s: more than was sent", what);
}
static long option(int fd, int level, int name)
{
    int v = 0;
    socklen_t n = sizeof v;
    MUST(getsockopt(fd, level, name, &v, &n) == 0);
    return v;
}
#define SET(fd, level, name, value) MUST(setsockopt(fd, level, name, &(int){value}, 4) == 0)

int main(int argc, char **argv)
{
    begin(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    if (is_mode("v6"))
        family = AF_INET6;
    int l = listening(16), small = socket(family, SOCK_STREAM, 0), none = socket(family, SOCK_STREAM, 0);
    struct name ln = name_of(l);
    MUST(small >= 0 && none >= 0);
    struct pair some = make(l), big = make(l), half = make(l), last = make(l), rude = make(l), urgent = make(l);
    put(some.a, "to b", 4);
    put(some.b, "to a", 4);
    SET(some.a, IPPROTO_TCP, TCP_NODELAY, 1);
    SET(some.a, SOL_SOCKET, SO_KEEPALIVE, 1);
    SET(some.a, IPPROTO_TCP, TCP_KEEPIDLE, 77);
    SET(some.b, SOL_SOCKET, SO_RCVBUF, 100000);
    struct linger linger = {1, 9};
    MUST(setsockopt(some.b, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    long rcvbuf = option(some.b, SOL_SOCKET, SO_RCVBUF);
    fcntl(some.b, F_SETFL, O_NONBLOCK);
    long to_b = stuff(big.a, 1), to_a = stuff(big.b, 2);
    put(half.a, "half", 4);
    shutdown(half.a, SHUT_WR);
    put(last.a, "last words", 10);
    close(last.a);
    put(rude.b, "unread", 6);
    int inside = 0;
    UNTIL(ioctl(rude.a, 0x541B, &inside) == 0 && inside == 6, 5, "arrival");
    close(rude.a);
    put(urgent.a, "before", 6);
    MUST(send(urgent.a, "!", 1, MSG_OOB) == 1);
    put(urgent.a, "after", 5);

    int tight = listening(0);
    int wait1 = to(tight, SOCK_STREAM), refused = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct name tn = name_of(tight), wn = name_of(wait1), nn;
    int syn = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    MUST(connect(syn, (void *)&tn.own, tn.n) < 0 && errno == EINPROGRESS);
    short_sleep();
    struct name sn = name_of(syn);
    int nobody = bound(SOCK_STREAM);
    nn = name_of(nobody);
    MUST(connect(refused, (void *)&nn.own, nn.n) < 0 && errno == EINPROGRESS);

    int inbox = bound(SOCK_DGRAM), sender = bound(SOCK_DGRAM), gone = bound(SOCK_DGRAM);
    struct name in = name_of(inbox), from = name_of(sender), was = name_of(gone);
    MUST(sendto(sender, "first", 5, 0, (void *)&in.own, in.n) == 5);
    MUST(sendto(gone, "second", 6, 0, (void *)&in.own, in.n) == 6);
    MUST(connect(sender, (void *)&in.own, in.n) == 0);
    struct name from2 = name_of(sender);
    put(sender, "third", 5);
    close(gone);

    int nl = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    struct sockaddr_nl na = {.nl_family = AF_NETLINK, .nl_groups = 1};
    MUST(nl >= 0 && bind(nl, (void *)&na, sizeof na) == 0);
    struct name nln = name_of(nl);

    struct pair echo = make(l), idle = make(l), jam = make(l);
    static uint64_t huge[1 << 20];
    pid_t child[4];
    int serve = listening(4);
    for (int c = 0; c < 4; c++) {
        child[c] = fork();
        if (child[c])
            continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        char b[512];
        if (c == 0) { /* echoes */
            close(echo.a);
            for (ssize_t r; (r = read(echo.b, b, sizeof b)) > 0;)
                put(echo.b, b, r);
        } else if (c == 1) {
            SAME(recv(idle.b, b, 5, MSG_WAITALL), 5, "blocked reader");
            put(idle.b, "got it", 6);
        } else if (c == 2) {
            close(jam.b);
            fill(huge, sizeof huge, 9);
            for (size_t done = 0; done < sizeof huge;) {
                ssize_t w = write(jam.a, (char *)huge + done, sizeof huge - done);
                CHECK(w > 0, "blocked writer");
                done += w;
            }
        } else { /* accepts, all the time */
            for (int end = 0; !end;) {
                int k = accept(serve, NULL, NULL);
                CHECK(k >= 0, "accept");
                ssize_t r = recv(k, b, 1, 0);
                end = r == 1 && b[0] == 'e';
                put(k, b, 1);
                close(k);
            }
        }
        _exit(0);
    }
    close(jam.a);
    close(echo.b);
    UNTIL(ioctl(jam.b, 0x541B, &inside) == 0 && inside > 20000, 10, "the writer");

    char b[512];
    if (WRONG(1))
        MUST(recv(some.a, b, 1, 0) == 1);
    if (WRONG(2))
        MUST(recv(big.b, b, 100, 0) == 100);
    if (WRONG(3))
        close(accept(tight, NULL, NULL));
    if (WRONG(4))
        MUST(recv(inbox, b, 99, 0) == 5);
    if (WRONG(5))
        SET(some.a, IPPROTO_TCP, TCP_NODELAY, 0);
    ready();
    for (long i = 0; !told() || i < 10; i++) {
        snprintf(b, sizeof b, "message %09ld", i);
        put(echo.a, b, 64);
        char back[64];
        SAME(recv(echo.a, back, 64, MSG_WAITALL), 64, "echo");
        CHECK(memcmp(b, back, 64) == 0, "echo: %s, not %s", back, b);
    }

    same_name(l, &ln, "listener");
    same_pair(&some, "pair");
    get(some.a, "to a", "pair");
    SAME(recv(some.b, b, 99, 0), 4, "pair, the other way");
    SAME(fcntl(some.b, F_GETFL) & O_NONBLOCK, O_NONBLOCK, "O_NONBLOCK");
    SAME(option(some.a, IPPROTO_TCP, TCP_NODELAY), 1, "TCP_NODELAY");
    SAME(option(some.a, SOL_SOCKET, SO_KEEPALIVE), 1, "SO_KEEPALIVE");
    SAME(option(some.a, IPPROTO_TCP, TCP_KEEPIDLE), 77, "TCP_KEEPIDLE");
    SAME(option(some.b, SOL_SOCKET, SO_RCVBUF), rcvbuf, "SO_RCVBUF");
    SAME(option(l, SOL_SOCKET, SO_REUSEADDR), 1, "SO_REUSEADDR");
    socklen_t n = sizeof linger;
    MUST(getsockopt(some.b, SOL_SOCKET, SO_LINGER, &linger, &n) == 0);
    SAME(linger.l_linger, 9, "SO_LINGER");
    same_pair(&big, "full pair");
    unstuff(big.b, 1, to_b, "more than the window");
    unstuff(big.a, 2, to_a, "more than the window, the other way");
    same_pair(&half, "half closed");
    get(half.b, "half", "half closed");
    SAME(recv(half.b, b, 9, 0), 0, "half closed");
    put(half.b, "still", 5);
    get(half.a, "still", "half closed, the other way");
    CHECK(send(half.a, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "half closed: it sends");
    get(last.b, "last words", "closed peer");
    SAME(recv(last.b, b, 9, 0), 0, "closed peer");
    CHECK(recv(rude.b, b, 9, 0) < 0 && errno == ECONNRESET, "peer closed with unread data");
    get(urgent.b, "before", "before urgent data");
    SAME(recv(urgent.b, b, 9, MSG_OOB), 1, "urgent data");
    CHECK(b[0] == '!', "urgent data");
    get(urgent.b, "after", "after urgent data");
    same_name(wait1, &wn, "one that waits");
    same_name(syn, &sn, "one that connects");
    put(wait1, "1", 1);
    fcntl(tight, F_SETFL, O_NONBLOCK);
    int fd = accept(tight, NULL, NULL);
    CHECK(fd >= 0, "a connection that waited");
    get(fd, "1", "a connection that waited");
    UNTIL((fd = accept(tight, NULL, NULL)) >= 0, 8, "a connection that found no room");
    struct pollfd pf = {syn, POLLOUT, 0};
    MUST(poll(&pf, 1, 5000) == 1);
    SAME(option(syn, SOL_SOCKET, SO_ERROR), 0, "a connection that found no room");
    put(syn, "2", 1);
    get(fd, "2", "a connection that found no room");
    SAME(option(refused, SOL_SOCKET, SO_ERROR), ECONNREFUSED, "a refused connection");
    put(to(l, SOCK_STREAM), "new", 3);
    get(accept(l, NULL, NULL), "new", "a new connection");

    struct name f;
    const char *texts[] = {"first", "second", "third"};
    const struct name *froms[] = {&from, &was, &from2};
    for (int i = 0; i < 3; i++) {
        memset(&f, 0, sizeof f);
        f.n = sizeof f.own;
        SAME(recvfrom(inbox, b, 99, MSG_DONTWAIT, (void *)&f.own, &f.n), (long)strlen(texts[i]), "datagram");
        CHECK(f.n == froms[i]->n && memcmp(&f.own, &froms[i]->own, f.n) == 0, "sender of datagram %d", i);
    }
    same_name(sender, &from2, "connected datagram socket");
    put(sender, "again", 5);
    SAME(recv(inbox, b, 99, MSG_DONTWAIT), 5, "connected datagram socket");
    same_name(nl, &nln, "netlink socket");

    put(idle.a, "later", 5);
    get(idle.a, "got it", "blocked reader");
    same_name(jam.b, &jam.nb, "blocked writer");
    static uint64_t have[1 << 20];
    SAME(recv(jam.b, have, sizeof have, MSG_WAITALL), (long)sizeof have, "blocked writer");
    VERIFY(have, sizeof have, 9, "blocked writer");
    for (int i = 0; i < 3; i++) {
        int k = to(serve, SOCK_STREAM);
        put(k, i == 2 ? "e" : "x", 1);
        get(k, i == 2 ? "e" : "x", "server that accepts");
    }
    close(echo.a);
    for (int i = 0; i < 4; i++) {
        int status;
        MUST(waitpid(child[i], &status, 0) == child[i]);
        SAME(status, 0, "child");
    }
    ok();
}
