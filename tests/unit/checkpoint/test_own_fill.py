"""Processes put areas of huge pages in themselves: what is read at once, and that every byte is there, or told."""

from __future__ import annotations

import os
import random
import signal
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from torpor.checkpoint import own_fill
from torpor.checkpoint.own_fill import DAMAGED, FILLED, LEAST, NOT_MAPPED, OwnFill, eligible, pieces
from torpor.image import crypto
from torpor.image.keys import Key, Public
from torpor.image.seal import Opening, Sealing
from torpor.linux import uio
from torpor.model.errors import Damaged
from torpor.posix.memory.area import ANONYMOUS, FILE, AreaRecord
from torpor.posix.memory.pages import FULL, PAGE, WINDOW, Window, pack
from torpor.store import open_store
from torpor.store.load import Load

ME = Key(bytes(range(32)), Public(*crypto.public_of(bytes(range(32)))), "")
HUGE = AreaRecord(LEAST, 2 * LEAST, ANONYMOUS, 3, False, ("ac", "hg"), huge=True)


@pytest.mark.parametrize(
    ("change", "own"),
    [
        ({}, True),
        ({"flags": ("ac", "hg", "lo", "dc")}, True),
        ({"prot": 1}, True),
        ({"prot": 1, "flags": ("hg",)}, False),
        ({"huge": False}, False),
        ({"kind": FILE}, False),
        ({"shared": True}, False),
        ({"flags": ("ac", "ht")}, False),
        ({"flags": ("ac", "gd")}, False),
        ({"end": 2 * LEAST - PAGE}, False),
    ],
)
def test_only_ordinary_memory_of_huge_pages(change: dict[str, object], own: bool) -> None:
    assert eligible(msgspec.structs.replace(HUGE, **change)) == own


def test_what_lies_in_a_row_is_read_at_once() -> None:
    """Whole windows side by side, whose chunks are side by side in one pack; four at most."""
    places = {ref: (0, ref * WINDOW) for ref in range(7)} | {7: (1, 7 * WINDOW), 8: (1, 9 * WINDOW)}
    rows = [(ref * WINDOW, FULL, ref) for ref in range(6)]
    rows += [(6 * WINDOW, 5, 6), (7 * WINDOW, FULL, 7), (8 * WINDOW, FULL, 8), (9 * WINDOW, FULL, 9)]
    found = list(pieces(rows, places.get))
    assert [(list(piece.refs), piece.in_a_row) for piece in found] == [
        ([0, 1, 2, 3], True), ([4, 5], True), ([6], False), ([7], True), ([8], True), ([9], False),
    ]  # fmt: skip
    assert [window for piece in found for window in piece.windows] == [Window(at, bitmap) for at, bitmap, _ in rows]


class Place:
    """A store with memory in it, the area that it belongs to, and what is in which page of it."""

    def __init__(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(own_fill, "LEAST", 4 << 20)
        self.start = (1 << 45) + PAGE  # where nobody else has anything
        self.wanted: dict[int, bytes] = {}
        dice = random.Random(5)
        store = open_store(folder)
        saving = store.begin("j", Sealing(ME), "zstd")
        found = []
        first = -(-self.start // WINDOW)
        for number in range(first, first + 30):
            bitmap = FULL if number % 5 else dice.getrandbits(64) | 1
            pages = [dice.randbytes(PAGE) if number % 7 else bytes([number & 0xFF]) * PAGE for _ in range(64)]
            window = Window(number * WINDOW, bitmap)
            found.append((window, saving.put(b"".join(pages[at] for at in range(64) if bitmap >> at & 1))))
            self.wanted.update((window.address + at * PAGE, pages[at]) for at in range(64) if bitmap >> at & 1)
        saving.commit(b"body", {})
        self.load: Load = store.load("j", 1, Opening(untrusted=True))
        area = AreaRecord(self.start, self.start + (8 << 20), ANONYMOUS, 3, False, ("ac", "hg"), huge=True)
        record = msgspec.defstruct("R", [("pid", int), ("state", str), ("areas", Any), ("pages", Any)])
        self.record: Any = record(7, "running", (area,), pack(found))
        manifest: Any = type("M", (), {"processes": (self.record,)})
        self.told: list[int] = []
        self.own = OwnFill(manifest, self.load, lambda done, total: self.told.append(done))
        self.pack = next(os.path.join(at, name) for at, _, names in os.walk(f"{folder}/packs") for name in names)

    def fill(self, before: Callable[[], object] = lambda: None) -> tuple[int, list[tuple[int, int]]]:
        """Have a process do it: its pid, and what it told. It waits to be killed, if it could do all of it."""
        source, target = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                before()
                self.own.fill(7, lambda value, step: os.write(target, struct.pack("<ii", value, step)))
                os.close(target)
                signal.pause()
            except Damaged:
                code = 0
            finally:
                os._exit(code)
        os.close(target)
        heard = b""
        while part := os.read(source, 4096):
            heard += part
        os.close(source)
        return child, list(struct.iter_unpack("<ii", heard))


@pytest.fixture
def place(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    yield Place(str(tmp_path / "store"), monkeypatch)


def test_every_page_is_there(place: Place) -> None:
    """Whole windows and parts of them, compressed and not; what is there is left out of what remains."""
    child, told = place.fill()
    try:
        for value, step in told:
            place.own.hear(7, value, step)
        assert {step for _, step in told} == {FILLED}
        assert place.told[-1] == place.own.done == len(place.wanted) * PAGE
        assert not place.own.rest(place.record).pages.windows
        wrong = [hex(at) for at, page in place.wanted.items() if uio.read(child, at, PAGE) != page]
        assert not wrong
        assert len(os.listdir(f"/proc/{child}/task")) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_has_no_place_is_left_to_others(place: Place) -> None:
    """Something of the process' own is where the area should be."""

    def in_the_way() -> None:
        libc = uio.libc
        libc.mmap.restype = own_fill.ctypes.c_void_p
        libc.mmap.argtypes = [own_fill.ctypes.c_void_p, *[own_fill.ctypes.c_size_t] * 5]
        libc.mmap(place.start + (1 << 20), PAGE, 3, 0x22 | 0x10, (1 << 64) - 1, 0)

    child, told = place.fill(in_the_way)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert told == [(0, NOT_MAPPED)]
    place.own.hear(7, *told[0])
    assert place.own.areas(7) == []
    assert place.own.rest(place.record).pages == place.record.pages


@pytest.mark.parametrize("how", ("flip", "cut", "gone"))
def test_damage_is_told(place: Place, how: str) -> None:
    at = os.path.getsize(place.pack) // 2
    if how == "flip":
        with open(place.pack, "r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))
    elif how == "cut":
        os.truncate(place.pack, at)
    else:
        os.unlink(place.pack)
    child, told = place.fill()
    assert os.waitpid(child, 0)[1] == 0, "it went on with damaged memory"
    value = next(value for value, step in told if step == DAMAGED)
    with pytest.raises(Damaged, match=os.path.basename(place.pack)):
        place.own.hear(7, value, DAMAGED)
