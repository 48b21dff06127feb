"""The connection between `torpor rsh` and the door of another host: TLS, non-blocking, in frames.

    kind (1 byte), stream (1 byte), length (4 bytes), contents

| kind | contents | said by |
|---|---|---|
| COMMAND | JSON: what is to be run | who calls, first of all |
| STARTED | JSON: empty; or `error`: why not | the door |
| DATA | of a stream | who reads it |
| END | nothing: no more will come of that stream | who reads it |
| ROOM | 4 bytes: so much more of that stream is welcome | who writes it |
| BROKEN | nothing: nobody wants that stream any more | who writes it |
| SIGNAL | 4 bytes: a signal for the command | who calls |
| STATUS | 4 bytes: the command's exit status; the last word | the door |

Streams are 0, 1 and 2, as a program counts them. Of each at most WINDOW bytes are under way, so whoever receives always
has room for what comes, and signals are not stuck behind data that nobody reads.

Its state is a process' memory and one socket: it is saved like any program's.
"""

from __future__ import annotations

import select
import struct
from typing import TYPE_CHECKING

from torpor.named_tuple import NamedTuple

if TYPE_CHECKING:
    import ssl

COMMAND, STARTED, DATA, END, ROOM, BROKEN, SIGNAL, STATUS = range(1, 9)
PROTOCOL = 1
"""Grows whenever the two sides of different versions would misunderstand each other. It is said in COMMAND, whose form
never changes in this."""
WINDOW = 1 << 20
PIECE = 1 << 16
"""Bytes in a frame of DATA."""
LONGEST = 16 << 20
"""Bytes in any frame: a command line and an environment."""
_HEAD = struct.Struct(">BBI")
_NUMBER = struct.Struct(">I")


class Gone(Exception):
    """The other side has ended the connection, or does not keep to the protocol."""


class Frame(NamedTuple):
    kind: int
    stream: int
    data: bytes

    @property
    def number(self) -> int:
        """Of ROOM, SIGNAL and STATUS. Raises Gone."""
        if len(self.data) != _NUMBER.size:
            raise Gone("the other side does not keep to the protocol")
        value: int = _NUMBER.unpack(self.data)[0]
        return value


class Wire:
    """One side of it. The handshake has been made."""

    def __init__(self, over: ssl.SSLSocket) -> None:
        over.setblocking(False)
        self._socket = over
        self._in = bytearray()
        self._out = bytearray()
        self._piece = b""
        """What TLS has begun to send: it has to be offered again as it was."""

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def waiting(self) -> int:
        """Bytes that have not been sent yet."""
        return len(self._piece) + len(self._out)

    @property
    def events(self) -> int:
        """What to poll for."""
        return select.POLLIN | (select.POLLOUT if self.waiting else 0)

    def send(self, kind: int, stream: int = 0, data: bytes = b"") -> None:
        """To be sent by `flush`."""
        self._out += _HEAD.pack(kind, stream, len(data))
        self._out += data

    def send_number(self, kind: int, stream: int, number: int) -> None:
        self.send(kind, stream, _NUMBER.pack(number))

    def flush(self) -> None:
        """Send what can be sent now. Raises Gone."""
        import ssl

        try:
            while self.waiting:
                if not self._piece:
                    self._piece = bytes(self._out[:PIECE])
                    del self._out[:PIECE]
                sent = self._socket.send(self._piece)
                self._piece = self._piece[sent:]
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as error:  # ssl.SSLError is one
            raise Gone(str(error.strerror or error)) from None

    def receive(self, most: int = 1 << 30) -> list[Frame]:
        """What has come in whole, at most so many. Raises Gone once there is nothing more and never will be."""
        ended = self._fill()
        frames: list[Frame] = []
        at = 0
        while len(frames) < most and (size := self._size(at)) >= 0:
            kind, stream, _ = _HEAD.unpack_from(self._in, at)
            at += _HEAD.size
            frames.append(Frame(kind, stream, bytes(self._in[at : at + size])))
            at += size
        del self._in[:at]
        if ended and not frames:
            raise Gone(ended)
        return frames

    @property
    def ready(self) -> bool:
        """Is there a frame although the descriptor need not be readable?"""
        return self._size(0) >= 0

    def _size(self, at: int) -> int:
        """Of the contents of the frame that begins there, -1 if it is not there in whole."""
        if len(self._in) - at < _HEAD.size:
            return -1
        kind, stream, size = _HEAD.unpack_from(self._in, at)
        if size > LONGEST or not COMMAND <= kind <= STATUS or stream > 2:
            raise Gone("the other side does not keep to the protocol")
        return int(size) if len(self._in) - at - _HEAD.size >= size else -1

    def _fill(self) -> str:
        """Read until nothing is left, in the kernel or in TLS; why there will be no more, '' while there may be. The
        other side can send WINDOW bytes of a stream and has to wait then, so this comes to an end."""
        import ssl

        try:
            while data := self._socket.recv(PIECE):
                self._in += data
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return ""
        except OSError as error:
            return str(error.strerror or error)
        return "the connection has ended"

    def exchange(self, until: float) -> Frame:
        """Send everything, and wait for one frame until that moment (monotonic). For the beginning, where one side
        speaks and the other answers. Raises Gone, TimeoutError."""
        import time

        poll = select.poll()
        while True:
            self.flush()
            frames = self.receive(1)
            if frames:
                return frames[0]
            poll.register(self.fileno(), self.events)
            left = until - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError("no answer in time")

    def close(self) -> None:
        try:
            self._socket.close()
        except OSError:
            pass
