"""Fork the tree of a job: PID 1 of a new namespace, stand-ins for what was outside, and a stub for every process.

A stub does nothing but fork those below it, at the right moment, and wait to be taken over (checkpoint/takeover.py).
All descriptors of the restarting process are inherited by every stub; stand-ins close theirs. Until the release all
of them die with the restarting process.

The code below `_grow` runs in the forked processes. It must not fail silently: whatever goes wrong is reported
through the same pipe on which every birth reports that it is there.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
import time
from collections.abc import Callable

import msgspec

from torpor.checkpoint.plan import GHOST, PROCESS, STAND_IN, ZOMBIE, Birth, Helper, Plan
from torpor.image.manifest import Manifest
from torpor.linux import clone, namespaces, proc
from torpor.model.errors import RestartFailed

_REPORT = struct.Struct("<iii")
"""What a birth writes when it is there: its pid, an errno (0: all is well), the step that failed."""

STEPS = {
    1: "a process with that number could not be made",
    2: "the user namespace could not be set up",
    3: "the clocks could not be set",
    4: "a session or group could not be made",
}
NOTE_NO_PROC, NOTE_NO_CLOCK = 101, 102
"""Reported by PID 1, not failures: no new /proc could be mounted; there is no time namespace."""


class Ground(msgspec.Struct, frozen=True):
    """Where the tree is planted.

    user: a new user namespace (we are not root). clocks: how far the job's monotonic and boot clocks are ahead of the
    host's, ns; None to leave them.
    """

    user: bool
    clocks: tuple[int, int] | None


class Planted(msgspec.Struct):
    """A planted tree. hosts: host pid by the number in the job. release: writing one byte for each helper lets the
    helpers outlive us. gate: closing it lets zombies end. events: where the root's parent reports."""

    init: int
    hosts: dict[int, int]
    helpers: tuple[int, ...]
    release: int
    gate: int
    events: int
    notes: tuple[str, ...]
    ghosts: tuple[int, ...]
    """Numbers of processes that end when the gate closes and are nobody's children but a reaper's."""


def plant(plan: Plan, manifest: Manifest, ground: Ground, timeout: float = 30.0) -> Planted:
    """Fork the tree. Raises RestartFailed, with nothing left behind.

    Must be called while this process has no other threads.
    """
    report_r, report_w = os.pipe()
    release_r, release_w = os.pipe()
    gate_r, gate_w = os.pipe()
    events_r, events_w = os.pipe()
    pgids = {record.pid: record.pgid for record in manifest.processes}
    codes = {record.pid: record.exit_code for record in manifest.processes}
    world = _World(report_w, release_r, gate_r, events_w, pgids, codes)
    flags = clone.NEWPID | clone.NEWNS | (clone.NEWUSER if ground.user else 0)
    uid, gid = os.getuid(), os.getgid()
    try:
        init = clone.fork(0, flags)
    except OSError as error:
        for fd in (report_r, report_w, release_r, release_w, gate_r, gate_w, events_r, events_w):
            os.close(fd)
        raise RestartFailed(f"no new namespaces can be made here ({error.strerror}); try `torpor doctor`") from error
    if init == 0:
        for fd in (report_r, release_w, gate_w, events_r):
            os.close(fd)
        _be_init(plan.init, world, ground, uid, gid)
    for fd in (report_w, release_r, gate_r, events_w):
        os.close(fd)
    try:
        notes = _await(report_r, len(plan.births), timeout)
        hosts = _hosts(init)
    except BaseException:
        os.kill(init, signal.SIGKILL)
        os.waitpid(init, 0)
        for fd in (release_w, gate_w, events_r):
            os.close(fd)
        raise
    finally:
        os.close(report_r)
    helpers = tuple(hosts[birth.pid] for birth in plan.births.values() if birth.role == STAND_IN and birth.pid in hosts)
    ghosts = tuple(birth.pid for birth in plan.births.values() if birth.role == GHOST)
    return Planted(init, hosts, helpers, release_w, gate_w, events_r, notes, ghosts)


def _await(fd: int, births: int, timeout: float) -> tuple[str, ...]:
    """Read the reports of all births."""
    deadline = time.monotonic() + timeout
    there = 0
    notes = []
    rest = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while there < births:
        if not poll.poll(max(0, (deadline - time.monotonic()) * 1000)):
            raise RestartFailed(f"only {there} of {births} processes could be made within {timeout:.0f} s")
        data = os.read(fd, 65536)
        if not data:
            raise RestartFailed(f"only {there} of {births} processes could be made; the others ended")
        rest += data
        while len(rest) >= _REPORT.size:
            pid, error, step = _REPORT.unpack_from(rest)
            rest = rest[_REPORT.size :]
            if step == NOTE_NO_PROC:
                notes.append("/proc still shows the host's processes: no new one may be mounted here")
            elif step == NOTE_NO_CLOCK:
                notes.append("the monotonic clock jumps: there is no time namespace here")
            elif error:
                hint = " (the number is taken)" if error == errno.EEXIST else ""
                raise RestartFailed(f"process {pid}: {STEPS.get(step, 'planting failed')}: {os.strerror(error)}{hint}")
            else:
                there += 1
    return tuple(notes)


def _hosts(init: int) -> dict[int, int]:
    """Host pids of init and everything below it, by their numbers in the new namespace."""
    found = {1: init}
    queue = [init]
    for parent in queue:
        for pid in proc.children(parent):
            found[proc.inner_pid(proc.status(pid))] = pid
            queue.append(pid)
    return found


class _World(msgspec.Struct, frozen=True):
    """What the forked processes know."""

    report: int
    release: int
    gate: int
    events: int
    pgids: dict[int, int]
    codes: dict[int, int]

    def tell(self, pid: int, error: int = 0, step: int = 0) -> None:
        os.write(self.report, _REPORT.pack(pid, error, step))


def _guard(world: _World, pid: int, step: int, do: Callable[[], object]) -> None:
    """Do something; report and end if it fails."""
    try:
        do()
    except OSError as error:
        world.tell(pid, error.errno or errno.EIO, step)
        os._exit(1)


def _be_init(birth: Birth, world: _World, ground: Ground, uid: int, gid: int) -> None:
    """PID 1: set the namespaces up, fork the tree, and then be the reaper. Never returns."""
    try:
        namespaces.die_with_parent()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        if ground.user:
            _guard(world, 1, 2, lambda: namespaces.map_ids(uid, gid))
        if ground.clocks is not None:
            try:
                namespaces.shift_clocks(*ground.clocks)
            except OSError:
                world.tell(1, 0, NOTE_NO_CLOCK)
        try:
            namespaces.mount_proc()
        except OSError:
            world.tell(1, 0, NOTE_NO_PROC)
        _grow(birth, world)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _bear(birth: Birth, world: _World) -> None:
    """Fork one birth; the child never returns."""
    try:
        if clone.fork(birth.pid) == 0:
            try:
                _grow(birth, world)
            finally:
                os._exit(1)
    except OSError as error:
        world.tell(birth.pid, error.errno or errno.EIO, 1)
        os._exit(1)


def _grow(birth: Birth, world: _World) -> None:
    """What a freshly forked process does: fork those below it, then be what it is to be. Never returns."""
    if birth.subreaper:
        namespaces.become_subreaper()
    for below in birth.early:
        _bear(below, world)
    if birth.setsid:
        _guard(world, birth.pid, 4, os.setsid)
    if birth.leads and not birth.setsid:
        _guard(world, birth.pid, 4, lambda: os.setpgid(0, 0))
    for below in birth.late:
        _bear(below, world)
    for helper in birth.helpers:
        _help(helper, world)
    world.tell(birth.pid)
    if birth.role == STAND_IN:
        _stand_in(birth, world)
    elif birth.role == PROCESS:
        while True:
            signal.pause()
    else:
        _end_at_the_gate(birth, world)


def _help(helper: Helper, world: _World) -> None:
    """Fork a helper, which forks its births and exits."""
    try:
        pid = clone.fork(helper.pid)
    except OSError as error:
        world.tell(helper.pid, error.errno or errno.EIO, 1)
        os._exit(1)
    if pid == 0:
        if helper.setsid:
            _guard(world, helper.pid, 4, os.setsid)
        for below in helper.births:
            _bear(below, world)
        os._exit(0)
    os.waitpid(pid, 0)


def _end_at_the_gate(birth: Birth, world: _World) -> None:
    """A zombie or a ghost: wait for the gate, then end as told."""
    os.read(world.gate, 1)
    if birth.role == GHOST:
        os._exit(0)
    assert birth.role == ZOMBIE
    try:
        os.setpgid(0, world.pgids[birth.pid])
    except OSError:
        pass  # its group went with its last member
    code = world.codes[birth.pid]
    if os.WIFSIGNALED(code):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(code)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(code))


def _stand_in(birth: Birth, world: _World) -> None:
    """Stay for what was outside: reap, and report what becomes of the child that is watched."""
    events = os.dup(world.events) if birth.watches else -1
    release = world.release
    keep = sorted(fd for fd in (release, events) if fd >= 0)
    at = 0
    for fd in keep:
        os.closerange(at, fd)
        at = fd + 1
    os.closerange(at, 1 << 20 if _limit() < 0 else _limit())
    for number in range(1, 65):
        if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, 32, 33):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                continue
    if not os.read(release, 1):
        os._exit(1)  # the restart failed
    os.close(release)
    if birth.pid == 1:
        namespaces.die_with_parent(0)
    while True:
        try:
            pid, status = os.waitpid(-1, (os.WUNTRACED | os.WCONTINUED) if birth.watches else 0)
        except ChildProcessError:
            os._exit(0)
        if pid != birth.watches:
            continue
        if os.WIFSTOPPED(status):
            line = f"stop {os.WSTOPSIG(status)}\n"
        elif os.WIFCONTINUED(status):
            line = "continue\n"
        else:
            line = f"exit {status}\n"
        try:
            os.write(events, line.encode())
        except OSError:
            pass  # nobody supervises the job any more


def _limit() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
