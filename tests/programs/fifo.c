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
    struct stat named;
    MUST(stat(fifo, &named) == 0);
    MUST(fcntl(fifo_w, F_SETPIPE_SZ, 16384) == 16384);
    /* A reader that no writer has come to; one whose writer has gone and left something; one without a name. */
    char lone[600], left[600], gone[600];
    snprintf(lone, sizeof lone, "%s.lone", fifo);
    snprintf(left, sizeof left, "%s.left", fifo);
    snprintf(gone, sizeof gone, "%s.gone", fifo);
    MUST(mkfifo(lone, 0640) == 0 && mkfifo(left, 0600) == 0 && mkfifo(gone, 0600) == 0);
    int lone_r = open(lone, O_RDONLY | O_NONBLOCK);
    int left_r = open(left, O_RDONLY | O_NONBLOCK), left_w = open(left, O_WRONLY);
    MUST(lone_r >= 0 && left_r >= 0 && left_w >= 0);
    MUST(write(left_w, "left", 4) == 4 && close(left_w) == 0);
    int gone_w = open(gone, O_RDWR), gone_r = open(gone, O_RDONLY);
    MUST(gone_w >= 0 && gone_r >= 0 && unlink(gone) == 0 && write(gone_w, "gone", 4) == 4);
    /* Another process writes, through a description of its own, and has the only writing end of one. */
    int link[2], back[2];
    char pathway[600];
    snprintf(pathway, sizeof pathway, "%s.way", fifo);
    MUST(mkfifo(pathway, 0600) == 0 && pipe(link) == 0 && pipe(back) == 0);
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(link[1]);
        int way = open(pathway, O_WRONLY);
        MUST(way >= 0 && write(way, "way", 3) == 3 && write(back[1], "r", 1) == 1);
        read(link[0], page, 1);
        MUST(write(way, "more", 4) == 4);
        _exit(0);
    }
    close(link[0]);
    int way_r = open(pathway, O_RDONLY);
    MUST(way_r >= 0 && read(back[0], page, 1) == 1);
    if (WRONG(1))
        MUST(read(fifo_r, page, 8) == 8);
    ready();
    wait_go();
    GET(fifo_r, 6, 1600, "FIFO");
    SAME(write(fifo_rw, "y", 1), 1, "FIFO");
    SAME(read(fifo_r, page, 10), 1, "FIFO");
    int late = open(fifo, O_WRONLY | O_NONBLOCK);
    CHECK(late >= 0, "a FIFO that has a reader cannot be opened for writing");
    struct stat again, open_one;
    MUST(stat(fifo, &again) == 0 && fstat(fifo_r, &open_one) == 0);
    SAME(again.st_ino, named.st_ino, "inode of the FIFO");
    SAME(open_one.st_ino, named.st_ino, "inode of the open FIFO");
    SAME(fcntl(fifo_rw, F_GETPIPE_SZ), 16384, "capacity");
    SAME(fcntl(fifo_r, F_GETFL) & O_NONBLOCK, O_NONBLOCK, "flags");
    SAME(fcntl(fifo_w, F_GETFL) & O_NONBLOCK, 0, "flags");
    struct pollfd alone = {lone_r, POLLIN, 0};
    SAME(poll(&alone, 1, 0), 0, "a reader that no writer has come to is ready");
    int lone_w = open(lone, O_WRONLY | O_NONBLOCK);
    CHECK(lone_w >= 0, "the lone reader is not there");
    SAME(write(lone_w, "a", 1), 1, "lone FIFO");
    SAME(read(lone_r, page, 10), 1, "lone FIFO");
    SAME(read(left_r, page, 10), 4, "FIFO that was left");
    CHECK(!memcmp(page, "left", 4), "FIFO that was left: other bytes");
    SAME(read(left_r, page, 10), 0, "end of the FIFO that was left");
    SAME(read(gone_r, page, 10), 4, "FIFO without a name");
    CHECK(!memcmp(page, "gone", 4) && access(gone, F_OK) != 0, "FIFO without a name");
    SAME(read(way_r, page, 10), 3, "FIFO from the child");
    CHECK(!memcmp(page, "way", 3), "FIFO from the child: other bytes");
    close(link[1]);
    SAME(read(way_r, page, 10), 4, "FIFO from the child");
    SAME(read(way_r, page, 10), 0, "end of the FIFO from the child");
    SAME(write(late, "z", 1), 1, "FIFO");
    SAME(read(fifo_r, page, 10), 1, "the FIFO is another one than its name");
    ok();
}
