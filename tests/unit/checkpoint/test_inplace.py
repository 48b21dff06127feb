"""What of a restart in place can be decided without a kernel."""

from __future__ import annotations

import msgspec
import pytest

from torpor.checkpoint import inplace
from torpor.checkpoint.plan import plan
from torpor.image.manifest import ClockRecord, MachineRecord, Manifest, ObjectRecord, ProcessRecord
from torpor.linux.arch.x86_64 import NR
from torpor.linux.pidwalk import NEVER, distance
from torpor.linux.ptrace import Regs
from torpor.posix import timerfd

END = 32768


def process(pid: int, parent: int, outside: bool = False, pgid: int = 0, sid: int = 50) -> ProcessRecord:
    return ProcessRecord(
        pid=pid, parent=parent, outside=outside, pgid=pgid or pid, sid=sid, comm=f"p{pid}", state="running"
    )


def manifest(*processes: ProcessRecord, objects: tuple[ObjectRecord, ...] = (), boot: str = "b") -> Manifest:
    machine = MachineRecord(host="h", kernel="k", arch="x", boot=boot, cpu=(), xsave=0, uid=0, gid=0)
    return Manifest(
        job="j", created=0, torpor="0", machine=machine, clocks=ClockRecord(0, 1000, 1000), root=processes[0].pid,
        parent_is_reaper=True, processes=processes, objects=objects, memory=(), files=(),
    )  # fmt: skip


def test_distance() -> None:
    assert distance(1000, 1001, END) == 1
    assert distance(END - 1, 300, END) == 1
    assert distance(1001, 1000, END) == END - 1001 + 700
    assert distance(1001, 299, END) >= NEVER
    assert distance(10, 20, END) == 10
    assert distance(10, END, END) >= NEVER


def test_one_round_for_a_tree() -> None:
    tree = manifest(process(1000, 900, outside=True), process(1010, 1000), process(1005, 1010), process(1020, 1000))
    births = plan(tree, False, lambda _: False, any_number=True)
    assert inplace.steps(births, (), 999, END) == 21 + (END - 1020 + 705)
    straight = manifest(process(1000, 900, outside=True), process(1010, 1000), process(1012, 1010), process(1011, 1000))
    births = plan(straight, False, lambda _: False, any_number=True)
    assert inplace.steps(births, (1013, 1015), 999, END) == 16


def test_stand_ins_only_where_numbers_are_free() -> None:
    job = manifest(process(1000, 900, outside=True, pgid=800, sid=700))
    assert plan(job, False).numbers() == {1000, 900, 800, 700}
    births = plan(job, False, lambda number: number != 900)
    assert births.numbers() == {1000, 800, 700}
    assert births.parent is births.init and births.init.watches == 1000
    assert plan(job, False, lambda _: False).numbers() == {1000}


def test_a_session_whose_number_is_taken_is_our_own() -> None:
    job = manifest(process(1000, 900, outside=True), process(1001, 1, outside=True, sid=60))
    births = plan(job, False, lambda number: number != 60, any_number=True)
    assert not any(helper.setsid for helper in births.helpers())
    assert {60} < plan(job, False).numbers()


def test_the_clock() -> None:
    job = manifest(process(1000, 900, outside=True))
    assert inplace.clock_jump(job, ClockRecord(0, 2000, 2000), "b") == ""
    assert "booted" in inplace.clock_jump(job, ClockRecord(0, 2000, 2000), "other")
    assert "ahead" in inplace.clock_jump(job, ClockRecord(0, 500, 500), "b")


@pytest.mark.parametrize(("clock", "left", "found"), [(1, 5, True), (0, 5, False), (1, 0, False)])
def test_timers_hang_on_a_clock(clock: int, left: int, found: bool) -> None:
    timer = timerfd.Timer(0, clock, 0, left, left, 0, 0)
    thing = ObjectRecord(timerfd.SERVICE.name, msgspec.Raw(msgspec.msgpack.encode(timer)))
    job = manifest(process(1000, 900, outside=True), objects=(thing,))
    assert bool(inplace.monotonic_state(job)) == found


def test_waits() -> None:
    def regs(nr: int, **values: int) -> Regs:
        made = Regs()
        made.orig_rax = nr
        for name, value in values.items():
            setattr(made, name, value)
        return made

    assert inplace.waits_until(regs(NR.clock_nanosleep, rdi=1, rsi=1))
    assert not inplace.waits_until(regs(NR.clock_nanosleep, rdi=1, rsi=0))
    assert not inplace.waits_until(regs(NR.clock_nanosleep, rdi=0, rsi=1))
    assert inplace.waits_until(regs(NR.futex, rsi=9 | 0x80, r10=4096))
    assert not inplace.waits_until(regs(NR.futex, rsi=9 | 0x80 | 0x100, r10=4096))
    assert not inplace.waits_until(regs(NR.futex, rsi=9, r10=0))
    assert not inplace.waits_until(regs((1 << 64) - 1))
