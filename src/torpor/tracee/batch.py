"""Batches: from calls to a table in a task's scratch memory, and from the table to answers. Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

from torpor.linux.arch.x86_64_code import ROW
from torpor.tracee.call import LEFT_OUT, Answer, Argument, Call, Common, In, Object, Out, Word

_MASK = (1 << 64) - 1
_RESULT = struct.Struct("<q").unpack_from
_POINTER = struct.Struct("<Q")
_Placed = list[tuple[int, int]]


class Batch:
    """Calls laid out for one round trip.

    image: the bytes to be written at the base of the room. count: rows. `answers` reads the image written back.
    """

    def __init__(self, base: int, calls: Sequence[Call], objects: Callable[[int], int] | None = None) -> None:
        self.calls = calls
        self.count = len(calls)
        self._base = base
        self._data = bytearray()
        self._data_at = base + ROW * len(calls)
        self._objects = objects
        self._outs: list[_Placed] = []
        self._inner: list[int] = []
        self._row = {call.name: i for i, call in enumerate(calls) if call.name}
        self._common: dict[str, tuple[int, int]] = {}
        rows = []
        pointers = []
        for i, call in enumerate(calls):
            outs: _Placed = []
            pointers += [ROW * i + 8 * at for at, arg in enumerate(call.args, 1) if not isinstance(arg, (int, Object))]
            args = [self._place(arg, outs) & _MASK for arg in call.args]
            number = call.nr | self._left_out(i, call.if_failed) << 32 | self._left_out(i, call.if_done) << 48
            rows.append(struct.pack("<7Qq", number, *args, *[0] * (6 - len(args)), LEFT_OUT))
            self._outs.append(outs)
        self.image = b"".join(rows) + bytes(self._data)
        self._pointers = pointers + [len(rows) * ROW + at for at in self._inner]
        """Where in the image addresses stand that depend on the base."""

    def moved(self, base: int) -> Batch:
        """The same calls laid out elsewhere, which is much less work than to lay them out. Not with objects."""
        batch = object.__new__(Batch)
        batch.__dict__.update(self.__dict__)
        image, by = bytearray(self.image), base - self._base
        for at in self._pointers:
            _POINTER.pack_into(image, at, _POINTER.unpack_from(image, at)[0] + by)
        batch._base, batch._data_at, batch.image = base, self._data_at + by, bytes(image)
        return batch

    def _left_out(self, row: int, to: str) -> int:
        """How many rows are between one and the call with a name. Raises ValueError if it is not further down."""
        if not to:
            return 0
        count = self._row.get(to, row) - row - 1
        if count < 0:
            raise ValueError(f"no call {to} behind this one")
        return count

    def _room(self, size: int) -> int:
        """Reserve room for `size` bytes, 16-byte aligned; its offset in the data part."""
        at = len(self._data)
        self._data += bytes((size + 15) & ~15)
        return at

    def _place(self, arg: Argument, outs: _Placed) -> int:
        if isinstance(arg, int):
            return arg
        if isinstance(arg, Object):
            if self._objects is None:
                raise ValueError("an Object argument outside stage PLACE")
            return self._objects(arg.number)
        if isinstance(arg, Out):
            at = self._room(arg.size)
            outs.append((at, arg.size))
            return self._data_at + at
        if isinstance(arg, Word):
            return self.address(arg)
        if isinstance(arg, Common):
            at, size = self._common.setdefault(arg.name, (len(self._data), arg.size))
            if size != arg.size:
                raise ValueError(f"the common room {arg.name} has two sizes")
            if at == len(self._data):
                self._room(size)
            outs.append((at, size))
            return self._data_at + at + arg.offset
        data = bytearray(arg.data)
        for offset, target in arg.pointers:
            _POINTER.pack_into(data, offset, self._place(target, outs))
        at = self._room(len(data))
        self._inner += [at + offset for offset, _ in arg.pointers]
        self._data[at : at + len(data)] = data
        return self._data_at + at

    def address(self, word: Word) -> int:
        """Where an argument or a result is kept in the table."""
        return self._base + ROW * self._row[word.call] + 8 + 8 * word.arg

    def answers(self, image: bytes, first: int = 0, count: int | None = None) -> list[Answer]:
        """The answers found in the image after the batch has run: all of them, or `count` from the call `first` on."""
        shift = ROW * self.count
        last = self.count if count is None else first + count
        found = []
        for row, outs in enumerate(self._outs[first:last], first):
            filled = tuple([image[shift + at : shift + at + size] for at, size in outs])
            found.append(Answer(_RESULT(image, ROW * row + 56)[0], filled))
        return found


def laid_out(
    base: int, room: int, calls: Sequence[Call], objects: Callable[[int], int] | None = None
) -> Iterable[Batch]:
    """Batches for a sequence of calls, each of at most `room` bytes. Many tasks are asked the same: what was laid out
    lately is kept, if it is not too much."""
    global _lately
    if objects is not None or len(calls) > _MOST_KEPT:
        return (Batch(base, part, objects) for part in split(calls, room))
    place = base, room
    alike: Sequence[Batch] = ()
    for known, kept, batches in _lately:
        if known[1] == room and kept == calls:
            if known == place:
                return batches
            alike = batches
    if alike:
        batches = [batch.moved(base) for batch in alike]
        _lately = ((place, list(calls), batches), *_lately[:_MOST_PLACES])
        return batches
    whole = Batch(base, calls) if 0 < len(calls) <= _FEW else None
    if whole is not None and len(whole.image) <= room:
        batches = [whole]  # measured by laying them out, which is less work than to estimate them first
    else:
        batches = [Batch(base, part) for part in split(calls, room)]
    _lately = ((place, list(calls), batches), *_lately[:_MOST_PLACES])
    return batches


_MOST_KEPT = 1000
_MOST_PLACES = 7
_FEW = 64
"""Calls that will hardly need more than one batch."""
_lately: tuple[tuple[tuple[int, int], list[Call], Sequence[Batch]], ...] = ()


def size_of(call: Call) -> int:
    """Bytes a call needs in a batch, at most."""

    def size(arg: Argument) -> int:
        if isinstance(arg, (Out, Common)):
            return arg.size + 16
        if isinstance(arg, In):
            return len(arg.data) + 16 + sum(size(target) for _, target in arg.pointers)
        return 0

    return ROW + sum(size(arg) for arg in call.args)


def split(calls: Sequence[Call], room: int) -> Iterator[Sequence[Call]]:
    """Cut a sequence of calls into runs that fit `room` bytes each. Calls that are tied together must fit at once."""
    start, used = 0, 0
    tied = None
    for i, call in enumerate(calls):
        need = size_of(call)
        if need > room:
            raise ValueError("one call needs more than the scratch memory has")
        if used + need > room:
            if tied is None:
                tied = any(call.tied for call in calls)
            if tied:
                raise ValueError("calls that are tied together need more than the scratch memory has")
            yield calls[start:i]
            start, used = i, 0
        used += need
    if start < len(calls):
        yield calls[start:]
