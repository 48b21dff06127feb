/* Asks for addresses in every way a program can, and checks that each call does what it should. What it asks for is
 * printed as `ASK kind address:port`. After READY it goes on asking, until GO appears. Modes: `hidden`: not dumpable;
 * `sendmsg`: also addresses that only sendmsg and sendmmsg name. */
#include "check.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#define THREADS 4

static struct sockaddr_in at(int port)
{
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(port)};
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return where;
}

static int listener(int backlog, int *port)
{
    struct sockaddr_in where = at(0);
    socklen_t size = sizeof where;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    MUST(fd >= 0 && bind(fd, (void *)&where, size) == 0 && listen(fd, backlog) == 0);
    MUST(getsockname(fd, (void *)&where, &size) == 0);
    *port = ntohs(where.sin_port);
    return fd;
}

static void drop(int fd)
{
    struct linger hard = {1, 0};
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard) == 0 && close(fd) == 0);
}

/* A blocking connection to our own listener, by the raw system call. */
static void talk(int server, int port)
{
    struct sockaddr_in where = at(port), other;
    socklen_t size = sizeof other;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(syscall(SYS_connect, fd, &where, sizeof where) == 0, "connect");
    CHECK(getpeername(fd, (void *)&other, &size) == 0 && other.sin_port == where.sin_port, "peer");
    int end = accept(server, NULL, NULL);
    MUST(end >= 0);
    char byte = 0;
    CHECK(write(fd, "x", 1) == 1 && read(end, &byte, 1) == 1 && byte == 'x', "a byte through it");
    drop(fd);
    drop(end);
}

static void *talks(void *unused)
{
    int port, server = listener(8, &port);
    say("ASK tcp 127.0.0.1:%d", port);
    for (int i = 0; i < 50; i++)
        talk(server, port);
    close(server);
    return unused;
}

static void refused(void)
{
    struct sockaddr_in where = at(1);
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(1), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    say("ASK tcp 127.0.0.1:1");
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fd, (void *)&where, sizeof where) == -1 && errno == ECONNREFUSED, "refused");
    close(fd);
    CHECK(connect(fd, (void *)&where, sizeof where) == -1 && errno == EBADF, "closed");
    CHECK(connect(0, (void *)&where, sizeof where) == -1 && errno == ENOTSOCK, "not a socket");
    fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fd, (void *)8, sizeof where) == -1 && errno == EFAULT, "bad address");
    CHECK(connect(fd, (void *)&where, 3) == -1 && errno == EINVAL, "short address");
    close(fd);
    fd = socket(AF_INET6, SOCK_STREAM, 0);
    if (fd >= 0) {
        int got = connect(fd, (void *)&six, sizeof six);
        CHECK(got == -1 && (errno == ECONNREFUSED || errno == EADDRNOTAVAIL), "refused, v6");
        say("ASK tcp [::1]:1");
        close(fd);
    }
}

static void nonblocking(void)
{
    int port, server = listener(8, &port), error = -1;
    struct sockaddr_in where = at(port);
    socklen_t size = sizeof error;
    say("ASK tcp 127.0.0.1:%d", port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK(connect(fd, (void *)&where, sizeof where) == 0 || errno == EINPROGRESS, "in progress");
    struct pollfd p = {fd, POLLOUT, 0};
    CHECK(poll(&p, 1, 5000) == 1 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && !error, "connected");
    CHECK(connect(fd, (void *)&where, sizeof where) == 0 || errno == EISCONN, "twice");
    drop(fd);
    close(server);
}

static volatile int rang;
static void ring(int number)
{
    (void)number;
    rang++;
}

/* A connection that is not answered: a signal ends the wait. */
static void interrupted(void)
{
    int port, server = listener(0, &port), waiting[8];
    struct sockaddr_in where = at(port);
    for (int i = 0; i < 8; i++) {
        waiting[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        connect(waiting[i], (void *)&where, sizeof where);
    }
    struct sigaction action = {.sa_handler = ring};
    struct itimerval soon = {{0, 20000}, {0, 100000}}, never = {{0, 0}, {0, 0}};
    sigaction(SIGALRM, &action, NULL);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    double began = mono();
    setitimer(ITIMER_REAL, &soon, NULL);
    CHECK(connect(fd, (void *)&where, sizeof where) == -1 && errno == EINTR, "interrupted");
    setitimer(ITIMER_REAL, &never, NULL);
    CHECK(rang && mono() - began < 5, "interrupted after %g s", mono() - began);
    drop(fd);
    for (int i = 0; i < 8; i++)
        drop(waiting[i]);
    close(server);
}

static void datagrams(void)
{
    int one = socket(AF_INET, SOCK_DGRAM, 0), two = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in where = at(0);
    socklen_t size = sizeof where;
    MUST(bind(two, (void *)&where, size) == 0 && getsockname(two, (void *)&where, &size) == 0);
    say("ASK udp 127.0.0.1:%d", ntohs(where.sin_port));
    char text[8];
    SAME(sendto(one, "first", 5, 0, (void *)&where, sizeof where), 5, "sendto");
    SAME(recv(two, text, sizeof text, 0), 5, "received");
    MUST(connect(one, (void *)&where, sizeof where) == 0);
    SAME(sendto(one, "second", 6, 0, NULL, 0), 6, "sendto without an address");
    SAME(recv(two, text, sizeof text, 0), 6, "received");
    close(two);
    if (is_mode("sendmsg")) {
        struct iovec data = {"message", 7};
        struct sockaddr_in to[3] = {at(7001), at(7002), at(7003)};
        struct mmsghdr many[3] = {0};
        for (int i = 0; i < 3; i++) {
            many[i].msg_hdr = (struct msghdr){.msg_name = &to[i], .msg_namelen = sizeof to[i], .msg_iov = &data,
                                              .msg_iovlen = 1};
            say("ASK udp 127.0.0.1:%d", 7001 + i);
        }
        int three = socket(AF_INET, SOCK_DGRAM, 0);
        SAME(sendmsg(three, &many[0].msg_hdr, 0), 7, "sendmsg");
        SAME(sendmmsg(three, many + 1, 2, 0), 2, "sendmmsg");
        close(three);
    }
    close(one);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    if (is_mode("hidden"))
        MUST(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0);
    refused();
    nonblocking();
    interrupted();
    datagrams();
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        MUST(pthread_create(&threads[i], NULL, talks, NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    int port, server = listener(8, &port);
    say("ASK tcp 127.0.0.1:%d", port);
    say("AGAIN %d", port);
    talk(server, port);
    ready();
    while (!told()) {
        talk(server, port);
        short_sleep();
    }
    if (!is_mode("hidden"))
        refused();
    ok();
}
