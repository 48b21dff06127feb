/* What has no name: a removed working directory, a removed folder that is open, an O_TMPFILE file, files reachable only
 * by descriptor; locks with somebody waiting for them (flock, POSIX, OFD). */
#include "check.h"
#include <sys/file.h>

static pid_t waiter(int fd, int kind, atomic_int *got)
{
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        char path[64];
        struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 10};
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        int own = open(path, O_RDWR);
        MUST(own >= 0);
        if (kind == 0)
            MUST(flock(own, LOCK_EX) == 0);
        else
            MUST(fcntl(own, kind == 1 ? F_SETLKW : F_OFD_SETLKW, &l) == 0);
        *got = 1;
        for (;;)
            short_sleep();
    }
    double end = mono() + 5;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/wchan", (int)pid);
    while (state_of(pid) != 'S' || mono() < end - 4.9)
        short_sleep();
    return pid;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    char folder[600], other[700], file[700], here[800];
    snprintf(folder, sizeof folder, "%s.%d.cwd", go_path, (int)getpid());
    snprintf(other, sizeof other, "%s.%d.open", go_path, (int)getpid());
    snprintf(file, sizeof file, "%s.%d.locked", go_path, (int)getpid());
    MUST(mkdir(folder, 0700) == 0 && mkdir(other, 0700) == 0);
    int open_folder = open(other, O_RDONLY | O_DIRECTORY);
    MUST(open_folder >= 0 && rmdir(other) == 0);
    char *slash = strrchr(other, '/');
    *slash = 0;
    int tmp = open(other, O_TMPFILE | O_RDWR, 0640);
    *slash = '/';
    MUST(tmp >= 0 && write(tmp, "temporary", 9) == 9);
    int locked = open(file, O_RDWR | O_CREAT, 0600);
    MUST(locked >= 0 && ftruncate(locked, 1000) == 0);
    int posix = open(file, O_RDWR), ofd = open(file, O_RDWR);
    struct flock p = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 105, .l_len = 1}, o = p, probe;
    o.l_start = 103;
    MUST(flock(locked, LOCK_EX) == 0 && fcntl(posix, F_SETLK, &p) == 0);
    atomic_int *got = shared_memory(4096);
    pid_t a = waiter(locked, 0, got), b = waiter(locked, 1, got + 1);
    o.l_start = 500;
    MUST(fcntl(ofd, F_OFD_SETLK, &o) == 0);
    MUST(chdir(folder) == 0 && rmdir(folder) == 0);
    ready();
    wait_go();
    if (WRONG(1))
        flock(locked, LOCK_UN), short_sleep(), short_sleep();
    if (WRONG(2))
        MUST(chdir("/") == 0);
    ssize_t n = readlink("/proc/self/cwd", here, sizeof here - 1);
    MUST(n > 0);
    here[n] = 0;
    CHECK(strstr(here, folder) == here && strstr(here, "(deleted)"), "working directory: %s", here);
    CHECK(open("new", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT, "a file in a removed folder");
    struct stat st;
    MUST(fstat(open_folder, &st) == 0);
    SAME(st.st_nlink, 0, "links of the removed folder");
    CHECK(S_ISDIR(st.st_mode), "the removed folder");
    char text[20] = "";
    SAME(pread(tmp, text, 20, 0), 9, "O_TMPFILE");
    CHECK(!strcmp(text, "temporary"), "O_TMPFILE: %s", text);
    MUST(fstat(tmp, &st) == 0);
    SAME(st.st_nlink, 0, "links of the temporary file");
    CHECK(got[0] == 0 && got[1] == 0, "somebody got a lock that is taken");
    probe = o;
    probe.l_pid = 0;
    SAME(fcntl(locked, F_OFD_GETLK, &probe), 0, "OFD lock");
    SAME(probe.l_type, F_WRLCK, "OFD lock");
    MUST(flock(locked, LOCK_UN) == 0);
    UNTIL(got[0] == 1, 3, "the one who waits in flock");
    CHECK(got[1] == 0, "somebody got a lock that is taken");
    p.l_type = F_UNLCK;
    MUST(fcntl(posix, F_SETLK, &p) == 0);
    UNTIL(got[1] == 1, 3, "the one who waits in fcntl");
    kill(a, SIGKILL), kill(b, SIGKILL);
    MUST(waitpid(a, NULL, 0) == a && waitpid(b, NULL, 0) == b);
    ok();
}
