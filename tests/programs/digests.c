/* Prints CRC-32s of memory of every kind, for whoever reads a checkpoint without torpor: tests/jobs/test_format.py. */
#include "check.h"
#define SIZE (300 * 1024)

static char initialised[SIZE] = "not zero";

static uint32_t crc(const unsigned char *p, size_t size)
{
    uint32_t c = ~0u;
    while (size--) {
        c ^= *p++;
        for (int i = 0; i < 8; i++)
            c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0);
    }
    return ~c;
}

static void tell(const char *kind, void *p, size_t size)
{
    say("MEMORY %s %lu %zu %u", kind, (unsigned long)p, size, crc(p, size));
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    char local[20000];
    char *heap = malloc(SIZE);
    char *area = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *text = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *shared = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(heap && area != MAP_FAILED && text != MAP_FAILED && shared != MAP_FAILED);
    fill(local, sizeof local, 1);
    fill(heap, SIZE, 2);
    fill(area + 8192, 65536, 3); /* the rest of it was never touched */
    for (int i = 0; i < SIZE; i++)
        text[i] = "to be compressed "[i % 17];
    fill(shared, SIZE / 2, 4);
    fill(initialised, SIZE, 5);
    tell("stack", local, sizeof local);
    tell("heap", heap, SIZE);
    tell("anonymous", area, SIZE);
    tell("text", text, SIZE);
    tell("shared", shared, SIZE);
    tell("data", initialised, SIZE);
    ready();
    wait_go();
    if (WRONG(1))
        heap[7] ^= 1;
    VERIFY(local, sizeof local, 1, "the stack");
    VERIFY(heap, SIZE, 2, "the heap");
    VERIFY(shared, SIZE / 2, 4, "shared memory");
    VERIFY(initialised, SIZE, 5, "data");
    ok();
}
