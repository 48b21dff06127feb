"""The process and thread services: what can be decided without a kernel."""

from __future__ import annotations

import os
import struct
from typing import Any

import msgspec
import pytest

from torpor.linux import capability, prctl, sched, siginfo
from torpor.linux.arch.x86_64 import NR, name_of
from torpor.model.errors import RestartFailed
from torpor.posix import identity, limits, memory_policy, posix_timers, scheduling
from torpor.posix.dispositions import Dispositions, DispositionService
from torpor.posix.identity import Identity, Room
from torpor.posix.itimers import Itimer, settle
from torpor.posix.posix_timers import Listed, Timer
from torpor.posix.process_services import PROCESS_SERVICES, THREAD_SERVICES
from torpor.posix.service import Stage
from torpor.tracee.call import Call, In

FULL = (1 << 41) - 1
TIMERS = """\
ID: 3
signal: 60/00007fff86e452a8
notify: signal/tid.2635
ClockID: 1
ID: 0
signal: 14/0000000000000000
notify: none/pid.2634
ClockID: -6
"""


class Stub:
    """A recreated process as far as `restore` looks at it."""

    pid = vpid = 77
    status = {"SigIgn": "0000000000001000", "SigCgt": f"{1 << 39:016x}"}


def test_every_record_survives_the_manifest() -> None:
    names = [service.name for service in PROCESS_SERVICES] + [service.name for service in THREAD_SERVICES]
    assert len(names) == len(set(names))
    services: list[Any] = [*PROCESS_SERVICES, *THREAD_SERVICES]
    for service in services:
        assert issubclass(service.record, msgspec.Struct)
        msgspec.msgpack.Decoder(service.record)  # every field has a type the manifest can hold


def test_dispositions_set_what_differs() -> None:
    action = struct.pack("<QQQQ", 0x1234, 0x4000000, 0x5678, 1)
    stub: Any = Stub()
    steps = DispositionService().restore(Dispositions({10: action, 45: action}), stub)
    calls = steps[Stage.PROCESS]
    given = {c.args[0]: c.args[1] for c in calls}
    assert given[10] == given[45] == In(action)
    assert given[2] == In(bytes(32)) and given[40] == In(bytes(32))
    assert 9 not in given and 19 not in given and 50 not in given


def test_an_itimer_that_expired_meanwhile_expires_again() -> None:
    assert settle(Itimer(5000, 0), 4999) == Itimer(5000, 0)
    assert settle(Itimer(5000, 0), 5000) == Itimer(1, 0)
    assert settle(Itimer(0, 100), 0) == Itimer(1, 100)
    assert settle(Itimer(0, 0), 100) == Itimer(0, 0)


def test_the_list_of_posix_timers() -> None:
    assert posix_timers.parse(TIMERS) == [
        Listed(0, 14, 0, posix_timers.SIGEV_NONE, 0, -6),
        Listed(3, 60, 0x7FFF86E452A8, posix_timers.SIGEV_THREAD_ID, 2635, 1),
    ]
    assert posix_timers.parse("") == []


def timer(number: int, **changes: Any) -> Timer:
    plain = Timer(number, 1, 0, 0, 0, 14, 0, 10, 0, False)
    return msgspec.structs.replace(plain, **changes)


def test_ids_of_timers_by_counting_up() -> None:
    calls = posix_timers.creation([timer(0), timer(3)], 77, False)
    assert calls is not None
    made = 0
    live: set[Any] = set()
    for c in calls:
        if c.nr == NR.timer_create:
            live.add(made)
            made += 1
        elif c.nr == NR.timer_delete:
            live.remove(c.args[0])
    assert live == {0, 3}
    assert posix_timers.creation([timer(posix_timers.LONGEST_GAP + 1)], 77, False) is None
    assert posix_timers.creation([timer(posix_timers.LONGEST_GAP)], 77, False) is not None


def test_ids_of_timers_by_asking() -> None:
    calls = posix_timers.creation([timer(0), timer(1_000_000)], 77, True)
    assert calls is not None
    assert [c.nr for c in calls] == [157, 222, 222, 157, 225, 225]
    assert calls[2].args[2] == In(struct.pack("<i", 1_000_000))
    assert calls[0].args[:2] == (prctl.TIMER_CREATE_RESTORE_IDS, prctl.TIMER_IDS_ON)


def test_what_is_left_of_a_timer() -> None:
    # left, interval, signal in the queue, time between the two looks, does the kernel drop stale signals
    assert posix_timers.settle(50, 0, False, 100, True) == (50, False)
    assert posix_timers.settle(0, 0, True, 100, True) == (0, True)
    assert posix_timers.settle(50, 0, True, 100, True) == (0, True)  # expired in between
    assert posix_timers.settle(500, 0, True, 100, True) == (
        500,
        False,
    )  # set again: the old signal is dropped
    assert posix_timers.settle(500, 0, True, 100, False) == (500, True)
    assert posix_timers.settle(500, 1000, True, 100, True) == (500, True)


def test_arming_a_timer() -> None:
    assert posix_timers.arming([timer(1, left=0)], 77) == []
    (c,) = posix_timers.arming([timer(1, left=0, waiting=True)], 77)
    assert c.args[2] == In(struct.pack("<qqqq", 0, 0, 0, 1))
    queue, arm = posix_timers.arming([timer(1, clock=-6, left=7, interval=9, waiting=True)], 77)
    assert queue.nr == 129 and isinstance(queue.args[2], In) and siginfo.timer(queue.args[2].data) == 1
    assert arm.args[2] == In(struct.pack("<qqqq", 0, 9, 0, 7))
    (queue,) = posix_timers.arming([timer(1, clock=-2, target=78, left=0, waiting=True)], 77)
    assert queue.nr == NR.rt_tgsigqueueinfo and queue.args[:2] == (77, 78)


def test_whose_cpu_time_a_timer_counts() -> None:
    vtids = {1000: 10, 1001: 11}
    own = Listed(0, 14, 0, posix_timers.SIGEV_SIGNAL, 0, -6)
    assert posix_timers.whose(own, 10, vtids) == 0
    of_thread = own._replace(clock=-2)
    with pytest.raises(ValueError):
        posix_timers.whose(of_thread, 10, vtids)
    assert posix_timers.whose(of_thread, 10, {1000: 10}) == 10
    notified = of_thread._replace(notify=posix_timers.SIGEV_THREAD_ID, target=1001)
    assert posix_timers.whose(notified, 10, vtids) == 11
    named = own._replace(clock=(~11 << 3) | 6)
    assert posix_timers.whose(named, 10, vtids) == 0
    with pytest.raises(ValueError):
        posix_timers.whose(own._replace(clock=(~4711 << 3) | 2), 10, vtids)


def test_limits_are_read() -> None:
    import resource

    parsed = limits.parse(open("/proc/self/limits").read())
    for number in range(16):
        assert parsed.limits[number] == resource.prlimit(0, number)
    assert limits.above(limits.INFINITY, 5) and not limits.above(5, limits.INFINITY)


def person(**changes: Any) -> Identity:
    plain = Identity((1000,) * 4, (1000,) * 4, (4, 27, 1000), 0, 0, 0, FULL, 0, False)
    return msgspec.structs.replace(plain, **changes)


ROOT = person(uids=(0,) * 4, gids=(0,) * 4, groups=(0,), permitted=FULL, effective=FULL)
ANYONE = Room(lambda number: number, lambda number: number, True)
ALONE = Room({1000: 1000}.get, {1000: 1000}.get, False)


def options(calls: list[Call]) -> list[Any]:
    return [c.args[0] if c.nr == NR.prctl else name_of(c.nr) for c in calls]


def test_an_ordinary_user_needs_no_privilege() -> None:
    calls = identity.plan(person(), person(), ANYONE, "thread 1")
    assert options(calls) == [prctl.SET_DUMPABLE]


def test_in_a_user_namespace_capabilities_are_dropped() -> None:
    now = person(permitted=FULL, effective=FULL)
    calls = identity.plan(person(no_new_privs=True, dumpable=0), now, ALONE, "thread 1")
    assert options(calls) == ["capset", prctl.SET_NO_NEW_PRIVS, prctl.SET_DUMPABLE]
    assert calls[0].args[1] == In(capability.data(0, 0, 0))
    assert calls[-1].args[1] == 0


def test_root_becomes_a_user() -> None:
    saved = person(ambient=1 << 10, permitted=1 << 10, effective=1 << 10, inheritable=1 << 10, bounding=FULL >> 1)
    calls = identity.plan(saved, ROOT, ANYONE, "thread 1")
    assert options(calls) == [
        prctl.SET_SECUREBITS, "setgroups", "setresgid", "setresuid", "capset", prctl.CAP_AMBIENT,
        prctl.CAP_AMBIENT, prctl.CAPBSET_DROP, prctl.SET_SECUREBITS, "capset", prctl.SET_DUMPABLE,
    ]  # fmt: skip
    # Whatever is given up is given up last.
    assert calls[4].args[1] == In(capability.data(FULL, FULL, 1 << 10))


@pytest.mark.parametrize(
    ("saved", "now", "room", "word"),
    [
        (ROOT, person(permitted=FULL, effective=FULL), ALONE, "supplementary groups"),
        (
            person(uids=(0,) * 4),
            person(permitted=FULL, effective=FULL),
            ALONE,
            "does not exist in a user namespace",
        ),
        (person(uids=(1001,) * 4), person(), ANYONE, "ran as user 1001"),
        (person(permitted=1 << 21), person(), ANYONE, "cap_sys_admin"),
        (person(), person(no_new_privs=True), ANYONE, "no_new_privs"),
        (person(bounding=0), person(), ANYONE, "barred"),
        (person(securebits=1), person(), ANYONE, "securebits"),
    ],
)
def test_what_cannot_be_brought_back_is_said(saved: Identity, now: Identity, room: Room, word: str) -> None:
    with pytest.raises(RestartFailed, match=word) as caught:
        identity.plan(saved, now, room, "thread 7")
    assert str(caught.value).startswith("thread 7 ")


def test_a_smaller_bounding_set_is_let_pass() -> None:
    assert options(identity.plan(person(), person(bounding=0xFF), ANYONE, "")) == [prctl.SET_DUMPABLE]


def test_ids_of_a_user_namespace() -> None:
    inner = identity.mapping("         0       1000          1\n      1     100000      65536\n")
    assert [inner(n) for n in (1000, 100005, 5)] == [0, 6, None]


ATTR = sched.Attr(0, 0, 0, 0, 2_800_000, 0, 0, 0, 0)
PLAIN = scheduling.Scheduling(0, 0, 0, 0, 0, 0, 0, 0, 0, (0, 1), False, True, 0, 50000)


def test_scheduling_sets_what_differs() -> None:
    assert scheduling.setting(PLAIN, ATTR) is None
    wanted = scheduling.setting(msgspec.structs.replace(PLAIN, policy=sched.BATCH, nice=5), ATTR)
    assert wanted == sched.Attr(sched.BATCH, 0, 5, 0, 0, 0, 0, 0, 0)
    wanted = scheduling.setting(msgspec.structs.replace(PLAIN, policy=sched.FIFO, priority=7, flags=1), ATTR)
    assert wanted == sched.Attr(sched.FIFO, 1, 0, 7, 0, 0, 0, 0, 0)
    wanted = scheduling.setting(PLAIN, ATTR._replace(policy=sched.FIFO, priority=7, runtime=0))
    assert wanted == sched.Attr(0, 0, 0, 0, 0, 0, 0, 0, 0)
    wanted = scheduling.setting(msgspec.structs.replace(PLAIN, runtime=100_000), ATTR)
    assert wanted == ATTR._replace(runtime=100_000)


def test_processors() -> None:
    bound = msgspec.structs.replace(PLAIN, processors=(0,), bound=True, inherited=False)
    assert scheduling.processors(PLAIN, frozenset({0})) == frozenset()
    assert scheduling.processors(bound, frozenset({0, 1})) == {0}
    assert scheduling.processors(bound, frozenset({0})) == frozenset()
    given = msgspec.structs.replace(bound, processors=(0, 1), inherited=True)
    assert scheduling.processors(given, frozenset({1, 2, 3})) == frozenset()
    assert scheduling.processors(given, frozenset({0, 1, 2})) == {0, 1}


def test_nodes_that_are_missing_are_left_out() -> None:
    assert memory_policy.fit(memory_policy.MemoryPolicy(3, 0b1110), 0b0011) == (3, 0b0010)
    assert memory_policy.fit(memory_policy.MemoryPolicy(2, 0b1000), 0b0011) == (0, 0)
    assert memory_policy.fit(memory_policy.MemoryPolicy(4, 0), 0b0011) == (4, 0)


def test_siginfo() -> None:
    info = siginfo.of_timer(34, 5, 2**64 - 1)
    assert (len(info), siginfo.number(info), siginfo.code(info), siginfo.timer(info)) == (128, 34, -2, 5)
    assert siginfo.timer(siginfo.bare(14)) == -1


def test_names_of_capabilities() -> None:
    assert capability.names(1 << 21 | 1 << 0) == "cap_chown, cap_sys_admin"
    assert len(capability.NAMES) == 41
    assert capability.names(1 << 60) == "capability 60"
    assert os.sysconf("SC_NPROCESSORS_ONLN") == sched.online()
