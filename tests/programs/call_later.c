/* Calls on sockets, queues, semaphores, locks and the like: no EINTR, no lost wake-up. */
#include "calls.h"
#include <arpa/inet.h>
#include <linux/aio_abi.h>
#include <mqueue.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/un.h>

static int pair[2], listener, sem, queue, file_a, notify, waiting[64], waiters;
static mqd_t posix_queue;
static char posix_name[64];
static struct sockaddr_in inet_address = {.sin_family = AF_INET};
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
static void do_recvmmsg(void)
{
    char room[8];
    struct iovec v = {room, 8};
    struct mmsghdr m = {.msg_hdr = {.msg_iov = &v, .msg_iovlen = 1}};
    SAME(recvmmsg(pair[0], &m, 1, 0, NULL), 1, "recvmmsg");
    SAME(m.msg_len, 5, "recvmmsg");
    check_woken();
}
static void do_sendmsg(void)
{
    static char room[65536];
    struct iovec v = {room, sizeof room};
    struct mmsghdr m = {.msg_hdr = {.msg_iov = &v, .msg_iovlen = 1}};
    while (!woken) {
        long n = current->number == SYS_sendmsg ? sendmsg(pair[0], &m.msg_hdr, 0) : sendmmsg(pair[0], &m, 1, 0);
        CHECK(n > 0, "%s returned %ld", current->name, n);
    }
}
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
static void do_connect(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    SAME(connect(fd, (void *)&address, address_size), 0, "connect");
    check_woken();
}
static void do_connect_tcp(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    SAME(connect(fd, (void *)&inet_address, sizeof inet_address), 0, "connect");
    check_woken();
}
static void wake_connect(void)
{
    if (WRONG(1)) {
        close(listener);
        return;
    }
    for (int i = 0; i < waiters; i++)
        MUST(accept(listener, NULL, NULL) >= 0);
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
static void do_msgsnd(void)
{
    struct message m = {2, "hello"};
    SAME(msgsnd(queue, &m, 5, 0), 0, "msgsnd");
    check_woken();
}
static void wake_msgsnd(void)
{
    struct message m;
    MUST(msgrcv(queue, &m, sizeof m.text, 1, MSG_NOERROR) == sizeof m.text);
}
static void do_mq_receive(void)
{
    char room[8];
    struct timespec t = {time(NULL) + 3600, 0};
    SAME(strstr(current->name, "timed") ? mq_timedreceive(posix_queue, room, 8, NULL, &t)
                                        : mq_receive(posix_queue, room, 8, NULL),
         5, current->name);
    check_woken();
}
static void wake_mq_receive(void) { MUST(mq_send(posix_queue, "hello", 5, 3) == 0); }
static void do_mq_send(void)
{
    struct timespec t = {time(NULL) + 3600, 0};
    SAME(strstr(current->name, "timed") ? mq_timedsend(posix_queue, "hello", 5, 0, &t)
                                        : mq_send(posix_queue, "hello", 5, 0),
         0, current->name);
    check_woken();
}
static void wake_mq_send(void)
{
    char room[8];
    MUST(mq_receive(posix_queue, room, 8, NULL) == 1);
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
    {"recvmmsg", SYS_recvmmsg, 0, do_recvmmsg, wake_recv},
    {"sendmsg", SYS_sendmsg, 0, do_sendmsg, wake_send},
    {"sendmmsg", SYS_sendmmsg, 0, do_sendmsg, wake_send},
    {"connect", SYS_connect, 0, do_connect, wake_connect},
    {"connect-tcp", SYS_connect, 0, do_connect_tcp, wake_connect},
    {"msgsnd", SYS_msgsnd, 0, do_msgsnd, wake_msgsnd},
    {"mq_receive", SYS_mq_timedreceive, 0, do_mq_receive, wake_mq_receive},
    {"mq_timedreceive", SYS_mq_timedreceive, 0, do_mq_receive, wake_mq_receive},
    {"mq_send", SYS_mq_timedsend, 0, do_mq_send, wake_mq_send},
    {"mq_timedsend", SYS_mq_timedsend, 0, do_mq_send, wake_mq_send},
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
    int mq = strncmp(mode_args[0], "mq_", 3) == 0;
    if (mq) {
        struct mq_attr shape = {.mq_maxmsg = 1, .mq_msgsize = 8};
        snprintf(posix_name, sizeof posix_name, "/torpor-test-call-%d", (int)getpid());
        posix_queue = mq_open(posix_name, O_RDWR | O_CREAT | O_EXCL, 0600, &shape);
        MUST(posix_queue >= 0 && mq_unlink(posix_name) == 0);
        if (strstr(mode_args[0], "send"))
            MUST(mq_send(posix_queue, "x", 1, 5) == 0);
    }
    if (is_mode("connect-tcp")) {
        int yes = 1;
        listener = socket(AF_INET, SOCK_STREAM, 0);
        MUST(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0);
        inet_address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        MUST(bind(listener, (void *)&inet_address, sizeof inet_address) == 0 && listen(listener, 0) == 0);
        socklen_t size = sizeof inet_address;
        MUST(getsockname(listener, (void *)&inet_address, &size) == 0);
    }
    if (is_mode("connect")) {
        listener = socket(AF_UNIX, SOCK_STREAM, 0);
        address_size = sizeof(sa_family_t) + 1 +
                       snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "torpor-test-%d", (int)getpid());
        MUST(bind(listener, (void *)&address, address_size) == 0 && listen(listener, 0) == 0);
    }
    if (strstr(mode_args[0], "connect")) {
        /* Until nobody gets in any more: the subject has to wait. */
        for (;;) {
            int tcp = is_mode("connect-tcp");
            int fd = socket(tcp ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
            struct pollfd p = {fd, POLLOUT, 0};
            if (connect(fd, tcp ? (void *)&inet_address : (void *)&address, tcp ? sizeof inet_address : address_size) &&
                (errno == EAGAIN || (errno == EINPROGRESS && poll(&p, 1, 300) == 0))) {
                close(fd);
                break;
            }
            waiting[waiters++] = fd;
        }
    }
    if (!mq && (strstr(mode_args[0], "recv") || strstr(mode_args[0], "send") || strstr(mode_args[0], "accept"))) {
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
    if (strstr(mode_args[0], "msg") == mode_args[0]) {
        queue = msgget(IPC_PRIVATE, 0600);
        struct {
            long type;
            char text[512];
        } large = {1, "hello"};
        while (is_mode("msgsnd") && msgsnd(queue, &large, sizeof large.text, IPC_NOWAIT) == 0)
            ;
    }
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
