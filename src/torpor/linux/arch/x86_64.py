"""x86-64: the numbers of the system calls torpor makes in a stopped task.

Source: arch/x86/entry/syscalls/syscall_64.tbl.
"""

from __future__ import annotations

AUDIT_ARCH = 0xC000003E
"""How seccomp names it (linux/audit.h)."""


class NR:
    """System call numbers. Plain ones: to make an enum of so many takes 2 ms of every restart."""

    read = 0
    write = 1
    open = 2
    close = 3
    lseek = 8
    mmap = 9
    mprotect = 10
    munmap = 11
    brk = 12
    rt_sigaction = 13
    rt_sigprocmask = 14
    ioctl = 16
    pread64 = 17
    pwrite64 = 18
    mremap = 25
    msync = 26
    mincore = 27
    madvise = 28
    shmget = 29
    shmat = 30
    shmctl = 31
    dup = 32
    dup2 = 33
    pause = 34
    nanosleep = 35
    getitimer = 36
    setitimer = 38
    getpid = 39
    sendfile = 40
    socket = 41
    connect = 42
    accept4 = 288
    sendto = 44
    recvfrom = 45
    sendmsg = 46
    recvmsg = 47
    shutdown = 48
    bind = 49
    getpeername = 52
    setsockopt = 54
    getsockopt = 55
    clone = 56
    fork = 57
    vfork = 58
    execve = 59
    exit = 60
    wait4 = 61
    kill = 62
    semget = 64
    semop = 65
    semctl = 66
    shmdt = 67
    msgget = 68
    msgsnd = 69
    msgrcv = 70
    msgctl = 71
    fcntl = 72
    flock = 73
    chdir = 80
    fchdir = 81
    mkdir = 83
    rmdir = 84
    umask = 95
    ptrace = 101
    getuid = 102
    setuid = 105
    setgid = 106
    setpgid = 109
    getppid = 110
    setsid = 112
    getpgid = 121
    getsid = 124
    setreuid = 113
    getgroups = 115
    setgroups = 116
    setresuid = 117
    getresuid = 118
    setresgid = 119
    setfsuid = 122
    setfsgid = 123
    capget = 125
    capset = 126
    sigaltstack = 131
    personality = 135
    getpriority = 140
    sched_setparam = 142
    sched_setscheduler = 144
    mlock = 149
    munlock = 150
    mlockall = 151
    prctl = 157
    arch_prctl = 158
    setrlimit = 160
    chroot = 161
    gettid = 186
    tkill = 200
    rt_sigpending = 127
    rt_sigtimedwait = 128
    rt_sigqueueinfo = 129
    futex = 202
    sched_setaffinity = 203
    sched_getaffinity = 204
    io_setup = 206
    set_tid_address = 218
    restart_syscall = 219
    semtimedop = 220
    timer_create = 222
    timer_settime = 223
    timer_gettime = 224
    timer_getoverrun = 225
    timer_delete = 226
    clock_gettime = 228
    clock_nanosleep = 230
    exit_group = 231
    epoll_wait = 232
    epoll_ctl = 233
    tgkill = 234
    mbind = 237
    mq_open = 240
    mq_unlink = 241
    mq_timedsend = 242
    mq_timedreceive = 243
    mq_notify = 244
    mq_getsetattr = 245
    set_mempolicy = 238
    get_mempolicy = 239
    ioprio_set = 251
    ioprio_get = 252
    inotify_add_watch = 254
    inotify_rm_watch = 255
    openat = 257
    ppoll = 271
    unshare = 272
    set_robust_list = 273
    get_robust_list = 274
    timerfd_create = 283
    timerfd_settime = 286
    timerfd_gettime = 287
    eventfd2 = 290
    dup3 = 292
    rt_tgsigqueueinfo = 297
    prlimit64 = 302
    sendmmsg = 307
    setns = 308
    inotify_init1 = 294
    recvmmsg = 299
    process_vm_readv = 310
    kcmp = 312
    sched_setattr = 314
    sched_getattr = 315
    seccomp = 317
    memfd_create = 319
    execveat = 322
    userfaultfd = 323
    membarrier = 324
    mlock2 = 325
    rseq = 334
    move_mount = 429
    fsopen = 430
    fsconfig = 431
    fsmount = 432
    clone3 = 435
    close_range = 436
    pidfd_open = 434
    pidfd_getfd = 438
    process_madvise = 440


def name_of(nr: int) -> str:
    """What a system call is called; its number, where that is all we know."""
    return next((name for name, number in vars(NR).items() if number == nr and name[0] != "_"), f"system call {nr}")
