/* Shared memory among three processes: anonymous, memfd (shared, private, sealed), a tmpfs file, an ordinary file, a
 * deleted file, two places for one page. Still shared afterwards: what one writes, all see. */
#include "check.h"

#define PAGE 4096ul
#define SIZE (32 * PAGE)

struct desk {
    atomic_int turn, finish, verified;
    atomic_int round[3];
};
static struct desk *desk;
static unsigned char *anonymous, *mem, *mem_private, *tmpfs, *ordinary, *gone, *twice, *only_read, *part;
static int memfd, gone_fd;

static unsigned char *map(int fd, int prot, int flags, size_t size)
{
    unsigned char *p = mmap(NULL, size, prot, flags, fd, 0);
    MUST(p != MAP_FAILED);
    return p;
}

static int make(const char *path, uint64_t seed)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0, "%s", path);
    char *data = malloc(SIZE);
    fill(data, SIZE, seed);
    MUST(write(fd, data, SIZE) == (ssize_t)SIZE);
    free(data);
    return fd;
}

static void verify(int me)
{
    VERIFY(anonymous, SIZE / 2, 1, "anonymous shared memory");
    ZEROS(anonymous + SIZE / 2, SIZE / 4, "anonymous shared memory, hole");
    VERIFY(mem, SIZE / 2, 2, "memfd");
    VERIFY(mem_private, PAGE, 30 + me, "memfd mapped privately, written");
    VERIFY(mem_private + PAGE, PAGE, 33, "memfd mapped privately, page 1");
    VERIFY(tmpfs, SIZE / 2, 4, "file in tmpfs");
    VERIFY(ordinary, SIZE / 2, 5, "ordinary file");
    VERIFY(gone, SIZE / 2, 6, "deleted file");
    VERIFY(only_read, SIZE / 2, 2, "memfd mapped read-only");
    CHECK(memcmp(twice, mem, SIZE) == 0, "the same memory at another place");
    CHECK(memcmp(part, mem + 4 * PAGE, PAGE) == 0, "a part of the same memory at another place");
    CHECK(fcntl(memfd, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW), "seals");
    struct stat st;
    MUST(fstat(memfd, &st) == 0);
    SAME(st.st_size, SIZE, "size of the memfd");
    MUST(fstat(gone_fd, &st) == 0);
    SAME(st.st_nlink, 0, "links of a deleted file");
    SAME(st.st_size, SIZE, "size of a deleted file");
}

/* Each in turn writes a mark into every area; all others must see it. */
static void exchange(int me)
{
    unsigned char *all[] = {anonymous, mem, tmpfs, ordinary, gone};
    desk->verified++;
    UNTIL(desk->verified == 3, 20, "the others");
    for (int r = 0; r < 3; r++) {
        if (r == me)
            for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
                all[i][SIZE - 8 + r] = (unsigned char)(0x50 + r * 16 + i);
        desk->round[r]++;
        UNTIL(desk->round[r] == 3, 20, "the others");
        for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
            SAME(all[i][SIZE - 8 + r], 0x50 + r * 16 + i, i == 0   ? "written by another: anonymous"
                                                          : i == 1 ? "written by another: memfd"
                                                          : i == 2 ? "written by another: tmpfs"
                                                          : i == 3 ? "written by another: ordinary file"
                                                                   : "written by another: deleted file");
        SAME(twice[SIZE - 8 + r], 0x50 + r * 16 + 1, "written by another, seen at the second place");
        unsigned char byte;
        MUST(pread(memfd, &byte, 1, SIZE - 8 + r) == 1);
        SAME(byte, 0x50 + r * 16 + 1, "written by another, read through the descriptor");
        MUST(pread(gone_fd, &byte, 1, SIZE - 8 + r) == 1);
        SAME(byte, 0x50 + r * 16 + 4, "written by another into a deleted file, read through the descriptor");
    }
}

static void act(int me)
{
    /* one's own copies of private memfd pages */
    fill(mem_private, PAGE, 30 + me);
    desk->turn++;
    while (!desk->finish)
        short_sleep();
    verify(me);
    exchange(me);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    const int rw = PROT_READ | PROT_WRITE;
    char path[500];
    desk = shared_memory(4096);
    anonymous = map(-1, rw, MAP_SHARED | MAP_ANONYMOUS, SIZE);
    fill(anonymous, SIZE / 2, 1);
    memfd = memfd_create("test of memory", MFD_ALLOW_SEALING);
    MUST(memfd >= 0 && ftruncate(memfd, SIZE) == 0);
    MUST(fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    mem = map(memfd, rw, MAP_SHARED, SIZE);
    fill(mem, SIZE / 2, 2);
    int other = memfd_create("private", 0);
    MUST(ftruncate(other, SIZE) == 0);
    mem_private = map(other, rw, MAP_SHARED, SIZE);
    fill(mem_private + PAGE, PAGE, 33);
    mem_private = map(other, rw, MAP_PRIVATE, SIZE);
    twice = map(memfd, rw, MAP_SHARED, SIZE);
    only_read = map(memfd, PROT_READ, MAP_SHARED, SIZE);
    part = mmap(NULL, PAGE, rw, MAP_SHARED, memfd, 4 * PAGE);
    MUST(part != MAP_FAILED);
    snprintf(path, sizeof path, "/dev/shm/torpor-test.%d.%ld", (int)getpid(), (long)time(NULL));
    int fd = make(path, 4);
    tmpfs = map(fd, rw, MAP_SHARED, SIZE);
    close(fd);
    snprintf(path, sizeof path, "%s.%d.shared", go_path, (int)getpid());
    fd = make(path, 5);
    ordinary = map(fd, rw, MAP_SHARED, SIZE);
    close(fd);
    strcat(path, ".gone");
    gone_fd = make(path, 6);
    gone = map(gone_fd, rw, MAP_SHARED, SIZE);
    unlink(path);
    pid_t children[2];
    for (int i = 0; i < 2; i++) {
        children[i] = fork();
        if (!children[i]) {
            act(i + 1);
            _exit(0);
        }
    }
    UNTIL(desk->turn == 2, 10, "children");
    fill(mem_private, PAGE, 30);
    if (WRONG(1))
        anonymous[9] ^= 1;
    if (WRONG(2)) { /* same bytes, but no longer shared */
        unsigned char *copy = malloc(SIZE);
        memcpy(copy, mem, SIZE);
        map(memfd, rw, MAP_SHARED, SIZE);
        MUST(mmap(mem, SIZE, rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == mem);
        memcpy(mem, copy, SIZE);
    }
    if (WRONG(3))
        gone[SIZE / 2 - 1] ^= 128;
    ready();
    wait_go();
    desk->finish = 1;
    verify(0);
    exchange(0);
    for (int i = 0; i < 2; i++) {
        int status;
        MUST(waitpid(children[i], &status, 0) == children[i]);
        SAME(status, 0, "child");
    }
    ok();
}
