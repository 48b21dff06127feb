/* Calls on services that a restart does not bring back yet. A checkpoint that is refused or taken must not disturb
 * them: no EINTR, no lost wake-up. */
#include "calls.h"
#include <linux/aio_abi.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/un.h>

static int pair[2], listener, sem, queue, file_a, notify;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static socklen_t address_size;
static pid_t holder;
static atomic_int *let_go;
static char path[512];
static aio_context_t aio;
struct message {
    long type;
    char text[8];
};

static void do_recv(void)
{
    char room[8];
    SAME(recv(pair[0], room, 8, 0), 5, "recv");
    check_woken();
}
static void do_recvmsg(void)
{
    char room[8];
    struct iovec v = {room, 8};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    SAME(recvmsg(pair[0], &m, 0), 5, "recvmsg");
    check_woken();
}
static void wake_recv(void) { MUST(send(pair[1], "hello", 5, 0) == 5); }
static void do_send(void)
{
    char room[65536] = "";
    for (;;) {
        ssize_t n = send(pair[0], room, sizeof room, 0);
        CHECK(n > 0, "send returned %zd", n);
        if (woken)
            return;
    }
}
static void wake_send(void)
{
    if (WRONG(1)) {
        signal(SIGPIPE, SIG_IGN);
        shutdown(pair[0], SHUT_WR);
        return;
    }
    char room[65536];
    fcntl(pair[1], F_SETFL, O_NONBLOCK);
    double end = mono() + 5;
    while (!subject_done && mono() < end)
        if (recv(pair[1], room, sizeof room, 0) <= 0)
            short_sleep();
}
static void do_accept(void)
{
    int fd = accept(listener, NULL, NULL);
    CHECK(fd >= 0, "accept");
    check_woken();
}
static void wake_accept(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    MUST(connect(fd, (void *)&address, address_size) == 0);
}
static void do_semop(void)
{
    struct sembuf b = {0, -1, 0};
    SAME(syscall(SYS_semop, sem, &b, 1), 0, "semop");
    check_woken();
}
static void do_semtimedop(void)
{
    struct sembuf b = {0, -1, 0};
    struct timespec t = {3600, 0};
    SAME(semtimedop(sem, &b, 1, &t), 0, "semtimedop");
    check_woken();
}
static void remove_objects(void)
{ /* SysV objects outlive their users */
    if (sem)
        semctl(sem, 0, IPC_RMID);
    if (queue)
        msgctl(queue, IPC_RMID, NULL);
}
static void wake_sem(void)
{
    struct sembuf b = {0, 1, 0};
    MUST(semop(sem, &b, 1) == 0);
}
static void do_msgrcv(void)
{
    struct message m;
    SAME(msgrcv(queue, &m, sizeof m.text, 0, 0), 5, "msgrcv");
    check_woken();
}
static void wake_msgrcv(void)
{
    struct message m = {1, "hello"};
    MUST(msgsnd(queue, &m, 5, 0) == 0);
}
static void do_flock(void)
{
    SAME(flock(file_a, LOCK_EX), 0, "flock");
    check_woken();
}
static void do_fcntl(void)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 10};
    SAME(fcntl(file_a, F_SETLKW, &l), 0, "fcntl");
    check_woken();
}
static void wake_holder(void) { *let_go = 1; }
static void do_getevents(void)
{
    struct io_event e;
    struct timespec t = {(int)SPAN, (long)((SPAN - (int)SPAN) * 1e9)};
    SAME(syscall(SYS_io_getevents, aio, 1, 1, &e, &t), 0, "io_getevents");
    check_span(SPAN + WRONG(1));
}
static void do_inotify(void)
{
    char room[512];
    CHECK(read(notify, room, sizeof room) > 0, "read of an inotify descriptor");
    check_woken();
}
static void wake_inotify(void)
{
    int fd = open(path, O_WRONLY);
    MUST(write(fd, "x", 1) == 1);
    close(fd);
}

static const struct call calls[] = {
    {"recv", SYS_recvfrom, 0, do_recv, wake_recv},
    {"recv-timeo", SYS_recvfrom, 0, do_recv, wake_recv},
    {"recvmsg-timeo", SYS_recvmsg, 0, do_recvmsg, wake_recv},
    {"send-timeo", SYS_sendto, 0, do_send, wake_send},
    {"accept", SYS_accept, SYS_accept4, do_accept, wake_accept},
    {"accept-timeo", SYS_accept, SYS_accept4, do_accept, wake_accept},
    {"semop", SYS_semop, SYS_semtimedop, do_semop, wake_sem},
    {"semtimedop", SYS_semtimedop, 0, do_semtimedop, wake_sem},
    {"msgrcv", SYS_msgrcv, 0, do_msgrcv, wake_msgrcv},
    {"flock", SYS_flock, 0, do_flock, wake_holder},
    {"fcntl", SYS_fcntl, 0, do_fcntl, wake_holder},
    {"io_getevents", SYS_io_getevents, 0, do_getevents, NULL},
    {"read-inotify", SYS_read, 0, do_inotify, wake_inotify},
};

int main(int argc, char **argv)
{
    begin(argc, argv);
    if (mode_count == 0 || is_mode("list"))
        run_call(calls, sizeof calls / sizeof *calls);
    let_go = shared_memory(4096);
    atexit(remove_objects);
    at_failure = remove_objects;
    if (strstr(mode_args[0], "recv") || strstr(mode_args[0], "send") || strstr(mode_args[0], "accept")) {
        struct timeval t = {3600, 0};
        if (strstr(mode_args[0], "accept")) {
            listener = socket(AF_UNIX, SOCK_STREAM, 0);
            address_size = sizeof(sa_family_t) + 1 +
                           snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "torpor-test-%d", (int)getpid());
            MUST(bind(listener, (void *)&address, address_size) == 0 && listen(listener, 5) == 0);
        } else
            MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
        if (strstr(mode_args[0], "timeo")) {
            int fd = listener ? listener : pair[0];
            MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t) == 0);
            MUST(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t) == 0);
        }
    }
    if (strstr(mode_args[0], "sem")) {
        sem = semget(IPC_PRIVATE, 1, 0600);
        MUST(sem >= 0);
    }
    if (is_mode("msgrcv"))
        queue = msgget(IPC_PRIVATE, 0600);
    snprintf(path, sizeof path, "%s.%d.lock", go_path, (int)getpid());
    file_a = open(path, O_RDWR | O_CREAT, 0600);
    MUST(file_a >= 0);
    if (is_mode("flock") || is_mode("fcntl")) {
        holder = fork();
        if (!holder) {
            int fd = open(path, O_RDWR);
            struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 10};
            MUST((is_mode("flock") ? flock(fd, LOCK_EX) : fcntl(fd, F_SETLK, &l)) == 0);
            *let_go = -1;
            while (*let_go != 1)
                short_sleep();
            _exit(0);
        }
        UNTIL(*let_go == -1, 10, "holder of the lock");
    }
    if (is_mode("io_getevents"))
        MUST(syscall(SYS_io_setup, 8, &aio) == 0);
    if (is_mode("read-inotify")) {
        notify = inotify_init1(0);
        MUST(inotify_add_watch(notify, path, IN_MODIFY) >= 0);
    }
    run_call(calls, sizeof calls / sizeof *calls);
}
