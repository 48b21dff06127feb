/* What a process could notice of copies of it that are made while it is saved: children that nobody forked, their ends,
 * Ctrl-C that somebody else gets too, the end of a pipe that comes late, a segment that is attached more often, a file
 * that cannot be sealed. It looks all the time, from READY on. */
#include "check.h"
#include <dirent.h>
#include <sys/ipc.h>
#include <sys/shm.h>

#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#define F_SEAL_WRITE 8
#endif

static atomic_int ends;
static void ended(int number UNUSED) { ends++; }

static void no_children(void)
{
    char path[64], text[256];
    DIR *threads = opendir("/proc/self/task");
    MUST(threads);
    for (struct dirent *entry; (entry = readdir(threads));) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/self/task/%s/children", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        MUST(fd >= 0);
        ssize_t n = read(fd, text, sizeof text - 1);
        text[n > 0 ? n : 0] = 0;
        CHECK(n <= 0, "children that it has not made: %s", text);
        close(fd);
    }
    closedir(threads);
    int status;
    CHECK(waitpid(-1, &status, __WALL | WNOHANG | WUNTRACED) == -1 && errno == ECHILD, "a child to wait for");
    SAME(ends, 0, "signals that tell of the end of a child");
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    signal(SIGCHLD, ended);
    int pipes[64][2];
    for (int i = 0; i < 64; i++)
        MUST(pipe(pipes[i]) == 0);
    int segment = shmget(IPC_PRIVATE, 1 << 16, 0600);
    MUST(segment >= 0);
    char *attached = shmat(segment, NULL, 0);
    MUST(attached != (void *)-1 && shmctl(segment, IPC_RMID, NULL) == 0);
    attached[0] = 1;
    if (WRONG(1)) {
        pid_t child = fork();
        MUST(child >= 0);
        if (child == 0)
            _exit(0);
    }
    if (WRONG(2))
        MUST(shmat(segment, NULL, 0) != (void *)-1);
    if (WRONG(3))
        MUST(dup(pipes[63][1]) >= 0);
    ready();
    int next = 0;
    do {
        no_children();
        struct shmid_ds about;
        MUST(shmctl(segment, IPC_STAT, &about) == 0);
        SAME(about.shm_nattch, 1, "attachments of a segment");
        /* Nobody else has the end that is closed, so there is no more to be had at once. */
        int *ends_of = pipes[next++ % 64];
        char byte;
        MUST(fcntl(ends_of[0], F_SETFL, O_NONBLOCK) == 0 && close(ends_of[1]) == 0);
        SAME(read(ends_of[0], &byte, 1), 0, "the end of a pipe");
        MUST(close(ends_of[0]) == 0 && pipe(ends_of) == 0);
        int fd = syscall(SYS_memfd_create, "sealed", 2);
        MUST(fd >= 0 && ftruncate(fd, 4096) == 0);
        void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        MUST(p != MAP_FAILED);
        short_sleep();
        MUST(munmap(p, 4096) == 0);
        CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0, "somebody else has it mapped for writing");
        close(fd);
    } while (!told() || next % 64);
    MUST(shmdt(attached) == 0);
    ok();
}
