/* A program with a library of its own (carried_library.c, found by its RUNPATH) and a data file that it maps for reading
 * and has closed. MODE: the folder that the data file is in, which is also the working directory; its content is
 * verified page by page only after the restart, and none of it was read before, so that it has to come from a file.
 * A second word: a file there is kept open for reading. A third: another, mapped, is also kept open. */
#include "check.h"

long carried_step(long x);
extern const unsigned char carried_table[1 << 16];

#define SIZE (1 << 20)

static unsigned char want(size_t i) { return (unsigned char)(i * 7 + i / 4096); }

int main(int argc, char **argv)
{
    begin(argc, argv);
    MUST(mode_count >= 1 && chdir(mode_args[0]) == 0);
    int fd = open("data", O_RDONLY);
    MUST(fd >= 0);
    const unsigned char *data = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, fd, 0);
    MUST(data != MAP_FAILED);
    const unsigned char *shared = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
    MUST(shared != MAP_FAILED);
    close(fd);
    int kept = mode_count > 1 ? open(mode_args[1], O_RDONLY) : -1;
    char first = 0;
    if (mode_count > 1)
        MUST(read(kept, &first, 1) == 1 && first == 'a');
    int also = mode_count > 2 ? open(mode_args[2], O_RDONLY) : -1;
    if (mode_count > 2)
        MUST(lseek(also, 4096, SEEK_SET) == 4096);
    long sum = 1;
    for (int i = 0; i < 1000; i++)
        sum = carried_step(sum);
    ready();
    wait_go();
    for (int i = 0; i < 1000; i++)
        sum = carried_step(sum);
    unsigned long have = 1;
    for (int i = 0; i < 2000; i++)
        have = have * 6364136223846793005ul + 1442695040888963407ul + (i == 1500 && WRONG(1));
    CHECK((unsigned long)sum == have, "the library's state");
    for (size_t i = 0; i < sizeof carried_table; i++)
        CHECK(carried_table[i] == 0x5a, "the library's table at %zu", i);
    for (size_t i = 0; i < SIZE; i++) {
        CHECK(data[i] == want(i + WRONG(2)), "the mapped file at %zu", i);
        CHECK(shared[i] == want(i), "the shared mapping at %zu", i);
    }
    if (mode_count > 1)
        MUST(read(kept, &first, 1) == 1 && first == 'b');
    unsigned char page[4096];
    if (mode_count > 2)
        CHECK(read(also, page, 4096) == 4096 && memcmp(page, data + 4096, 4096) == 0, "the file that is open and mapped");
    ok();
}
