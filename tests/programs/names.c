/* Looks names up, and connects to what it is told: before READY, after the word to go on, and prints DONE; ends when it
 * is told so. `names GO END`. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct in_addr look_up(const char *name, const char *wanted)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found;
    char text[64];
    int failed = getaddrinfo(name, "7000", &hints, &found);
    if (failed) {
        printf("FAIL %s: %s\n", name, gai_strerror(failed));
        exit(1);
    }
    struct in_addr address = ((struct sockaddr_in *)found->ai_addr)->sin_addr;
    inet_ntop(AF_INET, &address, text, sizeof text);
    if (wanted && strcmp(text, wanted)) {
        printf("FAIL %s has the address %s\n", name, text);
        exit(1);
    }
    freeaddrinfo(found);
    return address;
}

static void ask(struct in_addr address)
{
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(7000), .sin_addr = address};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (void *)&where, sizeof where) != -1 || errno != ECONNREFUSED) {
        printf("FAIL connect: %m\n");
        exit(1);
    }
    close(fd);
}

static void await(const char *path)
{
    while (access(path, F_OK))
        usleep(2000);
}

int main(int argc, char **argv)
{
    struct in_addr numeric, later;
    (void)argc;
    setvbuf(stdout, NULL, _IOLBF, 0);
    inet_pton(AF_INET, "127.53.0.4", &numeric);
    ask(numeric);
    look_up("before.test", "127.53.0.4");
    ask(look_up("licence.test", "127.53.0.1"));
    look_up("other.test", "127.53.0.1");
    ask(look_up("two.test", NULL));
    later = look_up("later.test", "127.53.0.5");
    printf("READY\n");
    await(argv[1]);
    ask(later);
    ask(look_up("after.test", "127.53.0.6"));
    printf("DONE\n");
    await(argv[2]);
    printf("OK\n");
    return 0;
}
