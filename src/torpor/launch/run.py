"""`torpor run`: start a program as a job on this host, in the foreground or detached."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torpor.launch import program
from torpor.model.errors import TorporError, UsageError
from torpor.policy import files
from torpor.supervise import registry
from torpor.supervise.parent import become_subreaper, inherited
from torpor.supervise.registry import Entry, Pid
from torpor.supervise.say import say
from torpor.supervise.signals import Signals

if TYPE_CHECKING:
    from torpor.launch.detach import Report, Started
    from torpor.store import Store
    from torpor.supervise.standing import Standing
    from torpor.supervise.supervisor import Supervisor
    from torpor.watch.wrapper import Wrapper


def run(
    argv: Sequence[str], name: str | None = None, store: str = "", keep_up: str = "", watch: str | None = None,
    inside: bool = False, policy: str = "", wait: float | None = None,
) -> int:  # fmt: skip
    """Run a program in the foreground under supervision, as if it had been started in our place.

    keep_up: what to do for it unasked, as supervise/upkeep.py writes it.  watch: which of its calls to write down
    (launch/watching.py).  inside: it may speak with torpor (docs/inside.md).  policy: given for this job, as
    supervise/terms.py writes it.  wait: seconds to wait for its seats, None for what the policy says. Returns its wait
    status. Raises CannotStart, UsageError, Refused, TorporError.
    """
    program.hold_standard()
    kept, env = speaking(None) if inside else ("", None)
    identity = registry.fresh_identity()
    entry = Entry(name="", store=store, argv=tuple(argv), upkeep=keep_up, inside=kept, identity=identity)
    if name:
        entry = claim(entry, name)
    else:
        registry.runtime()  # what stands in the way is said before the program runs
    entry, standing, watch = admitted(entry, policy, wait, watch)
    become_subreaper()
    streams = inherited()
    signals = Signals(answered(keep_up))
    try:
        wrapper = wrapped(watch)
        pid = program.start(argv, signals.before, env=env, wrapper=wrapper)
    except BaseException:
        signals.close()
        registry.release(entry)
        if standing is not None:
            standing.close()
        raise
    # What takes time comes now that the program runs: our own modules, and which names the store has.
    from torpor.supervise.supervisor import Supervisor
    from torpor.supervise.terminal import Terminal, open_terminal

    entry = _register(watched(entry._replace(root=Pid.of(pid), root_vpid=pid), wrapper))
    terminal = Terminal(open_terminal(), relay=False)
    supervisor = Supervisor(entry, signals, terminal, streams, wrapper=wrapper)
    supervisor.stand(stands(entry, standing))
    return supervised(supervisor)


def run_detached(
    argv: Sequence[str], name: str | None = None, store: str = "", cwd: str | None = None,
    env: Mapping[bytes, bytes] | None = None, keep_up: str = "", watch: str | None = None,
    inside: bool = False, policy: str = "", wait: float | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Started:  # fmt: skip
    """Run a program without a terminal, its output going to a log, and return as soon as it has been started.

    It leads a session of its own. tell: what it waits for. Raises as `run`.
    """
    from torpor.launch.detach import Started, detach
    from torpor.supervise import state

    kept, env = speaking(env) if inside else ("", env)
    identity = registry.fresh_identity()
    entry = Entry(name="", store=store, argv=tuple(argv), upkeep=keep_up, inside=kept, identity=identity)
    names: Iterator[str] = iter((registry.check_name(name),)) if name else registry.series(registry.fit_name(argv[0]))
    claimed = registry.claim(entry, names, (lambda _: False) if name else taken(store, apart=True))
    if claimed is None:
        raise UsageError(f"a job named {name} is running already")
    entry = claimed
    try:
        log, path = state.open_log(entry.name, fresh=True)
    except OSError as error:
        registry.release(entry)
        raise TorporError(f"no log for {entry.name}: {error.strerror}: {error.filename}") from None
    entry = entry._replace(log=path)

    def body(report: Report) -> None:
        nonlocal entry
        from torpor.supervise.supervisor import Supervisor
        from torpor.supervise.terminal import Terminal

        entry = entry._replace(supervisor=Pid.of(os.getpid()))
        if cwd is not None:
            os.chdir(cwd)

        def waiting(line: str) -> None:
            if not report.event({"event": "waiting", "line": line}):
                raise TorporError("whoever wanted it started has gone")

        entry, standing, watches = admitted(registry.update(entry), policy, wait, watch, waiting)
        become_subreaper()
        streams = inherited()
        signals = Signals(answered(keep_up))
        try:
            wrapper = wrapped(watches)
            pid = program.start(argv, signals.before, new_session=True, env=env, wrapper=wrapper)
        except BaseException:
            registry.release(entry)
            if standing is not None:
                standing.close()
            raise
        entry = registry.update(watched(entry._replace(root=Pid.of(pid), root_vpid=pid), wrapper))
        os.chdir("/")
        supervisor = Supervisor(entry, signals, Terminal(-1, relay=False), streams, wrapper=wrapper)
        supervisor.stand(stands(entry, standing))
        report.started(Started(entry.name, pid, pid, path))
        supervised(supervisor, detached=True)

    def on_event(event: dict[str, Any]) -> None:
        if event.get("event") == "waiting" and event["line"]:
            tell(str(event["line"]))

    try:
        return detach(body, log, on_event)
    except BaseException:
        left = registry.read(entry.folder)
        if left is not None and not left.root.alive:
            registry.release(left)
        raise


def speaking(env: Mapping[bytes, bytes] | None) -> tuple[str, Mapping[bytes, bytes]]:
    """What a job that may speak with torpor is known by, and its environment (None: ours), which tells it."""
    from torpor.supervise.inside import Kept

    kept = Kept.new()
    return kept.encode(), {**(program.environment() if env is None else env), b"TORPOR_INSIDE": kept.token.encode()}


def admitted(
    entry: Entry, policy: str, wait: float | None, watch: str | None,
    tell: Callable[[str], None] = lambda line: say(f"torpor: {line}") if line else None,
) -> tuple[Entry, Standing | None, str | None]:  # fmt: skip
    """The entry, what the job holds before it starts, and what of it is to be watched. Takes the entry out again if
    the job may not start. Raises Refused, UsageError."""
    if not policy and not any(os.path.exists(path) for path in files.places()):
        return entry, None, watch
    from torpor.launch import admission

    try:
        entry, standing, how = admission.start(entry, policy, wait, tell)
    except BaseException:
        registry.release(entry)
        raise
    return entry, standing, watch or how or None


def stands(entry: Entry, standing: Standing | None) -> Standing:
    """What a new job holds outside: what it has, or nothing yet."""
    from torpor.supervise.standing import Standing

    found = standing if standing is not None else Standing(entry.identity, entry.name)
    found.job = entry.name
    if found.seats is not None:
        found.seats.running((entry.root,))
    return found


def wrapped(watch: str | None) -> Wrapper | None:
    """What is to be put around the job, if it is to be watched and can be."""
    if watch is None:
        return None
    from torpor.launch import watching
    from torpor.watch.ledger import begun

    return watching.wrapper(begun(watch), lambda line: say(f"torpor: {line}"))


def watched(entry: Entry, wrapper: Wrapper | None) -> Entry:
    """With who answers for the filter: a child of ours that is not of the job."""
    if wrapper is None:
        return entry
    return entry._replace(holder=Pid.of(wrapper.holder), skip=(*entry.skip, wrapper.holder))


def supervised(supervisor: Supervisor, detached: bool = False, wishes: Mapping[str, Any] | None = None) -> int:
    """Supervise to the end; the wait status. If the job was saved and ended, say so: otherwise there would only be an
    exit status.

    After a crash of a job that is to be restarted, this process becomes another one (again.py) and does not return.
    wishes: how it is to be restarted then (`restart.Wishes`).
    """
    supervisor.joined.start = program.start_joined
    status = supervisor.run()
    if supervisor.again:
        from torpor.launch import again

        seats = supervisor.hand_over()
        told = {**(wishes or {}), "seats": seats}
        again.become(supervisor.entry, supervisor.crashes, status, detached, told, supervisor.part)
        registry.release(supervisor.entry)
    if supervisor.stopped_as:
        where = " --hosts ..." if supervisor.part is not None else ""
        say(f"torpor: saved as {supervisor.stopped_as} and stopped (torpor restart {supervisor.stopped_as}{where})")
    return status


def answered(keep_up: str) -> tuple[int, ...]:
    """The signals that mean something other than being passed on."""
    if not keep_up:
        return ()
    from torpor.supervise import upkeep

    return tuple(number for number, _ in upkeep.decode(keep_up).on_signal)


def claim(entry: Entry, name: str) -> Entry:
    """Put the job in under exactly that name. Raises UsageError if a running job has it."""
    claimed = registry.claim(entry, iter((registry.check_name(name),)), lambda _: False)
    if claimed is None:
        raise UsageError(f"a job named {name} is running already")
    return claimed


def _register(entry: Entry) -> Entry:
    """The job is running: put it in, or write down what is new of it. Never raises; a job that could not be
    put in goes on running and says so."""
    try:
        if entry.folder:
            return registry.update(entry)
        claimed = registry.claim(entry, registry.series(registry.fit_name(entry.argv[0])), taken(entry.store))
        if claimed is not None:
            return claimed
        reason = "no name is free"
    except (OSError, TorporError) as error:
        reason = str(error)
    say(f"torpor: the job is not registered ({reason}); save it with torpor checkpoint --pid {entry.root.pid}")
    return entry


def taken(location: str, apart: bool = False) -> Callable[[str], bool]:
    """Has a job of that name been saved? Then a new job is not to continue its series by accident. apart: this process
    is going to fork (store/locations.py).

    The store is opened at the first question only: importing it takes longer than starting a program.
    """
    opened: list[Store] = []

    def ask(name: str) -> bool:
        try:
            if not opened:
                from torpor.store import open_store

                opened.append(open_store(location or None, apart))
            return bool(opened[0].list(name))
        except (OSError, TorporError):
            return False  # no store yet, or none that can be read: that is for the first checkpoint to say

    return ask
