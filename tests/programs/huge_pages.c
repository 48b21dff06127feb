/* Memory in transparent huge pages comes back in such. WRONG 1 gives the advice back. Exits 77 where there are none. */
#include "check.h"

#define HUGE (2ul << 20)
#define SIZE (8 * HUGE)

static long in_huge_pages(const void *at)
{
    FILE *f = fopen("/proc/self/smaps", "re");
    MUST(f);
    char line[800], rights[8];
    unsigned long start, end;
    long kib = -1, here = 0;
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "%lx-%lx %4s", &start, &end, rights) == 3)
            here = (uintptr_t)at >= start && (uintptr_t)at < end;
        else if (here && sscanf(line, "AnonHugePages: %ld kB", &kib) == 1)
            break;
    }
    fclose(f);
    return kib;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    unsigned char *p = mmap(NULL, SIZE + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(p != MAP_FAILED);
    p = (unsigned char *)(((uintptr_t)p + HUGE - 1) & ~(HUGE - 1));
    int asked = madvise(p, SIZE, MADV_HUGEPAGE) == 0;
    fill(p, SIZE, 3);
    if (!asked || in_huge_pages(p) < (long)(SIZE >> 10)) {
        say("no huge pages are to be had here");
        exit(77);
    }
    ready();
    wait_go();
    if (WRONG(1))
        MUST(madvise(p, SIZE, MADV_NOHUGEPAGE) == 0 && madvise(p, SIZE, MADV_DONTNEED) == 0);
    CHECK(in_huge_pages(p) >= (long)(SIZE >> 11), "only %ld KiB are in huge pages", in_huge_pages(p));
    VERIFY(p, SIZE, 3, "memory in huge pages");
    ok();
}
