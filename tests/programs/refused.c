/* One thing that torpor cannot save, by mode. After the refusal the program must find it as it was, and use it. */
#include "check.h"
#include <arpa/inet.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/landlock.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <linux/vm_sockets.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

__attribute__((noreturn)) static void skip(const char *why)
{
    say("%s: %s", why, strerror(errno));
    exit(77);
}

static int need(int fd, const char *why)
{
    if (fd < 0)
        skip(why);
    return fd;
}

static const char *devices[] = {"fuse", "kvm", "net/tun", "kmsg"};

int main(int argc, char **argv)
{
    begin(argc, argv);
    MUST(mode_count > 0);
    int fd = -1, flags;
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned long context = 0;
    if (is_mode("io_uring")) {
        struct io_uring_params p = {0};
        fd = need(syscall(SYS_io_uring_setup, 4, &p), "no io_uring");
    } else if (is_mode("aio")) {
        need(syscall(SYS_io_setup, 8, &context), "no asynchronous I/O");
    } else if (is_mode("fanotify")) {
        fd = need(fanotify_init(FAN_REPORT_FID, O_RDONLY), "no fanotify");
    } else if (is_mode("userfaultfd") || is_mode("userfaultfd-memory")) {
        fd = need(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY), "no userfaultfd");
        struct uffdio_api api = {.api = UFFD_API};
        MUST(ioctl(fd, UFFDIO_API, &api) == 0);
        if (is_mode("userfaultfd-memory")) {
            struct uffdio_register r = {{(uint64_t)page, 4096}, UFFDIO_REGISTER_MODE_MISSING, 0};
            MUST(ioctl(fd, UFFDIO_REGISTER, &r) == 0);
        }
    } else if (is_mode("perf")) {
        struct perf_event_attr a = {.type = PERF_TYPE_SOFTWARE, .size = sizeof a, .config = PERF_COUNT_SW_TASK_CLOCK,
                                    .exclude_kernel = 1};
        fd = need(syscall(SYS_perf_event_open, &a, 0, -1, -1, 0), "no perf events");
    } else if (is_mode("bpf")) {
        union bpf_attr a = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1};
        fd = need(syscall(SYS_bpf, BPF_MAP_CREATE, &a, sizeof a), "no bpf");
    } else if (is_mode("secretmem")) {
        fd = need(syscall(SYS_memfd_secret, 0), "no secret memory");
    } else if (is_mode("landlock-ruleset")) {
        struct landlock_ruleset_attr a = {.handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE};
        fd = need(syscall(SYS_landlock_create_ruleset, &a, sizeof a, 0), "no landlock");
    } else if (is_mode("raw")) {
        fd = need(socket(AF_INET, SOCK_RAW, IPPROTO_UDP), "no raw sockets");
    } else if (is_mode("packet")) {
        fd = need(socket(AF_PACKET, SOCK_RAW, 0), "no packet sockets");
    } else if (is_mode("vsock")) {
        fd = need(socket(AF_VSOCK, SOCK_STREAM, 0), "no vsock");
    } else if (is_mode("mptcp")) {
        fd = need(socket(AF_INET, SOCK_STREAM, 262), "no MPTCP");
    } else if (is_mode("lease")) {
        char path[300];
        snprintf(path, sizeof path, "%s.leased", go_path);
        MUST((fd = open(path, O_RDWR | O_CREAT, 0600)) >= 0);
        MUST(fcntl(fd, F_SETLEASE, F_WRLCK) == 0);
    } else if (is_mode("namespace")) {
        need(unshare(CLONE_NEWUSER | CLONE_NEWUTS), "no namespaces");
    } else { /* a device: its name below /dev */
        char path[100];
        int known = 0;
        for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
            known |= is_mode(devices[i]);
        MUST(known);
        snprintf(path, sizeof path, "/dev/%s", mode_args[0]);
        fd = need(open(path, O_RDWR), path);
    }
    flags = fd < 0 ? 0 : fcntl(fd, F_GETFL);
    ready();
    wait_go();
    if (WRONG(1)) {
        close(fd);
        if (context)
            syscall(SYS_io_destroy, context), context = 1;
    }
    if (fd >= 0)
        CHECK(fcntl(fd, F_GETFL) == flags, "the descriptor");
    if (is_mode("io_uring")) {
        struct io_uring_probe probe = {0};
        CHECK(syscall(SYS_io_uring_register, fd, IORING_REGISTER_PROBE, &probe, 0) == 0, "the ring");
    }
    if (is_mode("aio"))
        CHECK(syscall(SYS_io_destroy, context) == 0, "the context");
    if (is_mode("userfaultfd-memory")) {
        struct uffdio_range r = {(uint64_t)page, 4096};
        CHECK(ioctl(fd, UFFDIO_UNREGISTER, &r) == 0, "the registered memory");
    }
    if (is_mode("perf")) {
        uint64_t count = 0;
        CHECK(read(fd, &count, 8) == 8 && count > 0, "the counter");
    }
    if (is_mode("lease"))
        CHECK(fcntl(fd, F_GETLEASE) == F_WRLCK, "the lease");
    ok();
}
