"""Streams of a program, carried over a `Wire`: the same on both sides of `torpor rsh`.

One thread, one poll(2), and no descriptor of the user's is switched to non-blocking: those flags belong to the open
file, which others have too. Nothing is read from a stream unless the other side has room for it, so memory does not
grow, however much flows and however slowly it is taken.
"""

from __future__ import annotations

import os
import select
import stat

from torpor.launch.frames import BROKEN, DATA, END, PIECE, ROOM, WINDOW, Frame, Gone, Wire

ATOMIC = 4096
"""A pipe or terminal that poll(2) calls writable takes so much without making us wait (PIPE_BUF, pipe(7))."""
ROOM_AT_ONCE = WINDOW // 4
"""Bytes that are written before the other side is told that there is room again."""
_HUNG = select.POLLHUP | select.POLLERR | select.POLLNVAL


class _Inlet:
    """A descriptor that is read here and written there. room: bytes that the other side will take."""

    def __init__(self, stream: int, fd: int) -> None:
        self.stream, self.fd = stream, fd
        self.room = WINDOW


class _Outlet:
    """A descriptor that is read there and written here. ended: nothing more will come."""

    def __init__(self, stream: int, fd: int) -> None:
        self.stream, self.fd = stream, fd
        self.data = bytearray()
        self.ended = False
        self.written = 0
        """Bytes that the other side has not been told of."""
        plain = stat.S_ISREG(os.fstat(fd).st_mode) or not os.get_blocking(fd)
        self.piece = PIECE if plain else ATOMIC
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self) -> None:
        """Write what can be written without waiting, now that something can. Raises OSError."""
        upto = max(0, len(self.data) - PIECE)
        while len(self.data) > upto:
            with memoryview(self.data) as view:
                written = os.write(self.fd, view[: self.piece])
            del self.data[:written]
            self.written += written
            if not self._poll.poll(0):
                break


class Relay:
    """Carries streams until they end.

    inlets, outlets: {stream: descriptor}.  own: the descriptors are ours, to be closed when they are done with.  wake:
    a descriptor that ends a wait when it is readable; it is emptied.
    """

    def __init__(self, wire: Wire, inlets: dict[int, int], outlets: dict[int, int], wake: int, own: bool) -> None:
        self._wire = wire
        self._in = {stream: _Inlet(stream, fd) for stream, fd in inlets.items()}
        self._out = {stream: _Outlet(stream, fd) for stream, fd in outlets.items()}
        self._wake, self._own = wake, own

    @property
    def reading(self) -> bool:
        """Is there a stream of ours that has not ended?"""
        return bool(self._in)

    @property
    def writing(self) -> bool:
        """Is there something that has come and was not written yet?"""
        return any(outlet.data for outlet in self._out.values())

    def turn(self) -> list[Frame]:
        """Wait until something can be done, and do it; the frames that are not about streams. Raises Gone when the
        other side has gone."""
        poll = select.poll()
        poll.register(self._wire.fileno(), self._wire.events)
        poll.register(self._wake, select.POLLIN)
        # By numbers: standard input and output may be one open file, but not one number.
        inlets = {each.fd: each for each in self._in.values() if each.room and self._wire.waiting < WINDOW}
        outlets = {each.fd: each for each in self._out.values() if each.data}
        for fd in inlets:
            poll.register(fd, select.POLLIN)
        for fd in outlets:
            poll.register(fd, select.POLLOUT)
        others: list[Frame] = []
        ready = poll.poll(0 if self._wire.ready else None)
        if self._wire.ready:
            ready.append((self._wire.fileno(), select.POLLIN))
        for fd, events in ready:
            if fd == self._wake:
                os.read(fd, 4096)
            elif fd in inlets:
                if inlets[fd].stream in self._in:  # not given up by a frame of this turn
                    self._read(inlets[fd])
            elif fd in outlets:
                self._write(outlets[fd], events)
            elif events & ~select.POLLOUT:
                others += [frame for frame in self._wire.receive() if not self._about_streams(frame)]
        self._wire.flush()
        return others

    def _read(self, inlet: _Inlet) -> None:
        try:
            data = os.read(inlet.fd, min(PIECE, inlet.room))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""  # a terminal that was taken away, a folder as standard input
        if data:
            inlet.room -= len(data)
            self._wire.send(DATA, inlet.stream, data)
        else:
            self._wire.send(END, inlet.stream)
            self._shut(inlet)

    def _write(self, outlet: _Outlet, events: int) -> None:
        try:
            if events & _HUNG and not events & select.POLLOUT:
                raise BrokenPipeError
            outlet.write()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._wire.send(BROKEN, outlet.stream)
            self._shut(outlet)
            return
        if outlet.written >= ROOM_AT_ONCE or not outlet.data:
            self._wire.send_number(ROOM, outlet.stream, outlet.written)
            outlet.written = 0
        if outlet.ended and not outlet.data:
            self._shut(outlet)

    def _about_streams(self, frame: Frame) -> bool:
        """Is it, and if so: do what it says. What comes for a stream that was given up is dropped."""
        if frame.kind == DATA:
            if outlet := self._out.get(frame.stream):
                if len(outlet.data) + len(frame.data) > WINDOW:
                    raise Gone("the other side does not keep to the protocol")
                outlet.data += frame.data
        elif frame.kind == END:
            if outlet := self._out.get(frame.stream):
                outlet.ended = True
                if not outlet.data:
                    self._shut(outlet)
        elif frame.kind == ROOM:
            if inlet := self._in.get(frame.stream):
                inlet.room += frame.number
        elif frame.kind == BROKEN:
            if inlet := self._in.get(frame.stream):
                self._wire.send(END, inlet.stream)
                self._shut(inlet)
        else:
            return False
        return True

    def _shut(self, one: _Inlet | _Outlet) -> None:
        if isinstance(one, _Inlet):
            del self._in[one.stream]
        else:
            del self._out[one.stream]
        if self._own:
            os.close(one.fd)
