/* Processes that fork, exec and exit, and threads that are made and end, all the time: a tree that never stands still.
 * Every child's status and every thread's result is checked. Run as `churn leaf N` it exits with N at once. */
#include "check.h"

static atomic_int finish;
static atomic_long rounds[3];
static const char *self;

static void *leaf_thread(void *arg) { return arg; }
static void *threads(void *unused)
{
    (void)unused;
    for (long i = 0; !finish; i++) {
        pthread_t t[3];
        for (long k = 0; k < 3; k++)
            MUST(pthread_create(&t[k], NULL, leaf_thread, (void *)(i + k)) == 0);
        for (long k = 0; k < 3; k++) {
            void *got;
            MUST(pthread_join(t[k], &got) == 0);
            SAME((long)got, i + k, "result of a thread");
        }
        rounds[0]++;
    }
    return NULL;
}
static void *children(void *arg)
{
    int execs = arg != NULL;
    for (volatile long i = 0; !finish; i++) {
        pid_t child = execs ? vfork() : fork();
        CHECK(child >= 0, "fork");
        if (!child) {
            if (!execs)
                _exit(i % 100);
            static const char digits[] = "0123456789";
            char number[3] = {digits[i / 10 % 10], digits[i % 10], 0};
            execl(self, self, "leaf", number, NULL);
            _exit(111);
        }
        int status;
        SAME(waitpid(child, &status, 0), child, "waitpid");
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == i % 100, "child ended with %#x instead of %ld", status, i % 100);
        rounds[1 + execs]++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "leaf") == 0)
        return atoi(argv[2]);
    begin(argc, argv);
    self = argv[0];
    pthread_t t[3];
    MUST(pthread_create(&t[0], NULL, threads, NULL) == 0);
    MUST(pthread_create(&t[1], NULL, children, NULL) == 0);
    MUST(pthread_create(&t[2], NULL, children, (void *)1) == 0);
    for (int i = 0; i < 3; i++)
        UNTIL(rounds[i] > 3, 10, "rounds");
    ready();
    wait_go();
    long before[3] = {rounds[0], rounds[1], rounds[2]};
    for (int i = 0; i < 3; i++)
        UNTIL(rounds[i] > before[i] + 3 + 10000000000 * WRONG(1), WRONG(1) ? 1 : 20, "rounds afterwards");
    finish = 1;
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], NULL);
    ok();
}
