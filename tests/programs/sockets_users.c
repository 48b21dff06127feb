/* UNIX sockets between users (root only): who the other end is, on both ends; names in a folder that the other user may
 * not write to; a listener that is there, one that is gone, a connection that waits to be accepted. */
#include "check.h"
#include <grp.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { THERE, GONE, WAITS, LISTENERS };
#define USER 65534
#define GROUP 65533
static char folder[PATH_MAX];

static struct sockaddr_un address(int n)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    MUST(snprintf(a.sun_path, sizeof a.sun_path, "%s/%d", folder, n) < (int)sizeof a.sun_path);
    return a;
}

static void clean(void)
{
    for (int i = 0; i < LISTENERS; i++)
        unlink(address(i).sun_path);
    rmdir(folder);
}

static void is_from(int fd, uid_t user, gid_t group, const char *what)
{
    struct ucred who;
    socklen_t size = sizeof who;
    MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0);
    CHECK(who.uid == user && who.gid == group, "%s: the other end is %d:%d, was %d:%d", what, (int)who.uid,
          (int)who.gid, (int)user, (int)group);
}

static void talk(int from, int to, const char *what)
{
    char b[8];
    SAME(write(from, what, 5), 5, what);
    SAME(read(to, b, sizeof b), 5, what);
    CHECK(memcmp(b, what, 5) == 0, "%s: other bytes", what);
}

static void other_user(int report)
{
    MUST(setgroups(0, NULL) == 0 && setresgid(GROUP, GROUP, GROUP) == 0 && setresuid(USER, USER, USER) == 0);
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    int fd[LISTENERS];
    for (int i = 0; i < LISTENERS; i++) {
        struct sockaddr_un a = address(i);
        fd[i] = socket(AF_UNIX, SOCK_STREAM, 0);
        MUST(connect(fd[i], (void *)&a, sizeof a) == 0);
    }
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    MUST(write(report, "r", 1) == 1);
    wait_go();
    for (int i = 0; i < LISTENERS; i++) {
        is_from(fd[i], 0, 0, "client");
        char b[8];
        SAME(read(fd[i], b, sizeof b), 5, "read of a client");
        MUST(write(fd[i], b, 5) == 5);
    }
    is_from(pair[0], USER, GROUP, "pair");
    is_from(pair[1], USER, GROUP, "pair");
    talk(pair[0], pair[1], "pairs");
    _exit(0);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    int listener[LISTENERS], server[LISTENERS], report[2], status;
    snprintf(folder, sizeof folder, "%s.users.XXXXXX", go_path);
    MUST(mkdtemp(folder) && chmod(folder, 0755) == 0);
    at_failure = clean;
    for (int i = 0; i < LISTENERS; i++) {
        struct sockaddr_un a = address(i);
        listener[i] = socket(AF_UNIX, SOCK_STREAM, 0);
        MUST(bind(listener[i], (void *)&a, sizeof a) == 0 && chmod(a.sun_path, 0666) == 0 && listen(listener[i], 5) == 0);
    }
    MUST(pipe(report) == 0);
    pid_t child = fork();
    if (child == 0)
        other_user(report[1]);
    char b;
    MUST(read(report[0], &b, 1) == 1);
    for (int i = 0; i < WAITS; i++)
        MUST((server[i] = accept(listener[i], NULL, NULL)) >= 0);
    close(listener[GONE]);
    ready();
    wait_go();
    server[WAITS] = accept(listener[WAITS], NULL, NULL);
    for (int i = 0; i < LISTENERS; i++) {
        is_from(server[i], WRONG(1) ? USER - 1 : USER, GROUP, "server");
        MUST(write(server[i], "hello", 5) == 5);
        char c[8];
        SAME(read(server[i], c, sizeof c), 5, "read of a server");
    }
    is_from(listener[THERE], 0, 0, "listener");
    struct stat st;
    MUST(stat(address(THERE).sun_path, &st) == 0);
    SAME(st.st_mode, S_IFSOCK | 0666, "mode of the socket's file");
    SAME(st.st_uid, 0, "owner of the socket's file");
    MUST(waitpid(child, &status, 0) == child);
    SAME(status, 0, "the other user");
    clean();
    ok();
}
