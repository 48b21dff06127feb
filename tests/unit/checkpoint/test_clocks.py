"""What of a job hangs on its monotonic clock, and when that does not go on."""

from __future__ import annotations

import msgspec
import pytest

from torpor.checkpoint.clocks import clock_jump, monotonic_state, waits_until
from torpor.image.manifest import ClockRecord, MachineRecord, Manifest, ObjectRecord
from torpor.linux.arch.x86_64 import NR
from torpor.linux.ptrace import Regs
from torpor.posix import timerfd


def manifest(*objects: ObjectRecord) -> Manifest:
    machine = MachineRecord(host="h", kernel="k", arch="x", boot="b", cpu=(), xsave=0, uid=0, gid=0)
    return Manifest(
        job="j", created=0, torpor="0", machine=machine, clocks=ClockRecord(0, 1000, 1000), root=1000,
        parent_is_reaper=True, processes=(), objects=objects, memory=(), files=(),
    )  # fmt: skip


def test_the_clock() -> None:
    job = manifest()
    assert clock_jump(job, ClockRecord(0, 2000, 2000), "b") == ""
    assert "booted" in clock_jump(job, ClockRecord(0, 2000, 2000), "other")
    assert "ahead" in clock_jump(job, ClockRecord(0, 500, 500), "b")


@pytest.mark.parametrize(("clock", "left", "found"), [(1, 5, True), (0, 5, False), (1, 0, False)])
def test_timers_hang_on_a_clock(clock: int, left: int, found: bool) -> None:
    timer = timerfd.Timer(0, clock, 0, left, left, 0, 0)
    thing = ObjectRecord(timerfd.SERVICE.name, msgspec.Raw(msgspec.msgpack.encode(timer)))
    job = manifest(thing)
    assert bool(monotonic_state(job)) == found


def test_waits() -> None:
    def regs(nr: int, **values: int) -> Regs:
        made = Regs()
        made.orig_rax = nr
        for name, value in values.items():
            setattr(made, name, value)
        return made

    assert waits_until(regs(NR.clock_nanosleep, rdi=1, rsi=1))
    assert not waits_until(regs(NR.clock_nanosleep, rdi=1, rsi=0))
    assert not waits_until(regs(NR.clock_nanosleep, rdi=0, rsi=1))
    assert waits_until(regs(NR.futex, rsi=9 | 0x80, r10=4096))
    assert not waits_until(regs(NR.futex, rsi=9 | 0x80 | 0x100, r10=4096))
    assert not waits_until(regs(NR.futex, rsi=9, r10=0))
    assert not waits_until(regs((1 << 64) - 1))
