/* Channels: bytes or messages go one way or both, and arrive whole and in order. */
#include "stress.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>

enum sort {
    PIPE, PACKETS, FIFO, PAIR, PAIR_DGRAM, PAIR_SEQ, NAMED, ABSTRACT, NAMED_SEQ, NAMED_DGRAM, TCP4, TCP6, UDP4, UDP6,
    PTY, SORTS
};
static const struct {
    const char *name;
    int messages; /* at most so many under way; 0: a stream */
    int both;     /* both ways */
    int room;     /* bytes that fit surely; of one message for messages */
} sorts[SORTS] = {
    [PIPE] = {"pipe", 0, 0, 24000},         [PACKETS] = {"packets", 12, 0, 4000},
    [FIFO] = {"fifo", 0, 0, 24000},         [PAIR] = {"socketpair", 0, 1, 16000},
    [PAIR_DGRAM] = {"pair dgram", 8, 1, 3000}, [PAIR_SEQ] = {"pair seqpacket", 20, 1, 3000},
    [NAMED] = {"unix", 0, 1, 16000},        [ABSTRACT] = {"unix abstract", 0, 1, 16000},
    [NAMED_SEQ] = {"unix seqpacket", 20, 1, 3000}, [NAMED_DGRAM] = {"unix dgram", 8, 0, 3000},
    [TCP4] = {"tcp", 0, 1, 16000},          [TCP6] = {"tcp6", 0, 1, 16000},
    [UDP4] = {"udp", 12, 1, 2000},          [UDP6] = {"udp6", 12, 1, 2000},
    [PTY] = {"pty", 0, 1, 900},
};

static int is_socket(int sort) { return sort >= PAIR && sort <= UDP6; }
static int is_unix(int sort) { return sort >= PAIR && sort <= NAMED_DGRAM; }

/* A listening socket somewhere; its address in `name`. */
static int listener(struct thing *t, int type, struct sockaddr_storage *name, socklen_t *size)
{
    int family = t->sort == TCP6 || t->sort == UDP6 ? AF_INET6 : t->sort == TCP4 || t->sort == UDP4 ? AF_INET : AF_UNIX;
    memset(name, 0, sizeof *name);
    int fd = socket(family, type | SOCK_CLOEXEC, 0);
    DO(fd >= 0);
    if (family == AF_UNIX) {
        struct sockaddr_un *un = (void *)name;
        un->sun_family = AF_UNIX;
        if (t->sort == ABSTRACT)
            *size = offsetof(struct sockaddr_un, sun_path) +
                    sprintf(un->sun_path + 1, "torpor-stress.%d.%d.%llu", base_key, worker, (unsigned long long)t->id) + 1;
        else {
            sprintf(un->sun_path, "s.%d.%llu", worker, (unsigned long long)t->id);
            strcpy(t->path, un->sun_path);
            unlink(t->path); /* from before a restart */
            *size = sizeof *un;
        }
    } else if (family == AF_INET) {
        struct sockaddr_in *in = (void *)name;
        in->sin_family = AF_INET;
        in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        *size = sizeof *in;
    } else {
        struct sockaddr_in6 *in = (void *)name;
        in->sin6_family = AF_INET6;
        in->sin6_addr = in6addr_loopback;
        *size = sizeof *in;
    }
    int one = 1; /* as servers do; else what was killed keeps the address for a minute */
    DO(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
    DO(bind(fd, (void *)name, *size) == 0);
    if (family != AF_UNIX)
        DO(getsockname(fd, (void *)name, size) == 0);
    if (type != SOCK_DGRAM)
        DO(listen(fd, 3) == 0);
    return fd;
}

/* fd[0] and fd[1] are the ends; fd[2] a listener that stays, or -1. n[0]: waits to be accepted. */
static void accept_now(struct thing *t)
{
    if (!t->n[0])
        return;
    t->fd[1] = accept4(t->fd[2], NULL, NULL, SOCK_CLOEXEC);
    DO(t->fd[1] >= 0);
    t->n[0] = 0;
    if (one_in(2)) {
        DO(close(t->fd[2]) == 0);
        t->fd[2] = -1;
        if (t->path[0])
            unlink(t->path);
    }
}

static void make_channel(struct thing *t)
{
    struct sockaddr_storage name, other;
    socklen_t size;
    int type = SOCK_STREAM, ends[2];
    t->sort = below(SORTS);
    t->fd[2] = -1;
    fold(t->sort);
    switch (t->sort) {
    case PIPE:
    case PACKETS:
        DO(pipe2(ends, (t->sort == PACKETS ? O_DIRECT : 0) | O_CLOEXEC) == 0);
        t->fd[0] = ends[1];
        t->fd[1] = ends[0];
        break;
    case FIFO:
        sprintf(t->path, "p.%d.%llu", worker, (unsigned long long)t->id);
        unlink(t->path);
        do { /* until it is open it is only a name in the world outside, which a restart does not turn back */
            DO(mkfifo(t->path, 0600) == 0 || errno == EEXIST);
            t->fd[1] = open(t->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        } while (t->fd[1] < 0 && errno == ENOENT);
        t->fd[0] = open(t->path, O_WRONLY | O_CLOEXEC);
        DO(t->fd[0] >= 0 && t->fd[1] >= 0);
        DO(fcntl(t->fd[1], F_SETFL, 0) == 0);
        break;
    case PAIR_DGRAM:
    case PAIR_SEQ:
    case PAIR:
        type = t->sort == PAIR ? SOCK_STREAM : t->sort == PAIR_SEQ ? SOCK_SEQPACKET : SOCK_DGRAM;
        DO(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, t->fd) == 0);
        break;
    case NAMED_DGRAM:
        t->fd[1] = listener(t, SOCK_DGRAM, &name, &size);
        t->fd[0] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        DO(t->fd[0] >= 0 && connect(t->fd[0], (void *)&name, size) == 0);
        break;
    case UDP4:
    case UDP6:
        t->fd[1] = listener(t, SOCK_DGRAM, &name, &size);
        t->fd[0] = listener(t, SOCK_DGRAM, &other, &size);
        while (memcmp(&other, &name, size) == 0) { /* sockets that share addresses are given the same one now and then */
            DO(close(t->fd[0]) == 0);
            t->fd[0] = listener(t, SOCK_DGRAM, &other, &size);
        }
        DO(connect(t->fd[0], (void *)&name, size) == 0 && connect(t->fd[1], (void *)&other, size) == 0);
        break;
    case PTY: {
        struct termios raw;
        DO(openpty(&t->fd[0], &t->fd[1], NULL, NULL, NULL) == 0);
        DO(fcntl(t->fd[0], F_SETFD, FD_CLOEXEC) == 0 && fcntl(t->fd[1], F_SETFD, FD_CLOEXEC) == 0);
        DO(tcgetattr(t->fd[1], &raw) == 0);
        cfmakeraw(&raw);
        DO(tcsetattr(t->fd[1], TCSANOW, &raw) == 0);
        break;
    }
    default:
        type = t->sort == NAMED_SEQ ? SOCK_SEQPACKET : SOCK_STREAM;
        t->fd[2] = listener(t, type, &name, &size);
        t->fd[0] = socket(name.ss_family, type | SOCK_CLOEXEC, 0);
        DO(t->fd[0] >= 0);
        DO(connect(t->fd[0], (void *)&name, size) == 0);
        t->n[0] = 1;
        if (one_in(2))
            accept_now(t);
    }
}

static uint64_t seed_of(const struct thing *t, int way) { return mix(t->id, 77 + worker * 2 + way); }
/* The size of message k. */
static size_t size_of(const struct thing *t, int way, uint64_t k)
{
    return 1 + mix(k, seed_of(t, way) + 1) % sorts[t->sort].room;
}
static int under_way(const struct thing *t, int way) { return t->flow[way].written - t->flow[way].read; }

static unsigned char buffer[1 << 16];

static void put(struct thing *t, int way)
{
    struct flow *f = &t->flow[way];
    uint64_t seed = seed_of(t, way);
    if (sorts[t->sort].messages) {
        if (under_way(t, way) >= sorts[t->sort].messages)
            return;
        size_t size = size_of(t, way, f->written);
        for (size_t i = 0; i < size; i++)
            buffer[i] = byte_of(seed + f->written, i);
        EQUAL(write(t->fd[way], buffer, size), size, sorts[t->sort].name);
        f->written++;
    } else {
        size_t room = sorts[t->sort].room - under_way(t, way);
        size_t size = 1 + below(4000);
        if (t->n[1 + way] >= 40 || size > room)
            return; /* each piece has a buffer of its own */
        for (size_t i = 0; i < size; i++)
            buffer[i] = byte_of(seed, f->written + i);
        write_all(t->fd[way], buffer, size);
        f->written += size;
        t->n[1 + way]++;
    }
    fold(f->written);
}

static void get(struct thing *t, int way)
{
    struct flow *f = &t->flow[way];
    int fd = t->fd[!way];
    uint64_t seed = seed_of(t, way);
    if (!under_way(t, way))
        return;
    if (sorts[t->sort].messages) {
        ssize_t n = read(fd, buffer, sizeof buffer);
        CHECK(n == (ssize_t)size_of(t, way, f->read), "%s: message %llu has %zd bytes, not %zu (worker %d round %llu)",
              sorts[t->sort].name, (unsigned long long)f->read, n, size_of(t, way, f->read), worker,
              (unsigned long long)round_now);
        expect_bytes(buffer, n, seed + f->read, 0, sorts[t->sort].name);
        f->read++;
    } else {
        size_t size = one_in(3) ? (size_t)under_way(t, way) : 1 + below(under_way(t, way));
        read_all(fd, buffer, size);
        expect_bytes(buffer, size, seed, f->read, sorts[t->sort].name);
        f->read += size;
        if (!under_way(t, way))
            t->n[1 + way] = 0;
    }
    fold(f->read + buffer[0]);
}

/* Until nothing more fits; how much that is is not determined, so what follows starts anew. */
static void fill_up(struct thing *t, int way)
{
    struct flow *f = &t->flow[way];
    uint64_t start = f->written, most = t->sort == TCP4 || t->sort == TCP6 ? 300000 : 1 << 20;
    size_t step = 1 + below(9000);
    if (sorts[t->sort].messages || t->sort == PTY || t->flow[way].closed || under_way(t, way))
        return;
    int flags = fcntl(t->fd[way], F_GETFL);
    DO(fcntl(t->fd[way], F_SETFL, flags | O_NONBLOCK) == 0);
    while (f->written - start < most) {
        for (size_t i = 0; i < step; i++)
            buffer[i] = byte_of(seed_of(t, way), f->written + i);
        ssize_t n = write(t->fd[way], buffer, step);
        if (n < 0) {
            DO(errno == EAGAIN);
            break;
        }
        f->written += n;
    }
    DO(fcntl(t->fd[way], F_SETFL, flags) == 0);
    t->n[3] = way + 1; /* the next use drains it */
    t->n[4] = start;
    fold(step);
}

static void drain(struct thing *t)
{
    int way = t->n[3] - 1;
    struct flow *f = &t->flow[way];
    while (under_way(t, way)) {
        size_t size = under_way(t, way) < 9000 ? under_way(t, way) : 9000;
        read_all(t->fd[!way], buffer, size);
        expect_bytes(buffer, size, seed_of(t, way), f->read, sorts[t->sort].name);
        f->read += size;
    }
    f->read = f->written = t->n[4] + (1 << 21);
    t->n[3] = t->n[1 + way] = 0;
}

/* A descriptor in flight: a pipe with something in it goes through the channel and comes out as the same pipe. */
static void in_flight(struct thing *t)
{
    int way = 0, ends[2];
    char control[CMSG_SPACE(sizeof(int))] = {0}, one = 'x', got[4];
    struct iovec part = {&one, 1};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (t->n[5] == 0) {
        if (under_way(t, way) || t->flow[way].closed)
            return;
        DO(pipe2(ends, O_CLOEXEC) == 0);
        write_all(ends[1], "abc", 3);
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &ends[0], sizeof(int));
        EQUAL(sendmsg(t->fd[way], &m, 0), 1, "sendmsg with a descriptor");
        DO(close(ends[0]) == 0);
        t->fd[3] = ends[1];
        t->n[5] = 1;
        return;
    }
    EQUAL(recvmsg(t->fd[!way], &m, MSG_CMSG_CLOEXEC), 1, "recvmsg with a descriptor");
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    DO(c && c->cmsg_type == SCM_RIGHTS);
    memcpy(&ends[0], CMSG_DATA(c), sizeof(int));
    write_all(t->fd[3], "d", 1);
    read_all(ends[0], got, 4);
    DO(memcmp(got, "abcd", 4) == 0);
    DO(close(ends[0]) == 0 && close(t->fd[3]) == 0);
    t->n[5] = 0;
    fold(3);
}

/* No more in one direction; what is left is read, and then the end. */
static void half_close(struct thing *t, int way)
{
    if (!is_socket(t->sort) || sorts[t->sort].messages || t->flow[way].closed)
        return;
    DO(shutdown(t->fd[way], SHUT_WR) == 0);
    t->flow[way].closed = 1;
}

static void options(struct thing *t)
{
    if (t->sort == PTY) {
        struct winsize w = {.ws_row = 1 + t->id % 200, .ws_col = 1 + t->id % 77}, seen;
        if (t->n[6]) {
            DO(ioctl(t->fd[1], TIOCGWINSZ, &seen) == 0);
            DO(memcmp(&w, &seen, sizeof w) == 0);
        }
        DO(ioctl(t->fd[0], TIOCSWINSZ, &w) == 0);
        t->n[6] = 1;
    } else if (is_socket(t->sort)) {
        int value, level = SOL_SOCKET, name = SO_PASSCRED;
        socklen_t size = sizeof value;
        if (t->sort == TCP4 || t->sort == TCP6)
            level = IPPROTO_TCP, name = TCP_NODELAY;
        else if (t->sort == UDP4 || t->sort == UDP6)
            name = SO_BROADCAST;
        else if (t->sort != PAIR)
            return;
        else
            name = SO_KEEPALIVE;
        DO(getsockopt(t->fd[0], level, name, &value, &size) == 0);
        EQUAL(value != 0, t->n[6], "a socket's option");
        value = t->n[6] = !t->n[6];
        DO(setsockopt(t->fd[0], level, name, &value, sizeof value) == 0);
    } else {
        long want = PAGE << (t->n[6] ? t->n[6] : 4);
        EQUAL(fcntl(t->fd[0], F_GETPIPE_SZ), want, "a pipe's capacity");
        if (!under_way(t, 0) && t->n[3] == 0) {
            t->n[6] = 4 + below(3);
            EQUAL(fcntl(t->fd[0], F_SETPIPE_SZ, PAGE << t->n[6]), PAGE << t->n[6], "a pipe's new capacity");
        }
    }
}

static void renumber(struct thing *t)
{
    int which = below(2), wanted = 300 + (int)(t->id % 500);
    int fd = fcntl(t->fd[which], F_DUPFD_CLOEXEC, wanted);
    DO(fd >= wanted);
    DO(close(t->fd[which]) == 0);
    t->fd[which] = fd;
}

static void use_channel(struct thing *t)
{
    int what = below(10), way = sorts[t->sort].both ? below(2) : 0;
    if (t->n[0]) { /* waits to be accepted: without data for any time, with data for a moment only */
        if (what < 5 && !sorts[t->sort].messages)
            put(t, 0);
        if (what < 8)
            accept_now(t);
        return;
    }
    if (t->n[5])
        return in_flight(t);
    if (t->n[3])
        return drain(t);
    if (what < 4 && !t->flow[way].closed)
        put(t, way);
    else if (what < 7)
        get(t, way);
    else if (what == 7)
        one_in(2) ? options(t) : renumber(t);
    else if (what == 8)
        one_in(3) ? half_close(t, way) : fill_up(t, way);
    else if (is_unix(t->sort))
        in_flight(t);
}

static void end_channel(struct thing *t)
{
    accept_now(t);
    if (t->n[5])
        in_flight(t);
    if (t->n[3])
        drain(t);
    for (int way = 0; way < 2; way++) {
        while (under_way(t, way))
            get(t, way);
        if (t->flow[way].closed)
            EQUAL(read(t->fd[!way], buffer, 1), 0, "the end of a stream");
    }
    for (int i = 0; i < 3; i++)
        if (t->fd[i] >= 0)
            DO(close(t->fd[i]) == 0);
    if (t->path[0])
        unlink(t->path);
}

static const struct kind channel = {"channel", 30, make_channel, use_channel, end_channel};
