"""The monotonic clock of a job that gets no time namespace: does it simply go on here, and what of the job hangs on it?
Pure.
"""

from __future__ import annotations

import msgspec

from torpor.image.manifest import ClockRecord, Manifest
from torpor.linux.arch.x86_64 import NR
from torpor.linux.ptrace import Regs
from torpor.posix import posix_timers, timerfd

_MONOTONIC = frozenset((1, 4, 6, 7, 9))
"""CLOCK_MONOTONIC, _RAW, _COARSE, CLOCK_BOOTTIME, _ALARM."""


def clock_jump(manifest: Manifest, now: ClockRecord, boot: str) -> str:
    """In words why the job's monotonic clock does not simply go on here, '' if it does."""
    if manifest.machine.boot != boot:
        return "the machine was booted since, or is another one"
    if manifest.clocks.monotonic > now.monotonic:
        return "the job's monotonic clock is ahead of the machine's"
    return ""


def monotonic_state(manifest: Manifest) -> list[str]:
    """What of a job hangs on the monotonic or the boot clock, in words."""
    found = []
    for thing in manifest.objects:
        if thing.service == timerfd.SERVICE.name:
            timer = msgspec.msgpack.decode(thing.state, type=timerfd.Timer)
            if timer.clock in _MONOTONIC and (timer.left or timer.ticks):
                found.append("armed timers")
    for record in manifest.processes:
        kept = record.services.get(posix_timers.PosixTimerService.name)
        if kept is not None:
            timers = msgspec.msgpack.decode(kept, type=posix_timers.Timers).timers
            if any(timer.clock in _MONOTONIC and timer.left for timer in timers):
                found.append("armed timers")
        for thread in record.threads:
            if waits_until(Regs.from_buffer_copy(thread.cpu.regs)):
                found.append("a wait until a moment of that clock")
    return found


def waits_until(regs: Regs) -> bool:
    """Is a thread in a system call that waits until an absolute moment of the monotonic or the boot clock?

    Relative waits go on with what was left of them, whatever the clock says.
    """
    if regs.orig_rax >> 63:
        return False
    if regs.orig_rax == NR.clock_nanosleep:
        return regs.rdi in _MONOTONIC and bool(regs.rsi & 1)
    if regs.orig_rax == NR.futex:
        command = regs.rsi & 0x7F & ~0x80
        return command in (9, 11) and not regs.rsi & 0x100 and regs.r10 != 0  # WAIT_BITSET, WAIT_REQUEUE_PI
    return regs.orig_rax == 449 and regs.r10 != 0 and regs.r8 in _MONOTONIC  # futex_waitv
