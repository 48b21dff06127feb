/* Guard pages (MADV_GUARD_INSTALL): they stay guard pages, and what is around them stays what it was. */
#include "check.h"
#include <setjmp.h>
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
static sigjmp_buf back;
static void on_fault(int n)
{
    (void)n;
    siglongjmp(back, 1);
}
static int faults(volatile char *at)
{
    if (sigsetjmp(back, 1))
        return 1;
    (void)*at;
    return 0;
}
int main(int argc, char **argv)
{
    begin(argc, argv);
    signal(SIGSEGV, on_fault);
    size_t page = 4096, size = 64 * page;
    char *area = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(area != MAP_FAILED);
    memset(area, 7, size);
    if (madvise(area + 10 * page, 3 * page, MADV_GUARD_INSTALL) < 0) {
        ready(); /* Linux before 6.13: nothing to look at */
        wait_go();
        ok();
    }
    char *empty = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(madvise(empty, page, MADV_GUARD_INSTALL) == 0);
    /* What a copy of the process has not: these have guard pages as well. */
    char *apart[3];
    for (int i = 0; i < 3; i++) {
        apart[i] = mmap(0, size, PROT_READ | PROT_WRITE, (i == 2 ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
        MUST(apart[i] != MAP_FAILED);
        memset(apart[i], 9, size);
        if (i < 2)
            MUST(madvise(apart[i], size, i ? MADV_WIPEONFORK : MADV_DONTFORK) == 0);
        if (madvise(apart[i] + page, page, MADV_GUARD_INSTALL) < 0)
            apart[i] = 0; /* shared memory: before Linux 6.15 */
    }
    ready();
    wait_go();
    for (int i = 0; i < 3; i++)
        if (apart[i]) {
            SAME(faults(apart[i] + page), 1, i ? i == 1 ? "in MADV_WIPEONFORK" : "in shared memory" : "in MADV_DONTFORK");
            SAME(faults(apart[i]) || faults(apart[i] + 2 * page), 0, "beside it");
        }
    for (int i = 0; i < 64; i++)
        SAME(faults(area + i * page), (i >= 10 && i < 13) != WRONG(1), "guard page");
    SAME(faults(empty), 1, "guard page in memory never touched");
    SAME(faults(empty + page), 0, "page behind it");
    for (size_t i = 0; i < size; i++)
        if (i / page < 10 || i / page >= 13)
            SAME(area[i], 7, "byte beside the guard");
    ok();
}
