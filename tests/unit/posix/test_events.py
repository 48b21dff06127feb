"""Pipes, eventfd, timerfd, signalfd, epoll."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from collections.abc import Sequence
from typing import Any

import pytest
from descriptor_bench import FakeJob, FakeRestart, flags_of, look

from torpor.linux import epoll as bindings
from torpor.linux import signalfd, timerfd
from torpor.linux.arch.x86_64 import NR
from torpor.linux.timerfd import Setting
from torpor.model.errors import Refused
from torpor.posix import epoll, outside, pipe
from torpor.posix.descriptor_services import service_for
from torpor.posix.timerfd import Timer, due, parse
from torpor.tracee.call import Call, In, Object, Out


def again(numbers: Sequence[int]) -> list[int]:
    job = FakeJob(numbers)
    return FakeRestart(job.sink).make(job.save())


def drain(fd: int) -> bytes:
    os.set_blocking(fd, False)
    out = b""
    try:
        while part := os.read(fd, 1 << 20):
            out += part
    except BlockingIOError:
        pass
    return out


def test_pipe_keeps_data_and_consumes_nothing() -> None:
    r, w = os.pipe()
    os.write(w, b"hello")
    job = FakeJob([r, w])
    saved = job.save()
    nr, nw = FakeRestart(job.sink).make(saved)
    assert [flags_of(nr), flags_of(nw)] == [flags_of(r), flags_of(w)]
    assert drain(nr) == b"hello"
    os.write(nw, b" again")
    assert os.read(nr, 100) == b" again"
    os.close(nw)
    assert os.read(nr, 1) == b"", "nobody else holds the writing end"
    assert drain(r) == b"hello"


@pytest.mark.parametrize("capacity", [4096, 65536, 1 << 20])
def test_full_pipe(capacity: int) -> None:
    r, w = os.pipe()
    fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, capacity)
    os.set_blocking(w, False)
    data = os.urandom(capacity)
    assert os.write(w, data) == capacity
    nr, nw = again([r, w])
    assert fcntl.fcntl(nr, fcntl.F_GETPIPE_SZ) == capacity
    assert flags_of(nw) == flags_of(w)
    with pytest.raises(BlockingIOError):
        os.write(nw, b"x")
    assert drain(nr) == data
    assert drain(r) == data


def test_pipe_full_of_single_bytes_in_slots() -> None:
    """A pipe is full when its slots are, however little is in each."""
    r, w = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)
    count = 0
    try:
        while True:
            os.write(w, bytes([count % 256]))
            count += 1
    except BlockingIOError:
        pass
    assert count == 16
    nr, nw = again([r, w])
    with pytest.raises(BlockingIOError):
        os.write(nw, b"x")
    assert [os.read(nr, 100) for _ in range(count)] == [bytes([n]) for n in range(16)]


def test_packets_keep_their_boundaries() -> None:
    r, w = os.pipe2(os.O_DIRECT)
    packets = [b"a", b"bb" * 2048, b"ccc", b"dddd"]
    for one in packets:
        os.write(w, one)
    nr, nw = again([r, w])
    assert flags_of(nw) == flags_of(w)
    for fd in (nr, r):
        assert [os.read(fd, 10_000) for _ in packets] == packets
    os.write(nw, b"12")
    os.write(nw, b"34")
    assert os.read(nr, 100) == b"12"


def test_one_packet_alone() -> None:
    r, w = os.pipe2(os.O_DIRECT)
    os.write(w, b"packet")
    nr, nw = again([r, w])
    os.write(nw, b"next")
    assert os.read(nr, 100) == b"packet"


def test_several_descriptions_of_each_end() -> None:
    r, w = os.pipe()
    r2 = os.open(f"/proc/self/fd/{r}", os.O_RDONLY | os.O_NONBLOCK)
    w2 = os.open(f"/proc/self/fd/{w}", os.O_WRONLY)
    both = os.open(f"/proc/self/fd/{w}", os.O_RDWR)
    os.write(w2, b"once")
    numbers = [w2, both, r2, r, w]
    made = again(numbers)
    assert [flags_of(fd) for fd in made] == [flags_of(fd) for fd in numbers]
    assert len({os.fstat(fd).st_ino for fd in made}) == 1
    assert drain(made[2]) == b"once"


def test_closed_ends() -> None:
    r, w = os.pipe()
    os.write(w, b"last words")
    os.close(w)
    (nr,) = again([r])
    assert os.read(nr, 100) == b"last words"
    assert os.read(nr, 100) == b""
    r2, w2 = os.pipe()
    os.close(r2)
    (nw,) = again([w2])
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with pytest.raises(BrokenPipeError):
        os.write(nw, b"x")


def test_other_end_outside_is_refused() -> None:
    r, w = os.pipe()
    child = os.fork()
    if not child:
        os.close(r)
        time.sleep(60)
        os._exit(0)
    try:
        os.close(w)
        seen = look(r)
        job = FakeJob([r])
        refusal = service_for(seen, job).survey(seen, job)
        assert f"other end is open outside the job (process {child}, " in str(refusal)
        with pytest.raises(Refused, match="other end is open outside the job"):
            service_for(seen, job).capture(r, seen, job)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_all_processes_are_looked_at_once_for_all_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    real = outside.holders

    def holders(*args: Any) -> dict[tuple[int, int], int]:
        nonlocal looks
        looks += 1
        return real(*args)

    monkeypatch.setattr(outside, "holders", holders)
    ends = [os.pipe()[0] for _ in range(5)]  # the other ends stay open, but are not of the job
    job = FakeJob(ends)
    for end in ends:
        seen = look(end)
        service_for(seen, job).survey(seen, job)
    assert looks == 1


def test_peek_leaves_everything() -> None:
    r, w = os.pipe()
    assert pipe.peek(r) == []
    os.write(w, b"12345")
    assert pipe.peek(r) == [b"12345"]
    assert pipe.peek(r) == [b"12345"]
    assert os.read(r, 100) == b"12345"


@pytest.mark.parametrize("count", [0, 1, 7, (1 << 32) + 5, (1 << 64) - 2])
@pytest.mark.parametrize("flags", [0, os.EFD_SEMAPHORE, os.EFD_NONBLOCK])
def test_eventfd(count: int, flags: int) -> None:
    fd = os.eventfd(0, flags)
    if count:
        os.eventfd_write(fd, count)
    (new,) = again([fd])
    assert flags_of(new) == flags_of(fd)
    keep = ("eventfd-count", "eventfd-semaphore")
    lines = [[line for line in look(one).info if line.startswith(keep)] for one in (fd, new)]
    assert lines[0] == lines[1]


def test_signalfd() -> None:
    fd = signalfd.create(1 << (signal.SIGUSR1 - 1) | 1 << 63, os.O_NONBLOCK)
    (new,) = again([fd])
    assert flags_of(new) == flags_of(fd)
    assert [line for line in look(new).info if "sigmask" in line] == [
        line for line in look(fd).info if "sigmask" in line
    ]


def test_timerfd_left_and_interval() -> None:
    fd = timerfd.create(timerfd.CLOCK_MONOTONIC, os.O_NONBLOCK)
    timerfd.settime(fd, 0, Setting(5_000_000_000, 2_000_000_000))
    (new,) = again([fd])
    a, b = timerfd.gettime(fd), timerfd.gettime(new)
    assert b.interval == a.interval
    assert abs(b.value - a.value) < 20_000_000
    assert flags_of(new) == flags_of(fd)


def test_timerfd_never_fires_early() -> None:
    fd = timerfd.create(timerfd.CLOCK_MONOTONIC, 0)
    goal = time.monotonic_ns() + 150_000_000
    timerfd.settime(fd, timerfd.ABSTIME, Setting(goal, 0))
    (new,) = again([fd])
    assert os.read(new, 8) == (1).to_bytes(8, "little")
    assert 0 <= time.monotonic_ns() - goal < 50_000_000


def test_timerfd_not_armed() -> None:
    fd = timerfd.create(timerfd.CLOCK_BOOTTIME, os.O_NONBLOCK)
    (new,) = again([fd])
    assert timerfd.gettime(new) == Setting(0, 0)
    with pytest.raises(BlockingIOError):
        os.read(new, 8)


def expired() -> tuple[int, int]:
    """A timer with three ticks not read and seven seconds to go, and one that has fired once."""
    fd = timerfd.create(timerfd.CLOCK_MONOTONIC, os.O_NONBLOCK)
    long_ago = time.monotonic_ns() - 23_000_000_000
    timerfd.settime(fd, timerfd.ABSTIME, Setting(max(1, long_ago), 10_000_000_000))
    once = timerfd.create(timerfd.CLOCK_MONOTONIC, os.O_NONBLOCK)
    timerfd.settime(once, 0, Setting(1, 0))
    time.sleep(0.01)
    return fd, once


@pytest.mark.skipif(time.monotonic() < 30, reason="the machine has only just started")
@pytest.mark.parametrize("exact", [True, False])
def test_timerfd_ticks(monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    if not exact:
        monkeypatch.setattr(timerfd, "set_ticks", lambda fd, ticks: False)
    fd, once = expired()
    new, new_once = again([fd, once])
    assert abs(timerfd.gettime(fd).value - timerfd.gettime(new).value) < 20_000_000
    assert os.read(new_once, 8) == os.read(once, 8) == (1).to_bytes(8, "little")
    assert os.read(new, 8) == os.read(fd, 8) == (3).to_bytes(8, "little")
    assert parse(list(look(new).info)).interval == 10_000_000_000


def test_timerfd_absolute_cancel_on_set() -> None:
    fd = timerfd.create(timerfd.CLOCK_REALTIME, 0)
    flags = timerfd.ABSTIME | timerfd.CANCEL_ON_SET
    timerfd.settime(fd, flags, Setting(time.time_ns() + 3_600_000_000_000, 0))
    (new,) = again([fd])
    a, b = parse(list(look(fd).info)), parse(list(look(new).info))
    assert (a.clock, a.settime) == (b.clock, b.settime) == (0, flags)
    assert abs(a.left - b.left) < 20_000_000


def timer(
    clock: int = 1, settime: int = 0, left: int = 0, expires: int = 0, interval: int = 0, ticks: int = 0
) -> Timer:
    return Timer(2, clock, settime, left, expires, interval, ticks)


def test_due() -> None:
    assert due(timer(left=5, expires=105), 101) == (Setting(105, 0), 0)
    assert due(timer(left=5, expires=105), 105) == (Setting(0, 0), 1)
    assert due(timer(left=5, expires=105, interval=10, ticks=2), 104) == (Setting(105, 10), 2)
    assert due(timer(left=5, expires=105, interval=10, ticks=2), 105) == (Setting(115, 10), 3)
    assert due(timer(left=5, expires=105, interval=10), 134) == (Setting(135, 10), 3)
    assert due(timer(interval=10, ticks=1), 134) == (Setting(0, 10), 1)
    # A relative timer of the real-time clock goes on with what was left, an absolute one with its moment.
    assert due(timer(clock=0, left=5, expires=105), 1000) == (Setting(1005, 0), 0)
    assert due(timer(clock=0, settime=1, left=5, expires=105), 1000) == (Setting(0, 0), 1)


def run_here(calls: Sequence[Call], objects: Sequence[int]) -> None:
    """Make the calls of stage PLACE in this process."""
    import ctypes

    from torpor.linux.libc import syscall

    for one in calls:
        keep = []
        args = []
        for arg in one.args:
            if isinstance(arg, In | Out):
                room = ctypes.create_string_buffer(
                    arg.data if isinstance(arg, In) else b"",
                    len(arg.data) if isinstance(arg, In) else arg.size,
                )
                keep.append(room)
                args.append(ctypes.addressof(room))
            elif isinstance(arg, Object):
                args.append(objects[arg.number])
            else:
                args.append(arg)
        try:
            syscall(one.nr, *args)
        except OSError as error:
            assert error.errno in one.accept


def watches_of(fd: int) -> set[tuple[int, int, int]]:
    return {(w.number, w.events, w.data) for w in bindings.watches(look(fd).info)}


def lift(fds: Sequence[int]) -> list[int]:
    return [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 400) for fd in fds]


def test_epoll() -> None:
    instance = select.epoll()
    ep = instance.fileno()
    event, other = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(3, os.EFD_NONBLOCK)
    r, w = os.pipe()
    fired = os.eventfd(1)
    outer = select.epoll()
    closed = fcntl.fcntl(r, fcntl.F_DUPFD, 300)
    instance.register(event, select.EPOLLIN | select.EPOLLET)
    instance.register(closed, select.EPOLLIN)
    os.dup2(w, closed)  # the number means something else now
    instance.register(closed, select.EPOLLOUT | select.EPOLLET)
    os.close(closed)  # and now nothing: r is still open at its own number, w too
    instance.register(fired, select.EPOLLIN | select.EPOLLONESHOT)
    instance.register(other, select.EPOLLIN | select.EPOLLEXCLUSIVE)
    outer.register(ep, select.EPOLLIN)
    assert instance.poll(0)
    numbers = [outer.fileno(), ep, event, other, r, w, fired]
    before = watches_of(ep)
    before_outer = watches_of(outer.fileno())
    assert len(before) == 5
    job = FakeJob(numbers)
    saved = job.save()
    objects = lift(FakeRestart(job.sink).make(saved))
    kept = {n: os.dup(n) for n in (event, other, fired, ep)}  # these numbers are used while placing
    for index, (service, record) in enumerate(saved):
        run_here(service.place(record, index), objects)
    for n, copy in kept.items():
        os.dup2(copy, n)
    new = objects[1]
    assert watches_of(new) == before
    assert watches_of(objects[0]) == before_outer
    again_ = select.epoll.fromfd(new)
    got = dict(again_.poll(0))
    assert fired not in got, "a one-shot watch that has fired stays silent"
    assert got.keys() == {other, closed}
    os.eventfd_write(objects[2], 1)
    assert event in dict(again_.poll(0))


def test_epoll_number_shared_by_two_files() -> None:
    instance = select.epoll()
    a, b = os.eventfd(1), os.eventfd(2)
    number = 350
    for fd in (a, b):
        os.dup2(fd, number)
        instance.register(number, select.EPOLLIN)
    os.close(number)
    job = FakeJob([instance.fileno(), a, b])
    record = job.save()[0][1]
    assert {(one.number, one.target) for one in record.watches} == {(number, 1), (number, 2)}
    assert epoll.SERVICE.highest_number(record) == number


def test_epoll_on_something_outside_is_refused() -> None:
    instance = select.epoll()
    fd = os.eventfd(0)
    instance.register(fd, select.EPOLLIN)
    kept = 360
    os.dup2(fd, kept)
    os.close(fd)
    seen = look(instance.fileno())

    class Elsewhere(FakeJob):
        def processes(self) -> list[int]:
            return []

    job = Elsewhere([instance.fileno()])
    refusal = service_for(seen, job).survey(seen, job)
    assert refusal is not None
    assert "watches something no process of the job has open" in str(refusal)
    os.close(kept)


def test_epoll_place_is_pure() -> None:
    record = epoll.Epoll(2, (epoll.Watched(7, 3, 0x19, 99), epoll.Watched(8, 4, bindings.ONESHOT, 1, True)))
    calls = epoll.SERVICE.place(record, 5)
    assert [one.nr for one in calls[:4]] == [NR.dup3, NR.epoll_ctl, NR.close, 232]
    assert calls[4].args == (Object(3), 7, os.O_CLOEXEC)
    assert calls[5].args == (Object(5), 1, 7, In(bindings.event(0x19, 99)))
