"""Who has ended is not alive any more, even while nobody has waited for it."""

from __future__ import annotations

import os

from torpor.linux import proc


def child() -> tuple[int, int]:
    """The pid of a child, and a descriptor: it ends once that is closed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    return pid, writing


def test_until_it_has_ended() -> None:
    pid, end = child()
    assert proc.alive(pid)
    os.close(end)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not proc.alive(pid)
    os.waitpid(pid, 0)
    assert not proc.alive(pid)


def test_who_is_below_whom() -> None:
    us, parent = os.getpid(), os.getppid()
    assert proc.is_below(us, us) and proc.is_below(us, parent) and not proc.is_below(parent, us)
    pid, end = child()
    assert proc.is_below(pid, us) and proc.is_below(pid, parent) and not proc.is_below(us, pid)
    os.close(end)
    os.waitpid(pid, 0)
    assert not proc.is_below(pid, us) and not proc.is_below(1, 1)
