"""The process and thread services against the real kernel: what one process captures, another restores, and
captured there again it is the same. Calls are carried out by the processes themselves (proc_executor)."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest
from proc_executor import Executor, FakeTask, capture, restore

from torpor.linux import membarrier as membarriers
from torpor.linux import prctl, proc, sched, siginfo
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.model.errors import Refused, RestartFailed
from torpor.posix import obstacles as whole
from torpor.posix import posix_timers, seccomp_filters
from torpor.posix.dispositions import DispositionService
from torpor.posix.identity import IdentityService
from torpor.posix.itimers import ItimerService
from torpor.posix.limits import LimitService
from torpor.posix.membarrier import MembarrierService
from torpor.posix.memory_policy import MemoryPolicyService
from torpor.posix.modes import ModeService
from torpor.posix.name import NameService
from torpor.posix.obstacles import Seen
from torpor.posix.oom import OomService
from torpor.posix.pdeath import ParentDeathService
from torpor.posix.pending import PendingService
from torpor.posix.personality import PersonalityService
from torpor.posix.posix_timers import PosixTimerService
from torpor.posix.prctls import PrctlService
from torpor.posix.process_services import PROCESS_SERVICES, THREAD_SERVICES
from torpor.posix.scheduling import SchedulingService
from torpor.posix.thread_signals import ThreadSignalService
from torpor.posix.tid_address import TidAddressService
from torpor.posix.workdir import WorkdirService
from torpor.tracee.call import Call, In, Out, call

root = pytest.mark.skipif(os.geteuid() != 0, reason="changes users, which needs root")
USER = 12345


@pytest.fixture
def old() -> Iterator[Executor]:
    with Executor(threads=2) as process:
        yield process


@pytest.fixture
def new() -> Iterator[Executor]:
    with Executor(threads=2) as process:
        yield process


def carry(service: Any, old: Any, new: Any) -> tuple[Any, Any]:
    """The record of `old`, brought back in `new`; both records, the first through msgpack."""
    record = capture(service, old)
    raw = msgspec.msgpack.encode(record)
    restore(service, msgspec.msgpack.decode(raw, type=service.record), new)
    return record, capture(service, new)


def prctl_call(option: int, *args: Any) -> Call:
    return call(NR.prctl, option, *args, *[0] * (4 - len(args)))


def test_dispositions(old: Executor, new: Executor) -> None:
    odd = struct.pack("<QQQQ", 0x1000, 0x0C000000 | 0x40000000, 0x2000, 0x8000_0000_0000_0001)
    old.run([call(NR.rt_sigaction, n, In(odd), 0, 8) for n in (1, 17, 33, 64)])
    old.run([call(NR.rt_sigaction, 13, In(struct.pack("<QQQQ", 1, 0, 0, 0)), 0, 8)])
    new.run([call(NR.rt_sigaction, n, In(odd), 0, 8) for n in (5, 40)])
    one, two = carry(DispositionService(), old, new)
    assert one == two
    assert all(one.actions[n] == odd for n in (1, 17, 33, 64)) and 40 not in one.actions
    assert one.actions[13][:8] == b"\1".ljust(8, b"\0")


def queue(pid: int, tid: int, number: int, code: int, value: int) -> Call:
    info = struct.pack("<iii4xiiQ", number, 0, code, 4711, 42, value).ljust(128, b"\0")
    if tid:
        return call(NR.rt_tgsigqueueinfo, pid, tid, number, In(info))
    return call(129, pid, number, In(info))


def test_pending_signals(old: Executor, new: Executor) -> None:
    for number, code, value in ((40, -1, 1), (10, 0, 2), (40, -1, 3), (34, -3, 4), (17, 5, 5), (18, -6, 6)):
        old.run([queue(old.pid, 0, number, code, value)])
    one, two = carry(PendingService(), old, new)
    assert one == two
    assert [siginfo.number(i) for i in one.signals] == [40, 10, 40, 34, 17, 18]
    assert one.signals[0][16:32] == struct.pack("<iiQ", 4711, 42, 1)


def test_nothing_pending_leaves_no_record(old: Executor) -> None:
    assert capture(PendingService(), old) is None
    assert capture(ItimerService(), old) is None
    assert capture(PosixTimerService(), old) is None


@pytest.mark.parametrize("place", [0, 1])
def test_signals_of_a_thread(old: Executor, new: Executor, place: int) -> None:
    task = old.tasks[place]
    stack = struct.pack("<QI4xQ", 0x10000000, 1 << 31, 65536)
    task.run([call(NR.sigaltstack, In(stack), 0)])
    for number, code, value in ((50, -1, 1), (12, 0, 2), (50, -6, 3), (49, 0x80, 4)):
        task.run([queue(old.pid, task.tid, number, code, value)])
    one, two = carry(ThreadSignalService(), task, new.tasks[place])
    assert one == two
    assert one.stack == (0x10000000, 1 << 31, 65536)
    assert [siginfo.number(i) for i in one.signals] == [50, 12, 50, 49]
    assert capture(PendingService(), new) is None


def test_no_alternate_stack(old: Executor, new: Executor) -> None:
    new.run([call(NR.sigaltstack, In(struct.pack("<QI4xQ", 0x10000000, 0, 65536)), 0)])
    old.run([call(NR.sigaltstack, In(struct.pack("<QI4xQ", 0, 2, 0)), 0)])
    one, two = carry(ThreadSignalService(), old.leader, new.leader)
    assert one == two and one.stack == (0, 0, 0)


def test_itimers(old: Executor, new: Executor) -> None:
    for kind in range(3):
        old.run([call(NR.setitimer, kind, In(struct.pack("<qqqq", 7 + kind, 5, 100 + kind, 3)), 0)])
    one, two = carry(ItimerService(), old, new)
    for kind in range(3):
        assert two.timers[kind].interval == one.timers[kind].interval == (7 + kind) * 1_000_000 + 5
        # The kernel adds a tick to the CPU timers when they are set.
        assert -10_000 <= one.timers[kind].value - two.timers[kind].value < 5_000_000


@pytest.mark.parametrize("interval", [0, 3600])
def test_an_alarm_that_waits(old: Executor, new: Executor, interval: int) -> None:
    old.run([call(NR.setitimer, 0, In(struct.pack("<qqqq", interval, 0, 0, 1)), 0)])
    time.sleep(0.01)
    pending, timers = capture(PendingService(), old), capture(ItimerService(), old)
    assert [siginfo.number(i) for i in pending.signals] == [signal.SIGALRM]
    restore(PendingService(), pending, new)
    if interval:
        assert timers.timers[0].value == 1
        restore(ItimerService(), timers, new)
    else:
        assert timers is None
    time.sleep(0.01)
    assert capture(PendingService(), new) == pending
    assert capture(ItimerService(), new) == timers


def test_an_alarm_between_the_two_looks(old: Executor, new: Executor) -> None:
    service = ItimerService()
    old.run([call(NR.setitimer, 0, In(struct.pack("<qqqq", 0, 0, 0, 300_000)), 0)])
    answers = old.run(service.ask(old))  # type: ignore[arg-type]
    time.sleep(0.4)
    old.peeked = time.clock_gettime_ns(time.CLOCK_REALTIME)
    record = service.capture(old, answers)  # type: ignore[arg-type]
    assert record is not None and record.timers[0].value == 1
    restore(service, record, new)
    time.sleep(0.01)
    infos = capture(PendingService(), new)
    assert [siginfo.number(i) for i in infos.signals] == [signal.SIGALRM]


def make_timer(clock: int, notify: int, number: int = 34, value: int = 0, tid: int = 0) -> Call:
    event = struct.pack("<Qiii", value, number, notify, tid).ljust(64, b"\0")
    return call(NR.timer_create, clock, In(event), Out(4))


def arm(timer: int, left: float, interval: float = 0) -> Call:
    times = [*divmod(int(interval * 1e9), 10**9), *divmod(int(left * 1e9), 10**9)]
    return call(NR.timer_settime, timer, 0, In(struct.pack("<qqqq", *times)), 0)


@pytest.mark.parametrize("chosen", [True, False])
def test_posix_timers(old: Executor, new: Executor, chosen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not chosen:
        monkeypatch.setattr(prctl, "can_choose_timer_ids", lambda: False)
    other = old.tasks[1].tid
    old.run([make_timer(1, 1) for _ in range(9)])
    old.run(
        [
            make_timer(0, 0, 40, 0xFFFF_0000_1234_5678),  # 9
            make_timer(1, 4, 41, 7, other),  # 10
            make_timer(7, 1),  # 11
            make_timer(2, 0),  # 12: the process' CPU time
            make_timer(3, 4, 42, 8, old.pid),  # 13: the first thread's CPU time
            make_timer((~other << 3) | 6, 4, 42, 8, other),  # 14: the other's
            make_timer(1, 2, 35),  # 15
            call(NR.timer_create, 1, 0, Out(4)),  # 16: no sigevent
        ]
    )
    old.run([call(NR.timer_delete, n) for n in range(9) if n != 3])
    old.run([arm(9, 1000, 5), arm(10, 2000), arm(12, 300), arm(13, 400, 1), arm(14, 500), arm(16, 600)])
    one = capture(PosixTimerService(), old)
    # In real life the new process' threads have the old numbers.
    there = {old.pid: new.pid, other: new.tasks[1].tid}
    moved = []
    for timer in one.timers:
        clock = (~there[other] << 3) | 6 if timer.id == 14 else timer.clock
        target, owner = there.get(timer.target, 0), there.get(timer.owner, 0)
        moved.append(msgspec.structs.replace(timer, target=target, owner=owner, clock=clock))
    restore(PosixTimerService(), posix_timers.Timers(tuple(moved)), new)
    two = capture(PosixTimerService(), new)
    assert [timer.id for timer in two.timers] == [3, *range(9, 17)]
    for a, b in zip(moved, two.timers):
        assert 0 <= a.left - b.left < 5e9
        assert msgspec.structs.replace(a, left=0) == msgspec.structs.replace(b, left=0)
    assert one.timers[1].value == 0xFFFF_0000_1234_5678
    assert [timer.owner for timer in one.timers if timer.owner] == [old.pid]
    # And the next one is beyond them.
    (answer,) = new.run([make_timer(1, 1)])
    assert int.from_bytes(answer.outs[0], "little") == 17


def test_the_cpu_time_of_another_thread(old: Executor, new: Executor) -> None:
    old.tasks[1].run([make_timer(3, 4, 42, 8, old.tasks[1].tid), arm(0, 100)])
    one = capture(PosixTimerService(), old)
    (timer,) = one.timers
    assert timer.owner == timer.target == old.tasks[1].tid
    there = new.tasks[1].tid
    moved = msgspec.structs.replace(timer, owner=there, target=there)
    restore(PosixTimerService(), posix_timers.Timers((moved,)), new)
    (two,) = capture(PosixTimerService(), new).timers
    assert two.clock == (~there << 3) | 6 and two.left > 95e9


@pytest.mark.parametrize("interval", [0, 1000])
@pytest.mark.parametrize("threaded", [False, True])
def test_a_posix_timer_whose_signal_waits(old: Executor, new: Executor, interval: int, threaded: bool) -> None:
    tid = old.tasks[1].tid
    old.run([make_timer(1, 4 if threaded else 0, 44, 99, tid if threaded else 0), arm(0, 1e-6, interval)])
    time.sleep(0.01)
    where = 1 if threaded else 0
    # The signal is the timer's business, nobody else's.
    assert capture(PendingService(), old) is None
    assert capture(ThreadSignalService(), old.tasks[where]).signals == ()
    one = capture(PosixTimerService(), old)
    (timer,) = one.timers
    assert timer.waiting and timer.interval == interval * 10**9
    moved = msgspec.structs.replace(timer, target=new.tasks[1].tid if threaded else 0)
    restore(PosixTimerService(), posix_timers.Timers((moved,)), new)
    time.sleep(0.01)
    (two,) = capture(PosixTimerService(), new).timers
    assert two.waiting and two.interval == timer.interval
    info = new.tasks[where].do(partial(signal.sigtimedwait, {44}, 0))
    assert info.si_code == siginfo.SI_TIMER
    assert new.tasks[where].do(partial(signal.sigtimedwait, {44}, 0)) is None


def test_a_timer_that_was_set_again(old: Executor) -> None:
    old.run([make_timer(1, 0, 44), arm(0, 1e-6)])
    time.sleep(0.01)
    old.run([arm(0, 1000)])
    (timer,) = capture(PosixTimerService(), old).timers
    assert timer.left > 900e9
    assert timer.waiting != posix_timers.drops_stale()
    # What the kernel does is what we say it does:
    assert (old.leader.do(partial(signal.sigtimedwait, {44}, 0)) is not None) == timer.waiting


def test_what_a_deleted_timer_left(old: Executor) -> None:
    old.run([make_timer(1, 0, 44), arm(0, 1e-6)])
    time.sleep(0.01)
    old.run([call(NR.timer_delete, 0)])
    kept = capture(PendingService(), old) is not None
    assert (old.leader.do(partial(signal.sigtimedwait, {44}, 0)) is not None) == kept


def test_limits(old: Executor, new: Executor) -> None:
    for number, value in ((7, (100, 200)), (6, (5000, 6000)), (4, (0, 0)), (3, (1 << 23, 1 << 24))):
        resource.prlimit(old.pid, number, value)
    one, two = carry(LimitService(), old, new)
    assert one == two
    assert one.limits[7] == (100, 200) and one.limits[6] == (5000, 6000)


@pytest.mark.parametrize("number", [7, 6])
def test_a_hard_limit_that_may_not_be_raised(number: int) -> None:
    with Executor(prepare=partial(become, USER)) as old, Executor(prepare=partial(become, USER)) as new:
        record = capture(LimitService(), old)
        limits = list(record.limits)
        limits[number] = (limits[number][0], limits[number][1] + 1)
        new.run([call(NR.prlimit64, 0, number, In(struct.pack("<QQ", 10, 10)), 0)])
        word = "open files" if number == 7 else "processes"
        with pytest.raises(RestartFailed, match=rf"'{word}' \("):
            in_child(partial(_restore_as, USER, LimitService(), type(record)(tuple(limits)), new))


def in_child(do: Any) -> None:
    """Run something in a process of its own that may change its user; RestartFailed comes back."""
    inlet, outlet = os.pipe()
    pid = os.fork()
    if not pid:
        said = ""
        try:
            do()
        except RestartFailed as error:
            said = str(error)
        except BaseException as error:
            said = f"!{error!r}"
        os.write(outlet, said.encode())
        os._exit(0)
    os.close(outlet)
    said = os.read(inlet, 65536).decode()
    os.close(inlet)
    os.waitpid(pid, 0)
    assert not said.startswith("!"), said
    if said:
        raise RestartFailed(said)


def _restore_as(user: int, service: Any, record: Any, owner: Any) -> None:
    become(user)
    restore(service, record, owner)


def test_working_directory_and_umask(old: Executor, new: Executor, tmp_path: Any) -> None:
    folder = os.fsencode(tmp_path) + b"/na\xffme (deleted)"
    os.mkdir(folder)
    old.run([call(NR.chdir, In(folder + b"\0")), call(NR.umask, 0o137)])
    assert list(WorkdirService().survey(old.pid)) == []
    one, two = carry(WorkdirService(), old, new)
    assert one == two and one.directory == folder and one.umask == 0o137
    os.rmdir(folder)
    with pytest.raises(RestartFailed, match="is missing"):
        restore(WorkdirService(), one, new)
    for _ in range(2):
        assert list(WorkdirService().survey(old.pid)) == []
        one, two = carry(WorkdirService(), old, new)
        assert one.removed and two.removed and one.directory == folder
        assert os.stat(f"/proc/{new.pid}/cwd").st_nlink == 0
        os.makedirs(folder, exist_ok=True)  # another one of that name
    os.rmdir(folder)


@root
def test_another_root_is_refused(tmp_path: Any) -> None:
    def prepare() -> None:
        os.chroot(tmp_path)
        os.chdir("/")

    with Executor(prepare=prepare) as process:
        (refusal,) = WorkdirService().survey(process.pid)
        assert str(tmp_path) in refusal.thing
        with pytest.raises(Refused, match=str(tmp_path)):
            capture(WorkdirService(), process)  # by which a stopped job is looked at


def test_personality(old: Executor, new: Executor) -> None:
    old.run([call(NR.personality, 0x0040000 | 0x0800000)])
    one, two = carry(PersonalityService(), old, new)
    assert one == two and one.persona == 0x0840000


def test_oom(old: Executor, new: Executor) -> None:
    with open(f"/proc/{old.pid}/oom_score_adj", "w") as file:
        file.write("345")
    one, two = carry(OomService(), old, new)
    assert one == two and one.adjustment == 345


def test_oom_that_may_not_be_lowered(old: Executor) -> None:
    with Executor(prepare=partial(become, USER)) as process:
        with open(f"/proc/{process.pid}/oom_score_adj", "w") as file:
            file.write("500")
        record = capture(OomService(), old)
        in_child(partial(_restore_as, USER, OomService(), record, process))


def test_prctls(old: Executor, new: Executor) -> None:
    old.run(
        [
            prctl_call(prctl.SET_CHILD_SUBREAPER, 1),
            prctl_call(prctl.SET_THP_DISABLE, 1),
            prctl_call(prctl.SET_MDWE, 1),
        ]
    )
    with open(f"/proc/{old.pid}/coredump_filter", "w") as file:
        file.write("0x3f")
    one, two = carry(PrctlService(), old, new)
    assert one == two
    assert (one.subreaper, one.thp_disable, one.mdwe, one.coredump_filter) == (1, 1, 1, 0x3F)


def test_prctls_are_taken_back(old: Executor, new: Executor) -> None:
    new.run([prctl_call(prctl.SET_THP_DISABLE, 1)])
    one, two = carry(PrctlService(), old, new)
    assert one == two and two.thp_disable == 0


@pytest.mark.parametrize("tells", [True, False])
def test_membarrier(old: Executor, new: Executor, tells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not tells:
        monkeypatch.setattr(membarriers, "tells", lambda: False)
    elif not membarriers.tells():
        pytest.skip("this kernel does not tell")
    assert capture(MembarrierService(), old) is None
    old.run([call(NR.membarrier, 1 << 4, 0, 0), call(NR.membarrier, 1 << 6, 0, 0)])
    one, two = carry(MembarrierService(), old, new)
    assert one == two and one.registrations == 1 << 4 | 1 << 6


def test_names(old: Executor, new: Executor) -> None:
    names = (b"\xfe\n) R (x", b"fifteen bytes!!")
    for old_task, new_task, name in zip(old.tasks, new.tasks, names):
        old_task.run([prctl_call(prctl.SET_NAME, In(name + b"\0"))])
        one, two = carry(NameService(), old_task, new_task)
        assert one == two and one.comm == name


def test_where_a_thread_reports_its_end(old: Executor, new: Executor) -> None:
    # (Of addresses that are never touched: the processes are killed.)
    for place in range(2):
        old.tasks[place].run([call(NR.set_tid_address, 0x5000 + place), call(NR.set_robust_list, 0x6000 + place, 24)])
        one, two = carry(TidAddressService(), old.tasks[place], new.tasks[place])
        assert one == two and (one.clear_tid, one.robust) == (0x5000 + place, 0x6000 + place)


def test_parent_death_signal(old: Executor, new: Executor) -> None:
    old.tasks[1].run([prctl_call(prctl.SET_PDEATHSIG, 12)])
    new.tasks[0].run([prctl_call(prctl.SET_PDEATHSIG, 9)])
    for place, number in ((0, 0), (1, 12)):
        one, two = carry(ParentDeathService(), old.tasks[place], new.tasks[place])
        assert one == two and one.signal == number


def test_modes(old: Executor, new: Executor) -> None:
    old.tasks[1].run([prctl_call(prctl.MCE_KILL, 1, 1), prctl_call(prctl.SET_TSC, 2)])
    new.tasks[0].run([prctl_call(prctl.MCE_KILL, 1, 1)])
    for place, expected in ((0, (2, 1)), (1, (1, 2))):
        one, two = carry(ModeService(), old.tasks[place], new.tasks[place])
        assert one == two and (one.mce_kill, one.tsc) == expected


def test_speculation(old: Executor, new: Executor) -> None:
    if old.run([prctl_call(prctl.GET_SPECULATION_CTRL, 0)], check=False)[0].value != 3:
        pytest.skip("this machine does not let a thread choose")
    old.run([prctl_call(prctl.SET_SPECULATION_CTRL, 0, 4)])
    one, two = carry(ModeService(), old.leader, new.leader)
    assert one == two and one.speculation[0] == 5


def test_memory_policy(old: Executor, new: Executor) -> None:
    if old.run([call(NR.set_mempolicy, 3, In(b"\1".ljust(128, b"\0")), 1025)], check=False)[0].error:
        pytest.skip("no NUMA")
    new.tasks[1].run([call(NR.set_mempolicy, 2, In(b"\1".ljust(128, b"\0")), 1025)])
    for place, expected in ((0, (3, 1)), (1, (0, 0))):
        one, two = carry(MemoryPolicyService(), old.tasks[place], new.tasks[place])
        assert one == two and (one.mode, one.nodes) == expected


def test_scheduling(old: Executor, new: Executor) -> None:
    first, second = old.tasks
    first.run([prctl_call(prctl.SET_TIMERSLACK, 123_456)])
    os.setpriority(os.PRIO_PROCESS, first.tid, 7)
    os.sched_setaffinity(first.tid, {0})
    sched.set_ioprio(first.tid, (2 << 13) | 6)
    plain = sched.getattr_of(second.tid)
    sched.setattr_of(second.tid, plain._replace(policy=sched.BATCH, nice=3, flags=1, runtime=0))
    for place in range(2):
        one, two = carry(SchedulingService(), old.tasks[place], new.tasks[place])
        assert one == two
    one = capture(SchedulingService(), first)
    assert (one.nice, one.slack, one.ioprio, one.processors) == (7, 123_456, (2 << 13) | 6, (0,))
    two = capture(SchedulingService(), second)
    assert (two.policy, two.nice, two.flags) == (sched.BATCH, 3, 1)


@root
def test_real_time(old: Executor, new: Executor) -> None:
    first, second = old.tasks
    os.setpriority(os.PRIO_PROCESS, first.tid, 4)
    sched.setattr_of(first.tid, sched.Attr(sched.FIFO, 1, 0, 3, 0, 0, 0, 0, 0))
    sched.setattr_of(second.tid, sched.Attr(sched.DEADLINE, 0, 0, 0, 10**7, 2 * 10**7, 3 * 10**7, 0, 0))
    for place in range(2):
        one, two = carry(SchedulingService(), old.tasks[place], new.tasks[place])
        assert one == two
    one = capture(SchedulingService(), new.tasks[0])
    assert (one.policy, one.priority, one.nice, one.flags) == (sched.FIFO, 3, 4, 1)


@root
def test_more_urgent_than_allowed() -> None:
    with Executor() as old, Executor(prepare=partial(become, USER)) as new:
        os.setpriority(os.PRIO_PROCESS, old.pid, -5)
        record = capture(SchedulingService(), old.leader)
        with pytest.raises(RestartFailed, match="nice value -5"):
            in_child(partial(_restore_as, USER, SchedulingService(), record, new.leader))


def become(user: int, groups: tuple[int, ...] = ()) -> None:
    """Give up being root."""
    if os.geteuid() != 0:
        return
    os.setgroups(groups)
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    syscall(NR.prctl, prctl.SET_DUMPABLE, 1, 0, 0, 0)


def in_user_namespace() -> None:
    """As an ordinary user's restart does it: only the own ids, no setgroups."""
    become(USER)
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000):
        os._exit(9)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def identities_of(old: Executor, new: Executor) -> None:
    for place in range(2):
        one, two = carry(IdentityService(), old.tasks[place], new.tasks[place])
        assert one == two
        fields = [proc.status(e.pid, e.tasks[place].tid) for e in (old, new)]
        for key in ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"):
            assert fields[0][key] == fields[1][key]


@root
def test_identity_of_root(old: Executor, new: Executor) -> None:
    identities_of(old, new)


@root
def test_identity_of_a_user(new: Executor) -> None:
    def prepare() -> None:
        become(USER, (7, 5, USER))
        syscall(NR.prctl, prctl.SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    with Executor(2, prepare) as old:
        identities_of(old, new)
        assert capture(IdentityService(), new.leader).groups == (5, 7, USER)


@root
def test_a_mixed_identity(old: Executor, new: Executor) -> None:
    """Threads that differ, ids that differ, ambient capabilities, a cut bounding set, securebits."""
    first, second = old.tasks
    first.run([call(NR.setresgid, 1, 2, 3), call(123, 4), call(NR.setresuid, 0, 11, 12), call(122, 12)])
    from torpor.linux import capability

    def capset(effective: int, permitted: int, inheritable: int) -> Call:
        data = In(capability.data(effective, permitted, inheritable))
        return call(NR.capset, In(capability.header()), data)

    # 0x14: no_setuid_fixup and keep_caps
    second.run([prctl_call(prctl.SET_SECUREBITS, 0x14), call(NR.setresuid, 21, 22, 23)])
    keep = 1 << 10 | 1 << 7
    second.run([prctl_call(prctl.CAPBSET_DROP, 38), prctl_call(prctl.CAPBSET_DROP, 39)])
    second.run([capset(keep, keep, 1 << 10), prctl_call(prctl.CAP_AMBIENT, prctl.AMBIENT_RAISE, 10)])
    second.run([capset(1 << 10, keep, 1 << 10), prctl_call(prctl.SET_DUMPABLE, 0)])
    identities_of(old, new)
    one = capture(IdentityService(), new.tasks[1])
    assert (one.ambient, one.permitted, one.effective, one.securebits) == (1 << 10, keep, 1 << 10, 0x14)
    assert one.uids == (21, 22, 23, 22) and not one.bounding >> 38 & 1 and one.dumpable == 0
    assert capture(IdentityService(), new.tasks[0]).uids == (0, 11, 12, 12)


def has_user_namespaces() -> bool:
    with Executor(prepare=in_user_namespace) as process:
        return process.leader is not None


def test_identity_in_a_user_namespace() -> None:
    try:
        has_user_namespaces()
    except EOFError:
        pytest.skip("no user namespaces here")
    with Executor(2, partial(become, USER)) as old, Executor(2, in_user_namespace) as new:
        assert int(new.status["CapEff"], 16)
        identities_of(old, new)


@root
def test_impossible_in_a_user_namespace(old: Executor) -> None:
    with Executor(2, partial(become, USER, (5,))) as other, Executor(2, in_user_namespace) as new:
        with pytest.raises(RestartFailed, match="supplementary groups 5, and here it has none"):
            restore(IdentityService(), capture(IdentityService(), other.leader), new.leader)
        record = msgspec.structs.replace(capture(IdentityService(), old.leader), groups=())
        with pytest.raises(RestartFailed, match="ran as group 0, which does not exist in a user namespace"):
            restore(IdentityService(), record, new.leader)


def obstacles(process: Executor) -> list[str]:
    found = []
    for task in process.tasks:
        seen = Seen(process.pid, task.tid, task.status)
        found += [*whole.survey(seen), *seccomp_filters.survey(seen, False)]
    return [refusal.thing for refusal in found]


def test_nothing_stands_in_the_way(old: Executor) -> None:
    assert obstacles(old) == []
    found = [refusal for service in PROCESS_SERVICES for refusal in service.survey(old.pid)]
    for task in old.tasks:
        found += [refusal for service in THREAD_SERVICES for refusal in service.survey(old.pid, task.tid, task.status)]
    assert found == []


def test_a_seccomp_filter() -> None:
    def prepare() -> None:
        syscall(NR.prctl, prctl.SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        allow = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000))
        program = ctypes.create_string_buffer(struct.pack("<H6xQ", 1, ctypes.addressof(allow)))
        syscall(NR.prctl, 22, 2, ctypes.addressof(program), 0, 0)

    with Executor(prepare=prepare) as process:
        # With the right to read a filter it is saved (posix/seccomp_filters.py); without, it is refused.
        assert obstacles(process) == ([] if os.geteuid() == 0 else ["uses seccomp (filters)"])


@pytest.mark.parametrize(
    ("flag", "thing"),
    [(0x20000000, "has made a pid namespace"), (0x04000000, "uts namespace"), (0x80, "time namespace")],
)
def test_a_namespace_of_its_own(flag: int, thing: str) -> None:
    def prepare() -> None:
        in_user_namespace()
        if ctypes.CDLL(None).unshare(flag):
            os._exit(9)

    try:
        with Executor(prepare=prepare) as process:
            assert any("namespace of its own" in line for line in obstacles(process))
    except EOFError:
        pytest.skip("no user namespaces here")
    if os.geteuid() == 0:
        with Executor(prepare=partial(_unshare, flag)) as process:
            assert any(thing in line for line in obstacles(process))


def _unshare(flags: int) -> None:
    if ctypes.CDLL(None).unshare(flags):
        os._exit(9)


def test_a_thread_with_a_directory_of_its_own(old: Executor) -> None:
    second: FakeTask = old.tasks[1]
    second.run([call(NR.unshare, 0x200)])
    assert obstacles(old) == [f"thread {second.tid} has a working directory of its own"]


def test_being_traced(old: Executor) -> None:
    import threading

    from torpor.linux import ptrace

    # By ourselves: that does not count.
    ptrace.request(ptrace.SEIZE, old.pid)
    ptrace.request(ptrace.INTERRUPT, old.pid)
    ptrace.wait(old.pid)
    try:
        assert obstacles(old) == []
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.extend(obstacles(old)))
        thread.start()
        thread.join()
        assert found == []
        in_child(partial(_expect_tracer, old, os.getpid()))
    finally:
        ptrace.request(ptrace.DETACH, old.pid)


def _expect_tracer(process: Executor, tracer: int) -> None:
    (line,) = obstacles(process)
    assert f"is being traced by process {tracer}" in line
