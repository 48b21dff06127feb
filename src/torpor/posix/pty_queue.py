"""What is in a pair of pseudo-terminals: typed and not read yet, written and not read yet.

The kernel shows neither without giving it away: reading is the only look there is. So it is read and put back. Both
is done by a process of its own, which outlives us: if we are killed in between, nothing is lost. The job is stopped
meanwhile; nobody sees it.

Input (master to slave) has been through the line discipline already. In canonical mode it is lines, each ended by a
newline, or by an end-of-file or end-of-line character, and the line that is being typed. It is put back by writing it
to the master with all interpretation switched off but the one that ends lines; what looks like the end of one without
being it is quoted with the character for that (LNEXT). Output (slave to master) is bytes; in packet mode one more byte
may wait that tells the master what has happened.

Not kept: the column the cursor is in (for tabs that are erased), a quoting character typed as the very last.

Source: drivers/tty/n_tty.c, drivers/tty/pty.c, ioctl_tty(2), termios(3).
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import time
from collections.abc import Callable

import msgspec

from torpor.linux import pty
from torpor.posix.apart import apart

_ICANON, _ECHO, _IEXTEN, _EXTPROC = 0o2, 0o10, 0o100000, 0o200000
_ISTRIP, _INLCR, _IGNCR, _ICRNL, _IUCLC, _PARMRK, _IXON = 0o40, 0o100, 0o200, 0o400, 0o1000, 0o10, 0o2000
_CHANGES = _ISTRIP | _INLCR | _IGNCR | _ICRNL | _IUCLC | _PARMRK
_VEOF, _VTIME, _VMIN, _VSTART, _VSTOP, _VLNEXT = 4, 5, 6, 8, 9, 15
_EOF, _LNEXT, _NEWLINE = 4, 22, 10
_TERMIOS = struct.Struct("=IIIIB19s")
"""iflag, oflag, cflag, lflag, line, cc: the beginning of struct termios2."""

STATUS_FLUSHREAD, STATUS_FLUSHWRITE, STATUS_STOP, STATUS_START, STATUS_NOSTOP, STATUS_DOSTOP = 1, 2, 4, 8, 16, 32

BY_CHARACTER, BY_CALL = 1, 2
"""How output was stopped: by the stop character, by tcflow(3)."""

ROOM = 4095
"""Bytes the line discipline holds; more than that waits unprocessed before it."""

PATIENCE = 3.0
"""Seconds that putting back may take: the kernel does it at once. Afterwards the job goes on, which makes room."""
LONG = 60.0
"""Seconds after which we give up putting back."""


_PIECES = (1024, 1024, 1024, 1023, 1792, 1792, *(1280,) * 10)
"""Bytes of the first writes; 1792 from then on.

What waits before the line discipline is in buffers, each twice as large as the write it was made for, and no more are
made once the writes come to more than 8192 (drivers/tty/tty_buffer.c, drivers/tty/pty.c). So what fits best is, after
what the line discipline takes: buffers that are filled, that make 8192 exactly, and then the largest there is, 1792.
Each is larger than what may be left in the one before."""


class Queues(msgspec.Struct, frozen=True):
    """What is in a pair. lines: whole lines of canonical mode, one that is not ended by a newline was ended by an
    end-of-file character. rest: what follows them, or all input where the mode is not canonical. status: the pending
    byte of packet mode. stopped: is output stopped, and how (0: it is not)."""

    lines: tuple[bytes, ...] = ()
    rest: bytes = b""
    output: bytes = b""
    status: int = 0
    stopped: int = 0


class Settings:
    """A struct termios2, taken apart."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.iflag, self.oflag, self.cflag, self.lflag, self.line, self.cc = _TERMIOS.unpack_from(raw)

    @property
    def canonical(self) -> bool:
        return bool(self.lflag & _ICANON) and not self.lflag & _EXTPROC

    @property
    def echo(self) -> bool:
        return bool(self.lflag & _ECHO)

    def with_flags(self, iflag: int, oflag: int, lflag: int, cc: bytes) -> bytes:
        return _TERMIOS.pack(iflag, oflag, self.cflag, lflag, self.line, cc) + self.raw[_TERMIOS.size :]

    def uncooked(self) -> bytes:
        """The same without lines and echo, to read what is left."""
        return self.with_flags(self.iflag, self.oflag, self.lflag & _EXTPROC, self.cc)

    def quiet(self, flow: bool) -> bytes:
        """The same with nothing interpreted but what ends and quotes lines, if there are lines. flow: leave the stop
        character alone."""
        cc = bytearray(len(self.cc))
        for i in (_VSTART, _VSTOP, _VMIN, _VTIME):
            cc[i] = self.cc[i]
        cc[_VEOF], cc[_VLNEXT] = _EOF, _LNEXT
        iflag = self.iflag & ~(_CHANGES | (0 if flow else _IXON))
        return self.with_flags(iflag, self.oflag & ~1, self.lflag & (_ICANON | _EXTPROC) | _IEXTEN, bytes(cc))


def settings(fd: int) -> bytes:
    """The settings of a pair. Raises OSError."""
    return fcntl.ioctl(fd, pty.TCGETS2, bytes(44))


def set_settings(fd: int, raw: bytes) -> None:
    fcntl.ioctl(fd, pty.TCSETS2, raw)


def look(master: int, opened: bool, others: tuple[int, ...]) -> Queues | None:
    """What is in a pair that nobody uses meanwhile; it is there again afterwards. None if that failed.

    opened: the slave was opened before (opening it is no news to anybody). others: descriptors of the slave.
    """
    if not opened:
        return Queues()
    raw = Settings(settings(master))
    if not raw.canonical and _idle(master, others):
        return Queues()
    told = apart(lambda: _look(master, others, raw), PATIENCE)
    return msgspec.msgpack.decode(told, type=Queues) if told else None


def _idle(master: int, others: tuple[int, ...]) -> bool:
    """Is there nothing in a pair that is not in canonical mode, and output not stopped?"""
    if not others or pty.unread(others[0]):
        return False
    return not _ready(master, select.POLLIN | select.POLLPRI) and bool(_ready(others[0], select.POLLOUT))


def _ready(fd: int, events: int, timeout: float = 0) -> int:
    """Which of the events are there. Asking also lets the line discipline take in what waits before it."""
    poll = select.poll()
    poll.register(fd, events)
    return next((found & events for _, found in poll.poll(timeout * 1000)), 0)


def _look(master: int, others: tuple[int, ...], raw: Settings) -> bytes:
    """In a process of its own: the queues, encoded."""
    locked = pty.get(master, pty.TIOCGPTLCK)
    exclusive = bool(others) and pty.get(others[0], pty.TIOCGEXCL)
    if locked:
        pty.put(master, pty.TIOCSPTLCK, 0)
    if exclusive:
        fcntl.ioctl(others[0], pty.TIOCNXCL)
    slave = pty.peer(master, os.O_RDWR | os.O_NONBLOCK)
    try:
        found = take(master, slave, raw)
        fill(master, slave, found, raw.raw)
    finally:
        set_settings(slave, raw.raw)
        if exclusive:
            fcntl.ioctl(others[0], pty.TIOCEXCL)
        if locked:
            pty.put(master, pty.TIOCSPTLCK, 1)
    os.close(slave)
    return msgspec.msgpack.encode(found)


def take(master: int, slave: int, raw: Settings) -> Queues:
    """Read all there is. `slave` is not to wait (O_NONBLOCK)."""
    output, status = b"", 0
    packets = pty.get(master, pty.TIOCGPKT)
    while _ready(master, select.POLLIN):
        try:
            data = os.read(master, 1 << 16)
        except OSError:
            break
        if not packets:
            output += data
        elif data[:1] == b"\0":
            output += data[1:]
        else:
            status |= data[0]
    stopped = 0
    if not _ready(slave, select.POLLOUT):
        stopped = BY_CHARACTER if raw.iflag & _IXON and raw.cc[_VSTOP] else BY_CALL
    lines: list[bytes] = []
    if raw.canonical:
        while len(lines) <= ROOM:
            line = _read(slave)
            if line is None:
                break
            lines.append(line)
        set_settings(slave, raw.uncooked())
    rest = b""
    while data_or_none := _read(slave):
        rest += data_or_none
    return Queues(tuple(lines), rest, output, status, stopped)


def _read(slave: int) -> bytes | None:
    """A read that does not wait: None if there is nothing."""
    try:
        return os.read(slave, 1 << 16)
    except OSError:
        return None


def fill(master: int, slave: int, queues: Queues, termios: bytes) -> None:
    """Put into a pair that is empty what was in it, and set it as it was. Raises OSError."""
    raw = Settings(termios)
    plain = b"".join((*queues.lines, queues.rest))
    flow = not queues.stopped and not (raw.cc[_VSTART] in plain or raw.cc[_VSTOP] in plain)
    set_settings(slave, raw.quiet(flow))
    _tell(slave, queues.status)
    if plain or queues.lines:
        _type(master, slave, queues, raw.canonical)
    if queues.output:
        if queues.stopped == BY_CALL:
            fcntl.ioctl(slave, pty.TCXONC, pty.TCOON)
        _write(slave, queues.output)
        _until(lambda: pty.unread(master) >= min(len(queues.output), ROOM))
    set_settings(slave, termios)
    if queues.stopped == BY_CHARACTER:
        _write(master, raw.cc[_VSTOP : _VSTOP + 1])
        _until(lambda: not _ready(slave, select.POLLOUT))
    elif queues.stopped:
        fcntl.ioctl(slave, pty.TCXONC, pty.TCOOFF)


def _tell(slave: int, status: int) -> None:
    """Make the master be told again, in packet mode, what it has not been told yet."""
    if status & STATUS_FLUSHREAD:
        fcntl.ioctl(slave, pty.TCFLSH, pty.TCIFLUSH)
    if status & STATUS_FLUSHWRITE:
        fcntl.ioctl(slave, pty.TCFLSH, pty.TCOFLUSH)
    if status & STATUS_START:
        fcntl.ioctl(slave, pty.TCXONC, pty.TCOOFF)
        fcntl.ioctl(slave, pty.TCXONC, pty.TCOON)
    if status & (STATUS_NOSTOP | STATUS_DOSTOP):
        now = settings(slave)
        flags = Settings(now)
        for iflag in (flags.iflag ^ _IXON, flags.iflag):
            set_settings(slave, flags.with_flags(iflag, flags.oflag, flags.lflag, flags.cc))


def _type(master: int, slave: int, queues: Queues, canonical: bool) -> None:
    """Write the input, and wait until the line discipline has it."""
    if not canonical:
        _write(master, queues.rest)
        _until(lambda: pty.unread(slave) >= min(len(queues.rest), ROOM))
        return
    if queues.lines:
        for line in queues.lines:
            end = bytes((_NEWLINE,)) if line.endswith(b"\n") else bytes((_EOF,))
            _write(master, _quoted(line.removesuffix(b"\n")) + end)
        size = sum(len(line) for line in queues.lines)
        _until(lambda: _ready(slave, select.POLLIN) != 0 and pty.unread(slave) == size)
    if queues.rest:
        _write(master, _quoted(queues.rest))
        if queues.lines:
            time.sleep(0.005)  # there is no way to see the line that is being typed behind whole ones
    if not queues.lines:
        _ready(slave, select.POLLIN)


def _quoted(text: bytes) -> bytes:
    """A part of a line as it has to be typed."""
    for special in (_LNEXT, _EOF, _NEWLINE):
        text = text.replace(bytes((special,)), bytes((_LNEXT, special)))
    return text


def _write(fd: int, data: bytes) -> None:
    """Write to a terminal that has room for it. (poll says that there is none before the last bit of it is used.)

    See _PIECES.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    end = time.monotonic() + LONG
    pieces = iter(_PIECES)
    try:
        while data:
            piece = data[: next(pieces, 1792)]
            data = data[len(piece) :]
            while piece:
                try:
                    piece = piece[os.write(fd, piece) :]
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.0002)
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _until(condition: Callable[[], bool]) -> None:
    """Give the line discipline the time to take in what was written. It is on its way in any case."""
    end = time.monotonic() + PATIENCE / 4
    while not condition() and time.monotonic() < end:
        time.sleep(0.0002)
