"""What of a restart in place can be decided without a kernel."""

from __future__ import annotations

from torpor.checkpoint.inplace_plan import steps
from torpor.checkpoint.plan import plan
from torpor.image.manifest import ClockRecord, MachineRecord, Manifest, ProcessRecord

END = 32768


def process(pid: int, parent: int, outside: bool = False, pgid: int = 0, sid: int = 50) -> ProcessRecord:
    return ProcessRecord(
        pid=pid, parent=parent, outside=outside, pgid=pgid or pid, sid=sid, comm=f"p{pid}", state="running"
    )


def manifest(*processes: ProcessRecord) -> Manifest:
    machine = MachineRecord(host="h", kernel="k", arch="x", boot="b", cpu=(), xsave=0, uid=0, gid=0)
    return Manifest(
        job="j", created=0, torpor="0", machine=machine, clocks=ClockRecord(0, 1000, 1000), root=processes[0].pid,
        parent_is_reaper=True, processes=processes, objects=(), memory=(), files=(),
    )  # fmt: skip


def test_one_round_for_a_tree() -> None:
    tree = manifest(process(1000, 900, outside=True), process(1010, 1000), process(1005, 1010), process(1020, 1000))
    births = plan(tree, False, lambda _: False, any_number=True)
    assert steps(births, (), 999, END) == 21 + (END - 1020 + 705)
    straight = manifest(process(1000, 900, outside=True), process(1010, 1000), process(1012, 1010), process(1011, 1000))
    births = plan(straight, False, lambda _: False, any_number=True)
    assert steps(births, (1013, 1015), 999, END) == 16


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
