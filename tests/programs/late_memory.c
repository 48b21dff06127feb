/* Memory that may arrive while the program runs (restart --lazy): everything that can be done to memory is done to memory
 * that has perhaps not arrived yet, and every byte is verified. Prints `late N`: how many of the areas had pages that were
 * not there when their turn came. MODE storm: threads that move, drop and fork at the same time. */
#include "check.h"
#include <linux/futex.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define PAGE 4096ul
#define SIZE (4ul << 20)
#define AREAS 24
#define HALF (SIZE / 2)

extern char **environ;
static char *area[AREAS + 1];
static int late;

static char *map(size_t size)
{
    /* Not beside each other, so that each is an area of its own. */
    char *p = mmap(NULL, size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(p != MAP_FAILED);
    MUST(mprotect(p + PAGE, size, PROT_READ | PROT_WRITE) == 0);
    return p + PAGE;
}

/* The area whose turn it is. */
static char *next(int n)
{
    unsigned char there[SIZE / PAGE];
    MUST(mincore(area[n], SIZE, there) == 0);
    for (size_t i = 0; i < sizeof there; i++)
        if (!there[i] && n != 20) {
            late++;
            break;
        }
    return area[n];
}

/* Whether a part of an area is what it was. */
static void verify(const char *p, size_t from, size_t size, int n, const char *what)
{
    const uint64_t *words = (const uint64_t *)p;
    for (size_t i = 0; i < size / 8; i++)
        CHECK(words[i] == word_at(from / 8 + i, n), "%s: byte %zu differs", what, from + i * 8);
}

static void child_ends_well(pid_t pid, const char *what)
{
    int status;
    MUST(waitpid(pid, &status, 0) == pid);
    CHECK(status == 0, "%s: the child has ended with %#x", what, status);
}

static void *reader(void *argument)
{
    char *p = argument;
    verify(p, 0, SIZE, 13, "threads");
    return NULL;
}

static void calls(void)
{
    char *p, *q;
    pid_t pid;
    int pipes[2];
    static char room[SIZE];

    p = next(0);
    MUST(madvise(p, HALF, MADV_DONTNEED) == 0);
    ZEROS(p, HALF, "MADV_DONTNEED");
    verify(p + HALF, HALF, HALF, 0, "beside MADV_DONTNEED");

    p = next(1);
    MUST(madvise(p, HALF, MADV_FREE) == 0);
    for (size_t at = 0; at < HALF; at += PAGE) {
        uint64_t first = *(volatile uint64_t *)(p + at);
        CHECK(first == 0 || first == word_at(at / 8, 1), "MADV_FREE: page %zu is neither old nor zero", at / PAGE);
    }
    fill(p, HALF, 100);
    VERIFY(p, HALF, 100, "written after MADV_FREE");
    verify(p + HALF, HALF, HALF, 1, "beside MADV_FREE");

    p = next(2);
    q = map(SIZE);
    MUST(mremap(p, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, q) == q);
    verify(q, 0, SIZE, 2, "mremap, moved");

    p = next(3);
    q = mremap(p, SIZE, 2 * SIZE, MREMAP_MAYMOVE);
    MUST(q != MAP_FAILED && q != p);
    verify(q, 0, SIZE, 3, "mremap, grown");
    ZEROS(q + SIZE, SIZE, "mremap, what was added");
    MUST(mremap(q, 2 * SIZE, HALF, 0) == q);
    verify(q, 0, HALF, 3, "mremap, shrunk");

    p = next(4);
    q = mremap(p, SIZE, SIZE, MREMAP_MAYMOVE | 4 /* MREMAP_DONTUNMAP */, NULL);
    MUST(q != MAP_FAILED);
    ZEROS(p, HALF, "MREMAP_DONTUNMAP, the old place");
    verify(q, 0, SIZE, 4, "MREMAP_DONTUNMAP");
    ZEROS(p + HALF, HALF, "MREMAP_DONTUNMAP, the old place later");

    p = next(5);
    MUST(munmap(p + SIZE / 4, HALF) == 0);
    MUST(mmap(p + SIZE / 4, HALF, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
    ZEROS(p + SIZE / 4, HALF, "munmap and mmap");
    verify(p, 0, SIZE / 4, 5, "before the hole");
    verify(p + SIZE / 4 * 3, SIZE / 4 * 3, SIZE / 4, 5, "behind the hole");

    p = next(6);
    pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        pid_t below = fork();
        MUST(below >= 0);
        verify(p, 0, SIZE, 6, below ? "in a child" : "in a child's child");
        if (below)
            child_ends_well(below, "fork");
        _exit(0);
    }
    fill(p, HALF, 106); /* not what the child sees */
    child_ends_well(pid, "fork");
    VERIFY(p, HALF, 106, "written while a child reads");
    verify(p + HALF, HALF, HALF, 6, "beside it");

    p = next(7);
    pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        MUST(madvise(p, HALF, MADV_DONTNEED) == 0);
        ZEROS(p, HALF, "MADV_DONTNEED in a child");
        q = mremap(p + HALF, HALF, HALF, MREMAP_MAYMOVE | MREMAP_FIXED, map(HALF));
        MUST(q != MAP_FAILED);
        verify(q, HALF, HALF, 7, "mremap in a child");
        _exit(0);
    }
    child_ends_well(pid, "fork");
    verify(p, 0, SIZE, 7, "after a child dropped it");

    p = next(8);
    pid = vfork();
    MUST(pid >= 0);
    if (pid == 0) {
        execl("/bin/true", "true", (char *)NULL);
        _exit(9);
    }
    child_ends_well(pid, "vfork and exec");
    verify(p, 0, SIZE, 8, "after vfork and exec");

    p = next(9);
    MUST(pipe(pipes) == 0);
    MUST(write(pipes[1], "0123456789", 10) == 10);
    CHECK(read(pipes[0], p + HALF - 5, 10) == 10, "read(2) into memory that has not arrived");
    CHECK(memcmp(p + HALF - 5, "0123456789", 10) == 0, "read(2): other bytes");
    verify(p, 0, HALF - 8, 9, "before what was read");
    verify(p + HALF + 8, HALF + 8, HALF - 8, 9, "behind what was read");

    p = next(10);
    int file = memfd_create("written", 0);
    MUST(file >= 0);
    CHECK(write(file, p, SIZE) == (ssize_t)SIZE, "write(2) from memory that has not arrived");
    MUST(pread(file, room, SIZE, 0) == (ssize_t)SIZE);
    verify(room, 0, SIZE, 10, "write(2)");

    p = next(11);
    pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        struct iovec here = {room, SIZE}, there = {p, SIZE};
        CHECK(process_vm_readv(getppid(), &here, 1, &there, 1, 0) == (ssize_t)SIZE, "process_vm_readv");
        verify(room, 0, SIZE, 11, "process_vm_readv");
        _exit(0);
    }
    child_ends_well(pid, "process_vm_readv");

    p = next(12);
    uint32_t word = (uint32_t)word_at(HALF / 8, 12);
    errno = 0;
    CHECK(syscall(SYS_futex, p + HALF, FUTEX_WAIT, word + 1, NULL, NULL, 0) == -1 && errno == EAGAIN, "futex");
    verify(p, 0, SIZE, 12, "futex");

    p = next(13);
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        MUST(pthread_create(&threads[i], NULL, reader, p) == 0);
    for (int i = 0; i < 8; i++)
        MUST(pthread_join(threads[i], NULL) == 0);

    p = next(14);
    MUST(mprotect(p + PAGE, HALF, PROT_READ) == 0);
    MUST(mprotect(p + HALF + 7 * PAGE, PAGE, PROT_NONE) == 0);
    verify(p, 0, HALF + 7 * PAGE, 14, "mprotect");
    MUST(mprotect(p, SIZE, PROT_READ | PROT_WRITE) == 0);
    verify(p, 0, SIZE, 14, "mprotect, taken back");

    p = next(15);
    int self = open("/proc/self/mem", O_RDWR);
    MUST(self >= 0);
    /* The kernel does not ask for memory here: EIO, or what it was (docs/lazy.md). */
    ssize_t got = pread(self, room, HALF, (off_t)(uintptr_t)p);
    CHECK(got >= 0 || errno == EIO, "/proc/self/mem");
    if (got > 0)
        verify(room, 0, got & ~7l, 15, "/proc/self/mem");
    if (pwrite(self, "x", 1, (off_t)(uintptr_t)(p + HALF + 9)) == 1) {
        CHECK(p[HALF + 9] == 'x', "written through /proc/self/mem");
        p[HALF + 9] = ((char *)&(uint64_t){word_at(HALF / 8 + 1, 15)})[1];
    }
    verify(p, 0, SIZE, 15, "after /proc/self/mem");

    p = next(16);
    pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        MUST(ptrace(PTRACE_TRACEME, 0, 0, 0) == 0);
        raise(SIGSTOP);
        _exit(0);
    }
    int status;
    MUST(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
    for (size_t at = 0; at < SIZE; at += 16 * PAGE) {
        errno = 0;
        uint64_t seen = ptrace(PTRACE_PEEKDATA, pid, p + at, 0);
        CHECK(errno ? errno == EIO || errno == EFAULT : seen == word_at(at / 8, 16), "ptrace: %#lx", seen);
    }
    MUST(ptrace(PTRACE_CONT, pid, 0, 0) == 0);
    child_ends_well(pid, "ptrace");
    verify(p, 0, SIZE, 16, "after ptrace");

    p = next(17);
    MUST(madvise(p, HALF, MADV_WIPEONFORK) == 0);
    pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        ZEROS(p, HALF, "MADV_WIPEONFORK in a child");
        verify(p + HALF, HALF, HALF, 17, "beside it");
        _exit(0);
    }
    child_ends_well(pid, "MADV_WIPEONFORK");
    verify(p, 0, SIZE, 17, "MADV_WIPEONFORK");

    p = next(18);
    MUST(mlock(p, HALF) == 0 || errno == ENOMEM || errno == EPERM);
    verify(p, 0, SIZE, 18, "mlock");

    p = next(19);
    MUST(madvise(p, SIZE, 22 /* MADV_POPULATE_READ */) == 0 || errno == EINVAL);
    verify(p, 0, SIZE, 19, "MADV_POPULATE_READ");

    p = next(20); /* every second page only */
    for (size_t at = 0; at < SIZE; at += 2 * PAGE) {
        verify(p + at, at, PAGE, 20, "a page between holes");
        ZEROS(p + at + PAGE, PAGE, "a hole");
    }

    p = next(21);
    fill(p, SIZE, 121); /* only written */
    VERIFY(p, SIZE, 121, "written");

    p = next(22);
    char *top = sbrk(0);
    MUST(sbrk(SIZE) == top);
    ZEROS(top, SIZE, "what was added to the heap");
    verify(p, 0, SIZE, 22, "the heap");
    MUST(sbrk(-(intptr_t)SIZE) != (void *)-1);

    verify(next(23), 0, SIZE, 23, "what nobody touched");
}

/* -- MODE storm -- */

static atomic_int over;

static void *mover(void *argument)
{
    int n = (int)(intptr_t)argument;
    char *p = area[n];
    size_t size = SIZE;
    while (!atomic_load(&over)) {
        size_t more = size < 2 * SIZE ? size + 3 * PAGE : SIZE;
        char *q = mremap(p, size, more, MREMAP_MAYMOVE);
        MUST(q != MAP_FAILED);
        p = q;
        size = more;
        size_t at = (size_t)rand() % (SIZE / PAGE) * PAGE;
        verify(p + at, at, PAGE, n, "moved in a storm");
        if (n % 3 == 0) {
            q = map(more);
            MUST(mremap(p, more, more, MREMAP_MAYMOVE | MREMAP_FIXED, q) == q);
            p = q;
        }
    }
    verify(p, 0, SIZE, n, "moved in a storm, at the end");
    return NULL;
}

static void *dropper(void *argument)
{
    int n = (int)(intptr_t)argument;
    char *p = area[n];
    for (size_t at = 0; at < SIZE && !atomic_load(&over); at += 2 * PAGE) {
        MUST(madvise(p + at, PAGE, MADV_DONTNEED) == 0);
        ZEROS(p + at, PAGE, "dropped in a storm");
        fill(p + at, PAGE, 7);
        VERIFY(p + at, PAGE, 7, "written in a storm");
        verify(p + at + PAGE, at + PAGE, PAGE, n, "beside what was dropped in a storm");
    }
    return NULL;
}

static void *forker(void *argument)
{
    int n = (int)(intptr_t)argument;
    while (!atomic_load(&over)) {
        pid_t pid = fork();
        MUST(pid >= 0);
        if (pid == 0) {
            for (size_t at = 0; at < SIZE; at += 32 * PAGE)
                verify(area[n] + at, at, PAGE, n, "in a child in a storm");
            _exit(0);
        }
        child_ends_well(pid, "a child in a storm");
    }
    verify(area[n], 0, SIZE, n, "of whoever forks in a storm");
    return NULL;
}

static void storm(void)
{
    pthread_t threads[AREAS];
    next(AREAS - 1);
    for (int n = 0; n < AREAS; n++) {
        void *(*what)(void *) = n < 6 ? mover : n < 9 ? dropper : n < 11 ? forker : NULL;
        threads[n] = 0;
        if (what)
            MUST(pthread_create(&threads[n], NULL, what, (void *)(intptr_t)n) == 0);
    }
    double end = mono() + 2;
    while (mono() < end)
        short_sleep();
    atomic_store(&over, 1);
    for (int n = 0; n < AREAS; n++)
        if (threads[n])
            MUST(pthread_join(threads[n], NULL) == 0);
    for (int n = 11; n < AREAS; n++)
        if (n != 20)
            verify(area[n], 0, SIZE, n, "what nobody touched in a storm");
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    for (int n = 0; n < AREAS; n++) {
        if (n == 22) {
            char *top = sbrk(0);
            MUST(sbrk((intptr_t)(SIZE + PAGE - ((uintptr_t)top & (PAGE - 1)))) == top);
            area[n] = (char *)(((uintptr_t)top + PAGE - 1) & ~(PAGE - 1));
        } else
            area[n] = map(SIZE);
        MUST(madvise(area[n], SIZE, MADV_NOHUGEPAGE) == 0);
        for (size_t at = 0; at < SIZE; at += n == 20 ? 2 * PAGE : PAGE)
            for (size_t i = 0; i < PAGE / 8; i++)
                ((uint64_t *)(area[n] + at))[i] = word_at(at / 8 + i, n);
    }
    if (WRONG(1))
        area[23][SIZE - 1] ^= 1;
    ready();
    wait_go();
    if (is_mode("storm"))
        storm();
    else
        calls();
    say("late %d", late);
    ok();
}
