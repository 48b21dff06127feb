/* 5,000 mappings with different rights, contents and gaps; and big sparse reservations. */
#include "check.h"

#define N 5000
static unsigned char *base[N];

int main(int argc, char **argv)
{
    begin(argc, argv);
    size_t page = 4096;
    char *room = mmap(NULL, (size_t)N * 4 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(room != MAP_FAILED);
    MUST(munmap(room, (size_t)N * 4 * page) == 0);
    static const int kinds[] = {PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC};
    for (long i = 0; i < N; i++) {
        base[i] = mmap(room + i * 4 * page, page * (1 + i % 3), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        MUST(base[i] != MAP_FAILED);
        if (i % 7)
            fill(base[i], page, i);
        MUST(mprotect(base[i], page * (1 + i % 3), kinds[i % 4]) == 0);
    }
    /* 64 GiB of address space, three pages of it used */
    size_t huge = 64ull << 30;
    char *sparse = mmap(NULL, huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(sparse != MAP_FAILED);
    fill(sparse, page, 1);
    fill(sparse + huge / 2, page, 2);
    fill(sparse + huge - page, page, 3);
    if (WRONG(1))
        base[1236][5] ^= 1; /* writable: 1236 % 4 == 0 */
    if (WRONG(2))
        MUST(mprotect(base[2001], page, PROT_READ | PROT_WRITE) == 0);
    ready();
    wait_go();
    /* what is mapped, asked through the kernel: each page of the room is there or not, and readable or not */
    FILE *f = fopen("/proc/self/maps", "re");
    MUST(f);
    char line[600];
    long seen = 0;
    unsigned long start, end;
    char rights[8];
    while (fgets(line, sizeof line, f)) {
        MUST(sscanf(line, "%lx-%lx %4s", &start, &end, rights) == 3);
        if (start < (uintptr_t)room || start >= (uintptr_t)room + (size_t)N * 4 * page)
            continue;
        long i = (start - (uintptr_t)room) / (4 * page);
        static const char *want[] = {"rw-p", "r--p", "---p", "r-xp"};
        CHECK(i < N && (uintptr_t)base[i] == start, "mapping %ld starts elsewhere", i);
        SAME(end - start, page * (1 + i % 3), "length of a mapping");
        CHECK(strcmp(rights, want[i % 4]) == 0, "mapping %ld is %s, was %s", i, rights, want[i % 4]);
        seen++;
    }
    fclose(f);
    SAME(seen, N, "number of mappings");
    for (long i = 0; i < N; i++) {
        if (i % 4 == 2)
            MUST(mprotect(base[i], page * (1 + i % 3), PROT_READ) == 0);
        if (i % 7)
            VERIFY(base[i], page, i, "contents");
        else
            ZEROS(base[i], page, "untouched page");
        if (i % 3)
            ZEROS(base[i] + page, page, "untouched page");
    }
    VERIFY(sparse, page, 1, "sparse, first page");
    VERIFY(sparse + huge / 2, page, 2, "sparse, middle");
    VERIFY(sparse + huge - page, page, 3, "sparse, last page");
    ZEROS(sparse + page, 16 * page, "sparse, untouched");
    ok();
}
