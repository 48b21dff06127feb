/* A named pipe with bytes inside, held open for reading, writing and both; its name leads to the same one. */
#include "check.h"

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

int main(int argc, char **argv)
{
    begin(argc, argv);
    char page[64];
    char fifo[512];
    snprintf(fifo, sizeof fifo, "%s.%d.fifo", go_path, (int)getpid());
    MUST(mkfifo(fifo, 0600) == 0);
    int fifo_r = open(fifo, O_RDONLY | O_NONBLOCK), fifo_w = open(fifo, O_WRONLY), fifo_rw = open(fifo, O_RDWR);
    MUST(fifo_r >= 0 && fifo_w >= 0 && fifo_rw >= 0);
    put(fifo_w, 6, 1600);
    if (WRONG(1))
        MUST(read(fifo_r, page, 8) == 8);
    ready();
    wait_go();
    GET(fifo_r, 6, 1600, "FIFO");
    SAME(write(fifo_rw, "y", 1), 1, "FIFO");
    SAME(read(fifo_r, page, 10), 1, "FIFO");
    int late = open(fifo, O_WRONLY | O_NONBLOCK);
    CHECK(late >= 0, "a FIFO that has a reader cannot be opened for writing");
    SAME(write(late, "z", 1), 1, "FIFO");
    SAME(read(fifo_r, page, 10), 1, "the FIFO is another one than its name");
    ok();
}
