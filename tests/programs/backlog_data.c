/* Connections that wait to be accepted and have data in them, which nobody can look at from outside.
 *
 * Modes: KIND, KIND-apart or KIND-full. KIND: path, abstract (UNIX streams at a listener of that sort), packet
 * (SOCK_SEQPACKET), tcp4, tcp6. -apart: the listener is another process', which the clients have nothing in common with.
 * -full: not one more connection could wait. One more word, `any`: the order does not matter.
 * The clients, in this order: with a few bytes; with none; with much; half closed; closed; shared with a child that waits for
 * the answer; watched by epoll; with an address of its own choice; with several messages, one with a descriptor in it
 * (UNIX) or urgent data (TCP); with a thread that waits for the answer.
 * Nobody accepts before GO. Then the server takes them in this order, checks every byte, that there is no more, and that
 * the end is seen where there is one; it answers, and the clients check that.
 * Wrong ways: 1 a byte, 2 the order, 3 an answer. */
#include "check.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { FEW, NONE, MUCH, HALF, CLOSED, SHARED, WATCHED, NAMED, MESSAGES, THREAD, CLIENTS };
static const char *names[] = {"few",    "none",    "much",  "half",     "closed",
                              "shared", "watched", "named", "messages", "thread"};
#define DATA 0x1234567890abcdefull

static struct shared {
    unsigned short port[CLIENTS];
    pid_t client, server;
    int listening;
} *common;
static struct sockaddr_storage address;
static socklen_t length;
static int kind = SOCK_STREAM, family = AF_UNIX, apart, full, any_order;
static size_t much;
static char *large;
static int listener = -1, client[CLIENTS], poller, thread_ok;
static pid_t child;

static int is_tcp(void) { return family != AF_UNIX; }

static int make_listener(void)
{
    int fd = socket(family, kind | SOCK_CLOEXEC, 0);
    MUST(fd >= 0);
    if (is_tcp()) {
        int on = 1;
        MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
    }
    MUST(bind(fd, (struct sockaddr *)&address, length) == 0);
    MUST(listen(fd, full ? CLIENTS - 1 : 64) == 0);
    socklen_t n = sizeof address;
    MUST(getsockname(fd, (struct sockaddr *)&address, &n) == 0);
    return fd;
}

static unsigned short port_of(struct sockaddr_storage *a)
{
    return a->ss_family == AF_INET ? ((struct sockaddr_in *)a)->sin_port : ((struct sockaddr_in6 *)a)->sin6_port;
}

static void own_address(int fd)
{
    struct sockaddr_storage mine = {.ss_family = family};
    socklen_t n = length;
    if (family == AF_UNIX) {
        struct sockaddr_un *u = (struct sockaddr_un *)&mine;
        n = offsetof(struct sockaddr_un, sun_path) +
            snprintf(u->sun_path + 1, sizeof u->sun_path - 1, "torpor-test-client-%d", getpid()) + 1;
    } else if (family == AF_INET) {
        ((struct sockaddr_in *)&mine)->sin_addr.s_addr = inet_addr("127.0.0.3");
    } else {
        ((struct sockaddr_in6 *)&mine)->sin6_addr = in6addr_loopback;
    }
    MUST(bind(fd, (struct sockaddr *)&mine, n) == 0);
}

static void put(int fd, const void *data, size_t size) { MUST(send(fd, data, size, MSG_NOSIGNAL) == (ssize_t)size); }

static void put_descriptor(int fd, const char *word)
{
    int ends[2];
    MUST(pipe(ends) == 0);
    MUST(write(ends[1], "inside", 6) == 6);
    struct iovec v = {(void *)word, strlen(word)};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    control.head = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), &ends[0], sizeof(int));
    MUST(sendmsg(fd, &m, MSG_NOSIGNAL) == (ssize_t)strlen(word));
    close(ends[0]);
    close(ends[1]);
}

static void answered(int i, int fd)
{
    char text[64] = "", want[64];
    snprintf(want, sizeof want, "answer to %s", names[WRONG(3) ? i + 1 : i]);
    int flags = fcntl(fd, F_GETFL);
    MUST(fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0);
    ssize_t n = recv(fd, text, sizeof text - 1, 0);
    CHECK(n > 0, "%s: no answer (%zd)", names[i], n);
    CHECK(strcmp(text, want) == 0, "%s: answered \"%s\"", names[i], text);
}

static void *waits(void *unused UNUSED)
{
    answered(THREAD, client[THREAD]);
    thread_ok = 1;
    return NULL;
}

static void make_clients(void)
{
    common->client = getpid();
    for (int i = 0; i < CLIENTS; i++) {
        int fd = client[i] = socket(family, kind | (i == CLOSED ? 0 : SOCK_CLOEXEC), 0);
        MUST(fd >= 0);
        if (i == NAMED)
            own_address(fd);
        if (i == MUCH) {
            int size = 300000;
            MUST(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
            if (!is_tcp())
                MUST(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
        }
        if (connect(fd, (struct sockaddr *)&address, length) != 0)
            MUST(errno == EINPROGRESS);
        if (is_tcp()) {
            struct sockaddr_storage mine;
            socklen_t n = sizeof mine;
            MUST(getsockname(fd, (struct sockaddr *)&mine, &n) == 0);
            common->port[i] = port_of(&mine);
        }
        if (i == MUCH) {
            struct pollfd p = {fd, POLLOUT, 0};
            for (size_t at = 0; at < much;) {
                size_t part = much - at < 30000 ? much - at : 30000;
                ssize_t n = send(fd, large + at, part, MSG_NOSIGNAL);
                if (n < 0) {
                    MUST(errno == EAGAIN && poll(&p, 1, 5000) == 1);
                    continue;
                }
                at += n;
            }
        } else if (i == MESSAGES) {
            put(fd, "one", 3);
            if (is_tcp())
                MUST(send(fd, "two!", 4, MSG_OOB | MSG_NOSIGNAL) == 4);
            else
                put_descriptor(fd, "two!");
            put(fd, "three", 5);
        } else if (i != NONE) {
            put(fd, names[i], strlen(names[i]));
        }
        if (i == HALF)
            MUST(shutdown(fd, SHUT_WR) == 0);
        if (i == CLOSED)
            close(fd);
        if (i == WATCHED) {
            struct epoll_event event = {EPOLLIN | EPOLLRDHUP, {.u64 = DATA}};
            MUST((poller = epoll_create1(EPOLL_CLOEXEC)) >= 0);
            MUST(epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) == 0);
        }
        if (i == SHARED && (child = fork()) == 0) {
            close(listener);
            answered(SHARED, fd);
            _exit(0);
        }
    }
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, waits, NULL) == 0);
    pthread_detach(thread);
}

/* Exactly these bytes, as one message where there are messages. */
static void get(int i, int fd, const char *want, size_t size)
{
    char *text = malloc(size + 1);
    for (size_t at = 0; at < size;) {
        ssize_t n = recv(fd, text + at, size - at, 0);
        CHECK(n > 0, "%s: %zd after %zu of %zu bytes", names[i], n, at, size);
        at += n;
        if (kind == SOCK_SEQPACKET)
            SAME(at, size, "size of a message");
    }
    CHECK(memcmp(text, want, size) == 0, "%s: other bytes: %.20s", names[i], text);
    free(text);
}

static void get_descriptor(int fd)
{
    char text[16], inside[6];
    struct iovec v = {text, 4};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    SAME(recvmsg(fd, &m, 0), 4, "message with a descriptor");
    CHECK(m.msg_controllen && memcmp(text, "two!", 4) == 0, "messages: no descriptor, or %.4s", text);
    int got;
    memcpy(&got, CMSG_DATA(&control.head), sizeof got);
    CHECK(read(got, inside, 6) == 6 && memcmp(inside, "inside", 6) == 0, "messages: another descriptor");
    close(got);
}

/* Which client an accepted end belongs to. */
static int whose(int fd, struct sockaddr_storage *peer)
{
    char text[9] = "";
    ssize_t n = recv(fd, text, 8, MSG_PEEK | MSG_DONTWAIT);
    for (int i = 0; i < CLIENTS; i++) {
        if (is_tcp() ? port_of(peer) == common->port[i]
            : n <= 0 ? i == NONE
                     : strncmp(text, names[i], strlen(names[i])) == 0 || (i == MUCH && memcmp(text, large, 8) == 0) ||
                           (i == MESSAGES && strncmp(text, "one", 3) == 0))
            return i;
    }
    FAIL("a connection of nobody: %zd %s", n, text);
}

static void serve(void)
{
    int seen[CLIENTS] = {0};
    for (int place = 0; place < CLIENTS; place++) {
        int i = WRONG(2) && place < 2 ? 1 - place : place;
        struct sockaddr_storage peer;
        socklen_t n = sizeof peer;
        int fd = accept(listener, (struct sockaddr *)&peer, &n);
        CHECK(fd >= 0, "accept");
        if (any_order) {
            i = whose(fd, &peer);
            CHECK(!seen[i]++, "%s waited twice", names[i]);
        }
        if (is_tcp())
            SAME(ntohs(port_of(&peer)), ntohs(common->port[i]), names[i]);
        if (is_tcp() && family == AF_INET && i == NAMED)
            SAME(((struct sockaddr_in *)&peer)->sin_addr.s_addr, inet_addr("127.0.0.3"), "address");
        if (!is_tcp()) {
            struct ucred who;
            socklen_t size = sizeof who;
            MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0);
            SAME(who.uid, geteuid(), "SO_PEERCRED: uid");
            if (i != CLOSED && who.pid) /* 0: made by a restart */
                SAME(who.pid, common->client, "SO_PEERCRED: pid");
            CHECK(i != NAMED || n > sizeof(sa_family_t), "the client has lost its name");
        }
        if (i == MUCH && kind == SOCK_SEQPACKET) {
            for (size_t at = 0; at < much; at += 30000)
                get(i, fd, large + at, much - at < 30000 ? much - at : 30000);
        } else if (i == MUCH) {
            get(i, fd, large, much);
        } else if (i == MESSAGES && is_tcp()) {
            char byte = 0;
            get(i, fd, "onetwo", 6);
            MUST(recv(fd, &byte, 1, MSG_OOB) == 1);
            SAME(byte, '!', "urgent data");
            get(i, fd, "three", 5);
        } else if (i == MESSAGES) {
            get(i, fd, "one", 3);
            get_descriptor(fd);
            get(i, fd, "three", 5);
        } else if (i != NONE) {
            get(i, fd, WRONG(1) && i == FEW ? "fex" : names[i], strlen(names[i]));
        }
        char byte;
        ssize_t rest = recv(fd, &byte, 1, MSG_DONTWAIT);
        if (i == HALF || i == CLOSED)
            CHECK(rest == 0, "%s: the end is not seen (%zd)", names[i], rest);
        else
            CHECK(rest < 0 && errno == EAGAIN, "%s: more than there was, or the end (%zd)", names[i], rest);
        if (i != CLOSED) {
            char text[64];
            put(fd, text, snprintf(text, sizeof text, "answer to %s", names[i]));
        }
        /* It stays open: closing it with the client's data unread would be another thing. */
    }
    MUST(fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK) == 0);
    CHECK(accept(listener, NULL, NULL) < 0 && errno == EAGAIN, "one more connection");
}

static void check_clients(void)
{
    for (int i = 0; i < CLIENTS; i++)
        if (i != CLOSED && i != SHARED && i != THREAD) {
            if (i == WATCHED) {
                struct epoll_event event;
                SAME(epoll_wait(poller, &event, 1, 5000), 1, "epoll_wait");
                SAME(event.data.u64, DATA, "epoll data");
                CHECK(event.events == EPOLLIN, "epoll events %#x", event.events);
            }
            int flags = fcntl(client[i], F_GETFL);
            SAME(!!(flags & O_NONBLOCK), i == MUCH, "O_NONBLOCK of a client");
            SAME(fcntl(client[i], F_GETFD), FD_CLOEXEC, "close-on-exec of a client");
            answered(i, client[i]);
        }
    UNTIL(thread_ok, 10, "the answer to the thread");
    int status;
    MUST(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child that shares a client failed");
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    char base[32];
    MUST(mode_count > 0);
    any_order = mode_count > 1 && strcmp(mode_args[1], "any") == 0;
    snprintf(base, sizeof base, "%s", mode_args[0]);
    char *dash = strchr(base, '-');
    if (dash) {
        apart = strcmp(dash, "-apart") == 0;
        full = strcmp(dash, "-full") == 0;
        *dash = 0;
    }
    common = shared_memory(sizeof *common);
    if (strcmp(base, "packet") == 0)
        kind = SOCK_SEQPACKET;
    if (strcmp(base, "tcp4") == 0) {
        struct sockaddr_in *a = (struct sockaddr_in *)&address;
        family = a->sin_family = AF_INET;
        a->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        length = sizeof *a;
    } else if (strcmp(base, "tcp6") == 0) {
        struct sockaddr_in6 *a = (struct sockaddr_in6 *)&address;
        family = a->sin6_family = AF_INET6;
        a->sin6_addr = in6addr_loopback;
        length = sizeof *a;
    } else {
        struct sockaddr_un *u = (struct sockaddr_un *)&address;
        u->sun_family = AF_UNIX;
        int path = strcmp(base, "path") == 0;
        length = offsetof(struct sockaddr_un, sun_path) + !path +
                 snprintf(u->sun_path + !path, 100, path ? "%s.sock" : "torpor-test-%s", go_path) + path;
    }
    much = is_tcp() ? 400000 : 160000;
    large = malloc(much);
    fill(large, much, 7);

    int to_parent[2], to_server[2];
    pid_t server = 0;
    MUST(pipe2(to_parent, O_CLOEXEC) == 0 && pipe2(to_server, O_CLOEXEC) == 0);
    if (!apart) {
        listener = make_listener();
    } else if ((server = fork()) == 0) {
        listener = make_listener();
        MUST(write(to_parent[1], &address, sizeof address) == sizeof address);
        close(to_server[1]);
        char byte;
        MUST(read(to_server[0], &byte, 1) == 1); /* the clients are there */
        wait_go();
        serve();
        if (family == AF_UNIX && strcmp(base, "path") == 0)
            unlink(((struct sockaddr_un *)&address)->sun_path);
        MUST(read(to_server[0], &byte, 1) == 1); /* the clients have their answers */
        _exit(0);
    } else {
        MUST(read(to_parent[0], &address, sizeof address) == sizeof address);
    }
    make_clients();
    if (apart)
        MUST(write(to_server[1], "", 1) == 1);
    ready();
    wait_go();
    if (!apart)
        serve();
    check_clients();
    if (apart) {
        int status;
        MUST(write(to_server[1], "", 1) == 1);
        MUST(waitpid(server, &status, 0) == server);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the server failed");
    } else if (family == AF_UNIX && strcmp(base, "path") == 0) {
        unlink(((struct sockaddr_un *)&address)->sun_path);
    }
    ok();
}
