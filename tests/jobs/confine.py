"""Run a command as on a machine that gives less: confine.py WAY UID GID COMMAND...

no-namespaces  inside a user namespace that allows no further ones (user.max_user_namespaces is kept for each user
               namespace, so that nobody else notices)
overmounted    with something mounted over a part of /proc, as in a container: no new /proc may be mounted
no-admin       without CAP_SYS_ADMIN and CAP_CHECKPOINT_RESTORE

Needs root; the command runs as UID and GID, in this process.
"""

from __future__ import annotations

import ctypes
import os
import sys

_NEWNS, _NEWUSER = 0x20000, 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_PR_CAPBSET_DROP = 24
_SYS_ADMIN, _CHECKPOINT_RESTORE = 21, 40
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _write(path: str, text: str) -> None:
    with open(path, "w") as f:
        f.write(text)


def no_namespaces() -> None:
    me = os.getpid()
    (from_parent, to_mapper), (from_mapper, to_parent) = os.pipe(), os.pipe()
    if os.fork() == 0:
        # Only somebody outside of it may give a user namespace more than one user.
        os.close(to_mapper)
        os.read(from_parent, 1)
        for name in ("uid_map", "gid_map"):
            _write(f"/proc/{me}/{name}", "0 0 4294967295")
        os.write(to_parent, b".")
        os._exit(0)
    os.close(to_parent)
    _check(_libc.unshare(_NEWUSER))
    os.write(to_mapper, b".")
    assert os.read(from_mapper, 1) == b".", "no user namespace with all users"
    os.wait()
    for fd in (from_parent, to_mapper, from_mapper):
        os.close(fd)
    _write("/proc/sys/user/max_user_namespaces", "0")


def overmounted() -> None:
    _check(_libc.unshare(_NEWNS))
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    _check(_libc.mount(b"/dev/null", b"/proc/timer_list", None, _MS_BIND, None))


def no_admin() -> None:
    for number in (_SYS_ADMIN, _CHECKPOINT_RESTORE):
        _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))


def main() -> None:
    way, uid, gid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    {"no-namespaces": no_namespaces, "overmounted": overmounted, "no-admin": no_admin}[way]()
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    os.execv(sys.argv[4], sys.argv[4:])


main()
