/* What the parts of the stress program share: chance, the answer, and things.
 *
 * A worker has a number of slots; a thing lives in each: a channel, a region of memory, a file, a child, ... In each
 * round one slot is chosen by chance; what is in it is made, used or ended. Chance comes from the seed alone, and every
 * use verifies what it finds, so the answer depends on the seed and on how many rounds there were, on nothing else.
 * What is not determined (how long something took, how much fitted into a buffer) is verified, and not folded in.
 */
#ifndef STRESS_H
#define STRESS_H
#include "check.h"
#include <poll.h>

#define SLOTS 26
#define PAGE 4096ul

struct thing;
struct kind {
    const char *name;
    int weight; /* how often it is chosen */
    void (*make)(struct thing *);
    void (*use)(struct thing *);
    void (*end)(struct thing *);
};

/* Bytes that went one way: where the writer and the reader are. Messages: how many. */
struct flow {
    uint64_t written, read, closed;
};

struct thing {
    const struct kind *kind;
    uint64_t id; /* never used twice by a worker */
    int sort;    /* which variant of its kind */
    int fd[4];
    struct flow flow[2];
    uint64_t n[8];
    char *at; /* memory of a region, shadow of a file */
    uint64_t *kept;
    char path[64];
    pid_t pid;
    void *more;
};

static int worker;         /* number of this worker */
static uint64_t state;     /* of chance */
static uint64_t answer;    /* of this worker so far */
static uint64_t next_id;   /* of things */
static uint64_t round_now; /* for messages */
static struct thing things[SLOTS];
static key_t base_key; /* of System V objects: the test removes what is left of these */

UNUSED static uint64_t mix(uint64_t a, uint64_t b) { return word_at(a, b ^ 0x5bd1e995u); }

/* The next number of chance. */
UNUSED static uint64_t chance(void)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return mix(state, state >> 33);
}

/* 0 .. n-1 */
UNUSED static uint64_t below(uint64_t n) { return chance() % n; }
UNUSED static int one_in(uint64_t n) { return below(n) == 0; }

static uint64_t *part; /* of the answer, of the kind of thing that is being treated: says where to look */
UNUSED static void fold(uint64_t value)
{
    answer = mix(answer, value);
    *part = mix(*part, value);
}

/* The byte at a position of what a flow carries. */
UNUSED static unsigned char byte_of(uint64_t seed, uint64_t at)
{
    return word_at(at / 8, seed) >> (at % 8 * 8) & 0xff;
}

UNUSED static void expect_bytes(const unsigned char *have, size_t size, uint64_t seed, uint64_t at, const char *what)
{
    for (size_t i = 0; i < size; i++)
        CHECK(have[i] == byte_of(seed, at + i), "%s: byte %llu is %02x, not %02x (worker %d round %llu)", what,
              (unsigned long long)(at + i), have[i], byte_of(seed, at + i), worker, (unsigned long long)round_now);
}

/* MUST with the place in the run. */
#define DO(condition)                                                                                                  \
    CHECK(condition, "%s (worker %d round %llu)", #condition, worker, (unsigned long long)round_now)
#define EQUAL(have, want, what)                                                                                        \
    do {                                                                                                               \
        long long have_ = (long long)(have), want_ = (long long)(want);                                                \
        CHECK(have_ == want_, "%s: %lld, not %lld (worker %d round %llu)", what, have_, want_, worker,                 \
              (unsigned long long)round_now);                                                                          \
    } while (0)

/* The whole of it, whatever the size of the steps. */
UNUSED static void write_all(int fd, const void *from, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, (const char *)from + done, size - done);
        DO(n > 0);
        done += n;
    }
}

UNUSED static void read_all(int fd, void *to, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = read(fd, (char *)to + done, size - done);
        DO(n > 0);
        done += n;
    }
}

/* A child's end, which must be this. */
UNUSED static void expect_exit(pid_t pid, int status_wanted, const char *what)
{
    int status;
    pid_t got = waitpid(pid, &status, 0);
    CHECK(got == pid, "%s: waitpid(%d) gave %d (worker %d round %llu)", what, (int)pid, (int)got, worker,
          (unsigned long long)round_now);
    CHECK(status == status_wanted, "%s: status %#x, not %#x (worker %d round %llu)", what, status, status_wanted, worker,
          (unsigned long long)round_now);
}

/* A region that a child has a copy of (stress_memory.h). */
static void verify_copies(void);
/* In a new child: nothing of the worker's but its memory, and this descriptor. */
UNUSED static void leave_all_but(int fd)
{
    if (fd > 3)
        close_range(3, fd - 1, 0);
    close_range(fd < 3 ? 3 : fd + 1, ~0u, 0);
}
#endif
