"""The NUMA policy of a thread: on which nodes its new memory is to be.

Asked for with get_mempolicy(2) in the thread, set with set_mempolicy(2), always, since the stub has the
restarter's. Nodes that do not exist on this machine are left out; if none is left the thread gets the default
policy: it is a matter of speed. (The policy of a memory area is the memory service's.)

Source: mm/mempolicy.c; the kernel takes one bit less than `maxnode` says.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.linux import proc
from torpor.linux.arch.x86_64 import NR
from torpor.posix.service import Stage, Steps, ThreadBase
from torpor.tracee.call import ANY, Answer, In, Out, call
from torpor.tracee.task import Task

_BITS = 1024
_BYTES = _BITS // 8
_NO_NUMA = (errno.ENOSYS,)
_MODE_MASK = 0xFFF
_DEFAULT = 0


class MemoryPolicy(msgspec.Struct, frozen=True):
    """mode: MPOL_* with its flags. nodes: bit mask."""

    mode: int
    nodes: int


_ASK = (call(NR.get_mempolicy, Out(4), Out(_BYTES), _BITS + 1, 0, 0, accept=ANY),)


class MemoryPolicyService(ThreadBase):
    name = "memory_policy"
    afterwards = True
    record: type[msgspec.Struct] = MemoryPolicy
    questions = _ASK

    def capture(self, task: Task, answers: Sequence[Answer]) -> MemoryPolicy:
        if answers[0].error:
            return MemoryPolicy(_DEFAULT, 0)
        mode, nodes = (int.from_bytes(out, "little") for out in answers[0].outs)
        return MemoryPolicy(mode, nodes)

    def restore(self, record: Any, task: Task) -> Steps:
        mode, nodes = fit(record, _present()) if record.mode & _MODE_MASK else (_DEFAULT, 0)
        mask: In | int = In(nodes.to_bytes(_BYTES, "little")) if nodes else 0
        size = _BITS + 1 if nodes else 0
        return {Stage.THREAD: [call(NR.set_mempolicy, mode, mask, size, accept=_NO_NUMA)]}


def fit(record: MemoryPolicy, present: int) -> tuple[int, int]:
    """Mode and nodes on a machine that has the nodes `present`. Pure."""
    nodes = record.nodes & present
    if record.nodes and not nodes:
        return _DEFAULT, 0
    return record.mode, nodes


def _present() -> int:
    """The nodes with memory, as a bit mask."""
    try:
        text = proc.text("/sys/devices/system/node/has_memory").strip()
    except OSError:
        return 1
    found = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        for node in range(int(first), int(last or first) + 1):
            found |= 1 << node
    return found
