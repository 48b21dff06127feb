/* Files of /proc that are held open: of the process itself, of a child, of a child that is gone, of a thread; shared
 * numbers, positions, a folder; and /dev/pts, /dev/shm. */
#include "check.h"
#include <dirent.h>

static pid_t waiter(void)
{
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_NAME, "the-child");
        for (;;)
            pause();
    }
    MUST(child > 0);
    return child;
}

static void starts(int fd, const char *want, const char *what)
{
    char text[400] = "";
    ssize_t n = read(fd, text, sizeof text - 1);
    CHECK(n > 0 && strncmp(text, want, strlen(want)) == 0, "%s: read %zd '%.60s', wanted '%s'", what, n, text, want);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    int own = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    int moved = open("/proc/self/status", O_RDONLY);
    char head[8] = "";
    MUST(own >= 0 && read(moved, head, 5) == 5 && strcmp(head, "Name:") == 0);
    int twice = dup(moved);
    int maps = open("/proc/self/maps", O_RDONLY);
    int folder = open("/proc/self/task", O_RDONLY | O_DIRECTORY);
    pid_t child = waiter(), gone = waiter();
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/comm", (int)child);
    int comm = open(path, O_RDWR);
    MUST(comm >= 0);
    UNTIL(pread(comm, head, 4, 0) == 4 && strncmp(head, "the-", 4) == 0, 5, "the child has its name");
    snprintf(path, sizeof path, "/proc/%d/stat", (int)gone);
    int dead = open(path, O_RDONLY);
    MUST(maps >= 0 && folder >= 0 && comm >= 0 && dead >= 0);
    MUST(kill(gone, SIGKILL) == 0 && waitpid(gone, NULL, 0) == gone);
    int memory = open("/proc/self/mem", O_RDWR);
    MUST(memory >= 0);
    int meminfo = open("/proc/meminfo", O_RDONLY), pts = open("/dev/pts", O_RDONLY | O_DIRECTORY);
    int shm = open("/dev/shm", O_TMPFILE | O_RDWR, 0600);
    MUST(meminfo >= 0 && pts >= 0 && shm >= 0 && write(shm, "kept", 4) == 4);
    ready();
    if (WRONG(1))
        MUST(lseek(moved, 0, SEEK_SET) == 0);
    wait_go();
    snprintf(path, sizeof path, "%d (", (int)getpid());
    starts(own, path, "stat");
    CHECK(fcntl(own, F_GETFD) & FD_CLOEXEC, "close-on-exec");
    starts(moved, "\tproc_files", "status");
    CHECK(lseek(twice, 0, SEEK_CUR) == lseek(moved, 0, SEEK_CUR) && lseek(twice, 0, SEEK_CUR) > 5, "duplicate");
    starts(comm, "the-child\n", "comm of the child");
    CHECK(read(dead, path, 9) < 0 && errno == ESRCH, "stat of the child that is gone");
    static volatile long word = 4711;
    long seen = 0;
    MUST(pread(memory, &seen, sizeof seen, (off_t)(uintptr_t)&word) == sizeof seen);
    SAME(seen, 4711, "mem");
    char link[64];
    snprintf(link, sizeof link, "%d", (int)getpid());
    DIR *dir = fdopendir(folder);
    int found = 0;
    for (struct dirent *entry; (entry = readdir(dir));)
        found += strcmp(entry->d_name, link) == 0;
    SAME(found, 1, "our thread in /proc/self/task");
    FILE *f = fdopen(maps, "r");
    char *text = NULL;
    size_t room = 0;
    found = 0;
    while (getline(&text, &room, f) > 0) {
        unsigned long from, to;
        if (sscanf(text, "%lx-%lx", &from, &to) == 2)
            found += from <= (uintptr_t)&word && (uintptr_t)&word < to;
    }
    SAME(found, 1, "our memory in maps");
    starts(meminfo, "MemTotal:", "meminfo");
    MUST(pread(shm, head, 4, 0) == 4 && strncmp(head, "kept", 4) == 0);
    kill(child, SIGKILL);
    ok();
}
