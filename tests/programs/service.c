/* A server that never rests: clients connect, ask once, read the answer and close, all the time, and the server is slower
 * than they are, so that connections with data in them wait to be accepted at every moment. Mode: tcp or unix.
 * Every request must be served once, in its order, and answered to whoever asked. */
#include "check.h"
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/un.h>

#define CLIENTS 4
struct request {
    uint32_t client, number;
};
static struct shared {
    atomic_uint served[CLIENTS], answered[CLIENTS], stop, failed;
} *all;
static union {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_un un;
} address;
static socklen_t size;
static pid_t server, client[CLIENTS];

static void end(void)
{
    for (int i = 0; i < CLIENTS; i++)
        if (client[i] > 0)
            kill(client[i], SIGKILL);
    if (server > 0)
        kill(server, SIGKILL);
}

static void note(void) { all->failed = 1; }

static uint64_t answer(struct request r) { return word_at(r.number, r.client); }

static void serve(int listener)
{
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        CHECK(fd >= 0, "accept");
        struct request r;
        SAME(recv(fd, &r, sizeof r, MSG_WAITALL), sizeof r, "a request");
        CHECK(r.client < CLIENTS, "a request from nobody");
        SAME(r.number, all->served[r.client], "number of a request");
        all->served[r.client]++;
        uint64_t a = answer(r) ^ (WRONG(1) && r.number == 20);
        SAME(send(fd, &a, sizeof a, MSG_NOSIGNAL), sizeof a, "an answer");
        close(fd);
        struct timespec t = {0, 300000};
        nanosleep(&t, NULL);
    }
}

static void ask(int me)
{
    for (uint32_t i = 0; !all->stop; i++) {
        struct request r = {me, i};
        int fd = socket(address.any.sa_family, SOCK_STREAM, 0);
        CHECK(fd >= 0 && connect(fd, &address.any, size) == 0, "connect");
        SAME(send(fd, &r, sizeof r, MSG_NOSIGNAL), sizeof r, "a request is sent");
        uint64_t a;
        SAME(recv(fd, &a, sizeof a, MSG_WAITALL), sizeof a, "an answer is received");
        CHECK(a == answer(r), "client %d: the answer to request %u differs", me, i);
        SAME(recv(fd, &a, 1, 0), 0, "the end of a connection");
        close(fd);
        all->answered[me]++;
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    at_failure = note;
    all = shared_memory(sizeof *all);
    int tcp = is_mode("tcp"), yes = 1;
    if (tcp) {
        address.in = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        size = sizeof address.in;
    } else {
        address.un.sun_family = AF_UNIX;
        size = sizeof(sa_family_t) + 1 +
               snprintf(address.un.sun_path + 1, sizeof address.un.sun_path - 1, "torpor-test-%d", (int)getpid());
    }
    int listener = socket(address.any.sa_family, SOCK_STREAM, 0);
    MUST(listener >= 0 && setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0);
    MUST(bind(listener, &address.any, size) == 0 && listen(listener, 64) == 0);
    MUST(!tcp || getsockname(listener, &address.any, &size) == 0);
    server = fork();
    if (!server)
        serve(listener);
    close(listener);
    for (int i = 0; i < CLIENTS; i++) {
        client[i] = fork();
        if (!client[i])
            ask(i);
    }
    at_failure = end;
    UNTIL(all->failed || (all->answered[0] > 30 && all->answered[CLIENTS - 1] > 30), 20, "the first answers");
    ready();
    wait_go();
    unsigned before = all->answered[0];
    UNTIL(all->failed || all->answered[0] > before + 30, 20, "more answers");
    CHECK(!all->failed, "one of them has failed");
    all->stop = 1;
    int status;
    for (int i = 0; i < CLIENTS; i++) {
        SAME(waitpid(client[i], &status, 0), client[i], "a client");
        client[i] = 0;
        SAME(status, 0, "status of a client");
    }
    SAME(waitpid(server, &status, WNOHANG), 0, "the server");
    kill(server, SIGKILL);
    waitpid(server, NULL, 0);
    server = 0;
    for (int i = 0; i < CLIENTS; i++)
        SAME(all->served[i], all->answered[i] + WRONG(2), "requests that were served");
    ok();
}
