"""User, PID, mount and time namespaces (namespaces(7)), as far as a restarted job needs them."""

from __future__ import annotations

import os

from torpor.linux import clone
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import libc, syscall

_MS_REC, _MS_SLAVE = 0x4000, 0x80000
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

    Raises OSError where there are none, or where a clock would become negative (time_namespaces(7)).
    """
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

    Raises OSError (EPERM in a user namespace where something is mounted over a part of the old /proc).
    """
    _mount(b"none", b"/", None, _MS_REC | _MS_SLAVE)
    _mount(b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int) -> None:
    import ctypes

    if libc.mount(source, target, kind, ctypes.c_ulong(flags), None):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), os.fsdecode(target))


def die_with_parent(signal: int = 9) -> None:
    """PR_SET_PDEATHSIG: a signal when the thread that forked us ends; 0 takes it back."""
    syscall(NR.prctl, _PR_SET_PDEATHSIG, signal, 0, 0, 0)


def become_subreaper() -> None:
    """PR_SET_CHILD_SUBREAPER: orphans among our descendants become our children."""
    syscall(NR.prctl, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
