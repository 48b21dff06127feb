"""May a job be copied? The decision, and what it is made from."""

from __future__ import annotations

import mmap
import os

from torpor.checkpoint import headroom
from torpor.checkpoint.headroom import Process, lacking
from torpor.linux.cgroup import Limit

GIB = 1 << 30
ROOMY = Limit("", 64 * GIB, 60 * GIB)


def job(private: int, *memory: Limit, tasks: tuple[Limit, ...] = (), count: int = 1) -> list[Process]:
    return [Process(private, memory, tasks)] * count


def test_what_has_room_may_be_copied() -> None:
    assert lacking(job(GIB), ROOMY) == ""
    assert lacking(job(GIB, Limit("/g", 4 * GIB, 2 * GIB), tasks=(Limit("/g", 100, 50),)), ROOMY) == ""


def test_a_machine_without_room() -> None:
    assert "the memory of this machine leaves 512 MiB" in lacking(job(GIB), Limit("", 2 * GIB, GIB // 2))


def test_every_group_up_to_the_root_counts() -> None:
    for groups in ((Limit("/a/b", 2 * GIB, GIB), Limit("/a", 9 * GIB, 8 * GIB)), (Limit("/a", GIB, GIB // 2),)):
        assert f"the memory limit of {groups[0].group} leaves" in lacking(job(GIB, *groups), ROOMY)


def test_processes_of_a_group_are_added_up() -> None:
    group = Limit("/g", 4 * GIB, GIB)
    assert lacking(job(GIB // 8, group, count=7), ROOMY) == ""
    assert lacking(job(GIB // 8, group, count=8), ROOMY) != ""


def test_page_tables_and_some_room_for_others_count() -> None:
    assert lacking(job(GIB, Limit("/g", 4 * GIB, GIB + headroom.SPARE)), ROOMY) != ""
    assert lacking(job(GIB, Limit("/g", 4 * GIB, GIB + headroom.SPARE + GIB // 512)), ROOMY) == ""


def test_limits_of_tasks() -> None:
    few = Limit("/g", 100, 2 * 10 + headroom.SPARE_TASKS)
    assert lacking(job(0, tasks=(few,), count=10), ROOMY) == ""
    assert "the limit of tasks of /g leaves 28, and copies need 22" in lacking(job(0, tasks=(few,), count=11), ROOMY)


def test_a_group_over_its_limit_leaves_nothing() -> None:
    assert "leaves 0 MiB" in lacking(job(GIB, Limit("/g", GIB, -5)), ROOMY)


def test_a_look_at_ourselves() -> None:
    (found,) = headroom.look([os.getpid(), 2**22 + 1])
    assert 1 << 20 < found.private < 4 * GIB
    assert all(limit.free <= limit.most for limit in (*found.memory, *found.tasks))
    whole = headroom.machine()
    assert 0 < whole.free <= whole.most


def test_what_copies_may_still_need_is_what_is_shared_with_them() -> None:
    size = 16 << 20
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
    room.write(b"x" * size)
    said, say = os.pipe()
    child = os.fork()
    if not child:
        os.read(said, 1)
        os._exit(0)
    try:
        (whole,) = headroom.left([child])
        assert size <= whole.private
        room.seek(0)
        room.write(b"y" * (size // 2))
        (half,) = headroom.left([child])
        assert whole.private - half.private > size // 4  # whatever else these tests write to meanwhile
    finally:
        os.write(say, b"x")
        os.waitpid(child, 0)
        os.close(said)
        os.close(say)
        room.close()
    assert headroom.left([2**22 + 1]) == []
