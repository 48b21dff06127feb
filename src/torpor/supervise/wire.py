"""How a supervisor and its member process speak: words as those of `coordinate.words`, over a socketpair.

A frame is its length (4 bytes, big-endian) and a word in msgpack. Neither side ever waits for the other to take
something: what does not go out now is sent when it can be.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from torpor.coordinate import words
from torpor.coordinate.words import Word
from torpor.supervise.loop import IN, OUT, Loop, hung_up

_LENGTH = struct.Struct(">I")


class How(msgspec.Struct, frozen=True):
    """How a checkpoint is to be made: fields of `keeper.Order`. It travels as JSON, in the field `what` of words."""

    files: str = "auto"
    with_files: bool = False
    compress: str = ""
    encrypt_to: Sequence[str] | None = None
    why: str = "command"
    on: tuple[tuple[str, str], ...] = ()
    forget: Sequence[str] = ()


# From the supervisor.


class Begin(Word, frozen=True):
    """The first word. secret: as `Secret.line` writes it.  part: as `part.line` does.  owner: a name that this
    supervisor has made up: the member process before this one had the same.  folder: of the job's entry in the
    registry.  restart: the job is to be restarted, and
    has not been yet."""

    secret: bytes
    part: bytes
    owner: str
    restart: bool = False
    folder: str = ""


class Ask(Word, frozen=True):
    """Have the job saved. ask: see `words.AskCheckpoint`; what: a `How`."""

    ask: str
    stop: bool
    what: str


class AskWho(Word, frozen=True):
    """Who is in the job?"""


class RootEnded(Word, frozen=True):
    """The job's root has ended, with this wait status, and so the job has, once those have that joined it. waits: a
    member process before this one knew of some."""

    status: int
    waits: bool = False


class Ending(Word, frozen=True):
    """Somebody ends the job, by that signal: it is no crash. Said on any host; told to the first."""

    number: int


class Hold(Word, frozen=True):
    """All of the job is to stand still, on every host, for lack of a seat; or may go on."""

    on: bool


# From the member process. Besides: Work; Answer, to an Ask.


class In(Word, frozen=True):
    """This part is in the job: a program may be started."""


class Here(Word, frozen=True):
    """A sign of life, while something is under way."""


class Who(Word, frozen=True):
    """members: names of parts.  coordinator: that of the one which coordinates, '' if it is not known."""

    members: tuple[str, ...]
    coordinator: str


class Joined(Word, frozen=True):
    """Where the parts are that have joined the job (numeric addresses)."""

    addresses: tuple[str, ...]


class Exists(Word, frozen=True):
    """The checkpoint of that number exists."""

    number: int


class End(Word, frozen=True):
    """The job has ended everywhere: end what is here of it. status: of its root."""

    status: int


class Waiting(Word, frozen=True):
    """The job is not over, although its root has ended: these parts have joined it, and run on."""

    parts: tuple[str, ...]


class Held(Word, frozen=True):
    """The part is to stand still, or to go on: somebody has said `Hold`."""

    on: bool


class Cannot(Word, frozen=True):
    """This process has come to its end, and another would do no better."""

    reason: str


class Gone(Word, frozen=True):
    """This part has left the job; nothing more comes."""


ToMember: TypeAlias = Begin | words.Finished | words.Broke | words.Emptied | Ask | AskWho | RootEnded | Hold | Ending
ToSupervisor: TypeAlias = (
    words.Work | words.Answer | In | Here | Who | Joined | Exists | End | Waiting | Held | Ending | Cannot | Gone
)  # fmt: skip


class Wire:
    """One end. kinds: the words that come in."""

    def __init__(self, sock: socket.socket, kinds: Any) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._decoder = msgspec.msgpack.Decoder(kinds)
        self._in = bytearray()
        self._out = bytearray()
        self._words: deque[Any] = deque()
        self._loop: Loop | None = None
        self._heard: Callable[[Any], None] = lambda word: None
        self._ended: Callable[[], None] = lambda: None
        self.open = True

    def send(self, word: Word) -> None:
        """Nothing happens if nobody is at the other end any more."""
        if self.open:
            data = msgspec.msgpack.encode(word)
            self._out += _LENGTH.pack(len(data)) + data
            self._flush()

    def follow(self, loop: Loop, heard: Callable[[Any], None], ended: Callable[[], None]) -> None:
        """From now on have a loop call `heard(word)`, and `ended()` once there is nobody at the other end."""
        self._loop, self._heard, self._ended = loop, heard, ended
        self._watch()
        loop.later(0.0, self._deliver)

    def wait(self, seconds: float) -> Any:
        """Without a loop: the next word, None if none has come after so many seconds. Raises EOFError once nobody is at
        the other end."""
        until = time.monotonic() + seconds
        poll = select.poll()
        while not self._words:
            if not self.open:
                raise EOFError
            left = until - time.monotonic()
            poll.register(self._socket.fileno(), IN | OUT if self._out else IN)
            found = poll.poll(max(0.0, left) * 1000)
            for _, events in found:
                if events & OUT:
                    self._flush()
                if events & ~OUT:
                    self._receive()
            if not found and left <= 0:
                return None
        return self._words.popleft()

    def close(self) -> None:
        if self.open:
            self.open = False
            if self._loop is not None:
                self._loop.forget(self._socket.fileno())
            self._socket.close()

    def _watch(self) -> None:
        if self._loop is not None and self.open:
            self._loop.watch(self._socket.fileno(), self._ready, IN | OUT if self._out else IN)

    def _ready(self, events: int) -> None:
        if events & OUT:
            self._flush()
        if not (events & IN or hung_up(events)):
            return
        try:
            self._receive()
        except EOFError:
            self._deliver()
            self.close()
            self._ended()
        else:
            self._deliver()

    def _deliver(self) -> None:
        while self._words and self.open:
            self._heard(self._words.popleft())

    def _receive(self) -> None:
        try:
            data = self._socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise EOFError
        self._in += data
        while len(self._in) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._in)[0]
            if len(self._in) < end:
                break
            self._words.append(self._decoder.decode(self._in[_LENGTH.size : end]))
            del self._in[:end]

    def _flush(self) -> None:
        waited = bool(self._out)
        try:
            while self._out:
                del self._out[: self._socket.send(self._out, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()  # the end of it is found by reading
        if waited:
            self._watch()
