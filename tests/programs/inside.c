/* Speaks with torpor by the protocol of docs/inside.md: holds, saves itself again and again, and hears of restarts.
 *
 * Prints `SAVED n` or `RESTARTED n told m` for each checkpoint it has asked for. */
#include "check.h"
#include <sys/socket.h>
#include <sys/un.h>

/* Ask once. Returns 1 with the answer's word, run and rest, 0 if there was none within half a second. */
static int ask(const char *word, const char *name, const char *run, const char *more, char *state, char *now, char *rest)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    char space[64] = "", text[300], answer[1200];
    ssize_t length = readlink("/proc/self/ns/pid", space, sizeof space - 1); /* pid:[4026531836] */
    MUST(length > 6);
    space[length - 1] = 0;
    const char *token = getenv("TORPOR_INSIDE");
    MUST(token);
    int named = snprintf(to.sun_path + 1, sizeof to.sun_path - 1, "torpor-inside-%s-%s", token, space + 5);
    int pipe_ends[2];
    struct stat seen;
    MUST(pipe2(pipe_ends, O_CLOEXEC) == 0 && fstat(pipe_ends[1], &seen) == 0);
    snprintf(text, sizeof text, "torpor1 %s %s %s %d %lu %s", word, name, run, pipe_ends[1], seen.st_ino, more);
    int sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int sent = sendto(sock, text, strlen(text), 0, (void *)&to, offsetof(struct sockaddr_un, sun_path) + 1 + named) > 0;
    close(sock);
    int found = 0;
    struct pollfd ready = {pipe_ends[0], POLLIN, 0};
    while (!found && sent && poll(&ready, 1, 500) == 1) {
        ssize_t got = read(pipe_ends[0], answer, sizeof answer - 1);
        MUST(got > 0);
        answer[got] = 0;
        char whose[80];
        rest[0] = 0;
        found = sscanf(answer, "%79s %31s %63s %999[^\n]", whose, state, now, rest) >= 3 && strcmp(whose, name) == 0;
    }
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    if (!found && !sent)
        usleep(100000);
    return found;
}

static char state[32], now_run[64], rest[1000];

static void insist(const char *word, const char *name, const char *run, const char *more)
{
    for (int i = 0; i < 60; i++)
        if (ask(word, name, run, more, state, now_run, rest))
            return;
    FAIL("nobody answers %s", word);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    int low[2], high[2], told_times = 0;
    MUST(pipe2(low, O_CLOEXEC | O_NONBLOCK) == 0);
    for (int i = 0; i < 2; i++)
        MUST((high[i] = fcntl(low[i], F_DUPFD_CLOEXEC, 400)) >= 0 && close(low[i]) == 0);
    char more[32], name[32], run[64];
    snprintf(more, sizeof more, "%d %d", high[0], high[1]);
    insist("tell", "t1", "-", more);
    MUST(strcmp(state, "told") == 0);
    do
        insist("hold", "h1", "-", "");
    while (strcmp(state, "held") != 0);
    insist("release", "h1", "-", "");
    ready();
    for (int n = 1; !told(); n++) {
        snprintf(name, sizeof name, "c%d", n);
        insist("hello", "g", "-", "");
        strcpy(run, now_run);
        do {
            short_sleep();
            insist("checkpoint", name, run, "");
        } while (strcmp(state, "pending") == 0);
        CHECK(strcmp(state, "saved") == 0 || strcmp(state, "restarted") == 0, "%s: %s", state, rest);
        if (state[0] == 'r') {
            char line[100];
            UNTIL(read(high[0], line, sizeof line) > 0, 5, "word of the restart");
            told_times++;
        }
        say("%s %d told %d", state[0] == 's' ? "SAVED" : "RESTARTED", n, told_times);
        usleep(20000);
    }
    CHECK(told_times == (WRONG(1) ? 0 : 2), "told of %d restarts", told_times);
    ok();
}
