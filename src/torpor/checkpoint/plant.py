"""Fork the tree of a job: PID 1 of a new namespace (or who plays its part in place: checkpoint/inplace.py), stand-ins
for what was outside, and a stub for every process.

A stub does nothing but fork those below it, at the right moment, and wait to be taken over (checkpoint/takeover.py).
All descriptors of the restarting process are inherited by every stub; stand-ins close theirs. Until the release all
of them die with the restarting process.

The code below `_grow` runs in the forked processes. It must not fail silently: whatever goes wrong is reported
through the same pipe on which every birth reports that it is there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from torpor.checkpoint.plan import GHOST, PROCESS, STAND_IN, ZOMBIE, Birth, Helper, Plan
from torpor.image.manifest import Manifest
from torpor.linux import clone, namespaces, pty
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.model.errors import RestartFailed
from torpor.model.wrapping import Wrapping

if TYPE_CHECKING:
    from torpor.checkpoint.deputies import Line, Pioneer
    from torpor.checkpoint.footing import Footing

T = TypeVar("T")

_REPORT = struct.Struct("<iii")
"""What a birth writes when it is there: its pid, an errno (0: all is well), the step that failed."""

STEPS = {
    1: "a process with that number could not be made",
    2: "the user namespace could not be set up",
    3: "the clocks could not be set",
    4: "a session or group could not be made",
    5: "its terminal could not be made its controlling terminal",
    6: "its memory could not be filled",
}
TURN = 200
READY, WAITING, MADE, MISSED, ENDED = range(TURN, TURN + 5)
"""Reported where processes are forked one at a time (`Turns`), with a number and a value: this one could be forked now
(by whom); this process waits for its turn; this one was forked (pid); another number came out (which); this helper
is done."""

FITS_NOT = 9
"""Exit status of a process that has got another number than it should."""

NOTE_NO_PROC, NOTE_NO_CLOCK, NOTE_NO_PTS, NOTE_NO_QUEUES, NOTE_NO_NAMES, NOTE_NO_HOST = range(101, 107)
"""Reported by PID 1, not failures: no new /proc could be mounted; there is no time namespace; the
job's devpts, its message queues, its names of hosts could not be mounted; its host's name could not be set."""


class Ground(msgspec.Struct, frozen=True):
    """Where the tree is planted.

    clocks: how far the job's monotonic and boot clocks are ahead of the
    host's, ns; None to leave them.
    """

    clocks: tuple[int, int] | None
    terminals: dict[int, int] = {}
    """By session leader: a descriptor of the pseudo-terminal that it takes as its controlling terminal."""
    devpts: int = -1
    """The job's own /dev/pts, -1 for the host's."""
    names: str = ""
    """A file to be seen as /etc/hosts, '' for the host's."""
    host: str = ""
    """What the job's host is called there, '' for what it is."""


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


def plant(
    plan: Plan, manifest: Manifest, ground: Ground, footing: Footing, pioneer: Pioneer | None,
    wrapping: Wrapping | None = None, meanwhile: Callable[[], None] = lambda: None, timeout: float = 30.0,
) -> Planted:  # fmt: skip
    """Fork the tree. pioneer: its first process, if it is there already. meanwhile: called while the tree grows.
    timeout: seconds without any news. Raises RestartFailed, Unwatched, with nothing left behind.

    Must be called while this process has no other threads.
    """
    report_r, report_w = os.pipe()
    release_r, release_w = os.pipe()
    gate_r, gate_w = os.pipe()
    events_r, events_w = os.pipe()
    ours = [report_r, release_w, gate_w, events_r]
    theirs = [report_w, release_r, gate_r, events_w]
    try:
        init = footing.fork() if pioneer is None else _go_on(pioneer, theirs, ours, ground)
    except OSError as error:
        for fd in (*ours, *theirs):
            os.close(fd)
        raise RestartFailed(_no_namespaces(error)) from error
    if init == 0:
        for fd in ours:
            os.close(fd)
        world = _world(theirs, manifest, ground, footing)
        _guard(world, 1, 2, footing.arrive)
        _be_init(plan.init, world, ground, footing, wrapping)
    for fd in theirs:
        os.close(fd)
    try:
        if wrapping is not None:
            wrapping.outside(init)
        meanwhile()
        notes = _await(report_r, len(plan.births), timeout, footing.hear)
        hosts = footing.hosts(init, plan)
    except BaseException:
        for fd in (release_w, gate_w, events_r):
            os.close(fd)
        footing.uproot(init)
        raise
    finally:
        os.close(report_r)
    helpers = tuple(hosts[birth.pid] for birth in plan.births.values() if birth.role == STAND_IN and birth.pid in hosts)
    ghosts = tuple(birth.pid for birth in plan.births.values() if birth.role == GHOST)
    return Planted(init, hosts, helpers, release_w, gate_w, events_r, notes, ghosts)


def early(plan: Plan, manifest: Manifest, footing: Footing, wrapping: Wrapping | None) -> Pioneer:
    """Fork the first process of the tree before anything else is there, for deputies of ours; `plant` lets it go on.
    Raises RestartFailed."""
    from torpor.checkpoint import deputies

    def be(line: Line) -> None:
        deputies.still()
        footing.arrive()
        theirs, ours, ground = deputies.serve(line)
        syscall(NR.unshare, clone.FILES)
        line.say(None)
        for fd in ours:
            os.close(fd)
        place = msgspec.convert(ground, Ground)
        _be_init(plan.init, _world(theirs, manifest, place, footing), place, footing, wrapping)

    try:
        return deputies.pioneer(lambda: footing.fork(clone.FILES), be, footing.first)
    except OSError as error:
        raise RestartFailed(_no_namespaces(error)) from error


def _go_on(pioneer: Pioneer, theirs: Sequence[int], ours: Sequence[int], ground: Ground) -> int:
    """Let the first process go on, with descriptors of its own from here on; our pid of it. Raises OSError."""
    try:
        pioneer.line.say((theirs, [*ours, *pioneer.descriptors()], msgspec.to_builtins(ground, str_keys=False)))
        pioneer.line.hear()
    except EOFError:
        raise OSError(errno.ESRCH, "the first process has ended") from None
    pioneer.close()
    return pioneer.pid


def _no_namespaces(error: OSError) -> str:
    return f"no new namespaces can be made here ({error.strerror}); try `torpor doctor`"


def _world(pipes: Sequence[int], manifest: Manifest, ground: Ground, footing: Footing) -> World:
    pgids = {record.pid: record.pgid for record in manifest.processes}
    codes = {record.pid: record.exit_code for record in manifest.processes}
    report, release, gate, events = pipes
    return World(report, release, gate, events, pgids, codes, ground.terminals, footing)


def _await(fd: int, births: int, timeout: float, hear: Callable[[int, int, int], None]) -> tuple[str, ...]:
    """Read the reports of all births."""
    there = 0
    notes = []
    rest = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while there < births:
        if not poll.poll(timeout * 1000):
            raise RestartFailed(f"only {there} of {births} processes could be made in {timeout:.0f} s")
        data = os.read(fd, 65536)
        if not data:
            raise RestartFailed(f"only {there} of {births} processes could be made; the others ended")
        rest += data
        while len(rest) >= _REPORT.size:
            pid, error, step = _REPORT.unpack_from(rest)
            rest = rest[_REPORT.size :]
            if step == NOTE_NO_PROC:
                notes.append("/proc still shows the host's processes: no new one may be mounted here")
            elif step == NOTE_NO_PTS:
                notes.append("the job's pseudo-terminals are not in /dev/pts: nothing may be mounted there")
            elif step == NOTE_NO_QUEUES:
                notes.append("the host's message queues are still mounted: nothing may be mounted there")
            elif step == NOTE_NO_NAMES:
                notes.append("the job's hosts are looked up as on this host: nothing may be mounted over /etc/hosts")
            elif step == NOTE_NO_HOST:
                notes.append("uname(2) tells the name of this host now: there is no UTS namespace here")
            elif step == NOTE_NO_CLOCK:
                notes.append("the monotonic clock jumps: there is no time namespace here")
            elif step >= TURN:
                hear(pid, error, step)
            elif error:
                hint = " (the number is taken)" if error == errno.EEXIST else ""
                raise RestartFailed(f"process {pid}: {STEPS.get(step, 'planting failed')}: {os.strerror(error)}{hint}")
            else:
                there += 1
                hear(pid, 0, 0)
    return tuple(notes)


class World(msgspec.Struct, frozen=True):
    """What the forked processes know."""

    report: int
    release: int
    gate: int
    events: int
    pgids: dict[int, int]
    codes: dict[int, int]
    terminals: dict[int, int]
    footing: Footing

    def tell(self, pid: int, error: int = 0, step: int = 0) -> None:
        os.write(self.report, _REPORT.pack(pid, error, step))


def _guard(world: World, pid: int, step: int, do: Callable[[], object]) -> None:
    """Do something; report and end if it fails."""
    try:
        do()
    except OSError as error:
        world.tell(pid, error.errno or errno.EIO, step)
        os._exit(1)


def _be_init(birth: Birth, world: World, ground: Ground, footing: Footing, wrapping: Wrapping | None) -> None:
    """The first process: prepare the place, fork the tree, and then be the reaper. Never returns."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        footing.settle(world, ground)
        if wrapping is not None:
            wrapping.inside()
        _grow(birth, world)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _fork(world: World, wanted: int) -> int:
    """Fork a process with that number (below 0: any). Our pid of it, 0 in it, -1 where another number came out and the
    process is gone again."""
    turns = world.footing.turns
    if turns is None:
        return clone.fork(max(0, wanted))
    turns.approach(wanted)
    made = clone.fork()
    if made == 0:
        if not turns.fits(wanted, os.getpid()):
            os._exit(FITS_NOT)
        return 0
    if not turns.fits(wanted, made):
        os.waitpid(made, 0)
        world.tell(wanted, made, MISSED)
        return -1
    world.tell(wanted, made, MADE)
    return made


def _each(world: World, forker: int, things: Mapping[int, T], make: Callable[[T], bool]) -> None:
    """Make all things, each when it is its turn."""
    if world.footing.turns is not None and things:
        world.footing.turns.take(world, forker, things, make)
    else:
        for thing in things.values():
            make(thing)


def _bear(birth: Birth, world: World) -> bool:
    """Fork one birth; the child never returns. False if it has to be tried again."""
    try:
        made = _fork(world, birth.pid)
        if made == 0:
            try:
                _grow(birth, world)
            finally:
                os._exit(1)
        return made > 0
    except OSError as error:
        world.tell(birth.pid, error.errno or errno.EIO, 1)
        os._exit(1)


def _grow(birth: Birth, world: World) -> None:
    """What a freshly forked process does: fork those below it, then be what it is to be. Never returns."""
    if birth.subreaper:
        namespaces.become_subreaper()
    _each(world, birth.pid, {below.pid: below for below in birth.early}, lambda below: _bear(below, world))
    if birth.setsid:
        _guard(world, birth.pid, 4, os.setsid)
        if birth.pid in world.terminals:
            terminal = world.terminals[birth.pid]
            _guard(world, birth.pid, 5, lambda: fcntl.ioctl(terminal, pty.TIOCSCTTY, 0))
    if birth.leads and not birth.setsid:
        _guard(world, birth.pid, 4, lambda: os.setpgid(0, 0))
    _each(world, birth.pid, {below.pid: below for below in birth.late}, lambda below: _bear(below, world))
    made: list[int] = []
    _each(world, birth.pid, {helper.pid: helper for helper in birth.helpers}, lambda helper: _help(helper, world, made))
    if made and world.footing.turns is not None:
        world.tell(birth.pid, 0, WAITING)  # for them, and with nothing more to fork
    for pid in made:
        os.waitpid(pid, 0)
    if birth.role == PROCESS:
        tell: Callable[[int, int], None] = lambda value, step: world.tell(birth.pid, value, step)  # noqa: E731
        _guard(world, birth.pid, 6, lambda: world.footing.fill(birth.pid, tell))
    world.tell(birth.pid)
    if birth.role == STAND_IN:
        _stand_in(birth, world)
    elif birth.role == PROCESS:
        os.read(world.release, 1)  # ends when we are taken over, or when the restarting process is gone
        os._exit(1)
    else:
        _end_at_the_gate(birth, world)


def _help(helper: Helper, world: World, made: list[int]) -> bool:
    """Fork a helper, which forks its births and exits; `made` gets its pid. False if it has to be tried again."""
    try:
        pid = _fork(world, helper.pid)
    except OSError as error:
        world.tell(helper.pid, error.errno or errno.EIO, 1)
        os._exit(1)
    if pid < 0:
        return False
    if pid == 0:
        try:
            if helper.setsid:
                _guard(world, helper.pid, 4, os.setsid)
            _each(world, helper.pid, {below.pid: below for below in helper.births}, lambda below: _bear(below, world))
            if world.footing.turns is not None:
                world.tell(helper.pid, 0, ENDED)
        except BaseException:
            os._exit(1)
        os._exit(0)
    made.append(pid)
    return True


def _end_at_the_gate(birth: Birth, world: World) -> None:
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


def _stand_in(birth: Birth, world: World) -> None:
    """Stay for what was outside: reap, and report what becomes of the child that is watched."""
    world.footing.shed()
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
        if birth.pid == 1:
            world.footing.abandoned()
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
