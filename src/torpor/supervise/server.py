"""The supervisor's socket: who may speak, and what is understood. It answers from the event loop and never
blocks."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from torpor.model.errors import TorporError, UsageError
from torpor.supervise import protocol
from torpor.supervise.loop import IN, OUT, Loop, hung_up

BACKLOG_LIMIT = 8 << 20
"""Bytes that may wait for a reader; one that takes nothing loses its events, then its connection."""
FDS = 3
"""Descriptors that a command may hand over."""


class Connection:
    """One command that is speaking to us."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._fd = sock.fileno()
        self._decoder = protocol.Decoder(protocol.REQUEST_LIMIT)
        self._out = bytearray()
        self._closing = False
        self.open = True
        self.fds: list[int] = []
        """Descriptors that the command has handed over."""

    def take(self) -> list[int]:
        """They are the caller's now."""
        fds, self.fds = self.fds, []
        return fds

    def send(self, message: protocol.Message) -> None:
        """Queue a message; what the peer does not take now goes out when it can."""
        if not self.open or self._closing:
            return
        if len(self._out) > BACKLOG_LIMIT:
            self.close()
            return
        self._out += protocol.encode(message)
        self._flush()

    def finish(self, message: protocol.Message) -> None:
        """Send the last message and close once it is out."""
        self.send(message)
        self._closing = True
        if not self._out:
            self.close()

    def drain(self, seconds: float) -> None:
        """Send what is still waiting, as far as the peer takes it in that time."""
        if self.open and self._out:
            try:
                self._sock.settimeout(seconds)
                self._sock.sendall(self._out)
            except OSError:
                pass

    def close(self) -> None:
        if self.open:
            self.open = False
            self._server.loop.forget(self._fd)
            self._server.connections.discard(self)
            self._sock.close()
            for fd in self.take():
                os.close(fd)

    def ready(self, events: int) -> None:
        """The loop's callback."""
        if events & OUT:
            self._flush()
        if self.open and events & IN:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, 1 << 16, FDS)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            for fd in fds:
                os.set_inheritable(fd, False)
            self.fds += fds
            if not data:
                self.close()
                return
            try:
                messages = self._decoder.feed(data)
            except ValueError:
                self.close()
                return
            for message in messages:
                self._server.answer(self, message)
        elif self.open and hung_up(events):
            self.close()

    def _flush(self) -> None:
        try:
            while self._out:
                sent = self._sock.send(self._out)
                del self._out[:sent]
        except BlockingIOError:
            self._server.loop.watch(self._fd, self.ready, IN | OUT)
            return
        except OSError:
            self.close()
            return
        self._server.loop.watch(self._fd, self.ready, IN)
        if self._closing:
            self.close()


class Server:
    """Listens in the job's folder. `handle(connection, request)` answers, now or later, or raises
    TorporError."""

    def __init__(
        self, loop: Loop, hello: protocol.Message, handle: Callable[[Connection, protocol.Message], None]
    ) -> None:
        self.loop = loop
        self.connections: set[Connection] = set()
        self._hello = {"torpor": protocol.VERSION, **hello}
        self._handle = handle
        self._listener: socket.socket | None = None

    def listen(self, folder: str) -> None:
        """Bind the socket in `folder`. Whoever finds it there is heard: it has another name until it listens. Raises
        OSError."""
        self._stop_listening()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with protocol.Address(folder) as path:
                new = path.removesuffix("socket") + "listen"  # not longer: there is hardly room for more
                try:
                    os.unlink(new)
                except FileNotFoundError:
                    pass
                listener.bind(new)
                os.chmod(new, 0o600)
                listener.listen(64)
                os.rename(new, path)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self.loop.watch(listener.fileno(), self._accept)

    def close(self) -> None:
        """Say what is still to be said, and stop."""
        self._stop_listening()
        for connection in list(self.connections):
            connection.drain(1.0)
            connection.close()

    def broadcast(self, connections: list[Connection], message: protocol.Message) -> None:
        for connection in connections:
            connection.send(message)

    def answer(self, connection: Connection, message: protocol.Message) -> None:
        try:
            if message.get("torpor") != protocol.VERSION:
                raise UsageError("the supervisor of this job is of another version of torpor")
            self._handle(connection, message)
        except TorporError as error:
            connection.finish(protocol.error_message(error))
        except (KeyError, TypeError, ValueError) as error:
            connection.finish(protocol.error_message(UsageError(f"request not understood: {error!r}")))

    def _accept(self, _events: int) -> None:
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except OSError:  # gone already, or no descriptors left
            return
        if protocol.peer_uid(sock) not in (0, os.geteuid()):
            sock.close()
            return
        sock.setblocking(False)
        connection = Connection(self, sock)
        self.connections.add(connection)
        self.loop.watch(sock.fileno(), connection.ready)
        connection.send(self._hello)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self.loop.forget(self._listener.fileno())
            self._listener.close()
            self._listener = None


def text(request: dict[str, Any], key: str, default: str = "") -> str:
    """A string of a request. Raises ValueError if it is something else."""
    value = request.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key} is not a string")
    return value


def texts(request: dict[str, Any], key: str) -> list[str] | None:
    """A list of strings of a request, or None. Raises ValueError if it is something else."""
    value = request.get(key)
    if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise ValueError(f"{key} is not a list of strings")
    return value
