"""Terminals, and pairs of pseudo-terminals: their ioctls.

Everything but `TIOCGDEV`, `TIOCSCTTY` and exclusive use can be asked of the master as well as of the slave; settings
and window size are those of the pair. Bytes are as the kernel lays them out.

Source: ioctl_tty(2), drivers/tty/pty.c, drivers/tty/tty_io.c, drivers/tty/n_tty.c, include/uapi/asm-generic/ioctls.h.
"""

from __future__ import annotations

import fcntl
import os
import struct

from torpor.linux import clone

TCGETS2, TCSETS2 = 0x802C542A, 0x402C542B
TCXONC, TCFLSH = 0x540A, 0x540B
TIOCEXCL, TIOCNXCL, TIOCGEXCL = 0x540C, 0x540D, 0x80045440
TIOCSCTTY, TIOCNOTTY = 0x540E, 0x5422
TIOCGPGRP, TIOCSPGRP, TIOCGSID = 0x540F, 0x5410, 0x5429
TIOCGWINSZ, TIOCSWINSZ = 0x5413, 0x5414
TIOCINQ = 0x541B
TIOCPKT, TIOCGPKT = 0x5420, 0x80045438
TIOCSPTLCK, TIOCGPTLCK = 0x40045431, 0x80045439
TIOCGPTN, TIOCGDEV, TIOCGPTPEER = 0x80045430, 0x80045432, 0x5441

TCOOFF, TCOON = 0, 1
TCIFLUSH, TCOFLUSH = 0, 1

PTMX = os.makedev(5, 2)
TTY = os.makedev(5, 0)

_INT = struct.Struct("=i")


def is_slave(rdev: int) -> bool:
    """Is this device number a pseudo-terminal's slave (Unix98; Documentation/admin-guide/devices.txt)?"""
    return 136 <= os.major(rdev) <= 143


def get(fd: int, request: int) -> int:
    """An ioctl that gives an integer."""
    value: int = _INT.unpack(fcntl.ioctl(fd, request, bytes(4)))[0]
    return value


def put(fd: int, request: int, value: int) -> None:
    """An ioctl that takes a pointer to an integer."""
    fcntl.ioctl(fd, request, _INT.pack(value))


def unread(fd: int) -> int:
    """Bytes that could be read: for a slave in canonical mode those of whole lines."""
    return get(fd, TIOCINQ)


def peer(master: int, flags: int) -> int:
    """The slave of a master, opened (Linux 4.13); never becomes a controlling terminal.

    Raises OSError: EIO (locked), EBUSY (in exclusive use), EACCES.
    """
    fd = fcntl.ioctl(master, TIOCGPTPEER, flags | os.O_NOCTTY)
    os.set_inheritable(fd, False)  # O_CLOEXEC would show in the flags of the description for ever
    return fd


def hung_up(fd: int) -> bool:
    """Is it a terminal that is no more: its master was closed, or it was hung up?"""
    try:
        fcntl.ioctl(fd, TCGETS2, bytes(44))
    except OSError:
        return True
    return False


def device(fd: int) -> int:
    """The device number of the terminal, also of one that was opened as /dev/tty. Raises OSError."""
    number = get(fd, TIOCGDEV) & 0xFFFFFFFF
    return os.makedev((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00))


def open_as_tty(slave: int, flags: int) -> int:
    """/dev/tty, opened by a process whose controlling terminal is `slave`. Raises OSError.

    That process is a child of ours; afterwards the terminal is nobody's again.
    """
    return clone.made_apart(lambda: _take(slave, flags))


def _take(slave: int, flags: int) -> int:
    import signal

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # TIOCNOTTY sends it to the group in front, which we are
    os.setsid()
    fcntl.ioctl(slave, TIOCSCTTY, 0)
    fd = os.open("/dev/tty", flags | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(slave, TIOCNOTTY)
    return fd


def probe() -> tuple[bool, str]:
    """Can a pair be made, and its slave be opened through the master?"""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        put(master, TIOCSPTLCK, 0)
        os.close(peer(master, os.O_RDWR))
    finally:
        os.close(master)
    return True, ""
