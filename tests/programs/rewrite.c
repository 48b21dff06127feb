/* Memory that is written all the time, before, during and after a checkpoint. A thread for each area goes round it and
 * writes one number more into every word of a page, after it has looked that all of the page still holds the number of
 * the round before. So what comes back has to be what was there in one moment, to the word: a page from before or after
 * that moment is noticed at the thread's next visit. WRONG n spoils a word of area n - 1. In mode `plain` there is only
 * what a copy of the process has as well, in mode `big` 96 MiB of it, in mode `huge` 64 MiB in huge pages (it exits 77
 * where there are none); in mode `marked` also what is marked not to be in one,
 * and in mode `later` some of it is marked so after SIGUSR1. */
#include "check.h"
#include <sys/syscall.h>

#define PAGE 4096ul
#define HUGE (2ul << 20)
#define PAGES 192
#define WORDS (PAGE / 8)

struct area {
    const char *name;
    uint64_t *at;
    size_t pages;
    atomic_ulong rounds;
};
static struct area areas[16];
static int count;
static atomic_int finish;

static void add(const char *name, void *at, size_t size)
{
    CHECK(at != MAP_FAILED, "%s", name);
    areas[count].name = name;
    areas[count].at = at;
    areas[count++].pages = size / PAGE;
}

static void *anonymous(const char *name, size_t size, int flags, int advice)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
    if (p != MAP_FAILED && advice)
        MUST(madvise(p, size, advice) == 0);
    add(name, p, size);
    return p;
}

static void mark(int number UNUSED)
{
    MUST(madvise(areas[0].at, areas[0].pages * PAGE, MADV_WIPEONFORK) == 0);
    MUST(madvise(areas[1].at, areas[1].pages * PAGE, MADV_DONTFORK) == 0);
    say("MARKED");
}

static void *work(void *of)
{
    struct area *area = of;
    for (uint64_t round = 0; !finish; round++) {
        for (size_t page = 0; page < area->pages; page++) {
            volatile uint64_t *word = area->at + page * WORDS;
            for (size_t i = 0; i < WORDS; i++)
                CHECK(word[i] == round, "%s: word %zu of page %zu is %llu in round %llu", area->name, i, page,
                      (unsigned long long)word[i], (unsigned long long)round);
            for (size_t i = 0; i < WORDS; i++)
                word[i] = round + 1;
        }
        area->rounds++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    size_t size = PAGES * PAGE;
    anonymous("memory", is_mode("big") ? 96ul << 20 : size, MAP_PRIVATE, 0);
    anonymous("small pages", size, MAP_PRIVATE, MADV_NOHUGEPAGE);
    size_t of_huge = is_mode("huge") ? 32 * HUGE : HUGE;
    char *huge = mmap(NULL, of_huge + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(huge != MAP_FAILED);
    huge = (char *)(((uintptr_t)huge + HUGE - 1) & ~(HUGE - 1));
    if (madvise(huge, of_huge, MADV_HUGEPAGE) != 0 && is_mode("huge"))
        exit(77);
    add("huge pages", huge, of_huge);
    int fd = open("/proc/self/exe", O_RDONLY);
    MUST(fd >= 0);
    void *copied = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    add("copies of a file's pages", copied, 4 * PAGE);
    memset(copied, 0, 4 * PAGE);
    close(fd);
    char *heap = sbrk(0);
    size_t odd = -(uintptr_t)heap & (PAGE - 1);
    MUST(sbrk(odd + size) == heap);
    add("the heap", heap + odd, size);
    if (mode_count == 0 || is_mode("marked")) {
        anonymous("not for forks", size, MAP_PRIVATE, MADV_DONTFORK);
        anonymous("wiped in forks", size, MAP_PRIVATE, MADV_WIPEONFORK);
    }
    if (mode_count == 0) {
        anonymous("shared memory", size, MAP_SHARED, 0);
        void *locked = anonymous("locked memory", 4 * PAGE, MAP_PRIVATE, 0);
        MUST(mlock(locked, 4 * PAGE) == 0);
        fd = syscall(SYS_memfd_create, "rewrite", 0);
        MUST(fd >= 0 && ftruncate(fd, size) == 0);
        add("copies of an object's pages", mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0), size);
        close(fd);
    }
    pthread_t threads[16];
    for (int i = 0; i < count; i++)
        MUST(pthread_create(&threads[i], NULL, work, &areas[i]) == 0);
    for (int i = 0; i < count; i++)
        UNTIL(areas[i].rounds > 1, 30, areas[i].name);
    if (is_mode("later"))
        signal(SIGUSR1, mark);
    ready();
    wait_go();
    for (int i = 0; wrong_way > 0 && wrong_way <= count && i < 500; i++) { /* it may be written over before it is seen */
        areas[wrong_way - 1].at[areas[wrong_way - 1].pages * WORDS - 1] ^= 1ull << 63;
        short_sleep();
    }
    for (int i = 0; i < count; i++) {
        unsigned long before = areas[i].rounds;
        UNTIL(areas[i].rounds > before + 2, 30, areas[i].name);
    }
    finish = 1;
    for (int i = 0; i < count; i++)
        MUST(pthread_join(threads[i], NULL) == 0);
    ok();
}
