"""Switches of a thread: what it does at a machine check, whether it may read the time stamp counter and
CPUID, whether it writes back memory for others, and which speculation it has turned off.

All are questions and settings of prctl(2) and arch_prctl(2), made in the thread. A question that fails means
that the kernel or the CPU does not know the switch. The machine-check policy is always set, since the stub
inherits the restarter's; the others only where they differ from what a fresh thread has.

Speculation is security: what a thread had turned off is turned off again. Where this machine does not let it
be turned off (it is safe, or it never is), the setting is left.

Source: prctl(2), Documentation/userspace-api/spec_ctrl.rst, arch_prctl(2).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.linux import prctl
from torpor.linux.arch.x86_64 import NR
from torpor.posix.service import Stage, Steps, ThreadBase
from torpor.tracee.call import ANY, Answer, Out, call
from torpor.tracee.task import Task

_ENABLE, _DISABLE = 2, 4
_BY_PRCTL = 1
_FRESH = (_ENABLE, _ENABLE, _DISABLE)
"""What a fresh thread has for store bypass, indirect branches and flushing of the L1 data cache."""
_NOT_HERE = (errno.ENODEV, errno.ENXIO, errno.EPERM, errno.EINVAL, errno.ERANGE)
_TSC_ENABLED = 1
_CPUID_ENABLED = 1
_MCE_DEFAULT = 2


class Modes(msgspec.Struct, frozen=True):
    """Values as the kernel's questions answer them."""

    mce_kill: int = _MCE_DEFAULT
    tsc: int = _TSC_ENABLED
    cpuid: int = _CPUID_ENABLED
    io_flusher: int = 0
    speculation: tuple[int, int, int] = (0, 0, 0)


_ASK = (
    call(NR.prctl, prctl.MCE_KILL_GET, 0, 0, 0, 0, accept=ANY),
    call(NR.prctl, prctl.GET_TSC, Out(4), 0, 0, 0, accept=ANY),
    call(NR.arch_prctl, prctl.ARCH_GET_CPUID, 0, accept=ANY),
    call(NR.prctl, prctl.GET_IO_FLUSHER, 0, 0, 0, 0, accept=ANY),
    *(call(NR.prctl, prctl.GET_SPECULATION_CTRL, which, 0, 0, 0, accept=ANY) for which in range(3)),
)


class ModeService(ThreadBase):
    name = "modes"
    afterwards = True
    record: type[msgspec.Struct] = Modes
    questions = _ASK

    def capture(self, task: Task, answers: Sequence[Answer]) -> Modes:
        mce, tsc, cpuid, flusher = answers[:4]
        one, two, three = (max(0, answer.value) for answer in answers[4:])
        return Modes(
            mce_kill=_MCE_DEFAULT if mce.error else mce.value,
            tsc=_TSC_ENABLED if tsc.error else int.from_bytes(tsc.outs[0], "little"),
            cpuid=_CPUID_ENABLED if cpuid.error else cpuid.value,
            io_flusher=max(0, flusher.value),  # EPERM without CAP_SYS_RESOURCE, which setting it needs, too
            speculation=(one, two, three),
        )

    def restore(self, record: Any, task: Task) -> Steps:
        calls = [call(NR.prctl, prctl.MCE_KILL, prctl.MCE_KILL_SET, record.mce_kill, 0, 0, accept=(errno.EINVAL,))]
        if record.tsc != _TSC_ENABLED:
            calls.append(call(NR.prctl, prctl.SET_TSC, record.tsc, 0, 0, 0))
        if record.cpuid != _CPUID_ENABLED:
            calls.append(call(NR.arch_prctl, prctl.ARCH_SET_CPUID, record.cpuid))
        if record.io_flusher:
            calls.append(call(NR.prctl, prctl.SET_IO_FLUSHER, record.io_flusher, 0, 0, 0))
        for which, (state, fresh) in enumerate(zip(record.speculation, _FRESH)):
            wanted = state & ~_BY_PRCTL
            if state & _BY_PRCTL and wanted != fresh:
                calls.append(call(NR.prctl, prctl.SET_SPECULATION_CTRL, which, wanted, 0, 0, accept=_NOT_HERE))
        return {Stage.THREAD: calls}
