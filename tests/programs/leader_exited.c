/* The first thread has ended (pthread_exit), others live on: the process shows as a zombie whose threads run. */
#include "check.h"

static pid_t tids[3];
static atomic_int turn;

static void *work(void *arg)
{
    long i = (long)arg;
    tids[i] = gettid();
    if (i)
        for (;;) {
            turn++;
            short_sleep();
        }
    UNTIL(state_of(getpid()) == 'Z', 10, "the first thread to end");
    int fd = open("/dev/null", O_RDWR);
    MUST(fd >= 0 && dup2(fd, 77) == 77);
    /* What the kernel keeps of the process by its number. */
    int ends[2], self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    MUST(self >= 0 && pipe(ends) == 0);
    MUST(fcntl(ends[0], F_SETOWN, getpid()) == 0 && fcntl(ends[0], F_SETSIG, SIGURG) == 0);
    /* What waits for it, and a child of it. */
    MUST(kill(getpid(), SIGUSR1) == 0);
    pid_t child = fork();
    while (!child)
        pause();
    ready();
    wait_go();
    CHECK(state_of(getpid()) == 'Z', "the first thread lives again");
    SAME(gettid(), tids[0] + WRONG(1), "tid");
    int before = turn;
    UNTIL(turn > before + 3, 10, "the other threads to go on");
    CHECK(fcntl(77, F_GETFD) == 0, "descriptor 77");
    CHECK(fcntl(78, F_GETFD) == -1, "descriptor 78");
    SAME(fcntl(ends[0], F_GETOWN), getpid(), "the owner of the pipe");
    CHECK(syscall(SYS_pidfd_send_signal, self, 0, NULL, 0) == 0, "the pidfd of the process itself");
    struct pollfd ended = {.fd = self, .events = POLLIN};
    SAME(poll(&ended, 1, 0), 0, "the process has ended for its pidfd");
    siginfo_t info;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    struct timespec none = {0, 0};
    SAME(sigtimedwait(&set, &info, &none), SIGUSR1, "the signal that waits");
    SAME(info.si_code, SI_USER, "how it was sent");
    SAME(info.si_pid, getpid(), "by whom");
    MUST(kill(child, SIGKILL) == 0);
    SAME(waitpid(child, NULL, 0), child, "the child");
    ok();
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    pthread_t thread;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    MUST(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    for (long i = 0; i < 3; i++)
        MUST(pthread_create(&thread, NULL, work, (void *)i) == 0);
    pthread_exit(NULL);
}
