"""A connection between two supervisors of a job, for much data: TCP, TLS 1.3, a certificate of the job on either side.

Both sides first say what they are (hello.py): with another version nothing is begun, and both can tell the user why.
Strangers are refused: who has no certificate of the job, who speaks no TLS, who says nothing. Each step has a limit.

`connect` and the methods of a Stream wait, within limits; they are for threads that have time. A Listener does its
handshakes in threads of its own and hands streams over through a descriptor, for a loop that waits in poll(2).
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from torpor.link import hello
from torpor.link.certificates import context, identity
from torpor.link.link import PROTOCOL, LinkDown, Mismatch, Stranger
from torpor.link.mailbox import Mailbox
from torpor.link.secret import Secret
from torpor.model.data import Buffer
from torpor.model.errors import TorporError

if TYPE_CHECKING:
    import ssl

HANDSHAKE = 10.0
"""Seconds for a connection, until both sides know each other."""
AT_ONCE = 64
"""How many handshakes a listener has going; beyond that connections are closed at once."""
SILENT = 60.0
"""Seconds, if not told otherwise, that a Stream waits for the other side to take or to send anything."""
_PIECE = 1 << 18
_LENGTH = struct.Struct(">I")


class Stream:
    """An open connection; of one thread at a time. Both sides have to know when it is over: an end that nobody agreed
    on is an error (`receive` raises), so that nothing can be cut short unnoticed."""

    def __init__(self, over: ssl.SSLSocket, peer: hello.Hello) -> None:
        self._socket = over
        self.peer = peer
        """Who is at the other end, and what the connection is for (`purpose`)."""

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def pending(self) -> int:
        """Bytes that can be received although the descriptor is not readable: TLS has them already."""
        return self._socket.pending()

    def send(self, data: Buffer, limit: float = SILENT) -> None:
        """Send all of it. Raises LinkDown when the other side takes nothing for `limit` seconds, or is gone."""
        view = memoryview(data).cast("B")
        try:
            self._socket.settimeout(limit)
            while view:
                view = view[self._socket.send(view[:_PIECE]) :]
        except OSError as error:
            raise self._down(error) from None

    def receive(self, size: int, limit: float = SILENT) -> bytes:
        """At most `size` bytes, as soon as there are any. Raises LinkDown when none come for `limit` seconds, and where
        the other side is gone."""
        try:
            self._socket.settimeout(limit)
            data = self._socket.recv(size)
        except OSError as error:
            raise self._down(error) from None
        if not data:
            raise LinkDown(f"{self.peer.host} has ended the connection")
        return data

    def receive_all(self, size: int, limit: float = SILENT) -> bytes:
        """Exactly `size` bytes. `limit` is for each piece of them."""
        out = bytearray()
        while len(out) < size:
            out += self.receive(min(size - len(out), _PIECE), limit)
        return bytes(out)

    def close(self) -> None:
        """At once. What was sent and not yet taken may be lost: have the other side say that it has all."""
        try:
            self._socket.close()
        except OSError:
            pass

    def _down(self, error: OSError) -> LinkDown:
        why = "it does not answer" if isinstance(error, TimeoutError) else str(error.strerror or error)
        return LinkDown(f"connection to {self.peer.host}: {why}")


def connect(
    secret: Secret, host: str, address: str, port: int, purpose: str = "", limit: float = HANDSHAKE,
    protocol: int = PROTOCOL,
) -> Stream:  # fmt: skip
    """Connect as `host` to the listener at `address`. Raises LinkDown, Stranger or Mismatch, which name the other side,
    at the latest after `limit` seconds."""
    import ssl

    who = identity(secret, host)
    until = time.monotonic() + limit
    where = f"{address} port {port}"
    plain: socket.socket | None = None
    try:
        plain = socket.create_connection((address, port), limit)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.settimeout(_left(until))
        over = context(who, server=False).wrap_socket(plain, server_hostname=who.name)
        plain = over
        # The listener looks at our certificate after this; its hello says that it was content.
        return _introduce(over, secret, hello.ours(secret, host, purpose, protocol), "connects", until)
    except ssl.SSLError as error:
        _shut(plain)
        raise Stranger(f"{where}: not a supervisor of this job ({error.reason or error})") from None
    except OSError as error:
        _shut(plain)
        raise LinkDown(f"{where}: {error.strerror or error or 'no answer'}") from None
    except TorporError as error:
        _shut(plain)
        raise type(error)(f"{where}: {error}" if isinstance(error, Stranger) else str(error)) from None


def _shut(plain: socket.socket | None) -> None:
    if plain is not None:
        plain.close()


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left


def _introduce(over: ssl.SSLSocket, secret: Secret, mine: hello.Hello, role: str, until: float) -> Stream:
    """Say what we are, hear what they are. Both are said before either is judged, so that both sides know."""
    data = hello.encode(mine, secret, role)
    over.settimeout(_left(until))
    over.sendall(_LENGTH.pack(len(data)) + data)
    (length,) = _LENGTH.unpack(_exactly(over, _LENGTH.size, until))
    if length > hello.LONGEST:
        raise Stranger("the other side does not say what it is")
    said = _exactly(over, length, until)
    theirs = hello.decode(said, secret, "listens" if role == "connects" else "connects")
    hello.check(mine, theirs)
    return Stream(over, theirs)


def _exactly(over: ssl.SSLSocket, size: int, until: float) -> bytes:
    out = b""
    while len(out) < size:
        over.settimeout(_left(until))
        part = over.recv(size - len(out))
        if not part:
            raise Stranger("the other side ended the connection")
        out += part
    return out


class Listener:
    """Waits for other supervisors. `fd` is readable when there is something to `deliver`.

    on_stream: for each connection of this job.  on_refused(address, error): for each that was refused; a Mismatch is
    worth telling the user.
    """

    def __init__(
        self, secret: Secret, host: str, address: str, on_stream: Callable[[Stream], None],
        on_refused: Callable[[str, TorporError], None] = lambda address, error: None, port: int = 0,
        limit: float = HANDSHAKE, protocol: int = PROTOCOL,
    ) -> None:  # fmt: skip
        """Raises OSError where `address` is not ours or the port is taken; port 0: any that is free."""
        self._secret = secret
        self._mine = hello.ours(secret, host, protocol=protocol)
        self._context = context(identity(secret, host, [address]), server=True)
        self._on_stream = on_stream
        self._on_refused = on_refused
        self._limit = limit
        self._room = threading.Semaphore(AT_ONCE)
        self._mail = Mailbox()
        self._lock = threading.Lock()
        self._closed = False
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.create_server((address, port), family=family, backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, name="torpor-listen", daemon=True).start()

    @property
    def fd(self) -> int:
        return self._mail.fd

    def deliver(self, events: int = 0) -> None:
        """Call on_stream and on_refused for what has come."""
        self._mail.deliver(events)

    def close(self) -> None:
        """Accept no more. Streams that were handed over stay open."""
        with self._lock:
            self._closed = True
            self._mail.close()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        except OSError:
            pass
        self._socket.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                plain, address = self._socket.accept()
            except OSError:
                if not self._closed:
                    time.sleep(0.1)  # out of descriptors, or a connection that was gone before it was accepted
                continue
            if not self._room.acquire(blocking=False):
                plain.close()
                continue
            threading.Thread(target=self._greet, args=(plain, address[0]), name="torpor-greet", daemon=True).start()

    def _greet(self, plain: socket.socket, address: str) -> None:
        """In a thread of its own."""
        try:
            stream, error = self._handshake(plain), None
        except (Mismatch, Stranger) as refused:
            stream, error = None, refused
        except OSError as failed:  # ssl.SSLError is one
            stream, error = None, Stranger(f"not a supervisor of this job: {failed.strerror or failed}")
        finally:
            self._room.release()
        if stream is None:
            plain.close()
        with self._lock:
            if self._closed:
                if stream is not None:
                    stream.close()
            elif stream is not None:
                self._mail.post(lambda: self._on_stream(stream))
            elif error is not None:
                self._mail.post(lambda: self._on_refused(address, error))

    def _handshake(self, plain: socket.socket) -> Stream:
        until = time.monotonic() + self._limit
        plain.settimeout(self._limit)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        over = self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        try:
            # settimeout is for each step: a stranger that sends a byte now and then must not hold on for ever.
            watchdog = threading.Timer(self._limit, lambda: _break(over))
            watchdog.daemon = True
            watchdog.start()
            try:
                over.do_handshake()
                return _introduce(over, self._secret, self._mine, "listens", until)
            finally:
                watchdog.cancel()
        except BaseException:
            over.close()
            raise


def _break(over: socket.socket) -> None:
    try:
        over.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
