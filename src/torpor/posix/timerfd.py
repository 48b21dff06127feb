"""timerfd: a timer that is read.

fdinfo shows clock, flags of the last settime, what is left, interval and ticks not yet read. What is left
is turned into the moment of expiry *on the clock as the job sees it* (its time namespace has offsets,
/proc/PID/timens_offsets), so that a timer armed again fires at that very moment of the job's clock,
however long the save and the restart took, and never before it. Where the job's clock has gone on while
the job was not there (no time namespace), what was missed is counted as ticks, as after a long SIGSTOP.

A timer set by the real-time clock: an absolute one fires when that clock gets there; a relative one goes
on with what was left of it.
"""

from __future__ import annotations

import os
import time

import msgspec

from torpor.linux import proc, timerfd
from torpor.linux.timerfd import ABSTIME, CANCEL_ON_SET, Setting
from torpor.model.errors import RestartFailed
from torpor.named_tuple import NamedTuple
from torpor.posix.descriptors import fresh_info, info_value, set_status, status_flags
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

_SECOND = 1_000_000_000
_REAL = (timerfd.CLOCK_REALTIME, timerfd.CLOCK_REALTIME_ALARM)
_READ_BY = {
    timerfd.CLOCK_REALTIME_ALARM: timerfd.CLOCK_REALTIME,
    timerfd.CLOCK_BOOTTIME_ALARM: timerfd.CLOCK_BOOTTIME,
}


class Timer(msgspec.Struct, frozen=True):
    """A timerfd. All times in nanoseconds."""

    flags: int
    clock: int
    settime: int
    """Flags of the last timerfd_settime."""
    left: int
    """Until the next expiry; 0 if not armed."""
    expires: int
    """The same as a moment of its clock as the job saw it."""
    interval: int
    ticks: int
    process: int = 0
    """A process that has it (pid as the job sees it): tells the time namespace."""


class Shown(NamedTuple):
    """What fdinfo shows."""

    clock: int
    ticks: int
    settime: int
    left: int
    interval: int


class TimerService(DescriptorBase):
    name = "timerfd"
    record = Timer

    def claims(self, seen: Descriptor) -> bool:
        return seen.target == "anon_inode:[timerfd]"

    def capture(self, fd: int, seen: Descriptor, job: Job) -> Timer:
        shown = parse(fresh_info(fd))
        if shown.interval and shown.ticks and not shown.left:
            # Expired and not read: the kernel lets it stand until asked. The job gets the same number.
            timerfd.gettime(fd)
            shown = parse(fresh_info(fd))
        now = _now(shown.clock) + _offset(seen.pid, shown.clock)
        expires = now + shown.left if shown.left else 0
        return Timer(
            status_flags(fd), shown.clock, shown.settime, shown.left, expires, shown.interval, shown.ticks,
            job.vpid(seen.pid),
        )  # fmt: skip

    def create(self, record: Timer, restart: Restart) -> int:
        try:
            fd = timerfd.create(record.clock, os.O_CLOEXEC | os.O_NONBLOCK)
        except PermissionError:
            raise RestartFailed("cannot make a timer that wakes the machine again: needs CAP_WAKE_ALARM") from None
        set_status(fd, record.flags)
        return fd

    def finish(self, record: Timer, fd: int, restart: Restart) -> None:
        offset = 0
        if record.process and record.clock not in _REAL:
            offset = _offset(restart.host_pid(record.process), record.clock)
        now = _now(record.clock)
        setting, ticks = due(record, now + offset)
        if record.settime & ABSTIME:
            setting = setting._replace(value=setting.value and setting.value - offset)
        elif setting.value:
            setting = setting._replace(value=max(1, setting.value - offset - now))
        if setting.value or setting.interval or record.settime:
            timerfd.settime(fd, record.settime, setting)
        if ticks and not timerfd.set_ticks(fd, ticks):
            # Without CONFIG_CHECKPOINT_RESTORE: set into the past, so that the kernel itself counts that far.
            flags = (record.settime & CANCEL_ON_SET) | ABSTIME
            now = _now(record.clock)
            first = setting.value if record.settime & ABSTIME else now + setting.value
            past = max(1, first - ticks * setting.interval) if setting.interval else max(1, now - 1)
            if setting.interval or not setting.value:
                timerfd.settime(fd, flags, Setting(past, setting.interval))
            else:
                restart.say("a timer's unread expiries are lost: this kernel has no CONFIG_CHECKPOINT_RESTORE")


def due(record: Timer, now: int) -> tuple[Setting, int]:
    """What to set (value: the moment of expiry on the job's clock; 0: nothing) and how many ticks wait to
    be read.

    now: the job's clock. A moment that has gone by since becomes ticks.
    """
    if not record.left:
        return Setting(0, record.interval), record.ticks
    if record.clock in _REAL and not record.settime & ABSTIME:
        return Setting(now + record.left, record.interval), record.ticks
    if record.expires > now:
        return Setting(record.expires, record.interval), record.ticks
    if not record.interval:
        return Setting(0, 0), record.ticks + 1
    missed = (now - record.expires) // record.interval + 1
    return Setting(record.expires + missed * record.interval, record.interval), record.ticks + missed


def parse(info: list[str]) -> Shown:
    """The lines of fdinfo.

    `clockid: 1`, `ticks: 0`, `settime flags: 01` (octal), `it_value: (s, ns)`, `it_interval:`.
    """

    def number(key: str, base: int = 10) -> int:
        return int(info_value(info, key) or "0", base)

    def span(key: str) -> int:
        seconds, _, rest = (info_value(info, key) or "(0, 0)").strip("()").partition(",")
        return int(seconds) * _SECOND + int(rest)

    return Shown(number("clockid"), number("ticks"), number("settime flags", 8), span("it_value"), span("it_interval"))


def _now(clock: int) -> int:
    return time.clock_gettime_ns(_READ_BY.get(clock, clock))


def _offset(pid: int, clock: int) -> int:
    """What the time namespace of a process adds to our own clock. Our own offset is taken off."""
    if clock in _REAL:
        return 0
    key = "monotonic" if clock == timerfd.CLOCK_MONOTONIC else "boottime"
    pid = proc.face(pid)
    return _shown_offset(pid, key) - _shown_offset(os.getpid(), key)


def _shown_offset(pid: int, key: str) -> int:
    """From /proc/PID/timens_offsets: `monotonic  SECONDS  NANOSECONDS`. 0 where there are no time namespaces.

    The file shows the namespace of future children. Whoever has made one for them (we, at a restart) is
    still in the one before, for which there is no file: taken for the first one.
    """
    try:
        if os.readlink(f"/proc/{pid}/ns/time") != os.readlink(f"/proc/{pid}/ns/time_for_children"):
            return 0
        lines = proc.text(f"/proc/{pid}/timens_offsets").splitlines()
    except OSError:
        return 0
    for line in lines:
        words = line.split()
        if words[0] == key:
            return int(words[1]) * _SECOND + int(words[2])
    return 0


SERVICE = TimerService()
