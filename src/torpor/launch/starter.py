"""Starts the parts of a job over hosts (hosts.py): makes the ssh connections, and speaks with each part by lines of
JSON (part.py is the other side):

    starter > part:   the secret, the description of the part (supervise/part.py)
    part > starter:   {"ports": [PORT, PORT]} or {"none": TEXT}   from one that is to keep a server of the job
    starter > part:   {"nodes": [[NAME, ADDRESS, PORT, PORT]]}    to all, if the job has servers of its own
    part > starter:   {"door": PORT}; {"ready": true} from one that is brought back
    starter > part:   {"doors": {NAME: [ADDRESS, PORT]}}; {} if they are brought back, and only to the first
    part > starter:   {"started": true}
    anybody at any time: {"error": TEXT}

The first part is told last, when all others are there. If one cannot be started, or the program, those that are there
are ended again.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torpor.launch import door
from torpor.link.link import LinkDown
from torpor.model import ourselves
from torpor.model.errors import TorporError
from torpor.supervise.say import say

if TYPE_CHECKING:
    from subprocess import Popen

    from torpor.link.secret import Secret
    from torpor.link.server import Node
    from torpor.supervise.part import Part

SSH = "TORPOR_SSH"
"""Names another program than ssh, with its options; it is called with ssh's."""
CONNECT = 20
"""Seconds for an ssh connection."""
LIMIT = 60.0
"""Seconds for each answer of a part."""


class Peer(Protocol):
    """A part that is being started."""

    def send(self, said: Mapping[str, Any]) -> None:
        """Tell it something. Raises TorporError with its name."""
        ...

    def hear(self, limit: float = LIMIT) -> dict[str, Any]:
        """The next thing it says. Raises TorporError with its name."""
        ...


def be(
    secret: Secret, first: Part, parts: Sequence[Part], hosts: Mapping[str, str], reading: int, writing: int,
    remote: str,
) -> None:  # fmt: skip
    """Be the starter; does not return. parts: the others.  hosts: by part, how its host is called.  reading, writing:
    from and to the first part.  remote: as for `command`."""
    status = 1
    near = Near(first.part, reading, writing)
    started: dict[str, Remote] = {}
    try:
        mine = near.hear() if first.nodes else {}
        for part in parts:
            started[part.part] = Remote(hosts[part.part], remote)
        for part in parts:
            started[part.part].open(secret, part)
        if first.nodes:
            found = settle(first.nodes, mine, started)
            peers: list[Peer] = [*started.values(), near]
            for peer in peers:
                peer.send({"nodes": found})
        if first.checkpoint:
            for each in started.values():
                each.hear()
            near.send({})
            for each in started.values():
                each.wait()  # what goes wrong from here on the parts tell each other
        else:
            _introduce(near, started, [first, *parts])
        status = 0
    except BaseException as error:
        for each in started.values():
            each.undo(first.job)
        near.send({"error": str(error) if isinstance(error, TorporError) else f"{type(error).__name__}: {error}"})
    finally:
        os._exit(status)


def settle(planned: Sequence[Node], first: Mapping[str, Any], others: Mapping[str, Peer]) -> list[Node]:
    """The servers that the job will have: those that were planned, or, where a host has no such program, the first
    alone. first: what the first part has said.  others: the other parts. Raises TorporError."""
    said = {planned[0].name: first, **{node.name: others[node.name].hear() for node in planned[1:]}}
    lacking = [node.name for node in planned if "none" in said[node.name]]
    if planned[0].name in lacking:
        raise TorporError(str(first["none"]))
    if lacking:
        say(f"torpor: {lacking[0]}: {said[lacking[0]]['none']}; without it the job's only server is on "
            f"{planned[0].name}, and while that is away nothing can be saved")  # fmt: skip
    return [node._replace(port=int(said[node.name]["ports"][0]), cluster_port=int(said[node.name]["ports"][1]))
            for node in (planned[:1] if lacking else planned)]  # fmt: skip


def _introduce(near: Peer, started: Mapping[str, Remote], parts: Iterable[Part]) -> None:
    """Tell all parts of a new job of each other's doors, the first one last: then the program starts."""
    peers: dict[str, Peer] = {next(part.part for part in parts if part.first): near, **started}
    table = {"doors": {part.part: (part.address, int(peers[part.part].hear()["door"])) for part in parts}}
    for each in started.values():
        each.send(table)
    for each in started.values():
        each.hear()
    near.send(table)
    near.hear(2 * LIMIT)


def _said(line: bytes, name: str) -> dict[str, Any]:
    """What a part has said. Raises TorporError where it is an error."""
    try:
        said = json.loads(line or b'{"error": "it has ended"}')
        if "error" in said:
            raise TorporError(f"{name}: {said['error']}")
        return dict(said)
    except (ValueError, TypeError):
        raise TorporError(f"{name}: {line.decode(errors='replace').strip()}") from None


def _line(said: Mapping[str, Any]) -> bytes:
    return json.dumps(said).encode() + b"\n"


class Near:
    """The first part, where it is the process that made this one."""

    def __init__(self, name: str, reading: int, writing: int) -> None:
        self._name, self._reading, self._writing = name, reading, writing

    def send(self, said: Mapping[str, Any]) -> None:
        try:
            os.write(self._writing, _line(said))
        except OSError:
            raise TorporError(f"{self._name}: it has ended") from None

    def hear(self, limit: float = LIMIT) -> dict[str, Any]:
        return _said(door.line(self._reading, limit), self._name)


def command(remote: str) -> list[str]:
    """`torpor` on another host. remote: as it is called there; '': this very one, by the same path."""
    return [remote] if remote else ourselves.command(ourselves.COMMAND_LINE)


def ssh(host: str, words: Sequence[str], **options: Any) -> Popen[bytes]:
    """Start a command on a host. options: of Popen; its standard streams are pipes if not told otherwise. Raises
    TorporError."""
    import subprocess

    found = shlex.split(os.environ.get(SSH, "ssh"))
    line = [*found, "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT}", host, shlex.join(words)]
    try:
        return subprocess.Popen(line, **{**dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE), **options})
    except OSError as error:
        raise TorporError(f"{found[0]}: {error.strerror}") from None


class Remote:
    """A part that is being started on another host."""

    def __init__(self, host: str, remote: str) -> None:
        self._host, self._remote = host, remote
        self._there = False
        self._process = ssh(host, [*command(remote), "member", "--detach"])

    def open(self, secret: Secret, part: Part) -> None:
        """Tell it what it is."""
        from torpor.supervise.part import line

        self._write(secret.line() + line(part))

    def send(self, said: Mapping[str, Any]) -> None:
        self._write(_line(said))

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError:
            raise self._failed() from None

    def hear(self, limit: float = LIMIT) -> dict[str, Any]:
        until = time.monotonic() + limit
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
                ssh(self._host, [*command(self._remote), "stop", job]).communicate(timeout=LIMIT)
            except (TorporError, subprocess.TimeoutExpired):
                pass
