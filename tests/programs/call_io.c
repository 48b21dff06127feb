/* Reads and writes that block: pipes, eventfd, timerfd, signalfd, a FIFO being opened. */
#include "calls.h"
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/uio.h>

static int ends[2], event, timer, signals;
static char fifo[512];

static void write_bytes(void) { MUST(write(ends[1], "hello", 5) == 5); }
static void close_writer(void) { MUST(close(ends[1]) == 0); }

static void do_read(void)
{
    char room[64] = "";
    SAME(read(ends[0], room, sizeof room), 5, "read");
    CHECK(memcmp(room, "hello", 5) == 0, "what was read");
    check_woken();
}
static void do_readv(void)
{
    char a[2], b[64];
    struct iovec v[2] = {{a, 2}, {b, 64}};
    SAME(readv(ends[0], v, 2), 5, "readv");
    CHECK(memcmp(a, "he", 2) == 0 && memcmp(b, "llo", 3) == 0, "what was read");
    check_woken();
}
static void do_read_end(void)
{
    char room[64];
    SAME(read(ends[0], room, sizeof room), 0, "read at the end");
    check_woken();
}

#define MUCH 200000
static unsigned char big[MUCH], got[MUCH];
static atomic_long written;
static void do_write(void)
{
    /* the pipe is full: nothing is written before it blocks */
    SAME(write(ends[1], big, 4000), 4000, "a write to a full pipe");
    check_woken();
    written += 4000;
}
static void fill_pipe(void)
{
    fcntl(ends[1], F_SETFL, O_NONBLOCK);
    for (ssize_t n; (n = write(ends[1], big + 4000, 4096)) > 0;)
        written += n;
    fcntl(ends[1], F_SETFL, 0);
}
static void drain_full(void)
{
    long before = written;
    for (long have = 0; have < before + 4000;) {
        ssize_t n = read(ends[0], got, sizeof got);
        CHECK(n > 0, "read");
        have += n;
    }
    CHECK(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0 && read(ends[0], got, 1) == -1 && errno == EAGAIN,
          "bytes left over: a write was made twice");
}
static void do_write_half(void)
{
    /* More than the pipe takes: it blocks half-way. Whatever stops such a write (SIGSTOP as well) makes the kernel
     * return how much was written so far; not a byte may be lost or doubled. */
    size_t done = 0;
    while (done < MUCH) {
        ssize_t n = write(ends[1], big + done, MUCH - done);
        CHECK(n > 0, "a large write returned %zd after %zu bytes", n, done);
        done += n;
    }
    check_woken();
}
static void drain(void)
{
    size_t have = 0;
    while (have < MUCH) {
        ssize_t n = read(ends[0], got + have, MUCH - have);
        CHECK(n > 0, "read");
        have += n;
    }
    CHECK(memcmp(big, got, MUCH) == 0, "bytes of a large write were lost, doubled or changed");
    CHECK(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0 && read(ends[0], got, 1) == -1 && errno == EAGAIN,
          "bytes left over");
}
static void do_eventfd(void)
{
    uint64_t v = 0;
    SAME(read(event, &v, 8), 8, "read of an eventfd");
    SAME(v, 77, "eventfd");
    check_woken();
}
static void wake_eventfd(void)
{
    uint64_t v = 77;
    MUST(write(event, &v, 8) == 8);
}
static void do_eventfd_write(void)
{
    uint64_t v = 5;
    SAME(write(event, &v, 8), 8, "write to a full eventfd");
    check_woken();
}
static void wake_eventfd_write(void)
{
    uint64_t v = 0;
    MUST(read(event, &v, 8) == 8);
    CHECK(v == 0xfffffffffffffffeull || v == 0xfffffffffffffffcull, "eventfd held %llx", (unsigned long long)v);
}
static void do_timerfd(void)
{
    struct itimerspec t = {{0, 0}, {(int)SPAN, (long)((SPAN - (int)SPAN) * 1e9)}};
    began = mono();
    MUST(timerfd_settime(timer, 0, &t, NULL) == 0);
    uint64_t v = 0;
    SAME(read(timer, &v, 8), 8, "read of a timerfd");
    SAME(v, 1, "expirations");
    check_span(SPAN + WRONG(1));
}
static void do_signalfd(void)
{
    struct signalfd_siginfo i;
    memset(&i, 0, sizeof i);
    SAME(read(signals, &i, sizeof i), (long)sizeof i, "read of a signalfd");
    SAME(i.ssi_signo, SIGUSR1, "signal");
    SAME(i.ssi_pid, getpid(), "sender");
    check_woken();
}
static void wake_signalfd(void) { MUST(kill(getpid(), SIGUSR1) == 0); }
static void do_open(void)
{
    ends[0] = open(fifo, O_RDONLY);
    CHECK(ends[0] >= 0, "open of a FIFO");
    check_woken();
    char room[8];
    SAME(read(ends[0], room, 8), 5, "read");
}
static void wake_open(void)
{
    ends[1] = open(fifo, O_WRONLY);
    MUST(ends[1] >= 0);
    write_bytes();
}
static void do_splice(void)
{
    int out[2];
    char room[8];
    MUST(pipe(out) == 0);
    SAME(splice(ends[0], NULL, out[1], NULL, 4096, 0), 5, "splice");
    SAME(read(out[0], room, 8), 5, "read");
    check_woken();
}

static const struct call calls[] = {
    {"read", SYS_read, 0, do_read, write_bytes},
    {"readv", SYS_readv, 0, do_readv, write_bytes},
    {"read-end", SYS_read, 0, do_read_end, close_writer},
    {"write", SYS_write, 0, do_write, drain_full},
    {"write-half", SYS_write, 0, do_write_half, drain},
    {"read-eventfd", SYS_read, 0, do_eventfd, wake_eventfd},
    {"write-eventfd", SYS_write, 0, do_eventfd_write, wake_eventfd_write},
    {"read-timerfd", SYS_read, 0, do_timerfd, NULL},
    {"read-signalfd", SYS_read, 0, do_signalfd, wake_signalfd},
    {"open-fifo", SYS_openat, SYS_open, do_open, wake_open},
    {"splice", SYS_splice, 0, do_splice, write_bytes},
};
int main(int argc, char **argv)
{
    begin(argc, argv);
    MUST(pipe(ends) == 0);
    event = eventfd(0, 0);
    if (is_mode("write-eventfd")) {
        uint64_t v = 0xfffffffffffffffcull;
        MUST(write(event, &v, 8) == 8);
    }
    timer = timerfd_create(CLOCK_MONOTONIC, 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    block_signal(SIGUSR1);
    signals = signalfd(-1, &set, 0);
    fill(big, sizeof big, 3);
    if (is_mode("write"))
        fill_pipe();
    if (is_mode("open-fifo")) {
        snprintf(fifo, sizeof fifo, "%s.%d.fifo", go_path, (int)getpid());
        MUST(mkfifo(fifo, 0600) == 0);
    }
    run_call(calls, sizeof calls / sizeof *calls);
}
