/* How long system calls take: `calls KIND COUNT [allow]`, KIND getppid, connect, recvfrom or sendmsg. Prints the median
 * and the 99th percentile in microseconds; getppid, which is shorter than reading the clock, is timed by the thousand.
 * allow: under the least filter that there is, one that allows everything: what any filter costs on this kernel. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int allow_everything(void)
{
    struct sock_filter all[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, all};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

int main(int argc, char **argv)
{
    if (argc > 3 && allow_everything())
        return 1;
    long count = argc > 2 ? atol(argv[2]) : 1000;
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(9)};
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct iovec data = {"x", 1};
    struct msghdr message = {.msg_name = &where, .msg_namelen = sizeof where, .msg_iov = &data, .msg_iovlen = 1};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    int batch = strcmp(argv[1], "getppid") ? 1 : 1000;
    struct sockaddr_in own = where, from;
    socklen_t size = sizeof own;
    own.sin_port = 0;
    int far = socket(AF_INET, SOCK_DGRAM, 0);
    if (!strcmp(argv[1], "recvfrom") && (bind(fd, (void *)&own, size) || getsockname(fd, (void *)&own, &size) ||
                                         connect(far, (void *)&own, size)))
        return 1;
    double *took = calloc(count, sizeof *took);
    for (long i = 0; i < count; i++) {
        char byte;
        if (!strcmp(argv[1], "recvfrom"))
            send(far, "x", 1, 0);
        double start = now();
        if (batch > 1)
            for (int k = 0; k < batch; k++)
                syscall(SYS_getppid);
        else if (!strcmp(argv[1], "connect"))
            connect(fd, (void *)&where, sizeof where);
        else if (!strcmp(argv[1], "recvfrom"))
            size = sizeof from, recvfrom(fd, &byte, 1, 0, (void *)&from, &size);
        else
            sendmsg(fd, &message, 0);
        took[i] = (now() - start) / batch;
    }
    qsort(took, count, sizeof *took, compare);
    printf("%.6f %.6f\n", took[count / 2], took[count * 99 / 100]);
    return 0;
}
