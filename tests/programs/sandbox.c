/* Filters for system calls that the program has put upon itself. Modes: filters (two in one thread, one more in
 * another), strict. Root only: without CAP_SYS_ADMIN such a program is refused. */
#include "check.h"
#include <linux/filter.h>
#include <linux/seccomp.h>

static void refuse(int number, int error, int flags)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {4, code};
    MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) == 0);
}

/* Anything torpor might ask for kills. */
static void kill_for_most(void)
{
    static const int allowed[] = {SYS_read,        SYS_write,       SYS_access,      SYS_nanosleep, SYS_clock_nanosleep,
                                  SYS_exit_group,  SYS_exit,        SYS_futex,       SYS_rt_sigreturn, SYS_getppid,
                                  SYS_restart_syscall, SYS_clock_gettime, SYS_getuid, SYS_openat,   SYS_close,
                                  SYS_newfstatat,  SYS_fstat,       SYS_getpid,      SYS_faccessat, SYS_munmap,
                                  SYS_madvise,   SYS_seccomp,     SYS_rt_sigprocmask, SYS_rseq,     SYS_getgid};
    enum { N = sizeof allowed / sizeof *allowed };
    struct sock_filter code[N + 3] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0)};
    for (int i = 0; i < N; i++)
        code[i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], N - i, 0);
    code[N + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[N + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {N + 3, code};
    MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0);
}

static _Atomic int up, verdict;

static void *thread(void *unused)
{
    refuse(SYS_getgid, 77, 0);
    up = 1;
    wait_go();
    errno = 0;
    CHECK(syscall(SYS_getgid) == -1 && errno == 77, "the filter of the thread is gone");
    CHECK(syscall(SYS_getppid) == -1 && errno == 99, "the first filter is gone in the thread");
    verdict = 1;
    return unused;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    if (!WRONG(1))
        refuse(SYS_getppid, 99, SECCOMP_FILTER_FLAG_LOG);
    pthread_t other;
    MUST(pthread_create(&other, NULL, thread, NULL) == 0);
    UNTIL(up, 5, "thread");
    if (!is_mode("few"))
        kill_for_most();
    refuse(SYS_getuid, 55, 0);
    ready();
    wait_go();
    errno = 0;
    CHECK(syscall(SYS_getuid) == -1 && errno == 55, "the last filter is gone");
    CHECK(syscall(SYS_getgid) != -1, "the filter of the other thread is here");
    CHECK(syscall(SYS_getppid) == -1 && errno == 99, "the first filter is gone");
    UNTIL(verdict, 5, "thread");
    ok();
}
