"""`torpor run --hosts`, `torpor restart --hosts`: a job over several hosts. This host has the first part, with the
program; the others are started over ssh: a new one has a door (door.py) and nothing else, until `torpor rsh` brings
something there.

This process becomes the supervisor of the first part (part.py). What it has to know of the others comes from a
*starter*, a process of its own that is no child of ours, since our children are the job: it makes the ssh connections
and speaks with each part by lines of JSON, and has ended when the job begins:

    starter > part:   the secret, the description of the part (supervise/part.py)
    part > starter:   {"door": PORT}
    starter > part:   {"doors": {NAME: [ADDRESS, PORT]}}
    part > starter:   {"started": true}
    anybody at any time: {"error": TEXT}

The first is told last, when all others are there. If one cannot be started, or the program, those that are there are
ended again.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from torpor.launch import door, program
from torpor.launch.travel import travelling
from torpor.link.link import LinkDown
from torpor.model.errors import TorporError, UsageError
from torpor.supervise import registry

if TYPE_CHECKING:
    from subprocess import Popen

    from torpor.launch.restart import Wishes
    from torpor.link.secret import Secret
    from torpor.supervise.part import Part

SSH = "TORPOR_SSH"
"""Names another program than ssh, with its options; it is called with ssh's."""
CONNECT = 20
"""Seconds for an ssh connection."""
LIMIT = 60.0
"""Seconds for each answer of a part."""


def run(
    argv: Sequence[str], name: str | None, store: str, keep_up: str, hosts: Sequence[str], engine: str = "",
    remote: str = "",
) -> int:  # fmt: skip
    """Run a program on the first of these hosts, which is this one, as a job over all of them; its wait status.

    hosts: as others call them.  engine: a site's NATS servers; '': one of the job's own, here.  remote: the command
    `torpor` on the other hosts, by default the same as here. Raises CannotStart, UsageError, TorporError.
    """
    program.check(argv[0])
    found = places(hosts)
    parts = describe(argv, _name(argv, name, store), store, keep_up, found, engine)
    return _started(parts, {part: part for part in found}, remote)


def restart(
    checkpoint: str | None, store: str, wishes: Wishes, hosts: Sequence[str], engine: str = "", remote: str = ""
) -> int:
    """Bring a job over hosts back, its first part on this host; the wait status of its root.

    hosts: where its parts come back, in the order in which `torpor inspect` lists them, several on one if these are
    fewer; 'PART=HOST' for a part by its name.  engine, remote: as for `run`. Raises as restart.restart.
    """
    from torpor.launch.checkpoint import open_whole

    opened = open_whole(checkpoint, store or None, wishes.untrusted)
    if opened is None:
        raise UsageError("it was saved on one host, and comes back on one: without --hosts")
    info, whole = opened
    if whole.job in {entry.name for entry in registry.jobs()}:
        raise UsageError(f"a job named {whole.job} is running already on this host")
    names = [whole.first, *(record.part.name for record in whole.parts if record.part.name != whole.first)]
    where = assign(names, hosts)
    found = places(list(dict.fromkeys(where[part] for part in names)))
    number = f"{info.job}@{info.number}"
    addresses = {part: found[where[part]] for part in names}
    parts = describe((), whole.job, store, "", addresses, engine)
    given = {"files": wishes.files, "changed_files": wishes.changed_files, "untrusted": wishes.untrusted,
             "map_path": list(wishes.map_path)}  # fmt: skip
    streams = {key: value for key in ("stdin", "stdout", "stderr") if (value := getattr(wishes, key)) is not None}
    each = [
        msgspec.structs.replace(
            part, checkpoint=number, old=part.part, env={}, wishes={**given, **(streams if part.first else {})}
        )
        for part in parts
    ]
    return _started(each, where, remote)


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


def _started(parts: Sequence[Part], hosts: Mapping[str, str], remote: str) -> int:
    """Start all parts, and be the first one. hosts: by part, how its host is called."""
    from torpor.launch import part as launched
    from torpor.link import secret as secrets

    secret = secrets.fresh()
    first, *others = parts
    to_us, from_starter = os.pipe()
    to_starter, from_us = os.pipe()
    if _starter_is_us():
        os.close(to_us)
        os.close(from_us)
        _start_others(secret, first, others, hosts, to_starter, from_starter, remote)
    os.close(from_starter)
    os.close(to_starter)
    return launched.first(secret, first, to_us, from_us)


def places(hosts: Sequence[str]) -> dict[str, str]:
    """Names of hosts and their addresses. Raises UsageError for what is no host, or if the first is not this one."""
    found: dict[str, str] = {}
    for name in hosts:
        try:
            found[name] = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
        except (OSError, UnicodeError) as error:
            raise UsageError(f"--hosts: {name}: {getattr(error, 'strerror', None) or error}") from None
    if len(found) != len(hosts) or len(set(found.values())) != len(hosts):
        raise UsageError("--hosts: a host is there twice")
    first, address = next(iter(found.items()))
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as trial:
            trial.bind((address, 0))
    except OSError:
        raise UsageError(f"--hosts: the first host has to be this one, and {first} ({address}) is not") from None
    loopback = [host for host, address in found.items() if address.startswith("127.") or address == "::1"]
    if loopback and len(loopback) != len(found):
        address = found[loopback[0]]
        raise UsageError(f"--hosts: {loopback[0]} is {address} here, where no other host reaches it: say its address")
    return found


def describe(
    argv: Sequence[str], job: str, store: str, keep_up: str, hosts: Mapping[str, str], engine: str
) -> list[Part]:  # fmt: skip
    """The parts of the job, the first one first. Raises TorporError."""
    from torpor.image import keys
    from torpor.link.server import Node, find, free_ports
    from torpor.supervise.part import Part

    key = keys.own(make=True)
    assert key is not None
    first = next(iter(hosts))
    nodes: tuple[Node, ...] = ()
    settings: dict[str, str | int] = {}
    if engine:
        from torpor.link.engine import site
        from torpor.store.settings import read

        settings = dict(read().engine)
        site(engine, settings)  # for its errors
    else:
        find()
        nodes = (Node(first, hosts[first], free_ports(hosts[first], 1)[0]),)
    given = program.environment()
    env = {os.fsdecode(name): value for name, value in given.items()}
    abroad = {os.fsdecode(name): value for name, value in travelling(given).items()}
    return [
        Part(
            job=job, part=name, first=name == first, address=address, hosts=dict(hosts), nodes=nodes, engine=engine,
            settings=settings, store=store, key=keys.text_of(key), upkeep=keep_up,
            argv=tuple(map(os.fsencode, argv)) if name == first else (), env=env if name == first else abroad,
            cwd=os.getcwdb() if name == first else b"/",
        )
        for name, address in hosts.items()
    ]  # fmt: skip


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


# -- the starter


def _starter_is_us() -> bool:
    """Make the starter, no child of ours; True in it."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return False
    if os.fork():
        os._exit(0)
    return True


def _start_others(
    secret: Secret, first: Part, parts: Sequence[Part], hosts: Mapping[str, str], reading: int, writing: int,
    remote: str,
) -> None:  # fmt: skip
    """Be the starter; does not return. reading, writing: from and to the first part."""
    status = 1
    started: list[Remote] = []
    try:
        doors: dict[str, door.Address] = {}
        if not first.checkpoint:
            # The first has the job's NATS server: that runs before anybody looks for it.
            port = int(_said(door.line(reading, LIMIT), first.part)["door"])
            doors[first.part] = first.address, port
        for part in parts:
            started.append(Remote(hosts[part.part], remote))
        for part, each in zip(parts, started):
            each.send(_opening(secret, part))
        for part, each in zip(parts, started):
            said = each.hear()
            if not first.checkpoint:
                doors[part.part] = part.address, int(said["door"])
        table = json.dumps({"doors": doors}).encode() + b"\n"
        if first.checkpoint:
            os.write(writing, table)
            for each in started:
                each.wait()  # what goes wrong from here on the parts tell each other
            os._exit(0)
        for each in started:
            each.send(table)
        for each in started:
            each.hear()
        os.write(writing, table)
        _said(door.line(reading, 2 * LIMIT), first.part)
        status = 0
    except BaseException as error:
        for each in started:
            each.undo(first.job)
        text = str(error) if isinstance(error, TorporError) else f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps({"error": text}).encode() + b"\n")
    finally:
        os._exit(status)


def _opening(secret: Secret, part: Part) -> bytes:
    from torpor.supervise.part import line

    return secret.line() + line(part)


def _said(line: bytes, name: str) -> dict[str, Any]:
    """What a part has said. Raises TorporError where it is an error."""
    try:
        said = json.loads(line or b'{"error": "it has ended"}')
        if "error" in said:
            raise TorporError(f"{name}: {said['error']}")
        return dict(said)
    except (ValueError, TypeError):
        raise TorporError(f"{name}: {line.decode(errors='replace').strip()}") from None


def command(remote: str) -> list[str]:
    """`torpor` on another host. remote: as it is called there; '': this very one, by the same path."""
    if remote:
        return [remote]
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, {home!r}); from torpor.cli.main import main; sys.exit(main())"
    return [sys.executable, "-P", "-c", code]


class Remote:
    """A part that is being started on another host."""

    def __init__(self, host: str, remote: str) -> None:
        self._host, self._remote = host, remote
        self._there = False
        self._process = self._ssh([*command(remote), "member", "--detach"])

    def _ssh(self, words: Sequence[str]) -> Popen[bytes]:
        import subprocess

        ssh = shlex.split(os.environ.get(SSH, "ssh"))
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT}"]
        try:
            return subprocess.Popen(
                [*ssh, *options, self._host, shlex.join(words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            raise TorporError(f"{ssh[0]}: {error.strerror}") from None

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError:
            raise self._failed() from None

    def hear(self) -> dict[str, Any]:
        """The next thing it says. Raises TorporError with its name."""
        until = time.monotonic() + LIMIT
        while line := self._line(until):
            if line.startswith(b"{"):  # other lines are what the login there prints
                said = _said(line, self._host)
                self._there |= "started" in said
                return said
        raise self._failed()

    def wait(self) -> None:
        """Until it needs ssh no more."""
        self._process.communicate()

    def _line(self, until: float) -> bytes:
        assert self._process.stdout is not None
        try:
            return door.line(self._process.stdout.fileno(), max(0.0, until - time.monotonic()))
        except LinkDown as error:
            raise TorporError(f"{self._host}: {error}") from None

    def _failed(self) -> TorporError:
        """Why there is nobody: the last thing that was said on standard error."""
        import subprocess

        try:
            _, complaints = self._process.communicate(timeout=5)
        except (subprocess.TimeoutExpired, ValueError, OSError):
            self._process.kill()
            complaints = b""
        lines = complaints.decode(errors="replace").strip().splitlines()
        status = self._process.poll()
        return TorporError(f"{self._host}: {lines[-1].strip() if lines else f'ssh has ended with status {status}'}")

    def undo(self, job: str) -> None:
        """End what was started."""
        import subprocess

        self._process.kill()
        self._process.wait()
        if self._there:
            try:
                self._ssh([*command(self._remote), "stop", job]).communicate(timeout=LIMIT)
            except (TorporError, subprocess.TimeoutExpired):
                pass
