"""The command's end of the conversation with a supervisor."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence

from torpor.model.errors import TorporError
from torpor.supervise import protocol
from torpor.supervise.registry import Entry

HELLO_SECONDS = 5.0
START_SECONDS = 30.0
"""For so long a job may be about to start, or to come back; its supervisor does not listen before that is over."""


class NoSupervisor(TorporError):
    """The job's supervisor went away before it had answered."""


class NoAnswer(NoSupervisor):
    """Nobody answers at the job's socket; nothing was asked."""


def ask(
    entry: Entry, request: protocol.Message, on_event: Callable[[protocol.Message], None] | None = None,
    fds: Sequence[int] = (),
) -> protocol.Message:  # fmt: skip
    """Send one request to the job's supervisor and return its result.

    fds: descriptors that are handed over with it.  on_event: called with each event until then. Raises NoSupervisor, or
    the error that the supervisor met.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(HELLO_SECONDS)
        greeted = False
        try:
            _connect(connection, entry)
            if protocol.peer_uid(connection) not in (0, os.geteuid()):
                raise TorporError(f"the socket of {entry.name} belongs to another user")
            decoder = protocol.Decoder()
            while True:
                data = connection.recv(1 << 16)
                if not data:
                    raise (NoSupervisor if greeted else NoAnswer)(f"the supervisor of {entry.name} went away")
                for message in decoder.feed(data):
                    if not greeted:
                        if message.get("torpor") != protocol.VERSION:
                            raise TorporError(f"{entry.name} is supervised by another version of torpor")
                        greeted = True
                        _send(connection, protocol.encode({"torpor": protocol.VERSION, **request}), fds)
                        connection.settimeout(None)
                    elif "error" in message:
                        raise protocol.raised(message["error"])
                    elif "result" in message:
                        result: protocol.Message = message["result"]
                        return result
                    elif on_event is not None:
                        on_event(message)
        except OSError as error:
            kind = NoSupervisor if greeted else NoAnswer
            raise kind(f"the supervisor of {entry.name} does not answer: {error.strerror or error}") from None
        except ValueError as error:
            raise TorporError(f"{entry.name}: its socket does not speak torpor's protocol ({error})") from None


def _send(connection: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    if fds:
        data = data[socket.send_fds(connection, [data], fds) :]
    if data:  # sending nothing fails once the other side has answered and gone
        connection.sendall(data)


def _connect(connection: socket.socket, entry: Entry) -> None:
    """Connect to the supervisor of a job. One that has only just been started may not listen yet: wait for it."""
    began = time.monotonic()
    while True:
        try:
            with protocol.Address(entry.folder) as path:
                connection.connect(path)
            return
        except FileNotFoundError:
            if not entry.supervisor.alive:
                raise
            if time.monotonic() > began + START_SECONDS:
                raise NoAnswer(f"{entry.name} is only just being started or restarted: try again later") from None
        except ConnectionRefusedError:
            if not entry.supervisor.alive or time.monotonic() > began + HELLO_SECONDS:
                raise
        time.sleep(0.02)
