"""What the job sees: something is looked at by a process of ours in the job's PID namespace.

A number that the kernel tells of a process that is gone, and the job remembers, is that of the reader's namespace, and
there is no other way to translate it. A job that was restarted is in a namespace of its own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import msgspec

from torpor.linux import namespaces
from torpor.posix import apart

_PATIENCE = 30.0
"""Seconds; nothing in there waits for anybody, but the machine may be busy."""


def elsewhere(pid: int) -> bool:
    """Is a process in another PID namespace than we are?"""
    return os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")


def seen_inside(neighbour: int, look: Callable[[], Any]) -> Any:
    """What `look` returns (plain values; tuples come as lists) in the PID namespace of a process; None where we cannot
    go there. It has our descriptors, copied."""
    source, target = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            namespaces.enter(neighbour, ("user", "pid"))
            inside = os.fork()
            if inside == 0:
                namespaces.die_with_parent()
                apart.tell(target, msgspec.msgpack.encode(look()))
                os._exit(0)
            os.waitpid(inside, 0)
        finally:
            os._exit(0)
    os.close(target)
    try:
        told = apart.hear(source, _PATIENCE)
        return msgspec.msgpack.decode(told) if told else None
    finally:
        os.close(source)
        try:
            os.kill(middle, signal.SIGKILL)
            os.waitpid(middle, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
