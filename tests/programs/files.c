/* Ordinary files and directories: offsets (shared by fork and dup, and not shared by a second open), flags, append,
 * close-on-exec, read, write, a directory half read, cwd, umask, devices without state, O_PATH, descriptor numbers. */
#include "check.h"
#include <dirent.h>

#define DATA 100000
static char base[400];
static uint64_t data[DATA / 8];

static char *name(const char *suffix)
{
    static char path[16][512];
    static int turn;
    char *p = path[turn++ % 16];
    snprintf(p, 512, "%s/%s", base, suffix);
    return p;
}
static int fd_file, fd_dup, fd_again, fd_append, fd_new, fd_dir, fd_null, fd_zero, fd_random, fd_full, fd_path, fd_high;
static int fd_write_only, fd_cwd, fd_nonblock, fd_trunc;
static DIR *dir;
static ino_t here;
static atomic_int *stage;

static int open_(const char *path, int flags)
{
    int fd = open(path, flags, 0640);
    CHECK(fd >= 0, "%s", path);
    return fd;
}
static off_t at(int fd) { return lseek(fd, 0, SEEK_CUR); }

int main(int argc, char **argv)
{
    begin(argc, argv);
    stage = shared_memory(4096);
    snprintf(base, sizeof base, "%s.files.%d", go_path, (int)getpid());
    MUST(mkdir(base, 0755) == 0);
    fill(data, DATA, 5);
    int fd = open_(name("data"), O_CREAT | O_WRONLY);
    MUST(write(fd, data, DATA) == DATA);
    close(fd);
    for (int i = 0; i < 300; i++) {
        char s[32];
        snprintf(s, sizeof s, "entry-%03d", i);
        close(open_(name(s), O_CREAT | O_WRONLY));
    }
    fd_file = open_(name("data"), O_RDONLY);
    MUST(lseek(fd_file, 12345, SEEK_SET) == 12345);
    fd_dup = dup(fd_file);
    fd_again = open_(name("data"), O_RDONLY | O_CLOEXEC | O_NOATIME);
    MUST(lseek(fd_again, 777, SEEK_SET) == 777);
    fd_append = open_(name("log"), O_CREAT | O_RDWR | O_APPEND);
    MUST(write(fd_append, "first line\n", 11) == 11);
    fd_new = open_(name("new"), O_CREAT | O_RDWR | O_EXCL);
    MUST(write(fd_new, data, 5000) == 5000);
    MUST(lseek(fd_new, 1000, SEEK_SET) == 1000);
    fd_write_only = open_(name("out"), O_CREAT | O_WRONLY | O_SYNC);
    MUST(write(fd_write_only, data, 4096) == 4096);
    fd_trunc = open_(name("trunc"), O_CREAT | O_RDWR | O_TRUNC);
    fd_nonblock = open_(name("data"), O_RDONLY | O_NONBLOCK);
    fd_path = open_(name("data"), O_PATH);
    fd_null = open_("/dev/null", O_RDWR);
    fd_zero = open_("/dev/zero", O_RDONLY);
    fd_random = open_("/dev/urandom", O_RDONLY);
    fd_full = open_("/dev/full", O_WRONLY);
    fd_high = fcntl(fd_file, F_DUPFD_CLOEXEC, 1000);
    MUST(chdir(base) == 0);
    fd_cwd = open_(".", O_RDONLY | O_DIRECTORY);
    umask(0027);
    fd_dir = open_(base, O_RDONLY | O_DIRECTORY);
    dir = fdopendir(fd_dir);
    MUST(dir);
    char seen[300] = {0};
    int other = 0;
    for (int i = 0; i < 100; i++) {
        struct dirent *e = readdir(dir);
        MUST(e);
        int n;
        if (sscanf(e->d_name, "entry-%d", &n) == 1)
            seen[n]++;
        else
            other++;
    }
    struct stat st;
    MUST(stat(".", &st) == 0);
    here = st.st_ino;
    /* a child that shares the offset, and closed numbers in between */
    int hole = dup(fd_null), after_hole = dup(fd_null);
    close(hole);
    pid_t child = fork();
    if (!child) {
        while (*stage != 1)
            short_sleep();
        char b[10];
        MUST(read(fd_file, b, 10) == 10);
        *stage = 2;
        while (*stage != 3)
            short_sleep();
        SAME(at(fd_file), 12345 + 10 + 90, "offset moved by the parent, seen in the child");
        _exit(0);
    }
    if (WRONG(1))
        lseek(fd_again, 778, SEEK_SET);
    if (WRONG(2))
        fcntl(fd_append, F_SETFL, 0);
    if (WRONG(3))
        umask(0022);
    if (WRONG(4)) { /* the same file, but an open file of its own */
        int own = open_(name("data"), O_RDONLY);
        lseek(own, 12345, SEEK_SET);
        dup2(own, fd_dup);
        close(own);
    }
    if (WRONG(5))
        fcntl(fd_high, F_SETFD, 0);
    ready();
    wait_go();

    SAME(at(fd_file), 12345, "offset");
    SAME(at(fd_again), 777, "offset of a second open");
    SAME(at(fd_new), 1000, "offset of a file being written");
    SAME(at(fd_write_only), 4096, "offset of a file being written");
    char b[5000];
    *stage = 1;
    UNTIL(*stage == 2, 10, "child");
    SAME(at(fd_file), 12355, "offset moved by the child");
    MUST(read(fd_dup, b, 45) == 45);
    CHECK(memcmp(b, (char *)data + 12355, 45) == 0, "what was read");
    MUST(read(fd_high, b, 45) == 45);
    SAME(at(fd_file), 12345 + 10 + 90, "offset moved through a duplicate");
    *stage = 3;
    SAME(at(fd_again), 777, "offset of a second open");
    MUST(read(fd_again, b, 8) == 8);
    CHECK(memcmp(b, (char *)data + 777, 8) == 0, "what was read");
    SAME(fcntl(fd_append, F_GETFL) & (O_APPEND | O_ACCMODE), O_APPEND | O_RDWR, "flags");
    SAME(fcntl(fd_again, F_GETFL) & (O_NOATIME | O_ACCMODE), O_NOATIME, "flags");
    SAME(fcntl(fd_write_only, F_GETFL) & (O_SYNC | O_ACCMODE), O_SYNC | O_WRONLY, "flags");
    SAME(fcntl(fd_nonblock, F_GETFL) & O_NONBLOCK, O_NONBLOCK, "flags");
    SAME(fcntl(fd_trunc, F_GETFL) & (O_TRUNC | O_CREAT), 0, "flags");
    SAME(fcntl(fd_again, F_GETFD), FD_CLOEXEC, "close-on-exec");
    SAME(fcntl(fd_high, F_GETFD), FD_CLOEXEC, "close-on-exec");
    SAME(fcntl(fd_file, F_GETFD), 0, "close-on-exec");
    SAME(fd_high, 1000, "number");
    CHECK(fcntl(hole, F_GETFD) == -1 && errno == EBADF, "a closed descriptor is open");
    SAME(fcntl(after_hole, F_GETFD), 0, "descriptor behind a hole");
    SAME(fcntl(fd_path, F_GETFL) & O_PATH, O_PATH, "O_PATH");
    CHECK(read(fd_path, b, 1) == -1 && errno == EBADF, "O_PATH can be read");
    SAME(write(fd_append, "second line\n", 12), 12, "append");
    SAME(pread(fd_append, b, 100, 0), 23, "length after an append");
    CHECK(memcmp(b, "first line\nsecond line\n", 23) == 0, "file appended to");
    SAME(read(fd_new, b, 4000), 4000, "rest of a new file");
    CHECK(memcmp(b, (char *)data + 1000, 4000) == 0, "contents of a new file");
    SAME(write(fd_new, "tail", 4), 4, "write");
    MUST(fstat(fd_new, &st) == 0);
    SAME(st.st_size, 5004, "size");
    SAME(st.st_mode & 07777, 0640 & ~0022, "mode");
    SAME(write(fd_write_only, "x", 1), 1, "write");
    MUST(fstat(fd_write_only, &st) == 0);
    SAME(st.st_size, 4097, "size");
    SAME(read(fd_null, b, 10), 0, "/dev/null");
    memset(b, 1, 100);
    SAME(read(fd_zero, b, 80), 80, "/dev/zero");
    ZEROS(b, 80, "/dev/zero");
    SAME(read(fd_random, b, 80), 80, "/dev/urandom");
    CHECK(write(fd_full, b, 1) == -1 && errno == ENOSPC, "/dev/full");
    MUST(stat(".", &st) == 0);
    SAME(st.st_ino, here, "working directory");
    char cwd[600];
    MUST(getcwd(cwd, sizeof cwd) && strcmp(cwd, base) == 0);
    SAME(umask(0), 0027, "umask");
    struct dirent *e;
    int rest = 0;
    while ((e = readdir(dir))) {
        int n;
        if (sscanf(e->d_name, "entry-%d", &n) == 1)
            seen[n]++;
        else
            other++;
        rest++;
    }
    for (int i = 0; i < 300; i++)
        SAME(seen[i], 1, "times a directory entry was seen");
    CHECK(other >= 7, "other entries: %d", other); /* ., .., data, log, new, out, trunc; perhaps what torpor kept */
    CHECK(rest >= 200, "entries left: %d", rest);
    SAME(openat(fd_cwd, "data", O_RDONLY) >= 0, 1, "openat");
    int status;
    MUST(waitpid(child, &status, 0) == child);
    SAME(status, 0, "child");
    ok();
}
