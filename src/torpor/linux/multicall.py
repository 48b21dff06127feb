"""Many system calls of our own by one call from Python.

While a job stands still, every call that Python makes costs a microsecond or two beside what the kernel does for it,
and there are a dozen for each thread. So they are written into a table, as for a stopped task (tracee/batch.py), and
the same loop (linux/arch/x86_64_code.py) makes them, here in our own process: without Python, without libc, without
errno. Where memory that can be executed is forbidden (linux/executable.py), Python makes them one by one.

A row that needs what another one returned is one for the next table: nobody decides anything in between.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable, Iterable, Sequence

from torpor.linux import executable, masks, uio
from torpor.linux.arch.x86_64_code import ROW, assemble_function
from torpor.linux.libc import syscall

_ROW = struct.Struct("<7Qq")
_WORD = struct.Struct("<Q")
_RESULT = struct.Struct("<q").unpack_from
assert _ROW.size == ROW
_MASK = (1 << 64) - 1
_FILL = (0,) * 6

Row = Sequence[int]
"""The number of a call, and up to six arguments."""

_Function = Callable[[int, int], None]


class Table:
    """Calls that are to be made together. rows: see `Row`. Memory that they lead to has to be kept by the caller, and
    laid out before (`Room`)."""

    def __init__(self, rows: Iterable[Row]) -> None:
        pack = _ROW.pack
        self._image = bytearray().join(
            pack(nr, *[word & _MASK for word in words], *_FILL[len(words) :], 0) for nr, *words in rows
        )
        self._count = len(self._image) // ROW
        self._at = uio.address_of(self._image) if self._count else 0

    def put(self, row: int, argument: int, value: int) -> None:
        """Make another one of an argument (the first is 0)."""
        _WORD.pack_into(self._image, ROW * row + 8 * (1 + argument), value & _MASK)

    def make(self, count: int | None = None, waits: bool = False) -> list[int]:
        """Make the calls, or the first `count` of them, one after the other, whatever comes of any. What they return:
        negative for an error (-EPERM). May be called again.

        waits: one of them may wait, so that other threads of Python are to go on meanwhile.
        """
        count = self._count if count is None else count
        if not count:
            return []
        held, released = _functions()
        (released if waits else held)(self._at, count)
        return [_RESULT(self._image, at)[0] for at in range(ROW - 8, ROW * count, ROW)]


class Room:
    """Memory for what calls read and write, in `count` parts of `size` bytes each."""

    def __init__(self, count: int, size: int) -> None:
        self.size = size
        self.memory = bytearray(count * size)
        self._base = uio.address_of(self.memory) if count * size else 0

    def at(self, part: int, offset: int = 0) -> int:
        """The address of a part, or of what is in it."""
        return self._base + part * self.size + offset

    def put(self, part: int, offset: int, data: bytes) -> None:
        """Let that stand there."""
        at = part * self.size + offset
        self.memory[at : at + len(data)] = data

    def bytes(self, part: int, offset: int, size: int) -> bytes:
        """What stands there by now."""
        at = part * self.size + offset
        return bytes(self.memory[at : at + size])

    def word(self, part: int, offset: int = 0) -> int:
        """Eight bytes as a number without a sign."""
        return int.from_bytes(self.bytes(part, offset, 8), "little")


_known: tuple[_Function, _Function] | None = None


def _functions() -> tuple[_Function, _Function]:
    """What makes the calls of a table: with Python's lock, and without."""
    global _known
    if _known is None:
        try:
            _known = _by_code()
        except OSError:
            _known = _one_by_one, _one_by_one
    return _known


def _by_code() -> tuple[_Function, _Function]:
    """The loop as a function of our own, in a page that stays. Raises OSError where there may be none."""
    if masks.masked("multicall"):
        raise OSError(errno.EPERM, masks.REASON)
    at = executable.place(assemble_function())
    arguments = None, ctypes.c_void_p, ctypes.c_long
    return ctypes.PYFUNCTYPE(*arguments)(at), ctypes.CFUNCTYPE(*arguments)(at)


def _one_by_one(address: int, count: int) -> None:
    """The same without code of ours."""
    image = (ctypes.c_char * (ROW * count)).from_address(address)
    for at, (nr, *words, _) in zip(range(0, ROW * count, ROW), _ROW.iter_unpack(image.raw)):
        try:
            result = syscall(nr, *words)
        except OSError as error:
            result = -(error.errno or 0)
        struct.pack_into("<q", image, at + ROW - 8, result)


def probe() -> tuple[bool, str]:
    """Can code of ours make the calls of a table?"""
    try:
        _by_code()
    except OSError as error:
        return False, f"{error.strerror}; Python makes them one by one: a job of many threads stands still for longer"
    return True, ""
