/* What a debugger is to find in a core file of it: data of every kind of memory, threads in known functions with values
 * of their own, a child. */
#include "check.h"

struct tree {
    struct tree *left, *right;
    int value;
} *root;
int table[5] = {3, 1, 4, 1, 5};
static int untouched[1 << 20];
static char *shared_text, *private_text;
static __thread int mine;
static atomic_int there;

__attribute__((noinline)) static void deep(int n)
{
    if (n) {
        deep(n - 1);
        __asm__ volatile("" ::: "memory"); /* no tail call */
        return;
    }
    there++;
    while (!told())
        short_sleep();
}

static void *work(void *arg)
{
    mine = 100 + (int)(long)arg;
    deep(3);
    CHECK(mine == 100 + (int)(long)arg, "a thread's own variable");
    return NULL;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    root = calloc(1, sizeof *root);
    root->value = 42;
    root->left = calloc(1, sizeof *root);
    root->left->value = 7;
    shared_text = shared_memory(1 << 20);
    strcpy(shared_text + 5000, "words that are shared");
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    private_text = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    MUST(private_text != MAP_FAILED);
    close(fd);
    strcpy(private_text + 4096, "written over a file");
    /* More than a file can be long. */
    MUST(mmap(NULL, 1L << 43, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED);
    table[2] = 9;
    pid_t child = fork();
    if (child == 0) {
        root->value = 43;
        deep(1);
        _exit(0);
    }
    pthread_t threads[3];
    for (long i = 0; i < 3; i++)
        MUST(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    UNTIL(there == 3, 5, "threads");
    say("CHILD %d", (int)child);
    ready();
    deep(1);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    CHECK(root->value == (WRONG(1) ? 0 : 42) && untouched[0] == 0, "memory");
    int status;
    SAME(waitpid(child, &status, 0), child, "child");
    ok();
}
