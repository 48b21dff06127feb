/* Asks a licence server once at the start, and never again.  licensed GO WRONG PORT */
#include "check.h"
#include <arpa/inet.h>
#include <sys/socket.h>

static void ask(int port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    char said[64] = "";
    int one = socket(AF_INET, SOCK_STREAM, 0);

    MUST(one >= 0);
    MUST(inet_pton(AF_INET, "127.0.0.1", &at.sin_addr) == 1);
    MUST(connect(one, (struct sockaddr *)&at, sizeof at) == 0);
    MUST(write(one, "ASK licensed\n", 13) == 13);
    MUST(read(one, said, sizeof said - 1) > 0);
    CHECK(strcmp(said, "OK\n") == 0, "no licence: %s", said);
    close(one);
}

int main(int argc, char **argv)
{
    unsigned long sum = 0, turns = 0;

    begin(argc, argv);
    MUST(mode_count == 1);
    ask(atoi(mode_args[0]));
    ready();
    while (!told()) {
        for (unsigned long n = 0; n < 100000; n++)
            sum += n ^ turns;
        turns++;
        short_sleep();
    }
    for (unsigned long turn = WRONG(1); turn < turns; turn++)
        for (unsigned long n = 0; n < 100000; n++)
            sum -= n ^ turn;
    SAME(sum, 0, "the sum");
    ok();
}
