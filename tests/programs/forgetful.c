/* Has a secret in its environment and one in memory that it has marked as not for core dumps. Says what it has of them,
 * and of their neighbours, when it is told to. */
#include "check.h"

int main(int argc, char **argv)
{
    begin(argc, argv);
    char *marked = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(marked != MAP_FAILED && madvise(marked + 4096, 4096, MADV_DONTDUMP) == 0);
    /* Put together here, so that the text of the program does not have it. */
    for (int i = 0; i < 3; i++)
        snprintf(marked + 4096 * i, 64, "%s-%d", i == 1 ? "marked" : "plain", 77000 + i);
    ready();
    wait_go();
    const char *secret = getenv("BENCH_SECRET"), *other = getenv("BENCH_OTHER");
    say("ENV [%s] [%s] AREA [%s] [%s] [%s]", secret ? secret : "none", other ? other : "none", marked, marked + 4096,
        marked + 8192);
    if (fork() == 0)
        _exit(marked[4096] == 0 ? 0 : 3);
    ok();
}
