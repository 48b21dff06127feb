/* Pipes: bytes inside, full ones, sizes, packets, flags of either end, closed ends, ends shared by several
 * processes, readers and writers blocked in other processes, bytes kept in order. */
#include "check.h"

struct pair {
    int r, w;
};
static atomic_int *stage;

static struct pair make(int flags)
{
    int p[2];
    MUST(pipe2(p, flags) == 0);
    return (struct pair){p[0], p[1]};
}
static void put(int fd, uint64_t seed, size_t size)
{
    static uint64_t room[1 << 17];
    fill(room, size, seed);
    SAME(write(fd, room, size), (long)size, "write");
}
#define GET(fd, seed, size, what)                                                                                      \
    do {                                                                                                               \
        static uint64_t room_[1 << 17];                                                                                \
        size_t have_ = 0;                                                                                              \
        while (have_ < (size)) {                                                                                       \
            ssize_t n_ = read(fd, (char *)room_ + have_, (size)-have_);                                                \
            CHECK(n_ > 0, "%s: read returned %zd after %zu bytes", what, n_, have_);                                   \
            have_ += n_;                                                                                               \
        }                                                                                                              \
        VERIFY(room_, size, seed, what);                                                                               \
    } while (0)
static void empty(int fd, const char *what)
{
    struct pollfd p = {fd, POLLIN, 0};
    SAME(poll(&p, 1, 0), 0, what);
}
static long inside(int fd)
{
    int n = -1;
    MUST(syscall(SYS_ioctl, fd, 0x541B /* FIONREAD */, &n) == 0);
    return n;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    stage = shared_memory(4096);
    signal(SIGPIPE, SIG_IGN);
    struct pair some = make(0), full = make(O_NONBLOCK), small = make(0), large = make(O_NONBLOCK), packets = make(O_DIRECT);
    struct pair no_reader = make(0), no_writer = make(0), no_writer_data = make(0), none = make(O_CLOEXEC);
    struct pair shared = make(0), back = make(0), one_page = make(0), nonblock_read = make(0);
    put(some.w, 1, 4000);
    char page[4096];
    memset(page, 'f', sizeof page);
    long filled = 0;
    for (ssize_t n; (n = write(full.w, page, sizeof page)) > 0;)
        filled += n;
    CHECK(errno == EAGAIN && filled >= 4096, "filling a pipe: %ld", filled);
    int small_size = fcntl(small.w, F_SETPIPE_SZ, 8192), large_size = fcntl(large.w, F_SETPIPE_SZ, 1 << 20);
    MUST(small_size == 8192);
    if (large_size < 0) /* an ordinary user may be at the limit of all pipes */
        large_size = fcntl(large.w, F_GETPIPE_SZ);
    put(small.w, 2, 8000);
    long much = large_size == 1 << 20 ? 600000 : 60000;
    put(large.w, 3, much);
    for (int i = 1; i <= 10; i++) {
        memset(page, i, i * 10);
        MUST(write(packets.w, page, i * 10) == i * 10);
    }
    for (int i = 0; i < 10; i++) /* partly used buffers */
        MUST(write(one_page.w, "0123456789", 10) == 10);
    MUST(read(one_page.r, page, 25) == 25);
    close(no_reader.r);
    close(no_writer.w);
    put(no_writer_data.w, 4, 800);
    close(no_writer_data.w);
    fcntl(nonblock_read.r, F_SETFL, O_NONBLOCK);
    /* children: two writers into one pipe, one reader that blocks, one writer that blocks on a full pipe */
    struct pair stream = make(0), jam = make(0);
    pid_t child[4];
    for (int c = 0; c < 4; c++) {
        child[c] = fork();
        if (child[c])
            continue;
        if (c < 2) {
            char record[64];
            for (long i = 0; *stage < 2; i++) {
                memset(record, 0, sizeof record);
                snprintf(record, sizeof record, "%d %ld", c, i);
                MUST(write(shared.w, record, sizeof record) == (long)sizeof record);
                if (i % 64 == 0)
                    short_sleep();
            }
            memset(record, 0, sizeof record);
            snprintf(record, sizeof record, "%d end", c);
            MUST(write(shared.w, record, sizeof record) == (long)sizeof record);
            _exit(0);
        }
        if (c == 2) { /* blocks in read until the end */
            char b[16];
            SAME(read(stream.r, b, 16), 5, "blocked reader");
            CHECK(memcmp(b, "later", 5) == 0, "blocked reader");
            SAME(write(back.w, "got it", 6), 6, "answer");
            _exit(0);
        }
        static uint64_t big[300000 / 8];
        fill(big, sizeof big, 8);
        /* A blocked write that is interrupted returns what it has written, whoever interrupts it (docs/services.md). */
        for (size_t at = 0; at < sizeof big;) {
            ssize_t n = write(jam.w, (char *)big + at, sizeof big - at);
            MUST(n > 0);
            at += n;
        }
        _exit(0);
    }
    close(jam.w);
    UNTIL(inside(jam.r) >= 60000 && inside(shared.r) > 0, 10, "children");
    long sums[2] = {0, 0};
    int ended = 0;
    if (WRONG(1))
        MUST(read(some.r, page, 8) == 8);
    if (WRONG(2))
        fcntl(nonblock_read.r, F_SETFL, 0);
    if (WRONG(3))
        MUST(read(packets.r, page, 5) == 5);
    if (WRONG(4))
        fcntl(small.r, F_SETPIPE_SZ, 65536);
    if (WRONG(5))
        close(no_reader.w);
    ready();
    for (int told_already = 0; ended < 2;) { /* a reader that is busy all the time */
        char record[64], what[16];
        int who;
        ssize_t n = 0;
        while (n < 64) {
            ssize_t m = read(shared.r, record + n, 64 - n);
            CHECK(m > 0, "stream of records");
            n += m;
        }
        MUST(sscanf(record, "%d %15s", &who, what) == 2 && who >= 0 && who < 2);
        if (strcmp(what, "end") == 0)
            ended++;
        else
            SAME(atol(what), sums[who]++, "record of a stream");
        if (!told_already && told()) {
            told_already = 1;
            *stage = 2;
        }
    }
    SAME(inside(some.r), 4000, "bytes inside");
    GET(some.r, 1, 4000, "bytes inside");
    empty(some.r, "something is left in the pipe");
    SAME(inside(full.r), filled, "bytes in a full pipe");
    CHECK(write(full.w, page, 1) == -1 && errno == EAGAIN, "the full pipe is not full");
    SAME(fcntl(full.w, F_GETFL) & O_NONBLOCK, O_NONBLOCK, "O_NONBLOCK");
    for (long left = filled; left > 0; left -= sizeof page)
        SAME(read(full.r, page, sizeof page), (long)sizeof page, "full pipe");
    SAME(fcntl(small.r, F_GETPIPE_SZ), 8192, "size of a pipe");
    SAME(fcntl(large.r, F_GETPIPE_SZ), large_size, "size of a pipe");
    GET(small.r, 2, 8000, "a pipe made smaller");
    GET(large.r, 3, (size_t)much, "a pipe made larger");
    SAME(fcntl(packets.w, F_GETFL) & O_DIRECT, O_DIRECT, "packet mode");
    for (int i = 1; i <= 10; i++) {
        memset(page, 0, sizeof page);
        SAME(read(packets.r, page, sizeof page), i * 10, "length of a packet");
        SAME(page[0], i, "packet");
        SAME(page[i * 10 - 1], i, "packet");
    }
    empty(packets.r, "a packet too many");
    SAME(read(one_page.r, page, sizeof page), 75, "rest of a pipe");
    CHECK(memcmp(page, "5678901234567890", 16) == 0, "rest of a pipe");
    CHECK(write(no_reader.w, "x", 1) == -1 && errno == EPIPE, "a pipe without reader");
    SAME(read(no_writer.r, page, 10), 0, "a pipe without writer");
    GET(no_writer_data.r, 4, 800, "a pipe without writer, with data");
    SAME(read(no_writer_data.r, page, 10), 0, "end of a pipe without writer");
    empty(none.r, "an empty pipe");
    SAME(fcntl(none.r, F_GETFD), FD_CLOEXEC, "close-on-exec");
    SAME(fcntl(nonblock_read.r, F_GETFL) & O_NONBLOCK, O_NONBLOCK, "O_NONBLOCK of one end");
    CHECK(read(nonblock_read.r, page, 1) == -1 && errno == EAGAIN, "O_NONBLOCK of one end");
    SAME(fcntl(nonblock_read.w, F_GETFL) & O_NONBLOCK, 0, "O_NONBLOCK of the other end");
    MUST(write(stream.w, "later", 5) == 5);
    SAME(read(back.r, page, 10), 6, "answer of the blocked reader");
    close(back.w);
    GET(jam.r, 8, 300000, "what the blocked writer wrote");
    for (int c = 0; c < 4; c++) {
        int status;
        MUST(waitpid(child[c], &status, 0) == child[c]);
        SAME(status, 0, "child");
    }
    SAME(read(jam.r, page, 10), 0, "end of a pipe whose writer has ended");
    SAME(read(back.r, page, 10), 0, "end of a pipe whose writer has ended");
    ok();
}
