/* Regions of memory of every origin; each page knows what has to be in it. */
#include "stress.h"
#include <sys/ipc.h>
#include <sys/shm.h>

enum origin { PRIVATE, SHARED, MEMFD, MEMFD_PRIVATE, MAPPED_FILE, SEGMENT, ORIGINS };
#define MOST 96 /* pages */
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

/* kept[i]: what page i holds: 0 zeros, else the number its words come from. kept[MOST + i]: its protection.
   n[0]: pages. n[1]: 1 DONTFORK, 2 WIPEONFORK. n[2]: id of a segment. n[3]: the page
   guarded, + 1. n[6]: parts of it have been treated differently. */
static uint64_t protection(struct thing *t, uint64_t page) { return t->kept[MOST + page]; }

static void make_region(struct thing *t)
{
    t->sort = below(ORIGINS);
    t->n[0] = 1 + below(t->sort == SEGMENT ? 20 : 60);
    t->kept = calloc(2 * MOST, sizeof *t->kept);
    DO(t->kept);
    for (int i = 0; i < MOST; i++)
        t->kept[MOST + i] = PROT_READ | PROT_WRITE;
    size_t size = t->n[0] * PAGE;
    int flags = t->sort == MEMFD_PRIVATE ? MAP_PRIVATE : MAP_SHARED;
    t->fd[0] = -1;
    if (t->sort == PRIVATE)
        flags = MAP_PRIVATE | MAP_ANONYMOUS | (one_in(4) ? MAP_NORESERVE : 0);
    else if (t->sort == SHARED)
        flags = MAP_SHARED | MAP_ANONYMOUS;
    else if (t->sort == SEGMENT) {
        t->n[2] = shmget(base_key + worker * 100000 + t->id % 100000, size, IPC_CREAT | 0600);
        DO((int)t->n[2] >= 0);
        t->at = shmat(t->n[2], NULL, 0);
        DO(t->at != (void *)-1);
        if (one_in(2))
            DO(shmctl(t->n[2], IPC_RMID, NULL) == 0), t->n[4] = 1;
        fold(t->n[0]);
        return;
    } else if (t->sort == MAPPED_FILE) {
        sprintf(t->path, "m.%d.%llu", worker, (unsigned long long)t->id);
        t->fd[0] = open(t->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        DO(t->fd[0] >= 0 && ftruncate(t->fd[0], MOST * PAGE) == 0);
    } else {
        t->fd[0] = memfd_create("stress", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        DO(t->fd[0] >= 0 && ftruncate(t->fd[0], MOST * PAGE) == 0);
        if (one_in(2))
            DO(fcntl(t->fd[0], F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    }
    t->at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, t->fd[0], 0);
    DO(t->at != MAP_FAILED);
    if (t->fd[0] >= 0 && t->sort != MAPPED_FILE && one_in(2)) { /* only the mapping is left */
        DO(close(t->fd[0]) == 0);
        t->fd[0] = -1;
    }
    fold(t->sort * 100 + t->n[0]);
}

static void expect_page(struct thing *t, uint64_t page, uint64_t want)
{
    const uint64_t *words = (void *)(t->at + page * PAGE);
    for (uint64_t i = 0; i < PAGE / 8; i++) {
        uint64_t must = want ? word_at(i, want) : 0;
        CHECK(words[i] == must, "region %llu of origin %d: page %llu word %llu is %llx, not %llx (worker %d round %llu)",
              (unsigned long long)t->id, t->sort, (unsigned long long)page, (unsigned long long)i,
              (unsigned long long)words[i], (unsigned long long)must, worker, (unsigned long long)round_now);
    }
}

static void look_at_page(struct thing *t, uint64_t page)
{
    int shut = !(protection(t, page) & PROT_READ);
    if (t->n[3] == page + 1) { /* a guard page: nobody can read it */
        int p[2];
        DO(pipe2(p, O_CLOEXEC) == 0);
        DO(write(p[1], t->at + page * PAGE, 8) == -1 && errno == EFAULT);
        DO(close(p[0]) == 0 && close(p[1]) == 0);
        return;
    }
    if (shut)
        DO(mprotect(t->at + page * PAGE, PAGE, PROT_READ) == 0);
    expect_page(t, page, t->kept[page]);
    if (shut)
        DO(mprotect(t->at + page * PAGE, PAGE, protection(t, page)) == 0);
    fold(*(uint64_t *)(void *)(t->kept + page));
}

static void forget(struct thing *t, uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++)
        t->kept[i] = 0;
}

static void use_region(struct thing *t)
{
    uint64_t first = below(t->n[0]), count = 1 + below(t->n[0] - first), what = below(16);
    char *start = t->at + first * PAGE;
    int private_memory = t->sort == PRIVATE;
    if (what < 5) { /* write */
        for (uint64_t i = first; i < first + count && i < first + 8; i++)
            if (protection(t, i) & PROT_WRITE && t->n[3] != i + 1) {
                t->kept[i] = mix(t->id, chance()) | 1;
                fill(t->at + i * PAGE, PAGE, t->kept[i]);
                if (t->sort == MEMFD_PRIVATE)
                    t->n[5] = 1;
            }
    } else if (what < 9) {
        for (uint64_t i = first; i < first + count && i < first + 16; i++)
            look_at_page(t, i);
    } else if (what == 9) { /* protect */
        int prot = (int[]){PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE}[below(4)];
        t->n[6] = 1;
        DO(mprotect(start, count * PAGE, prot) == 0);
        for (uint64_t i = first; i < first + count; i++)
            t->kept[MOST + i] = prot;
    } else if (what == 10) { /* give up pages: zeros in memory of our own, untouched in shared memory */
        if (t->sort == MEMFD_PRIVATE || (t->n[3] > first && t->n[3] <= first + count))
            return;
        DO(munlock(start, count * PAGE) == 0 && madvise(start, count * PAGE, MADV_DONTNEED) == 0);
        if (private_memory)
            forget(t, first, count);
    } else if (what == 11 && t->sort != SEGMENT && t->n[3] == 0) { /* grow, shrink, move */
        uint64_t pages = 1 + below(MOST - 1);
        int only_mapped = t->sort == SHARED || (t->fd[0] < 0 && t->sort != PRIVATE);
        if (only_mapped && pages > t->n[0])
            return; /* what is beyond all mappings of such an object is lost at a restart (docs/services.md) */
        if (t->n[6])
            return; /* mremap wants one area, and these may be several, or have become one again */
        void *to = mremap(t->at, t->n[0] * PAGE, pages * PAGE, MREMAP_MAYMOVE);
        DO(to != MAP_FAILED);
        if (pages < t->n[0] && (only_mapped || t->sort == PRIVATE || t->sort == MEMFD_PRIVATE))
            forget(t, pages, t->n[0] - pages);
        t->at = to;
        t->n[0] = pages;
        fold(pages);
    } else if (what == 12 && private_memory) {
        t->n[1] = below(3);
        DO(madvise(t->at, t->n[0] * PAGE, t->n[1] == 1 ? MADV_DONTFORK : MADV_DOFORK) == 0);
        DO(madvise(t->at, t->n[0] * PAGE, t->n[1] == 2 ? MADV_WIPEONFORK : MADV_KEEPONFORK) == 0);
    } else if (what == 13) {
        int advice = (int[]){MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_SEQUENTIAL, MADV_RANDOM, MADV_DONTDUMP}[below(5)];
        t->n[6] = 1;
        if (t->sort != SEGMENT)
            madvise(start, count * PAGE, advice); /* what this kernel does not know is no matter */
    } else if (what == 14) {
        t->n[6] = 1;
        if (one_in(2) && count < 8)
            mlock(start, count * PAGE); /* within the limit, or not: it must not change anything */
        else
            DO(munlock(start, count * PAGE) == 0);
    } else if (what == 15 && private_memory) { /* a guard page comes and goes */
        if (t->n[3]) {
            DO(madvise(t->at + (t->n[3] - 1) * PAGE, PAGE, MADV_GUARD_REMOVE) == 0);
            t->n[3] = 0;
        } else if (munlock(t->at, t->n[0] * PAGE) == 0 && madvise(start, PAGE, MADV_GUARD_INSTALL) == 0) {
            forget(t, first, 1);
            t->n[3] = first + 1;
        }
    }
}

static void end_region(struct thing *t)
{
    for (uint64_t i = 0; i < t->n[0]; i++)
        look_at_page(t, i);
    if (t->sort == SEGMENT) {
        DO(shmdt(t->at) == 0);
        if (!t->n[4])
            DO(shmctl(t->n[2], IPC_RMID, NULL) == 0);
    } else
        DO(munmap(t->at, t->n[0] * PAGE) == 0);
    if (t->fd[0] >= 0)
        DO(close(t->fd[0]) == 0);
    free(t->kept);
}

static const struct kind region = {"region", 22, make_region, use_region, end_region};

/* In a child: private memory is as it was when the child was made, whatever the parent has done since. */
static void verify_copies(void)
{
    for (struct thing *t = things; t < things + SLOTS; t++)
        if (t->kind == &region && (t->sort == PRIVATE || t->sort == MEMFD_PRIVATE) && t->n[1] != 1)
            for (uint64_t i = 0; i < t->n[0]; i++)
                if (protection(t, i) & PROT_READ && t->n[3] != i + 1)
                    expect_page(t, i, t->n[1] == 2 ? 0 : t->kept[i]);
}
