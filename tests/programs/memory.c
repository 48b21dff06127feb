/* Private memory of every kind: contents, rights and advice (VmFlags) before and after, and that it is still what it
 * was: anonymous memory gives zeros after MADV_DONTNEED, MADV_FREE and mremap work, the heap and the stack grow. */
#include "check.h"

#define PAGE 4096ul
#define SIZE (64 * PAGE)

struct area {
    const char *name;
    unsigned char *at;
    size_t size;
    char rights[8], flags[160];
};
static struct area areas[64];
static int count;

static unsigned char *map(const char *name, size_t size, int prot, int flags, int fd, off_t offset)
{
    unsigned char *p = mmap(NULL, size, prot, flags, fd, offset);
    CHECK(p != MAP_FAILED, "%s", name);
    areas[count++] = (struct area){name, p, size, "", ""};
    return p;
}

static unsigned char *find(const char *name)
{
    for (int i = 0; i < count; i++)
        if (strcmp(areas[i].name, name) == 0)
            return areas[i].at;
    FAIL("no area %s", name);
}

/* Rights and flags of the area that holds `at`. 'sd' (soft dirty) and 'uw' (written by whom watches) are not the
 * program's, the others are. */
static void look(const void *at, char *rights, char *flags)
{
    FILE *f = fopen("/proc/self/smaps", "re");
    MUST(f);
    char line[800], r[8];
    unsigned long start, end;
    int inside = 0, found = 0;
    flags[0] = 0;
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "%lx-%lx %4s", &start, &end, r) == 3) {
            inside = (uintptr_t)at >= start && (uintptr_t)at < end;
            if (inside) {
                strcpy(rights, r);
                found = 1;
            }
        } else if (inside && strncmp(line, "VmFlags:", 8) == 0) {
            for (char *w = strtok(line + 8, " \n"); w; w = strtok(NULL, " \n"))
                if (strcmp(w, "sd") && strcmp(w, "uw")) {
                    strcat(flags, w);
                    strcat(flags, " ");
                }
        }
    }
    fclose(f);
    CHECK(found, "nothing is mapped at %p", at);
}

static char *temp_file(const char *suffix)
{
    static char path[512];
    snprintf(path, sizeof path, "%s.%d.%s", go_path, (int)getpid(), suffix);
    return path;
}

static int file_with(const char *suffix, uint64_t seed, size_t size)
{
    char *path = temp_file(suffix);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    MUST(fd >= 0);
    char *data = malloc(size);
    fill(data, size, seed);
    MUST(write(fd, data, size) == (ssize_t)size);
    free(data);
    close(fd);
    fd = open(path, O_RDONLY);
    MUST(fd >= 0);
    return fd;
}

static long deep(int level)
{
    volatile char room[8192];
    room[0] = (char)level;
    room[8191] = 1;
    return level ? deep(level - 1) + room[0] - (char)level : 0;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    const int rw = PROT_READ | PROT_WRITE, priv = MAP_PRIVATE | MAP_ANONYMOUS;
    unsigned char *p;

    fill(map("anonymous", SIZE, rw, priv, -1, 0), SIZE, 1);
    map("never touched", SIZE, rw, priv, -1, 0);
    p = map("holes", SIZE, rw, priv, -1, 0);
    fill(p, PAGE, 2);
    fill(p + SIZE - PAGE, PAGE, 3);
    map("reserved", 1ul << 30, PROT_NONE, priv | MAP_NORESERVE, -1, 0);
    fill(map("norelease", SIZE, rw, priv | MAP_NORESERVE, -1, 0), SIZE, 4);
    fill(map("read only", SIZE, rw, priv, -1, 0), SIZE, 5);
    MUST(mprotect(find("read only"), SIZE, PROT_READ) == 0);
    fill(map("closed", SIZE, rw, priv, -1, 0), SIZE, 6);
    MUST(mprotect(find("closed"), SIZE, PROT_NONE) == 0);
    p = map("code", PAGE, rw, priv, -1, 0);
    memcpy(p, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov eax, 42; ret */
    MUST(mprotect(p, PAGE, PROT_READ | PROT_EXEC) == 0);

    int fd = file_with("private", 7, SIZE);
    map("file", SIZE, PROT_READ, MAP_PRIVATE, fd, 0);
    map("file at an offset", SIZE / 2, PROT_READ, MAP_PRIVATE, fd, SIZE / 2);
    p = map("file, partly copied", SIZE, rw, MAP_PRIVATE, fd, 0);
    fill(p + 3 * PAGE, PAGE, 8);
    p = map("file, copied then read only", SIZE, rw, MAP_PRIVATE, fd, 0);
    fill(p, 2 * PAGE, 9);
    MUST(mprotect(p, SIZE, PROT_READ) == 0);
    close(fd);
    fd = file_with("short", 10, PAGE + 512);
    p = map("file, tail of its last page written", 2 * PAGE, rw, MAP_PRIVATE, fd, 0);
    fill(p + PAGE + 1024, 1024, 11); /* beyond the end of the file, in its last page */
    close(fd);

    static const struct {
        const char *name;
        int advice;
    } advised[] = {{"dontfork", MADV_DONTFORK},     {"wipeonfork", MADV_WIPEONFORK}, {"dontdump", MADV_DONTDUMP},
                   {"hugepage", MADV_HUGEPAGE},     {"nohugepage", MADV_NOHUGEPAGE}, {"sequential", MADV_SEQUENTIAL},
                   {"random", MADV_RANDOM},         {"mergeable", MADV_MERGEABLE}};
    for (unsigned i = 0; i < sizeof advised / sizeof *advised; i++) {
        size_t size = advised[i].advice == MADV_HUGEPAGE ? 4ul << 20 : SIZE;
        p = map(advised[i].name, size, rw, priv, -1, 0);
        if (madvise(p, size, advised[i].advice)) {
            CHECK(errno == EINVAL, "madvise"); /* not in this kernel */
            count--;
            MUST(munmap(p, size) == 0);
            continue;
        }
        fill(p, size, 20 + i);
    }
    p = map("locked", 8 * PAGE, rw, priv, -1, 0);
    fill(p, 8 * PAGE, 40);
    MUST(mlock(p, 8 * PAGE) == 0);
    p = map("locked on fault", 8 * PAGE, rw, priv, -1, 0);
    fill(p, PAGE, 41);
    MUST(syscall(SYS_mlock2, p, 8 * PAGE, 1) == 0);
    p = map("grows down", 16 * PAGE, rw, priv | MAP_GROWSDOWN, -1, 0);
    fill(p, 16 * PAGE, 42);
    unsigned char *low = mmap(NULL, 8 * PAGE, rw, priv | MAP_32BIT, -1, 0);
    MUST(low != MAP_FAILED);
    areas[count++] = (struct area){"low", low, 8 * PAGE, "", ""};
    fill(low, 8 * PAGE, 43);
    /* two areas that touch, one of them advised: they must not become one */
    p = map("neighbour", 2 * PAGE, rw, priv, -1, 0);
    fill(p, 2 * PAGE, 44);
    MUST(madvise(p + PAGE, PAGE, MADV_DONTDUMP) == 0);
    p = map("zero page", 8 * PAGE, rw, priv, -1, 0);
    ZEROS(p, 8 * PAGE, "fresh memory"); /* read: the shared zero page is mapped */
    unsigned char *heap_end = sbrk(0);
    MUST(sbrk(32 * PAGE) == heap_end);
    fill(heap_end, 32 * PAGE, 45);
    static unsigned char data[3 * PAGE] = {1}, bss[3 * PAGE];
    fill(data, sizeof data, 46);
    fill(bss, sizeof bss, 47);
    void *malloced[200];
    for (int i = 0; i < 200; i++) {
        malloced[i] = malloc(100 + i * 800);
        fill(malloced[i], 100ul + i * 800, 100 + i);
    }
    for (int i = 0; i < count; i++)
        look(areas[i].at, areas[i].rights, areas[i].flags);
    char stack_rights[8], stack_flags[160];
    look(&argc, stack_rights, stack_flags);

    if (WRONG(1))
        find("anonymous")[777] ^= 1;
    if (WRONG(2))
        MUST(madvise(find("dontdump"), SIZE, MADV_DODUMP) == 0);
    if (WRONG(3)) { /* a file in the place of anonymous memory, with the very same bytes */
        fd = file_with("trick", 1, SIZE);
        MUST(mmap(find("anonymous"), SIZE, rw, MAP_PRIVATE | MAP_FIXED, fd, 0) == find("anonymous"));
    }
    if (WRONG(4))
        MUST(munlock(find("locked"), 8 * PAGE) == 0);
    if (WRONG(5))
        find("never touched")[SIZE - 1] = 1;
    unsigned char *heap_top = sbrk(0);
    ready();
    wait_go();
    CHECK(sbrk(0) == heap_top, "the end of the heap moved");

    for (int i = 0; i < count; i++) {
        char rights[8], flags[160];
        look(areas[i].at, rights, flags);
        CHECK(strcmp(rights, areas[i].rights) == 0, "%s: %s, was %s", areas[i].name, rights, areas[i].rights);
        CHECK(strcmp(flags, areas[i].flags) == 0, "%s: flags %s, were %s", areas[i].name, flags, areas[i].flags);
    }
    char rights[8], flags[160];
    look(&argc, rights, flags);
    CHECK(strcmp(rights, stack_rights) == 0 && strcmp(flags, stack_flags) == 0, "stack: %s %s, was %s %s", rights,
          flags, stack_rights, stack_flags);

    p = find("anonymous");
    VERIFY(p, SIZE, 1, "anonymous");
    ZEROS(find("never touched"), SIZE, "never touched");
    VERIFY(find("holes"), PAGE, 2, "first page before a hole");
    ZEROS(find("holes") + PAGE, SIZE - 2 * PAGE, "hole");
    VERIFY(find("holes") + SIZE - PAGE, PAGE, 3, "last page behind a hole");
    VERIFY(find("norelease"), SIZE, 4, "NORESERVE");
    VERIFY(find("read only"), SIZE, 5, "read only");
    MUST(mprotect(find("closed"), SIZE, rw) == 0);
    VERIFY(find("closed"), SIZE, 6, "PROT_NONE with contents");
    MUST(mprotect(find("reserved"), 1ul << 30, rw) == 0);
    ZEROS(find("reserved") + (1ul << 29), 4 * PAGE, "reservation");
    SAME(((int (*)(void))find("code"))(), 42, "generated code");
    VERIFY(find("file"), SIZE, 7, "file");
    CHECK(memcmp(find("file at an offset"), find("file") + SIZE / 2, SIZE / 2) == 0, "file at an offset");
    p = find("file, partly copied");
    CHECK(memcmp(p, find("file"), 3 * PAGE) == 0 && memcmp(p + 4 * PAGE, find("file") + 4 * PAGE, SIZE - 4 * PAGE) == 0,
          "file, pages not written");
    VERIFY(p + 3 * PAGE, PAGE, 8, "file, a page written");
    VERIFY(find("file, copied then read only"), 2 * PAGE, 9, "file, copied then read only");
    VERIFY(find("file, tail of its last page written") + PAGE + 1024, 1024, 11, "beyond the end of a file");
    for (unsigned i = 0; i < sizeof advised / sizeof *advised; i++)
        for (int k = 0; k < count; k++)
            if (strcmp(areas[k].name, advised[i].name) == 0)
                VERIFY(areas[k].at, areas[k].size, 20 + i, advised[i].name);
    VERIFY(find("locked"), 8 * PAGE, 40, "locked");
    VERIFY(find("locked on fault"), PAGE, 41, "locked on fault");
    VERIFY(find("grows down"), 16 * PAGE, 42, "growing down");
    VERIFY(find("low"), 8 * PAGE, 43, "in the low 2 GiB");
    VERIFY(find("neighbour"), 2 * PAGE, 44, "neighbours");
    ZEROS(find("zero page"), 8 * PAGE, "read but not written");
    VERIFY(heap_end, 32 * PAGE, 45, "heap");
    VERIFY(data, sizeof data, 46, "data");
    VERIFY(bss, sizeof bss, 47, "bss");
    for (int i = 0; i < 200; i++)
        VERIFY(malloced[i], 100ul + i * 800, 100 + i, "malloc");

    /* children: DONTFORK is not there, WIPEONFORK is zero, the rest is copied */
    pid_t child = fork();
    if (!child) {
        unsigned char seen;
        for (int k = 0; k < count; k++) {
            if (strcmp(areas[k].name, "dontfork") == 0)
                CHECK(mincore(areas[k].at, PAGE, &seen) == -1 && errno == ENOMEM, "DONTFORK memory is in the child");
            if (strcmp(areas[k].name, "wipeonfork") == 0)
                ZEROS(areas[k].at, SIZE, "WIPEONFORK memory in the child");
        }
        VERIFY(find("anonymous"), SIZE, 1, "memory of a child");
        _exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child);
    SAME(status, 0, "child");

    /* still anonymous: what anonymous memory does */
    p = find("anonymous");
    CHECK(madvise(p, 4 * PAGE, MADV_DONTNEED) == 0, "MADV_DONTNEED");
    ZEROS(p, 4 * PAGE, "anonymous memory after MADV_DONTNEED");
    CHECK(madvise(p + 4 * PAGE, 4 * PAGE, MADV_FREE) == 0, "MADV_FREE");
    fill(p + 4 * PAGE, 4 * PAGE, 50);
    VERIFY(p + 4 * PAGE, 4 * PAGE, 50, "after MADV_FREE");
    CHECK(madvise(p, SIZE, MADV_WIPEONFORK) == 0, "MADV_WIPEONFORK");
    unsigned char *moved = mremap(p, SIZE, 2 * SIZE, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED, "mremap");
    VERIFY(moved + 4 * PAGE, 4 * PAGE, 50, "after mremap");
    ZEROS(moved + SIZE, SIZE, "room that mremap added");
    p = find("file, partly copied");
    CHECK(madvise(p, SIZE, MADV_DONTNEED) == 0, "MADV_DONTNEED of a file mapping");
    CHECK(memcmp(p, find("file"), SIZE) == 0, "a private file mapping after MADV_DONTNEED shows the file");
    /* heap and stack go on growing */
    heap_top = sbrk(0);
    CHECK(sbrk(64 * PAGE) == heap_top, "the heap does not grow");
    fill(heap_top, 64 * PAGE, 60);
    VERIFY(heap_top, 64 * PAGE, 60, "heap");
    CHECK(sbrk(-(intptr_t)(64 * PAGE)) == heap_top + 64 * PAGE && sbrk(0) == heap_top, "the heap does not shrink");
    SAME(deep(500), 0, "deep recursion"); /* 4 MiB of stack */
    SAME(mlock(find("grows down"), PAGE), 0, "mlock");
    ok();
}
