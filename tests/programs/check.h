/* What every test program shares.
 *
 * A program is started as `PROGRAM GO [WRONG [MODE...]]`. It sets up, prints `READY`, works or waits until the file
 * GO appears, verifies all that it had, prints `OK` and exits 0, or prints `FAIL: what` and exits 1.
 * WRONG > 0 makes it spoil one thing on purpose between READY and the verification: it must then print FAIL. That is
 * how tests/jobs/test_programs.py shows that each check can fail.
 */
#ifndef CHECK_H
#define CHECK_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#ifndef __cplusplus
#include <stdatomic.h>
#endif
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

static const char *go_path = "";
static int wrong_way;
static char **mode_args;
static int mode_count;
static void (*at_failure)(void); /* what has to be cleaned up even then */

/* One write each, so that lines of several processes do not mix. */
UNUSED static void say(const char *format, ...)
{
    char line[600];
    va_list list;
    va_start(list, format);
    int n = vsnprintf(line, sizeof line - 2, format, list);
    va_end(list);
    if (n > (int)sizeof line - 3)
        n = sizeof line - 3;
    line[n++] = '\n';
    for (int done = 0; done < n;) {
        ssize_t got = write(1, line + done, n - done);
        if (got <= 0)
            _exit(9);
        done += got;
    }
}

__attribute__((noreturn, format(printf, 3, 4))) UNUSED static void fail_at(const char *file, int line,
                                                                           const char *format, ...)
{
    int error = errno;
    char text[400];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    say("FAIL: %s:%d: %s [errno %d, pid %d]", file, line, text, error, (int)getpid());
    if (at_failure)
        at_failure();
    _exit(1);
}

#define FAIL(...) fail_at(__FILE__, __LINE__, __VA_ARGS__)
/* CHECK(condition, "what is wrong", ...) */
#define CHECK(condition, ...) ((condition) ? (void)0 : FAIL(__VA_ARGS__))
/* For what must work for the program to make sense at all. */
#define MUST(condition) ((condition) ? (void)0 : FAIL("%s", #condition))
#define SAME(have, want, what)                                                                                         \
    do {                                                                                                               \
        long long have_ = (long long)(have), want_ = (long long)(want);                                                \
        CHECK(have_ == want_, "%s: %lld (%#llx), was %lld (%#llx)", what, have_, have_, want_, want_);                 \
    } while (0)
#define WRONG(n) (wrong_way == (n))

UNUSED static void begin(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s GO [WRONG [MODE...]]\n", argv[0]);
        exit(2);
    }
    go_path = argv[1];
    wrong_way = argc > 2 ? atoi(argv[2]) : 0;
    mode_args = argv + (argc > 3 ? 3 : argc);
    mode_count = argc > 3 ? argc - 3 : 0;
}

UNUSED static int is_mode(const char *name) { return mode_count > 0 && strcmp(mode_args[0], name) == 0; }

UNUSED static void ready(void) { say("READY pid %d", (int)getpid()); }

UNUSED static int told(void) { return access(go_path, F_OK) == 0; }

UNUSED static void short_sleep(void)
{
    struct timespec t = {0, 2000000};
    nanosleep(&t, NULL);
}

UNUSED static void wait_go(void)
{
    while (!told())
        short_sleep();
}

__attribute__((noreturn)) UNUSED static void ok(void)
{
    say("OK");
    exit(0);
}

UNUSED static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

UNUSED static double mono(void) { return now(CLOCK_MONOTONIC); }

/* Times a time limit where nothing is to be wrong: only a failing program waits so long, and a busy machine, or one that
 * stood still itself, makes others wait, too. */
#define PATIENCE (wrong_way ? 1 : 8)

/* Wait until the condition holds, for at most `seconds` (times PATIENCE) of the job's monotonic clock. */
#define UNTIL(condition, seconds, what)                                                                                \
    do {                                                                                                               \
        double end_ = mono() + (seconds)*PATIENCE;                                                                     \
        while (!(condition)) {                                                                                         \
            CHECK(mono() < end_, "%s: not within %g s", what, (double)(seconds));                                      \
            short_sleep();                                                                                             \
        }                                                                                                              \
    } while (0)

/* Bytes that depend on where they are and on a seed: a page in the wrong place or of another area is noticed. */
UNUSED static uint64_t word_at(uint64_t i, uint64_t seed)
{
    uint64_t z = (i + 1) * 0x9e3779b97f4a7c15ull + seed * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

UNUSED static void fill(void *where, size_t size, uint64_t seed)
{
    uint64_t *p = (uint64_t *)where;
    for (size_t i = 0; i < size / 8; i++)
        p[i] = word_at(i, seed);
}

#define VERIFY(where, size, seed, what)                                                                                \
    do {                                                                                                               \
        const volatile uint64_t *p_ = (void *)(where);                                                                 \
        for (size_t i_ = 0; i_ < (size) / 8; i_++)                                                                     \
            CHECK(p_[i_] == word_at(i_, seed), "%s: byte %zu of %zu differs", what, i_ * 8, (size_t)(size));           \
    } while (0)

#define ZEROS(where, size, what)                                                                                       \
    do {                                                                                                               \
        const volatile uint64_t *p_ = (void *)(where);                                                                 \
        for (size_t i_ = 0; i_ < (size) / 8; i_++)                                                                     \
            CHECK(p_[i_] == 0, "%s: byte %zu of %zu is not zero", what, i_ * 8, (size_t)(size));                       \
    } while (0)

/* The number of the system call thread `tid` of this process is blocked in, -1 if it is not. */
UNUSED static long blocked_in(pid_t tid)
{
    char path[64], text[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", (int)tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return -1;
    text[n] = 0;
    return text[0] >= '0' && text[0] <= '9' ? strtol(text, NULL, 10) : -1;
}

/* The state letter of a process ('S', 'T', 'Z', ...), 0 if it is gone. */
UNUSED static char state_of(pid_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    char *end = strrchr(text, ')');
    return end ? end[2] : 0;
}

/* One line "Name:\tvalue" of /proc/self/status (or another file of that shape), into `out`. */
UNUSED static void status_field(const char *path, const char *name, char *out, size_t size)
{
    FILE *f = fopen(path, "re");
    MUST(f);
    char line[1024];
    out[0] = 0;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ':') {
            char *v = line + strlen(name) + 1;
            while (*v == ' ' || *v == '\t')
                v++;
            v[strcspn(v, "\n")] = 0;
            snprintf(out, size, "%s", v);
        }
    fclose(f);
}

/* Memory shared by a process and its later children, zeroed. */
UNUSED static void *shared_memory(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(p != MAP_FAILED);
    return p;
}

UNUSED static void block_signal(int signal_number)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal_number);
    MUST(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
}
#endif
