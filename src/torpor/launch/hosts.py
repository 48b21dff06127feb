"""`torpor run --hosts`, `torpor restart --hosts`: a job over several hosts. This host has the first part, with the
program (if another one is to, see far.py); the others are started over ssh (starter.py): a new one has a door (door.py)
and nothing else, until `torpor rsh` brings something there.

This process becomes the supervisor of the first part (part.py), or, detached, one that it forks. The starter is a
process of its own that is no child of ours, since our children are the job; it has ended when the job begins.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from torpor.launch import program
from torpor.launch.travel import travelling
from torpor.model.errors import TorporError, UsageError
from torpor.named_tuple import NamedTuple
from torpor.supervise import registry
from torpor.supervise.say import say

if TYPE_CHECKING:
    from torpor.launch.detach import Report, Started
    from torpor.launch.restart import Wishes
    from torpor.link.server import Node
    from torpor.supervise.part import Part
    from torpor.supervise.registry import Entry
    from torpor.supervise.standing import Standing

SERVERS = 3
"""How many servers of its own a job over so many hosts has; with fewer hosts it has one. Of three, one can be lost."""


class Over(NamedTuple):
    """Where a job is to be, and how its hosts speak.

    hosts: as others call them; the first has to be this one (else Elsewhere is raised).  engine: a site's NATS servers;
    '': some of the job's own.  remote: the command `torpor` on the other hosts, by default the same as here.  job_file:
    through which others join, '' for none.
    """

    hosts: Sequence[str]
    engine: str = ""
    remote: str = ""
    job_file: str = ""


class Elsewhere(UsageError):
    """The first host is not this one."""

    def __init__(self, host: str, text: str) -> None:
        self.host = host
        super().__init__(text)


class Planned(NamedTuple):
    """A job that can be started. parts: the first one first.  hosts: by part, how its host is called.  wishes: of one
    that is brought back.  wait: seconds to wait for seats of a new one, None for what the policy says.  crashes: how
    often it has been restarted after one."""

    parts: Sequence[Part]
    hosts: Mapping[str, str]
    wishes: Wishes | None = None
    wait: float | None = None
    crashes: int = 0


def new(
    argv: Sequence[str], name: str | None, store: str, keep_up: str, over: Over, policy: str = "",
    watch: str = "connect", wait: float | None = None, inside: bool = False,
) -> Planned:  # fmt: skip
    """A program, that runs on the first of these hosts, as a job over all of them. policy: given for it, as
    supervise/terms.py writes it.  watch: as for `run.run`, '' for nothing.  wait: see `Planned`.  inside: it may
    speak with torpor. Raises CannotStart,
    UsageError, TorporError."""
    found = places(over.hosts)
    program.check(argv[0])
    parts = describe(argv, _name(argv, name, store), store, keep_up, found, over.engine)
    parts = [msgspec.structs.replace(part, policy=policy, watch=watch, inside=inside) for part in parts]
    parts[0] = msgspec.structs.replace(parts[0], job_file=over.job_file)
    return Planned(parts, {part: part for part in found}, wait=wait)


def saved(checkpoint: str | None, store: str, wishes: Wishes, over: Over, kept: Entry | None = None) -> Planned:
    """A job that is brought back, its first part on this host. over.hosts: where its parts come back, in the order in
    which `torpor inspect` lists them, several on one if these are fewer; 'PART=HOST' for a part by its name.  kept: the
    entry of the job, if it has crashed. Raises as restart.restart."""
    from torpor.launch import restart
    from torpor.launch.checkpoint import open_whole
    from torpor.supervise.lease import of_checkpoint

    if not any("=" in word for word in over.hosts):
        places(over.hosts[:1])  # the first one's affair is also whom to trust
    opened = open_whole(checkpoint, store or None, wishes.untrusted)
    if opened is None:
        raise UsageError("it was saved on one host, and comes back on one: without --hosts")
    info, whole = opened
    job = _again(whole.job, store, wishes)
    names = [whole.first, *(record.part.name for record in whole.parts if record.part.name != whole.first)]
    where = assign(names, over.hosts)
    found = places(list(dict.fromkeys(where[part] for part in names)))
    own = {record.part.name for record in whole.parts if record.own}
    addresses = {part: found[where[part]] for part in names}
    if kept is not None:
        identity, keep_up = kept.identity, kept.upkeep
    else:
        identity = registry.fresh_identity() if wishes.clone else of_checkpoint(info)
        keep_up = restart.upkeep_of(info, wishes)
    parts = describe((), job, store, keep_up, addresses, over.engine, identity)
    wanted = restart.absolute(wishes)
    given = {"files": wanted.files, "changed_files": wanted.changed_files, "untrusted": wanted.untrusted,
             "clone": wanted.clone, "map_path": list(wanted.map_path), "why": wanted.why,
             "policy": wanted.policy, "new_policy": wanted.new_policy, "stopped": wanted.stopped}  # fmt: skip
    here = {key: value for key in ("stdin", "stdout", "stderr") if (value := getattr(wanted, key)) is not None}
    here["notes"] = list(wanted.notes)
    each = [
        msgspec.structs.replace(
            part, checkpoint=f"{info.job}@{info.number}", old=part.part, own=part.part in own, env={},
            wishes={**given, **here} if part.first else given, job_file=over.job_file if part.first else "",
        )
        for part in parts
    ]  # fmt: skip
    return Planned(each, where, wishes)


def after_crash(
    checkpoint: str, entry: Entry, wishes: Wishes, crashes: int, where: Mapping[str, str], engine: str, remote: str
) -> int:
    """Bring a job back that has crashed, in the process that supervised its first part; the wait status of its root.
    entry: its entry, which is ours.  where: by part, the host on which it was.  engine, remote: see Over. Raises as
    restart.restart."""
    from torpor.launch.checkpoint import open_whole

    opened = open_whole(checkpoint, entry.store or None, wishes.untrusted)
    names = [record.part.name for record in opened[1].parts] if opened is not None else []
    over = Over([f"{name}={where.get(name, name)}" for name in names], engine, remote)
    program.hold_standard()
    job = saved(checkpoint, entry.store, wishes._replace(name=entry.name), over, entry)
    return run(job._replace(crashes=crashes), over)


def _again(saved: str, store: str, wishes: Wishes) -> str:
    """The name under which a job comes back. Raises UsageError if a running job has it."""
    from torpor.launch.run import taken

    running = {entry.name for entry in registry.jobs() if entry.supervisor.pid != os.getpid()}
    wanted = registry.check_name(wishes.name) if wishes.name else saved
    if wishes.clone and not wishes.name:
        used = taken(store, apart=True)
        return next(name for name in registry.series(wanted)
                    if name not in running and (name == wanted or not used(name)))  # fmt: skip
    if saved in running and not wishes.clone:
        raise UsageError(f"a job named {saved} is running already on this host; restart a copy with --clone")
    if wanted in running:
        raise UsageError(f"a job named {wanted} is running already on this host; use --name")
    return wanted


def assign(parts: Sequence[str], hosts: Sequence[str]) -> dict[str, str]:
    """On which host each part comes back. Pure. Raises UsageError."""
    named = dict(word.split("=", 1) for word in hosts if "=" in word)
    rest = [word for word in hosts if "=" not in word]
    for part in named:
        if part not in parts:
            raise UsageError(f"--hosts: it has no part {part} ({', '.join(parts)})")
    left = [part for part in parts if part not in named]
    if left and not rest:
        raise UsageError(f"--hosts: where is {left[0]} to come back?")
    if len(rest) > len(left):
        raise UsageError(f"--hosts: {len(rest)} hosts for {len(left)} parts ({', '.join(left)})")
    return {**{part: rest[n % len(rest)] for n, part in enumerate(left)}, **named}


def run(job: Planned, over: Over) -> int:
    """Start all parts, and be the first one, in the foreground: the wait status of its root. Raises TorporError."""
    return _begin(job, over, None, "")


def run_detached(job: Planned, over: Over, tell: Callable[[str], None]) -> Started:
    """The same without a terminal, the first part's output going to a log; returns once the job runs. tell: what it
    waits for."""
    from torpor.launch.detach import detach
    from torpor.supervise import state

    first = job.parts[0]
    log, path = state.open_log(first.job, fresh=not first.checkpoint)

    def on_event(event: dict[str, Any]) -> None:
        if event.get("event") == "waiting" and event["line"]:
            tell(str(event["line"]))

    return detach(lambda report: _begin(job, over, report, path), log, on_event)


def _begin(job: Planned, over: Over, report: Report | None, log: str) -> int:
    """See to it that it may run, before anything is started on other hosts, and then be the first part."""
    from torpor.launch import part as launched
    from torpor.launch import starter, whole_admission
    from torpor.link import secret as secrets

    def tell(line: str) -> None:
        if report is None:
            if line:
                say(f"torpor: {line}")
        elif not report.event({"event": "waiting", "line": line}):
            raise TorporError("whoever wanted it started has gone")

    if job.wishes is None:
        standing = whole_admission.new(job.parts[0], job.wait, tell)
    else:
        standing = whole_admission.again(job.parts, job.wishes, job.wishes.tell or tell if report is None else tell)
    parts = [_holding(part, standing) for part in job.parts]
    try:
        secret = secrets.fresh()
        first, *others = parts
        first = msgspec.structs.replace(first, ssh=dict(job.hosts), remote=over.remote, crashes=job.crashes)
        to_us, from_starter = os.pipe()
        to_starter, from_us = os.pipe()
        if _starter_is_us():
            os.close(to_us)
            os.close(from_us)
            starter.be(secret, first, others, job.hosts, to_starter, from_starter, over.remote)
        os.close(from_starter)
        os.close(to_starter)
        return launched.first(secret, first, to_us, from_us, report, log, standing)
    except BaseException:
        if standing is not None:
            standing.close()
        raise


def _holding(part: Part, standing: Standing | None) -> Part:
    """A part that is brought back, told which seats the job has."""
    if standing is None or standing.seats is None or not part.checkpoint:
        return part
    return msgspec.structs.replace(part, wishes={**part.wishes, "held": list(standing.seats.names)})


def _starter_is_us() -> bool:
    """Make the starter, no child of ours; True in it."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return False
    if os.fork():
        os._exit(0)
    return True


def this() -> list[str]:
    """This host, as it calls itself. Raises UsageError where others could not reach it by that."""
    name = socket.gethostname()
    if address_of(name).startswith("127."):
        raise UsageError(f"other hosts do not reach this one as {name} ({address_of(name)}): say --hosts ADDRESS")
    return [name]


def address_of(host: str) -> str:
    """Of a host, numeric. Raises UsageError."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--hosts: {host}: {getattr(error, 'strerror', None) or error}") from None


def places(hosts: Sequence[str]) -> dict[str, str]:
    """Names of hosts and their addresses. Raises UsageError for what is no host, Elsewhere."""
    found: dict[str, str] = {}
    for name in hosts:
        found[name] = address_of(name)
    if len(found) != len(hosts) or len(set(found.values())) != len(hosts):
        raise UsageError("--hosts: a host is there twice")
    first, address = next(iter(found.items()))
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as trial:
            trial.bind((address, 0))
    except OSError:
        raise Elsewhere(first, f"--hosts: {first} ({address}) is another host than the one that ssh leads to") from None
    loopback = [host for host, address in found.items() if address.startswith("127.") or address == "::1"]
    if loopback and len(loopback) != len(found):
        address = found[loopback[0]]
        raise UsageError(f"--hosts: {loopback[0]} is {address} here, where no other host reaches it: say its address")
    return found


def describe(
    argv: Sequence[str], job: str, store: str, keep_up: str, hosts: Mapping[str, str], engine: str, identity: str = ""
) -> list[Part]:  # fmt: skip
    """The parts of the job, the first one first. identity: of a job that there was before. Raises TorporError."""
    from torpor.image import keys
    from torpor.supervise.part import Part

    key = keys.own(make=True)
    assert key is not None
    first = next(iter(hosts))
    settings: dict[str, str | int] = {}
    nodes = () if engine else servers(hosts)
    if engine:
        from torpor.link.engine import site
        from torpor.store.settings import read

        settings = dict(read().engine)
        site(engine, settings)  # for its errors
    identity = identity or registry.fresh_identity()
    given = program.environment()
    env = {os.fsdecode(name): value for name, value in given.items()}
    abroad = {os.fsdecode(name): value for name, value in travelling(given).items()}
    return [
        Part(
            job=job, part=name, first=name == first, address=address, hosts=dict(hosts), nodes=nodes, engine=engine,
            settings=settings, store=store, key=keys.text_of(key), upkeep=keep_up, identity=identity,
            argv=tuple(map(os.fsencode, argv)) if name == first else (), env=env if name == first else abroad,
            cwd=os.getcwdb() if name == first else b"/",
        )
        for name, address in hosts.items()
    ]  # fmt: skip


def servers(hosts: Mapping[str, str]) -> tuple[Node, ...]:
    """Which parts are to keep the job's own servers: the first part of each of three hosts, or of one. Pure.

    hosts: addresses by part, the first one first. Their ports are found there (starter.py)."""
    from torpor.link.server import Node

    first: dict[str, str] = {}
    for part, address in hosts.items():
        first.setdefault(address, part)
    keepers = list(first.values())
    count = SERVERS if len(keepers) >= SERVERS else 1
    return tuple(Node(part, hosts[part], 0) for part in keepers[:count])


def _name(argv: Sequence[str], name: str | None, store: str) -> str:
    """Of the job. Raises UsageError if a running job has it."""
    running = {entry.name for entry in registry.jobs()}
    if name:
        if registry.check_name(name) in running:
            raise UsageError(f"a job named {name} is running already")
        return name
    from torpor.launch.run import taken

    used = taken(store, apart=True)
    return next(each for each in registry.series(registry.fit_name(argv[0])) if each not in running and not used(each))
