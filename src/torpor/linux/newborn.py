"""Processes that were born a moment ago, by the numbers that they have in a PID namespace of their own.

What a process is told of its child is the child's number in its own namespace, which may not be ours. But numbers are
handed out in rising order (linux/pidwalk.py), so that there are few processes to be looked at.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping

from torpor.linux import pidwalk, proc
from torpor.named_tuple import NamedTuple

last = pidwalk.last

_MANY = 2000
"""So many numbers are not looked at one by one: most of them will be free."""


class Born(NamedTuple):
    """number: as those in its namespace see it.  namespace: see `namespace`."""

    number: int
    namespace: tuple[int, int] | None


def namespaced(fields: Mapping[str, str]) -> bool:
    """Has a process (fields: its status) other numbers than those that we see?"""
    return len(fields["NSpid"].split()) > 1


def namespace(pid: int, fields: Mapping[str, str]) -> tuple[int, int] | None:
    """The PID namespace of a process, None if it is the one whose numbers we see. fields: its status.  Raises
    OSError."""
    if not namespaced(fields):
        return None
    found = os.stat(f"/proc/{pid}/ns/pid")
    return found.st_dev, found.st_ino


def find(before: int, name: str, wanted: Collection[Born]) -> dict[Born, int]:
    """Host pids of processes with this name, of which it is supposed that they were born since `before` was the last
    number that had been handed out (`last`). Those that are gone, or that may not be looked at, are not among them."""
    found = {born: born.number for born in wanted if born.namespace is None and proc.comm(born.number) == name}
    inner = {born for born in wanted if born.namespace is not None}
    if inner:
        since = range(before + 1, last() + 1)
        found |= _look(since if len(since) <= _MANY else (), name)
        if not inner <= found.keys():
            # The counter has begun anew; or something is mounted over /proc/loadavg, as in some containers (lxcfs), and
            # it says anything.
            found |= _look(map(int, filter(str.isdigit, os.listdir("/proc"))), name)
    return {born: found[born] for born in wanted if born in found}


def _look(pids: Iterable[int], name: str) -> dict[Born, int]:
    """Those with this name among processes that may be there."""
    found = {}
    for pid in pids:
        try:
            fields = proc.status(pid)
            if fields["Name"] == name:
                found[Born(proc.inner_pid(fields), namespace(pid, fields))] = pid
        except OSError:
            continue
    return found
