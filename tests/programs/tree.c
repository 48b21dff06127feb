/* A tree of 50 processes: pids, parents, groups, sessions, exit codes, and what each was told through shared memory. */
#include "check.h"

#define CHILDREN 7
#define GRAND 6
#define N (1 + CHILDREN * (GRAND + 1))

struct seat {
    pid_t pid, ppid, pgid, sid;
    atomic_int there;
    uint64_t *own;
};
static struct seat *seats;
static atomic_int *finish;

static void sit(int k)
{
    seats[k].pid = getpid();
    seats[k].ppid = getppid();
    seats[k].pgid = getpgrp();
    seats[k].sid = getsid(0);
    uint64_t *own = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(own, 65536, k);
    seats[k].own = own;
    seats[k].there = 1;
}

static void verify(int k)
{
    if (WRONG(1) && k == 17)
        seats[k].ppid++;
    if (WRONG(2) && k == 23)
        seats[k].own[100] ^= 1;
    SAME(getpid(), seats[k].pid, "pid");
    SAME(syscall(SYS_gettid), seats[k].pid, "tid");
    SAME(getppid(), seats[k].ppid, "parent");
    SAME(getpgrp(), seats[k].pgid, "process group");
    SAME(getsid(0), seats[k].sid, "session");
    VERIFY(seats[k].own, 65536, k, "own memory");
}

static void wait_finish(void)
{
    while (!*finish)
        short_sleep();
}

static void reap(pid_t pid, int want)
{
    int status;
    SAME(waitpid(pid, &status, 0), pid, "waitpid");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == want, "child %d ended with %#x, not %d", (int)pid, status, want);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    seats = shared_memory(N * sizeof *seats);
    finish = shared_memory(4096);
    sit(0);
    int k = 1;
    pid_t children[CHILDREN];
    for (int c = 0; c < CHILDREN; c++) {
        int me = k;
        children[c] = fork();
        MUST(children[c] >= 0);
        if (!children[c]) {
            if (c == 1)
                setsid();
            else if (c == 2)
                setpgid(0, 0);
            pid_t grand[GRAND];
            sit(me);
            for (int g = 0; g < GRAND; g++) {
                grand[g] = fork();
                if (!grand[g]) {
                    if (g == 1)
                        setpgid(0, 0);
                    else if (g == 2) /* joins a sibling's group */
                        setpgid(0, grand[1]);
                    else if (g == 3)
                        setsid();
                    sit(me + 1 + g);
                    wait_finish();
                    verify(me + 1 + g);
                    _exit(10 + g);
                }
                if (g == 1)
                    setpgid(grand[1], grand[1]);
            }
            wait_finish();
            verify(me);
            for (int g = 0; g < GRAND; g++)
                reap(grand[g], 10 + g);
            _exit(50 + c);
        }
        k += GRAND + 1;
    }
    for (int i = 0; i < N; i++)
        UNTIL(seats[i].there, 20, "all processes");
    ready();
    wait_go();
    *finish = 1;
    verify(0);
    for (int c = 0; c < CHILDREN; c++)
        reap(children[c], 50 + c);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a child more than there was");
    ok();
}
