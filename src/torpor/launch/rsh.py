"""`torpor rsh`: run a command on another host of the job one is in, through that host's door (door.py)."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

from torpor.launch import program, ssh_words
from torpor.launch.frames import COMMAND, PROTOCOL, SIGNAL, STARTED, STATUS, Gone, Wire
from torpor.launch.travel import DOOR, travelling
from torpor.model.errors import TorporError
from torpor.named_tuple import NamedTuple
from torpor.supervise.protocol import peer_uid

LIMIT = 30.0
"""Seconds for each step until the command runs."""
PARTING = 2.0
"""Seconds after a lost connection in which we may be asked to end, because the whole job does."""
LATELY = 10.0
"""Seconds in which a signal explains the end of the connection: longer than what is left of a job has to end."""
FAILED = 255
"""Exit status for what is our fault, not the command's; as ssh's."""


class _Way(NamedTuple):
    """How to get at a host's door."""

    host: str
    address: str
    port: int
    identity: tuple[str, str, str, str]


def rsh(words: Sequence[str]) -> int:
    """Carry out a command line like ssh's. The command's exit status (128+n if signal n ended it).

    Raises TorporError for what is our fault.
    """
    import pwd

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    call = ssh_words.parse(words, user)
    program.hold_standard()
    way = _ask(call.host)
    wire = _connect(way)
    try:
        _begin(wire, way, call.command)
        if call.background and os.fork():
            os._exit(0)
        if call.no_input or call.background:
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.close(null)
        return _carry(wire)
    except Gone as error:
        raise TorporError(f"rsh: {way.host}: {error}") from None
    except TimeoutError:
        raise TorporError(f"rsh: {way.host}: no answer within {LIMIT:.0f} seconds") from None
    finally:
        wire.close()


def _ask(host: str) -> _Way:
    """Ask the door of this host."""
    name = os.environ.get(DOOR, "")
    if not name:
        raise TorporError("rsh: this is not a job over hosts (torpor run --hosts): there is no other host to reach")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as near:
            near.settimeout(LIMIT)
            near.connect(f"\0{name}")
            # The name of a door that has died could be taken by anybody.
            if peer_uid(near) != os.getuid():
                raise TorporError("rsh: the door of this host is another user's")
            near.sendall(json.dumps({"host": host}).encode() + b"\n")
            data = b""
            while not data.endswith(b"\n"):
                part = near.recv(1 << 16)
                if not part:
                    raise TorporError("rsh: the door of this host does not answer us")
                data += part
    except OSError as error:
        raise TorporError(f"rsh: the door of this host is gone ({error.strerror or 'no answer'})") from None
    said: dict[str, Any] = json.loads(data)
    if "error" in said:
        raise TorporError(f"rsh: {said['error']}")
    authority, certificate, key, called = said["identity"]
    return _Way(said["host"], said["address"], said["port"], (authority, certificate, key, called))


def _connect(way: _Way) -> Wire:
    import ssl

    from torpor.launch.session import keep_alive
    from torpor.link.certificates import Identity, context

    authority, certificate, key, called = way.identity
    who = Identity(authority.encode(), certificate.encode(), key.encode(), called)
    plain: socket.socket | None = None
    try:
        plain = socket.create_connection((way.address, way.port), LIMIT)
        keep_alive(plain)
        return Wire(context(who, server=False).wrap_socket(plain, server_hostname=called))
    except OSError as error:
        if plain is not None:
            plain.close()
        if isinstance(error, ssl.SSLError):
            raise TorporError(f"rsh: {way.host}: not a door of this job ({error.reason or error})") from None
        raise TorporError(f"rsh: {way.host}: {error.strerror or 'no answer'}") from None


def _begin(wire: Wire, way: _Way, command: str) -> None:
    """Say what is to be run. Raises TorporError if it is not, Gone, TimeoutError."""
    from torpor import __version__
    from torpor.launch.session import text

    try:
        folder = os.getcwdb()
    except OSError:
        folder = b""
    env = travelling(program.environment())
    said = {
        "protocol": PROTOCOL, "torpor": __version__, "command": text(os.fsencode(command)), "folder": text(folder),
        "env": {text(name): text(value) for name, value in env.items()},
    }  # fmt: skip
    wire.send(COMMAND, data=json.dumps(said).encode())
    frame = wire.exchange(time.monotonic() + LIMIT)
    answer = json.loads(frame.data) if frame.kind == STARTED else {"error": "it does not keep to the protocol"}
    if "error" in answer:
        raise TorporError(f"rsh: {way.host}: {answer['error']}")


def _carry(wire: Wire) -> int:
    """To the end of the command; its exit status. Raises Gone if that cannot be known."""
    from torpor.launch.relay import Relay
    from torpor.launch.session import PASSED_ON

    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    passed: dict[float, int] = {}

    def pass_on(number: int, _: object) -> None:
        passed[time.monotonic()] = number
        wire.send_number(SIGNAL, 0, number)

    for number in PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    relay = Relay(wire, {0: 0}, {1: 1, 2: 2}, woken, own=False)
    status = None
    try:
        while status is None or relay.writing:
            for frame in relay.turn():
                if frame.kind == STATUS:
                    status = frame.number
    except Gone:
        # Where the job ends on all hosts at once, the other side may be gone before we are asked to end, too.
        since = time.monotonic() - LATELY
        if not passed or max(passed) < since:
            select.select([woken], [], [], PARTING)
        if not passed or max(passed) < since:
            raise
        return 128 + passed[max(passed)]
    return min(status, FAILED)
