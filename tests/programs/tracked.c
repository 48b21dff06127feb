/* Memory that changes in every way in which it can, all the time. A table of versions says what each page has to hold;
 * it is too small to be tracked, so it is always saved whole, and a page whose last change was missed does not fit it.
 *
 * Threads write pages, drop them (MADV_DONTNEED), move a block away and back (mremap), map it anew in the same place,
 * change its protection to and fro. A child made by fork goes on by itself with a copy of everything; another one has
 * executed this program anew. WRONG 1 spoils a page, 2 one of the child's, 3 one of the other program's. */
#include "check.h"

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define BLOCK (2ul << 20)
#define BLOCK_PAGES (BLOCK / PAGE)
#define BLOCKS 6
#define WORKERS 3

static unsigned char *where[BLOCKS];
static void *quiet; /* nobody writes there */
#define QUIET (16ul << 20)
static uint32_t version[BLOCKS][BLOCK_PAGES]; /* 0: the page was never written since it was mapped or dropped */
static useconds_t pace = 500; /* between two changes by a thread; mode `slow`: longer */
static atomic_int finish;
static pthread_mutex_t moving = PTHREAD_MUTEX_INITIALIZER; /* nobody else is given the place that a block has left */

static uint64_t word(int block, size_t page, uint32_t number, size_t at)
{
    uint64_t x = ((uint64_t)block << 48 | (uint64_t)page << 32 | number) * 0x9e3779b97f4a7c15ul + at;
    x ^= x >> 29;
    return number ? x * 0xbf58476d1ce4e5b9ul : 0;
}

static void write_page(int block, size_t page, uint32_t number)
{
    volatile uint64_t *p = (volatile uint64_t *)(where[block] + page * PAGE);
    version[block][page] = number;
    for (size_t i = 0; i < WORDS; i++)
        p[i] = word(block, page, number, i);
}

static void verify(const char *who)
{
    VERIFY(quiet, QUIET, 7, who);
    for (int block = 0; block < BLOCKS; block++)
        for (size_t page = 0; page < BLOCK_PAGES; page++) {
            const uint64_t *p = (const uint64_t *)(where[block] + page * PAGE);
            for (size_t i = 0; i < WORDS; i++)
                CHECK(p[i] == word(block, page, version[block][page], i), "%s: block %d, page %zu, word %zu, version %u",
                      who, block, page, i, version[block][page]);
        }
}

static void *map_at(void *at, size_t size)
{
    void *p = mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0), -1, 0);
    MUST(p != MAP_FAILED);
    return p;
}

static void *worker(void *number)
{
    int first = (int)(intptr_t)number * (BLOCKS / WORKERS);
    uint64_t dice = 88172645463325252ul + (uint64_t)first + (uint64_t)getpid();
    for (uint32_t round = 1; !atomic_load(&finish); round++) {
        dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
        int block = first + (int)(dice >> 60) % (BLOCKS / WORKERS);
        size_t page = (dice >> 20) % BLOCK_PAGES;
        /* Some blocks stay whole and where they are; of the others nothing is known for long. In one, pages are dropped. */
        switch (block % 2 == 0 || (block == 1 && round % 64 == 0) ? round % 64 : 1) {
        case 0: { /* pages are dropped: they are zero */
            size_t count = 1 + (dice >> 40) % 32;
            if (page + count > BLOCK_PAGES)
                count = BLOCK_PAGES - page;
            for (size_t i = 0; i < count; i++) { /* one by one, so that the table is right at every moment but this */
                write_page(block, page + i, 0);
                MUST(madvise(where[block] + (page + i) * PAGE, PAGE, MADV_DONTNEED) == 0);
            }
            break;
        }
        case 16: { /* a block goes elsewhere and comes back; what was there before is not what is there now */
            pthread_mutex_lock(&moving);
            unsigned char *spot = mmap(NULL, BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            MUST(spot != MAP_FAILED);
            unsigned char *old = where[block];
            MUST(mremap(old, BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, spot) == spot);
            where[block] = spot;
            if (round % 128 == 16) {
                MUST(mremap(spot, BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, old) == old);
                where[block] = old;
            }
            pthread_mutex_unlock(&moving);
            break;
        }
        case 32: { /* mapped anew in the same place, half of it written again */
            for (size_t i = 0; i < BLOCK_PAGES; i++)
                write_page(block, i, 0);
            map_at(where[block], BLOCK);
            for (size_t i = 0; i < BLOCK_PAGES; i += 2)
                write_page(block, i, round);
            break;
        }
        case 48: /* split by protection, and whole again */
            MUST(mprotect(where[block] + page * PAGE, PAGE, PROT_READ) == 0);
            MUST(mprotect(where[block] + page * PAGE, PAGE, PROT_READ | PROT_WRITE) == 0);
            break;
        default:
            write_page(block, page, round);
        }
        usleep(pace);
    }
    return NULL;
}

static void work(void (*meanwhile)(void))
{
    pthread_t workers[WORKERS];
    atomic_store(&finish, 0);
    for (int i = 0; i < WORKERS; i++)
        MUST(pthread_create(&workers[i], NULL, worker, (void *)(intptr_t)i) == 0);
    meanwhile();
    atomic_store(&finish, 1);
    for (int i = 0; i < WORKERS; i++)
        MUST(pthread_join(workers[i], NULL) == 0);
}

static void spoil(void)
{
    where[BLOCKS - 1][BLOCK - PAGE] ^= 1;
}

static void set_up(void)
{
    quiet = map_at(NULL, QUIET);
    fill(quiet, QUIET, 7);
    for (int block = 0; block < BLOCKS; block++) {
        where[block] = map_at(NULL, BLOCK);
        for (size_t page = 0; page < BLOCK_PAGES; page++)
            write_page(block, page, 1);
    }
}

static void child(const char *who, int wrong)
{
    work(wait_go);
    if (wrong)
        spoil();
    verify(who);
    _exit(0);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    if (mode_count && strcmp(mode_args[mode_count - 1], "slow") == 0)
        pace = 20000;
    set_up();
    if (is_mode("other"))
        child("the other program", WRONG(3));
    pid_t copy = fork();
    MUST(copy >= 0);
    if (copy == 0)
        child("the child", WRONG(2));
    pid_t other = fork();
    MUST(other >= 0);
    if (other == 0) {
        execl("/proc/self/exe", argv[0], go_path, WRONG(3) ? "3" : "0", "other", pace > 500 ? "slow" : "fast", (char *)NULL);
        FAIL("execl");
    }
    ready();
    work(wait_go);
    if (WRONG(1))
        spoil();
    verify("the program");
    for (int i = 0; i < 2; i++) {
        int status;
        MUST(wait(&status) > 0);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a child ended with %x", status);
    }
    ok();
}
