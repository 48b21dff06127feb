"""Messages of sendmsg(2) in the memory of another task: a copy of one that can be sent from here.

Source: sendmsg(2), struct user_msghdr and struct mmsghdr of include/linux/socket.h.
"""

from __future__ import annotations

import ctypes
import struct

from torpor.linux import uio
from torpor.linux.libc import libc
from torpor.named_tuple import NamedTuple

_HEADER = struct.Struct("<QI4xQQQQI4x")
SIZE = 56
"""Bytes of a struct msghdr."""
MANY = 64
"""Bytes of a struct mmsghdr: a message, and how much of it was sent."""
_NAME_MOST, _PIECES_MOST, _DATA_MOST, _CONTROL_MOST = 128, 1024, 65535, 4096
_SOL_SOCKET, _MSG_NOSIGNAL = 1, 0x4000


class Message(NamedTuple):
    """name: a struct sockaddr, empty if there is none.  control: ancillary data."""

    name: bytes
    data: bytes
    control: bytes


def read(task: int, at: int) -> Message | None:
    """The message whose header is at an address. None for one that cannot be sent by somebody else, or that the kernel
    refuses: it is too long, or passes something of the task itself (descriptors, credentials). Raises OSError."""
    name, name_size, vector, count, control, control_size, _ = _HEADER.unpack(uio.read(task, at, SIZE))
    if name_size > _NAME_MOST or count > _PIECES_MOST or control_size > _CONTROL_MOST:
        return None
    pieces = struct.unpack(f"<{2 * count}Q", uio.read(task, vector, 16 * count)) if count else ()
    if sum(pieces[1::2]) > _DATA_MOST:
        return None
    data = b"".join(uio.read(task, base, size) for base, size in zip(pieces[::2], pieces[1::2]) if size)
    beside = uio.read(task, control, control_size) if control and control_size else b""
    if any(level == _SOL_SOCKET for level in _levels(beside)):
        return None
    return Message(uio.read(task, name, name_size) if name and name_size else b"", data, beside)


def _levels(control: bytes) -> list[int]:
    """The levels of ancillary data (cmsg(3))."""
    found, at = [], 0
    while at + 16 <= len(control):
        size, level = struct.unpack_from("<Qi", control, at)
        found.append(level)
        if size < 16:
            break
        at += size + 7 & ~7
    return found


def send(fd: int, message: Message, flags: int) -> int:
    """sendmsg(2) on a socket of ours: what it returns, with errno as `ctypes.get_errno` tells it."""
    rooms = [ctypes.create_string_buffer(part, len(part) or 1) for part in message]
    name, data, control = (ctypes.addressof(room) for room in rooms)
    piece = ctypes.create_string_buffer(struct.pack("<QQ", data, len(message.data)), 16)
    header = _HEADER.pack(
        name if message.name else 0, len(message.name), ctypes.addressof(piece), 1,
        control if message.control else 0, len(message.control), 0,
    )  # fmt: skip
    result: int = libc.sendmsg(fd, ctypes.create_string_buffer(header, SIZE), (flags & 0xFFFFFFFF) | _MSG_NOSIGNAL)
    return result
