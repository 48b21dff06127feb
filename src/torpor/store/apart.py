"""An object store, reached from a process of its own.

Its client runs threads, which are lost in a process that was forked, and keep one that has them from forking cleanly.
A restart is all forking: it reads its checkpoint through a helper, which is started when it is first needed and ends
when its connections are closed. In a process that supervises a running job there is no place for this: the helper
would count as part of the job.

Each connection carries one request after the other: a msgpack array (method, arguments), answered by (result, error),
each preceded by its length (4 bytes).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.model.data import Buffer
from torpor.model.errors import UsageError
from torpor.store.backend import Backend, Stat, Upload

CONNECTIONS = 4
LENGTH = struct.Struct("<I")
METHODS = ("prepare", "lag", "put", "get", "list", "stat", "touch", "delete", "tidy")


class Apart:
    """See backend.Backend. For reading; it cannot be saved to."""

    lanes = 1
    pack_size = 16 << 20

    def __init__(self, location: str, options: dict[str, Any]) -> None:
        self.place = location
        self._options = options
        self._owner = 0
        self._helper = 0
        self._idle: list[socket.socket] = []
        self._free = threading.Condition()

    def prepare(self) -> None:
        self._call("prepare")

    def lag(self) -> float:
        return float(self._call("lag"))

    def put(self, name: str, pieces: Sequence[Buffer], durable: bool = True) -> bool:
        return bool(self._call("put", name, [bytes(piece) for piece in pieces], durable))

    def create(self, name: str, lane: int = 0) -> Upload:
        raise OSError(95, f"{self.place} was opened for reading")

    def sync(self, folder: str) -> None:
        pass

    def get(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        found: bytes = self._call("get", name, offset, length)
        return found

    def list(self, folder: str) -> list[str]:
        found: list[str] = self._call("list", folder)
        return found

    def stat(self, name: str) -> Stat:
        return Stat(*self._call("stat", name))

    def touch(self, name: str) -> None:
        self._call("touch", name)

    def delete(self, name: str) -> None:
        self._call("delete", name)

    def path(self, name: str) -> str | None:
        return None

    def tidy(self, before: float) -> None:
        self._call("tidy", before)

    def close(self) -> None:
        """End the helper."""
        if self._owner == os.getpid():
            for each in self._idle:
                each.shutdown(socket.SHUT_RDWR)  # forked processes may have copies
            os.waitpid(self._helper, 0)
        self._forget()

    def _forget(self) -> None:
        for each in self._idle:
            each.close()
        self._idle.clear()
        self._owner = 0

    def _call(self, method: str, *arguments: Any) -> Any:
        with self._free:
            if self._owner != os.getpid():
                self._start()
            while not self._idle:
                self._free.wait()
            connection = self._idle.pop()
        try:
            _send(connection, (method, arguments))
            answer = _receive(connection)
        except OSError:
            answer = None
        with self._free:
            self._idle.append(connection)
            self._free.notify()
        if answer is None:
            raise OSError(5, f"the helper that reads {self.place} died")
        result, error = answer
        if error is None:
            return result
        number, text, filename = error
        if number < 0:
            raise UsageError(text)
        raise OSError(number, text, filename)

    def _start(self) -> None:
        """Start the helper. What a parent had of one is let go of."""
        self._forget()
        pairs = [socket.socketpair() for _ in range(CONNECTIONS)]
        theirs = [pair[1] for pair in pairs]
        for each in theirs:
            each.set_inheritable(True)
        home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        code = f"import sys; sys.path.insert(0, {home!r}); from torpor.store.apart import main; main()"
        options = msgspec.msgpack.encode(self._options).hex()
        words = [sys.executable, "-c", code, self.place, options, *(str(each.fileno()) for each in theirs)]
        # A session of its own: Ctrl-C is for the command, which then closes its connections.
        self._helper = os.posix_spawn(sys.executable, words, os.environ, setsid=True)
        for each in theirs:
            each.close()
        self._idle = [pair[0] for pair in pairs]
        self._owner = os.getpid()


def main() -> None:
    """The helper: serve each connection in a thread of its own until all are closed."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from torpor.store.locations import open_backend

    location, options, *numbers = sys.argv[1:]
    backend: Backend | None = None
    failure = ""
    try:
        backend = open_backend(location, options=msgspec.msgpack.decode(bytes.fromhex(options)))
    except UsageError as error:
        failure = str(error)
    threads = [
        threading.Thread(target=_serve, args=(socket.socket(fileno=int(number)), backend, failure))
        for number in numbers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve(connection: socket.socket, backend: Backend | None, failure: str) -> None:
    while (request := _receive(connection)) is not None:
        method, arguments = request
        result: Any = None
        error: tuple[int, str, str | None] | None = None
        if backend is None or method not in METHODS:
            error = (-1, failure or f"no such method: {method}", None)
        else:
            try:
                result = getattr(backend, method)(*arguments)
            except OSError as caught:
                error = (caught.errno or 5, caught.strerror or str(caught), caught.filename)
        try:
            _send(connection, (result, error))
        except OSError:
            return


def _send(connection: socket.socket, message: object) -> None:
    data = msgspec.msgpack.encode(message)
    connection.sendall(LENGTH.pack(len(data)))
    connection.sendall(data)


def _receive(connection: socket.socket) -> Any:
    """A message; None at the end of the connection."""
    head = _exactly(connection, LENGTH.size)
    data = None if head is None else _exactly(connection, LENGTH.unpack(head)[0])
    return None if data is None else msgspec.msgpack.decode(data)


def _exactly(connection: socket.socket, count: int) -> bytearray | None:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        try:
            got = connection.recv_into(view)
        except OSError:
            return None
        if not got:
            return None
        view = view[got:]
    return data
