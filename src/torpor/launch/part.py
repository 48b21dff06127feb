"""`torpor member`: begin one part of a job over hosts on this host, or bring it back, and supervise it to its end.

Whoever starts it (launch/starter.py, mostly over ssh) speaks to it in lines:

    -> the job's secret (link/secret.py), and what this part is (supervise/part.py)
    <- {"ports": [PORT, PORT]}              only where one of the job's own servers is to be, {"none": WHY} if it cannot
    -> {"nodes": [...]}                     the servers, if they are the job's own
    <- {"door": PORT}                       only for a job that is new: its door listens there
    -> {"doors": {NAME: [ADDRESS, PORT]}}   those of all parts
    <- {"ready": true}                      only for one that is brought back: it waits for the others
    <- {"started": true} or {"error": TEXT} from a part that goes on by itself (detached)

A part in the foreground says nothing at the end: from there on its standard streams are the program's. (The first part
where it is not started over ssh has other descriptors for these lines, and says that it has started.)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torpor.launch import job_file, program
from torpor.launch.run import answered, speaking, stands, supervised, watched, wrapped
from torpor.link import lines
from torpor.model.errors import RestartFailed, TorporError, UsageError
from torpor.supervise import registry
from torpor.supervise.membership import Membership
from torpor.supervise.parent import become_subreaper, inherited
from torpor.supervise.registry import Entry, Pid
from torpor.supervise.signals import Signals

if TYPE_CHECKING:
    from torpor.launch.detach import Report
    from torpor.link.secret import Secret
    from torpor.link.server import Server
    from torpor.supervise.part import Part
    from torpor.supervise.standing import Standing

PATIENCE = 60.0
"""Seconds for the other hosts to come."""


def member(detached: bool) -> int:
    """Read what this part is, and be its supervisor. Returns the wait status of its root; detached: returns once it
    runs. Raises TorporError."""
    from torpor.link import secret as secrets
    from torpor.supervise import part as parts

    secret = secrets.receive(0)
    part = _settle(parts.receive(0), 1, 0)
    program.hold_standard()
    if not detached:
        return _supervise(part, secret, None)
    from torpor.launch.detach import detach
    from torpor.supervise import state

    if part.checkpoint:
        _say(1, {"ready": True})
    answer = os.dup(1)
    heard = os.dup(0)
    log, path = state.open_log(_names(part)[0], fresh=not part.checkpoint)

    def body(report: Report) -> None:
        os.dup2(heard, 0)
        os.close(heard)
        _supervise(part, secret, report, answer, log=path)

    try:
        detach(body, log)
    except TorporError as error:
        _say(answer, {"error": str(error)})
        return 1 << 8
    _say(answer, {"started": True})
    return 0


def first(
    secret: Secret, part: Part, heard: int, answer: int, report: Report | None, log: str, standing: Standing | None
) -> int:
    """Be the supervisor of the first part: whoever starts the others speaks to us through these two descriptors, and
    our standard streams are the program's. report, log: if it is detached.  standing: what the job holds already.
    Returns the wait status of its root. Raises TorporError."""
    return _supervise(_settle(part, answer, heard), secret, report, answer, heard, log, standing)


def _settle(part: Part, answer: int, heard: int) -> Part:
    """Find ports for a server of the job's own, if this host is to keep one, and hear of all servers."""
    import msgspec

    from torpor.link import server

    if not part.nodes:
        return part
    if any(node.name == part.part for node in part.nodes):
        try:
            server.find()
            _say(answer, {"ports": server.free_ports(part.address)})
        except TorporError as error:
            _say(answer, {"none": str(error)})
        except OSError as error:
            raise TorporError(f"{part.part}: {part.address}: {error.strerror}") from None
    nodes = tuple(server.Node(*each) for each in _hear(heard)["nodes"])
    return msgspec.structs.replace(part, nodes=nodes)


class Taken(UsageError):
    """A job of that name is running on this host."""


def joined(secret: Secret, part: Part) -> int:
    """Join a job with a program of our own, in the foreground: its wait status. Raises Taken, TorporError."""
    program.hold_standard()
    return _supervise(part, secret, None)


def _names(part: Part) -> tuple[str, ...]:
    """What this part may be called on its host; its log has the first of these names. Of several parts on one host, of
    which there are none but after a restart, the first is called as the job is."""
    own = f"{part.job}.{part.part}"
    if part.own and not part.checkpoint:
        return (part.job,)
    here = [name for name, address in part.hosts.items() if address == part.address]
    return (own,) if part.part in here[1:] else (part.job, own)


def _supervise(
    part: Part, secret: Secret, report: Report | None, answer: int = 1, heard: int = 0, log: str = "",
    standing: Standing | None = None,
) -> int:  # fmt: skip
    given = Entry(name="", store=part.store, argv=tuple(map(os.fsdecode, part.argv)), upkeep=part.upkeep, log=log,
                  policy=part.policy, identity=part.identity, part=part.part)  # fmt: skip
    names: Iterator[str] = iter([registry.check_name(name) for name in _names(part)])
    entry = _kept(given) or registry.claim(given, names, lambda _: False)
    if entry is None:
        raise Taken(f"a job named {part.job} is running already on {part.part}")
    try:
        if part.checkpoint and heard:
            _hear(heard)
            os.close(answer)
            os.close(heard)
        if standing is not None and standing.seats is not None:
            entry = entry._replace(seats=standing.seats.names, keeper=Pid.of(standing.seats.pid))
        server = _server(part, secret, entry.folder)
        try:
            if part.job_file:
                job_file.write(part.job_file, secret, part)
            membership = Membership(part, secret, entry.folder, server)
        except BaseException:
            if server is not None:
                server.stop()
            raise
        if part.checkpoint:
            return _restart(part, membership, entry, report, standing)
        if part.own:
            return _join(part, membership, entry)
        return _begin(part, secret, membership, entry, standing, report, answer, heard)
    except BaseException:
        left = registry.read(entry.folder)
        if left is None or not left.root.alive:
            registry.release(entry)
        raise
    finally:
        if part.job_file:
            job_file.remove(part.job_file)


def _kept(given: Entry) -> Entry | None:
    """The entry, where there was one of this process already: it supervised the job before that crashed."""
    kept = next((entry for entry in registry.jobs() if entry.supervisor == Pid.of(os.getpid())), None)
    if kept is None:
        return None
    shutil.rmtree(f"{kept.folder}/nats", ignore_errors=True)  # what the hosts had agreed on
    return registry.update(given._replace(
        name=kept.name, folder=kept.folder, supervisor=kept.supervisor, started=kept.started, boot=kept.boot,
        pid_namespace=kept.pid_namespace, log=kept.log, saved=kept.saved, saved_at=kept.saved_at,
    ))  # fmt: skip


def _server(part: Part, secret: Secret, folder: str) -> Server | None:
    """One of the job's own NATS servers, if this host is to keep one."""
    node = next((node for node in part.nodes if node.name == part.part), None)
    if node is None:
        return None
    from torpor.link import server

    return server.start(f"{folder}/nats", secret, node, part.nodes)


def _begin(
    part: Part, secret: Secret, membership: Membership, entry: Entry, standing: Standing | None, report: Report | None,
    answer: int, heard: int,
) -> int:  # fmt: skip
    from torpor.launch import door
    from torpor.launch.travel import DOOR
    from torpor.supervise.supervisor import Supervisor
    from torpor.supervise.terminal import Terminal, open_terminal

    become_subreaper()
    streams = inherited() if report is None else {number: number for number in (0, 1, 2)}
    signals = Signals(answered(part.upkeep))
    env: Mapping[bytes, bytes]
    env = {**program.environment(), **{os.fsencode(name): value for name, value in part.env.items()}}
    if part.inside:
        kept, env = speaking(env)
        entry = entry._replace(inside=kept)
    opened = None
    try:
        wrapper = wrapped(part.watch or None)
        opened = door.start(secret, part.part, part.address, env, wrapper=wrapper)
        _say(answer, {"door": opened.port}, heard)
        doors: Mapping[str, Any] = _hear(heard)["doors"]
        door.introduce(opened, {name: (str(address), int(port)) for name, (address, port) in doors.items()})
        membership.join(PATIENCE)
        root = opened.pid
        if part.argv:
            if part.cwd:
                os.chdir(part.cwd)
            env = {**env, os.fsencode(DOOR): os.fsencode(opened.socket)}
            if wrapper is not None:
                wrapper.more()
            root = program.start(list(map(os.fsdecode, part.argv)), signals.before, env=env, wrapper=wrapper)
            if heard:
                _say(answer, {"started": True})
                os.close(answer)
                os.close(heard)
        elif report is not None:
            _quiet()
    except BaseException:
        signals.close()
        if opened is not None:
            os.kill(opened.pid, 9)
        membership.close()
        raise
    entry = entry._replace(supervisor=Pid.of(os.getpid()), root=Pid.of(root), root_vpid=root, door=Pid.of(opened.pid))
    entry = registry.update(watched(entry, wrapper))
    terminal = Terminal(open_terminal() if report is None else -1, relay=False)
    supervisor = Supervisor(entry, signals, terminal, streams, wrapper=wrapper, membership=membership)
    if part.first:
        supervisor.stand(stands(entry._replace(name=part.job), standing))
    _started(report, entry)
    return supervised(supervisor, detached=report is not None)


def _join(part: Part, membership: Membership, entry: Entry) -> int:
    """A program of this host's own joins the job, in the foreground."""
    from torpor.supervise.supervisor import Supervisor
    from torpor.supervise.terminal import Terminal, open_terminal

    become_subreaper()
    streams = inherited()
    signals = Signals()
    try:
        membership.join(PATIENCE)
        wrapper = wrapped(part.watch or None)
        kept, env = speaking(None) if part.inside else ("", None)
        root = program.start(list(map(os.fsdecode, part.argv)), signals.before, env=env, wrapper=wrapper)
    except BaseException:
        signals.close()
        membership.close()
        raise
    entry = registry.update(watched(entry._replace(root=Pid.of(root), root_vpid=root, inside=kept), wrapper))
    terminal = Terminal(open_terminal(), relay=False)
    return supervised(Supervisor(entry, signals, terminal, streams, wrapper=wrapper, membership=membership))


def _restart(part: Part, membership: Membership, entry: Entry, report: Report | None, standing: Standing | None) -> int:
    from torpor.checkpoint.together import GivenUp
    from torpor.launch.among import Among
    from torpor.launch.restart import Wishes, restart_part

    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in part.wishes.items()}
    released = False

    def runs() -> None:
        nonlocal released
        released = True
        agreed.released()

    try:
        agreed = membership.recreate(PATIENCE)
        among = Among(part.old, part.hosts, agreed, membership.knows, part.first)
        return restart_part(
            part.checkpoint, part.store, Wishes(**given), entry, among, membership, runs, report, standing
        )
    except BaseException as error:
        if released:
            raise
        reason = membership.give_up(str(error) or type(error).__name__)
        if isinstance(error, GivenUp) or (isinstance(error, TorporError) and not str(error)):
            raise RestartFailed(reason) from None  # another host's: it tells more
        raise


def _started(report: Report | None, entry: Entry) -> None:
    if report is not None:
        from torpor.launch.detach import Started

        os.chdir("/")
        report.started(Started(entry.name, entry.root.pid, entry.root_vpid, entry.log))


def _quiet() -> None:
    """Nobody speaks to us any more."""
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)


def _say(fd: int, what: Mapping[str, Any], heard: int = -1) -> None:
    """heard: where we are told why, should nobody listen any more."""
    try:
        os.write(fd, json.dumps(what).encode() + b"\n")
    except OSError:
        if heard >= 0:
            _hear(heard)
        raise TorporError("whoever started this part has gone") from None


def _hear(fd: int, limit: float = PATIENCE) -> dict[str, Any]:
    """A line, and not one byte beyond it. Raises TorporError."""
    try:
        data = lines.line(fd, limit)
        if not data.endswith(b"\n"):
            raise TimeoutError
    except TimeoutError:
        raise TorporError("whoever started this part does not speak to it any more") from None
    except EOFError:
        raise TorporError("whoever started this part has gone") from None
    found: dict[str, Any] = json.loads(data)
    if "error" in found:
        raise TorporError(str(found["error"]))
    return found
