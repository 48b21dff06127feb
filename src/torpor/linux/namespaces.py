"""User, PID, mount, UTS and time namespaces (namespaces(7)), as far as a restarted job needs them."""

from __future__ import annotations

import _socket
import errno
import os
from collections.abc import Callable, Sequence

from torpor.linux import capability, clone, masks, mounts, proc
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import libc, syscall
from torpor.linux.trial import Verdict, trial

_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def map_ids(uid: int, gid: int) -> None:
    """In a new user namespace: map one uid and one gid to themselves (user_namespaces(7))."""
    for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


def shift_clocks(monotonic_ns: int, boottime_ns: int) -> None:
    """Make a time namespace for our future children whose clocks are ahead of the host's by so many nanoseconds.

    Raises OSError where there are none, or where a clock would become negative (time_namespaces(7)). Masked by
    TORPOR_WITHOUT=time_namespace.
    """
    if masks.masked("time_namespace"):
        raise OSError(errno.EINVAL, masks.REASON)
    syscall(NR.unshare, clone.NEWTIME)
    lines = []
    for name, ns in (("monotonic", monotonic_ns), ("boottime", boottime_ns)):
        lines.append(f"{name} {ns // 10**9} {ns % 10**9}\n")
    fd = os.open("/proc/self/timens_offsets", os.O_WRONLY)
    try:
        os.write(fd, "".join(lines).encode())
    finally:
        os.close(fd)


def mount_proc() -> None:
    """In a new mount namespace: cut propagation to the outside and mount a /proc of our PID namespace.

    Raises OSError (EPERM in a user namespace where something is mounted over a part of the old /proc). Masked by
    TORPOR_WITHOUT=proc_mount.
    """
    _mount(b"none", b"/", None, _MS_REC | _MS_SLAVE)
    if masks.masked("proc_mount"):
        raise OSError(errno.EPERM, masks.REASON)
    _mount(b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    import ctypes

    if libc.mount(source, target, kind, ctypes.c_ulong(flags), data):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), os.fsdecode(target))


def mount_queues() -> None:
    """In new mount and IPC namespaces: where the old message queues (mq_overview(7)) are mounted, mount the new ones.
    Raises OSError."""
    for line in proc.text("/proc/self/mountinfo").splitlines():
        mount = mounts.parse(line)
        if mount.kind == "mqueue":
            _mount(b"mqueue", os.fsencode(mount.point), b"mqueue", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def leave(user: bool) -> None:
    """Go into new mount, network and IPC namespaces for good, with this process, which must have no other threads.

    user: inside a new user namespace, in which we have every capability. What is mounted by us from then on, the host
    does not see. Raises OSError.
    """
    ids = os.getuid(), os.getgid()
    syscall(NR.unshare, clone.NEWNS | clone.NEWNET | clone.NEWIPC | (clone.NEWUSER if user else 0))
    if user:
        map_ids(*ids)
    _mount(b"none", b"/", None, _MS_REC | _MS_SLAVE)


def put_over(path: str, target: str) -> None:
    """In a new mount namespace: show a file in the place of another. Raises OSError.

    The host's own file must not be replaced by another (rename(2)) while that is to last: what is mounted on a file
    goes with it, in all namespaces (fs/namespace.c, `__detach_mounts`).
    """
    _mount(b"none", b"/", None, _MS_REC | _MS_SLAVE)
    _mount(os.fsencode(path), os.fsencode(target), None, _MS_BIND)


def call_host(name: str) -> None:
    """Give our future children, and ourselves, a host name of their own. Raises OSError."""
    syscall(NR.unshare, clone.NEWUTS)
    _socket.sethostname(name)


def mount_memory(path: str) -> None:
    """Hang a new, empty filesystem in memory over a folder, for every user to write to. Raises OSError."""
    _mount(b"tmpfs", os.fsencode(path), b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=1777")


def enter(pid: int, kinds: Sequence[str]) -> None:
    """Go into the namespaces ('user', 'ipc', ...) of a process, in this order, where they are not ours already.

    The user namespace has to come first, to give the right to enter the others. Raises OSError.
    """
    spaces = []
    for kind in kinds:
        if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"):
            spaces.append(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC))
    for space in spaces:
        syscall(NR.setns, space, 0)
        os.close(space)


def die_with_parent(signal: int = 9) -> None:
    """PR_SET_PDEATHSIG: a signal when the thread that forked us ends; 0 takes it back."""
    syscall(NR.prctl, _PR_SET_PDEATHSIG, signal, 0, 0, 0)


def become_subreaper() -> None:
    """PR_SET_CHILD_SUBREAPER: orphans among our descendants become our children."""
    syscall(NR.prctl, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def flags(user: bool) -> int:
    """The flags of clone(2) for the namespaces of a restarted job. user: with a user namespace around them."""
    return clone.NEWPID | clone.NEWNS | (clone.NEWUSER if user else 0)


def refused(user: bool) -> str:
    """Why a restarted job cannot have namespaces here, '' if it can. Makes nothing."""
    try:
        clone.feign(0, clone.VM | flags(user))  # with memory of its own it would cost a millisecond
    except OSError as error:
        if not user:
            return "namespaces need CAP_SYS_ADMIN" if error.errno == errno.EPERM else str(error.strerror)
        return _why_not(str(error.strerror))
    return ""


def user_needed() -> bool:
    """Do other namespaces need a user namespace around them? True without CAP_SYS_ADMIN, whatever the uid."""
    return not capability.have(capability.SYS_ADMIN)


def _inside(attempt: Callable[[], Verdict], flags: int = clone.NEWPID | clone.NEWNS) -> Verdict:
    """The verdict of `attempt`, called by the first process of new namespaces, inside a user namespace if need be."""
    if user_needed():
        flags |= clone.NEWUSER
    uid, gid = os.getuid(), os.getgid()

    def first() -> Verdict:
        if flags & clone.NEWUSER:
            map_ids(uid, gid)
        return attempt()

    return trial(first, lambda: clone.fork(0, flags))


def _why_not(reason: str) -> str:
    """Why an ordinary user gets no namespaces, and what changes that."""
    if reason == masks.REASON:
        return reason
    if not os.path.exists("/proc/self/ns/user"):
        return "use a kernel with CONFIG_USER_NS"
    if proc.sysctl("user/max_user_namespaces") == "0":
        return "user.max_user_namespaces is 0: sysctl user.max_user_namespaces=15000"
    if proc.sysctl("kernel/unprivileged_userns_clone") == "0":
        return "kernel.unprivileged_userns_clone is 0: sysctl kernel.unprivileged_userns_clone=1"
    if proc.sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        name = "kernel.apparmor_restrict_unprivileged_userns"
        return f"{name} is 1: sysctl {name}=0, or an AppArmor profile for Python that has `userns,`"
    return f"{reason}; in a container: another seccomp profile, or --cap-add SYS_ADMIN"


def probe_user() -> Verdict:
    """Can we have a user namespace, with capabilities in it? (AppArmor may give one without.)"""

    def attempt() -> Verdict:
        _mount(b"none", b"/", None, _MS_REC | _MS_SLAVE)
        return True, ""

    ok, reason = _inside(attempt, clone.NEWUSER | clone.NEWNS)
    return (True, "") if ok else (False, _why_not(reason))


def probe_pid() -> Verdict:
    """Can we have PID and mount namespaces, inside a user namespace if need be?"""
    ok, reason = _inside(lambda: (os.getpid() == 1, "the first process is not PID 1"))
    return (True, "") if ok else (False, _why_not(reason))


def probe_set_tid() -> Verdict:
    """Can the first process of a new PID namespace choose the numbers of its children?"""
    ok, reason = _inside(clone.choose_inside)
    return (True, "") if ok else (False, _why_not(reason))


def probe_time() -> Verdict:
    """Can a child have clocks of its own?"""

    def attempt() -> Verdict:
        import time

        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        shift_clocks(10**12, 10**12)
        return trial(lambda: (time.clock_gettime_ns(time.CLOCK_MONOTONIC) - before >= 10**12, "the clock is not ahead"))

    ok, reason = _inside(attempt)
    if ok or reason == masks.REASON:
        return ok, "" if ok else reason
    if not os.path.exists("/proc/self/ns/time"):
        return False, "use a kernel with CONFIG_TIME_NS"
    return False, _why_not(reason)


def overmounts(mountinfo: str) -> list[str]:
    """What is mounted over parts of /proc, from the text of /proc/PID/mountinfo."""
    points = [line.split(" ")[4] for line in mountinfo.splitlines()]
    return sorted({point for point in points if point.startswith("/proc/")})


def probe_proc() -> Verdict:
    """Can a new /proc be mounted in new namespaces?"""

    def attempt() -> Verdict:
        mount_proc()
        return os.readlink("/proc/self") == "1", "the new /proc does not show the new namespace"

    ok, reason = _inside(attempt)
    if ok or reason == masks.REASON:
        return ok, "" if ok else reason
    over = overmounts(proc.text("/proc/self/mountinfo"))
    if over and user_needed():
        return False, f"{over[0]} is mounted over (a container); there: --security-opt systempaths=unconfined"
    return False, _why_not(reason)
