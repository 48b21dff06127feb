/* What a job holds in the world of files, and what it would notice if somebody touched it: a robust mutex in a mapped
 * file, locks, and a watch on that file. A rehearsed restart of the same job (`torpor drill`) must not be noticed. */
#include "check.h"
#include <sys/file.h>
#include <sys/inotify.h>
#include <linux/futex.h>

int main(int argc, char **argv)
{
    begin(argc, argv);
    char path[200];
    snprintf(path, sizeof path, "%.150s.claims", go_path);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    MUST(fd >= 0 && ftruncate(fd, 4096) == 0);
    pthread_mutex_t *mutex = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(mutex != MAP_FAILED);
    pthread_mutexattr_t how;
    MUST(pthread_mutexattr_init(&how) == 0 && pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED) == 0);
    MUST(pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST) == 0 && pthread_mutex_init(mutex, &how) == 0);
    MUST(pthread_mutex_lock(mutex) == 0);
    MUST(flock(fd, LOCK_EX) == 0);
    int other = open(path, O_WRONLY | O_APPEND);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5};
    MUST(other >= 0 && fcntl(other, F_SETLK, &lock) == 0);
    int watch = inotify_init1(IN_NONBLOCK);
    pid_t child = fork();
    if (child == 0) {
        int got = pthread_mutex_lock(mutex);
        CHECK(got == 0, "the owner of the mutex has died, they say: %d", got);
        _exit(0);
    }
    UNTIL(blocked_in(child) == -1 ? state_of(child) == 'S' : 1, 20, "the child waits");
    MUST(inotify_add_watch(watch, path, IN_MODIFY | IN_CLOSE_WRITE | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF) > 0);
    ready();
    wait_go();
    if (WRONG(1))
        *(volatile unsigned *)mutex |= FUTEX_OWNER_DIED;
    if (WRONG(2))
        close(open(path, O_WRONLY));
    CHECK(!(*(volatile unsigned *)mutex & FUTEX_OWNER_DIED), "the mutex is marked: its owner has died");
    char event[4096];
    CHECK(read(watch, event, sizeof event) < 0 && errno == EAGAIN, "somebody had the file open for writing");
    MUST(pthread_mutex_unlock(mutex) == 0);
    int status;
    MUST(waitpid(child, &status, 0) == child);
    CHECK(status == 0, "the child ended with %#x", status);
    ok();
}
