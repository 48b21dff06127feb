"""Connections between hosts, made again while a job over hosts is being restarted.

Both ends of a connection are made anew, each by the restarting process of its own host, before the job exists: one
*waits* at a listener that stands there for a moment, the other one *calls*. The original addresses are taken where the
host has them; others where not, and that is told.

What waited in an end's queue to be read has to be sent by the other end, on the other host. So each side first sends
the contents of its own queue over, and gets them back from the other side:

    calls -> waits    name of the connection (16 bytes), code (32)
    waits -> calls    code (32)
    both ways         length (8, big-endian), the queue's contents; then the contents of the other's queue, unchanged

Each side reads exactly what comes before the last piece, which stays in the queue for the program. The codes show that
both know the job's secret and mean this restart; what is not introduced so is hung up on. Nothing of the job runs
before all of this is over.
"""

from __future__ import annotations

import _socket
import errno
import hmac
import os
import select
import struct
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

from torpor.checkpoint.together import Place
from torpor.image.manifest import Manifest
from torpor.linux import sock_diag
from torpor.model.data import Source
from torpor.model.errors import RestartFailed
from torpor.named_tuple import NamedTuple
from torpor.posix import far, inet_connect, inet_record, inet_stream
from torpor.posix.inet_window import open_window
from torpor.posix.socket_address import AF_INET, AF_INET6, STREAM, Address, inet, link
from torpor.posix.socket_options import IPV6, IPV6_V6ONLY, SO_REUSEADDR, SOL_SOCKET

NAME, CODE = 16, 32
_LENGTH = struct.Struct(">Q")
_NONBLOCK = STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
_LONGEST = 1 << 32
"""No queue is longer (bytes): whoever says so is mistaken."""
_PATIENT = 10.0
"""Seconds that are waited in all for addresses that are in use still."""
SPARE, ORIGINAL, SPARE6 = range(3)
"""Where an end waits: at a port that its host has chosen (for sockets of IPv4, of IPv6), or at the address it had."""
_UNAVAILABLE = (errno.EADDRNOTAVAIL, errno.EADDRINUSE)

Code = Callable[[bytes], bytes]
"""A code of 32 bytes under some words, which only who is of this restart can make."""
Said = Callable[[str], None]


class FarEnd(NamedTuple):
    """An end of a connection whose other end is on another host.

    key: what the caller calls it.  name: of the connection, the same at both ends.  family: of the socket.  calls: it
    calls, the other one waits.  queue: what it is to find to be read.
    """

    key: int
    name: bytes
    family: int
    local: Address
    remote: Address
    calls: bool
    queue: bytes = b""


def far_ends(manifest: Manifest, source: Source) -> list[FarEnd]:
    """The connections of a host's part of a checkpoint whose other ends are on other hosts."""
    out = []
    for kept in manifest.objects:
        if kept.service != inet_stream.SERVICE.name:
            continue
        record = msgspec.msgpack.decode(kept.state, type=inet_record.TcpSocket)
        if record.other != inet_record.FAR:
            continue
        assert record.local is not None and record.remote is not None
        named, _ = far.name(far.TCP, record.local, record.remote)
        refs = record.queue.refs if record.queue is not None else ()
        queue = b"".join(bytes(source.get(ref)) for ref in refs)
        out.append(FarEnd(record.ino, named, record.family, record.local, record.remote, not record.accepted, queue))
    return out


class Reunion:
    """The ends of one host. First `wait`, then (when all hosts do) `meet`; `close` in any case."""

    def __init__(self, ends: Iterable[FarEnd], code: Code, said: Said = lambda line: None) -> None:
        self._ends = {end.name: end for end in ends}
        self._code, self._said = code, said
        self._listeners: dict[Address, _socket.socket] = {}
        self._spares: dict[int, _socket.socket] = {}
        """By family: what accepts a connection gives it its own."""
        self._talks: dict[int, _Talk] = {}
        self._whole: set[bytes] = set()
        """The names of connections on which all is said."""

    def wait(self) -> tuple[tuple[int, int], list[tuple[bytes, int]]]:
        """Begin to wait. The ports at which all of this host's addresses are waited at for connections that cannot have
        theirs (SPARE, SPARE6; 0: there is none), and for each that is waited for, where that is. Raises
        RestartFailed."""
        out = []
        for end in self._ends.values():
            if not end.calls:
                where = ORIGINAL if self._listen(end) else SPARE6 if end.family == AF_INET6 else SPARE
                out.append((end.name, where))
        for where, family, anything in ((SPARE, AF_INET, bytes(4)), (SPARE6, AF_INET6, bytes(16))):
            if where in {each for _, each in out}:
                made = self._listener(Address(anything, 0), family)
                if made is None:
                    raise RestartFailed("no address can be had to wait for connections of other hosts")
                self._spares[family] = made
        ports = [self._spares[one].getsockname()[1] if one in self._spares else 0 for one in (AF_INET, AF_INET6)]
        return (int(ports[0]), int(ports[1])), out

    def meet(self, places: Mapping[bytes, Place], seconds: float = 60.0) -> dict[int, int]:
        """Connect all ends, with what is to be in their queues: our descriptors by the keys of the ends. places: for
        each that calls. Raises RestartFailed, with what is missing, if it takes longer than `seconds`."""
        deadline = time.monotonic() + seconds
        patient = time.monotonic() + min(_PATIENT, seconds / 2)
        poll = select.poll()
        doors = {one.fileno(): one for one in (*self._listeners.values(), *self._spares.values())}
        for fd in doors:
            poll.register(fd, select.POLLIN)
        for end in self._ends.values():
            if end.calls:
                self._add(_Talk(self._call(end, places[end.name], patient), self._code, end), poll)
        while len(self._whole) < len(self._ends):
            if time.monotonic() > deadline:
                raise RestartFailed(self._missing(places))
            for fd, _ in poll.poll(200):
                if fd in doors:
                    self._accept(doors[fd], poll)
                else:
                    self._go_on(fd, poll)
        self._arrive(deadline, places)
        made = {talk.end.key: talk.fd for talk in self._talks.values() if talk.end is not None and talk.done}
        self._talks = {fd: talk for fd, talk in self._talks.items() if fd not in made.values()}
        return made

    def close(self) -> None:
        """Leave nothing open but what `meet` has returned. May be called more than once."""
        for talk in self._talks.values():
            os.close(talk.fd)
        self._talks.clear()
        for one in (*self._listeners.values(), *self._spares.values()):
            one.close()
        self._listeners.clear()
        self._spares.clear()

    # -- waiting

    def _listen(self, end: FarEnd) -> bool:
        if end.local not in self._listeners:
            made = self._listener(end.local, end.family)
            if made is None:
                return False
            self._listeners[end.local] = made
        return self._listeners[end.local].family == end.family

    @staticmethod
    def _listener(address: Address, family: int) -> _socket.socket | None:
        one = None
        try:
            one = _socket.socket(family, _NONBLOCK)
            one.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            if family == AF_INET6:
                one.setsockopt(IPV6, IPV6_V6ONLY, int(len(address.ip) == 16 and not address.any))
            one.bind(address.of_family(family))
            one.listen(4096)
        except OSError as error:
            if one is not None:
                one.close()
            if error.errno in (*_UNAVAILABLE, errno.EAFNOSUPPORT):
                return None
            raise RestartFailed(f"{address}: {error.strerror}") from None
        return one

    def _accept(self, listener: _socket.socket, poll: select.poll) -> None:
        while True:
            try:
                fd, _ = listener._accept()  # type: ignore[attr-defined]
            except OSError:
                return
            os.set_blocking(fd, False)
            self._add(_Talk(int(fd), self._code, None), poll)

    # -- calling

    def _call(self, end: FarEnd, place: Place, patient: float) -> int:
        """A socket that is being connected. patient: until when (monotonic) an address is waited for that is in use, by
        what has just ended perhaps. Raises RestartFailed."""
        where = end.remote if place.address is None else _address(place.address)
        local: Address | None = end.local
        while True:
            try:
                one = inet_connect.begun(end.family, local, where)
            except OSError as error:
                if error.errno in _UNAVAILABLE and local is not None:
                    if error.errno == errno.EADDRINUSE and time.monotonic() < patient:
                        time.sleep(0.02)
                    else:
                        local = None
                    continue
                raise RestartFailed(f"the connection to {place.host} ({where}): {error.strerror}") from None
            if local is None or place.address is not None:
                self._said(f"the connection {end.local} - {end.remote} has other addresses now")
            return one.detach()

    # -- what is said

    def _add(self, talk: _Talk, poll: select.poll) -> None:
        self._talks[talk.fd] = talk
        poll.register(talk.fd, talk.events())

    def _go_on(self, fd: int, poll: select.poll) -> None:
        talk = self._talks[fd]
        try:
            talk.go_on(self._ends)
        except (OSError, _Stranger) as error:
            poll.unregister(fd)
            if talk.end is not None:
                why = getattr(error, "strerror", None) or error
                raise RestartFailed(f"the connection {talk.end.local} - {talk.end.remote}: {why}") from None
            del self._talks[fd]
            os.close(fd)  # somebody who found the port open
            return
        if talk.done and talk.end is not None:
            poll.unregister(fd)
            self._whole.add(talk.end.name)
        else:
            poll.modify(fd, talk.events())

    def _missing(self, places: Mapping[bytes, Place]) -> str:
        left = [end for name, end in self._ends.items() if name not in self._whole]
        host = places[left[0].name].host if left[0].name in places else "the other host"
        more = f" and {len(left) - 1} more do" if len(left) > 1 else " does"
        return f"the connection {left[0].local} - {left[0].remote} with {host}{more} not come about"

    def _arrive(self, deadline: float, places: Mapping[bytes, Place]) -> None:
        """Until everything that this host has sent is in the queues of the others."""
        for talk in self._talks.values():
            while talk.done and sock_diag.to_send(talk.fd):
                if time.monotonic() > deadline:
                    raise RestartFailed(self._missing(places))
                time.sleep(0.0005)


class _Stranger(Exception):
    """Not of this restart."""


class _Talk:
    """What is said on one connection, up to the contents of the queues. end: None until the caller has named it."""

    def __init__(self, fd: int, code: Code, end: FarEnd | None) -> None:
        self.fd, self.end = fd, end
        self.done = False
        self._code = code
        self._in = bytearray()
        self._out = bytearray()
        self._wanted = CODE if end is not None else NAME + CODE
        self._step = self._greeted if end is not None else self._named
        if end is not None:
            self._out += end.name + code(b"calls" + end.name)

    def events(self) -> int:
        """What poll(2) is to wait for. Nothing is read beyond what is wanted: the rest is the program's."""
        return (select.POLLOUT if self._out else 0) | (select.POLLIN if self._wanted else 0)

    def go_on(self, ends: Mapping[bytes, FarEnd]) -> None:
        """As far as it goes. Raises OSError, _Stranger."""
        one = link(self.fd)
        try:
            if self._out:
                try:
                    del self._out[: one.send(self._out, _socket.MSG_NOSIGNAL)]
                except BlockingIOError:
                    pass
            while self._wanted:
                try:
                    data = one.recv(min(self._wanted - len(self._in), 1 << 20))
                except BlockingIOError:
                    break
                if not data:
                    raise _Stranger("the other side has hung up")
                self._in += data
                if len(self._in) == self._wanted:
                    said, self._in, self._wanted = bytes(self._in), bytearray(), 0
                    self._step(said, ends)
        finally:
            one.detach()
        self.done = not self._out and not self._wanted

    def _named(self, said: bytes, ends: Mapping[bytes, FarEnd]) -> None:
        name, code = said[:NAME], said[NAME:]
        end = ends.get(name)
        if end is None or end.calls or not hmac.compare_digest(code, self._code(b"calls" + name)):
            raise _Stranger("it is not of this restart")
        self.end = end
        self._out += self._code(b"waits" + name)
        self._tell(end)

    def _greeted(self, said: bytes, ends: Mapping[bytes, FarEnd]) -> None:
        assert self.end is not None
        if not hmac.compare_digest(said, self._code(b"waits" + self.end.name)):
            raise _Stranger("the other side is not of this restart")
        self._tell(self.end)

    def _tell(self, end: FarEnd) -> None:
        open_window(self.fd, 2 * len(end.queue) + (1 << 16))
        self._out += _LENGTH.pack(len(end.queue)) + end.queue
        self._wanted, self._step = _LENGTH.size, self._told_length

    def _told_length(self, said: bytes, ends: Mapping[bytes, FarEnd]) -> None:
        (length,) = _LENGTH.unpack(said)
        if length > _LONGEST:
            raise _Stranger("the other side is not of this restart")
        self._wanted, self._step = length, self._told_contents

    def _told_contents(self, said: bytes, ends: Mapping[bytes, FarEnd]) -> None:
        self._out += said


def _address(place: tuple[str, int]) -> Address:
    return inet(_socket.getaddrinfo(place[0], place[1], 0, STREAM)[0][4])
