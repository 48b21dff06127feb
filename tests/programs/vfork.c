/* A vfork in progress: the parent waits, and cannot be stopped, until the child executes something or ends. Modes:
 * short (the child takes half a second), long (it takes for ever), shared, files, folder (a child that shares memory,
 * descriptors or working directory and stays: to be refused). */
#include "check.h"
#include <sched.h>

static char stack[65536] __attribute__((aligned(16)));

static int stay(void *unused)
{
    for (;;)
        pause();
    return unused != NULL;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    int common = is_mode("shared") ? CLONE_VM : is_mode("files") ? CLONE_FILES : is_mode("folder") ? CLONE_FS : 0;
    if (common) {
        pid_t child = clone(stay, stack + sizeof stack, common | SIGCHLD, NULL);
        MUST(child > 0);
        ready();
        wait_go();
        MUST(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
        ok();
    }
    ready();
    volatile int runs = 0;
    int wanted = WRONG(1) ? -1 : is_mode("long") ? 1 : 0;
    while (!told() || !runs) {
        pid_t child = vfork();
        if (child == 0) {
            struct timespec half = {0, 300000000};
            if (is_mode("long"))
                while (!told())
                    nanosleep(&half, NULL);
            else
                nanosleep(&half, NULL);
            _exit(7);
        }
        int status;
        MUST(child > 0 && waitpid(child, &status, 0) == child);
        SAME(WEXITSTATUS(status), 7, "status of the child");
        runs++;
    }
    CHECK(wanted >= 0 && (wanted == 0 || runs == 1), "%d runs", runs);
    ok();
}
