/* Files: named, renamed, removed, without a name; with holes, a shared offset, locks. A copy in memory says what is right. */
#include "stress.h"
#include <sys/file.h>

#define LONGEST 40000

/* n[0]: size. n[1]: the offset. n[2]: has no name. n[3]: a lock is held (1 flock, 2 POSIX, 3 OFD). fd[1]: a duplicate.
   fd[2]: a description of its own. at: what is in it. */
static void make_file(struct thing *t)
{
    t->at = calloc(1, LONGEST);
    DO(t->at);
    t->fd[1] = t->fd[2] = -1;
    if (one_in(5)) {
        t->fd[0] = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (t->fd[0] >= 0) {
            t->n[2] = 1;
            return;
        }
    }
    sprintf(t->path, "f.%d.%llu", worker, (unsigned long long)t->id);
    t->fd[0] = open(t->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    DO(t->fd[0] >= 0);
}

static void verify_file(struct thing *t, int fd)
{
    static char seen[LONGEST + 1];
    EQUAL(pread(fd, seen, sizeof seen, 0), t->n[0], "the size of a file");
    for (uint64_t i = 0; i < t->n[0]; i++)
        CHECK(seen[i] == t->at[i], "file %s%s: byte %llu of %llu is %02x, not %02x (worker %d round %llu)", t->path,
              t->n[2] ? " (no name)" : "", (unsigned long long)i, (unsigned long long)t->n[0], (unsigned char)seen[i],
              (unsigned char)t->at[i], worker, (unsigned long long)round_now);
    EQUAL(lseek(fd, 0, SEEK_CUR), fd == t->fd[2] ? 0 : t->n[1], "the offset of a file");
}

static void lock_file(struct thing *t)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = t->id % 100, .l_len = 7};
    if (t->n[3]) {
        l.l_type = F_UNLCK;
        DO(t->n[3] == 1   ? flock(t->fd[0], LOCK_UN) == 0
           : t->n[3] == 2 ? fcntl(t->fd[0], F_SETLK, &l) == 0
                          : fcntl(t->fd[0], F_OFD_SETLK, &l) == 0);
        t->n[3] = 0;
        return;
    }
    t->n[3] = 1 + below(3);
    DO(t->n[3] == 1   ? flock(t->fd[0], LOCK_EX | LOCK_NB) == 0
       : t->n[3] == 2 ? fcntl(t->fd[0], F_SETLK, &l) == 0
                      : fcntl(t->fd[0], F_OFD_SETLK, &l) == 0);
}

/* Somebody else must be kept out, by a description of its own. */
static void expect_lock(struct thing *t)
{
    if (t->fd[2] < 0 || !t->n[3])
        return;
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 0};
    if (t->n[3] == 1) {
        DO(flock(t->fd[2], LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
        return;
    }
    DO(fcntl(t->fd[2], F_OFD_GETLK, &l) == 0);
    EQUAL(l.l_type, F_WRLCK, "a lock");
    EQUAL(l.l_start, t->id % 100, "where a lock starts");
    EQUAL(l.l_len, 7, "the length of a lock");
    EQUAL(l.l_pid, t->n[3] == 2 ? getpid() : -1, "who has a lock");
}

static void use_file(struct thing *t)
{
    uint64_t what = below(12), at = below(LONGEST - 3000), size = 1 + below(3000);
    int fd = t->fd[1] >= 0 && one_in(2) ? t->fd[1] : t->fd[0];
    char other[64];
    if (what < 4) { /* write at the offset that all duplicates share */
        if (what < 2) {
            DO(lseek(fd, at, SEEK_SET) == (off_t)at);
            t->n[1] = at;
        }
        if (t->n[1] + size > LONGEST)
            return;
        char *to = t->at + t->n[1];
        uint64_t seed = chance();
        for (uint64_t i = 0; i < size; i++)
            to[i] = byte_of(seed, i);
        EQUAL(write(fd, to, size), size, "write to a file");
        t->n[1] += size;
        if (t->n[1] > t->n[0])
            t->n[0] = t->n[1];
        fold(t->n[0]);
    } else if (what < 6) {
        verify_file(t, fd);
        if (t->fd[2] >= 0)
            verify_file(t, t->fd[2]);
        fold(t->n[0] ? t->at[t->n[0] - 1] : 0);
    } else if (what == 6) {
        DO(ftruncate(fd, at) == 0);
        if (at < t->n[0])
            memset(t->at + at, 0, t->n[0] - at);
        t->n[0] = at;
    } else if (what == 7) {
        if (at >= t->n[0])
            return;
        if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, size) == 0)
            memset(t->at + at, 0, at + size < t->n[0] ? size : t->n[0] - at);
    } else if (what == 8) {
        if (t->fd[1] >= 0) {
            if (t->n[3] == 2)
                return; /* closing would take the POSIX lock away */
            DO(close(t->fd[1]) == 0);
            t->fd[1] = -1;
        } else
            DO((t->fd[1] = fcntl(t->fd[0], F_DUPFD_CLOEXEC, 3)) >= 0);
    } else if (what == 9) {
        if (t->fd[2] < 0 && !t->n[2])
            DO((t->fd[2] = open(t->path, O_RDWR | O_CLOEXEC)) >= 0);
        else
            expect_lock(t);
    } else if (what == 10)
        lock_file(t);
    else if (!t->n[2]) { /* lose the name, or get another */
        if (one_in(2)) {
            DO(unlink(t->path) == 0);
            t->n[2] = 1;
        } else {
            sprintf(other, "f.%d.%llu.%llu", worker, (unsigned long long)t->id, (unsigned long long)below(4));
            if (strcmp(other, t->path) == 0)
                return;
            DO(rename(t->path, other) == 0);
            strcpy(t->path, other);
        }
    }
}

static void end_file(struct thing *t)
{
    expect_lock(t);
    verify_file(t, t->fd[0]);
    for (int i = 0; i < 3; i++)
        if (t->fd[i] >= 0)
            DO(close(t->fd[i]) == 0);
    free(t->at);
    fold(t->n[0]);
}

static const struct kind file = {"file", 14, make_file, use_file, end_file};
