"""What of a process' memory has still to arrive, and where: the books are held against a model of the kernel, in which
threads do things at the same time and are told of in any order that the kernel may tell them in."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Collection

import pytest

from torpor.checkpoint.lazy.books import Books, Missing, Run, Stirred, Unclear

PAGE = 4096
SLOT = 4 * PAGE
SLOTS = 10


def test_runs_are_found_cut_and_put_in() -> None:
    missing = Missing([Run(8 * PAGE, 12 * PAGE, 7, 0), Run(0, 4 * PAGE, 3, PAGE)])
    assert missing.find(PAGE) == Run(0, 4 * PAGE, 3, PAGE)
    assert missing.find(4 * PAGE) is None
    assert missing.after(4 * PAGE) == missing.find(8 * PAGE) == missing.after(9 * PAGE)
    assert missing.after(12 * PAGE) == missing.find(0)
    assert missing.take(PAGE, 9 * PAGE) == [Run(PAGE, 4 * PAGE, 3, 2 * PAGE), Run(8 * PAGE, 9 * PAGE, 7, 0)]
    assert list(missing) == [Run(0, PAGE, 3, PAGE), Run(9 * PAGE, 12 * PAGE, 7, PAGE)]
    missing.add([Run(0, 10 * PAGE, 5, 0)])
    assert list(missing) == [
        Run(0, PAGE, 3, PAGE), Run(PAGE, 9 * PAGE, 5, PAGE), Run(9 * PAGE, 12 * PAGE, 7, PAGE),
    ]  # fmt: skip
    assert missing.size == 12 * PAGE


def test_what_moves_to_a_place_that_is_taken_waits_until_that_has_left() -> None:
    """Two threads move: A to B, and C to where A was; the second is told first."""
    runs = [Run(0, SLOT, 1, 0), Run(2 * SLOT, 3 * SLOT, 2, 0)]
    books = Books([(0, SLOT), (2 * SLOT, 3 * SLOT)], runs, lambda page: page < 2 * SLOT)
    books.remapped(2 * SLOT, 0, SLOT)
    books.remapped(0, SLOT, SLOT)
    books.unmapped(0, SLOT)
    books.unmapped(2 * SLOT, 3 * SLOT)
    books.settle()
    assert list(books.missing) == [Run(0, SLOT, 2, 0), Run(SLOT, 2 * SLOT, 1, 0)]


def test_nothing_is_put_back_that_was_dropped() -> None:
    books = Books([(0, SLOT)], [Run(0, SLOT, 1, 0)], lambda _: True)
    books.removed(PAGE, 3 * PAGE)
    child = books.forked(lambda _: True, [(0, PAGE)])
    books.removed(3 * PAGE, SLOT)
    assert books.settle() == [child]
    assert list(books.missing) == [Run(0, PAGE, 1, 0)]
    assert list(child.missing) == [Run(3 * PAGE, SLOT, 1, 3 * PAGE)]


def test_it_waits_for_a_process_that_goes_on() -> None:
    """Whether what was unmapped there is known cannot be seen while it does something else: nothing is settled yet."""
    moving = True

    def asked_for(_: int) -> bool:
        if moving:
            raise Stirred
        return False

    books = Books([(0, SLOT)], [Run(0, SLOT, 1, 0)], asked_for)
    books.remapped(0, SLOT, SLOT)
    books.unmapped(0, SLOT)
    child = books.forked(_in({1: 0}))
    books.unmapped(SLOT, 2 * SLOT)
    assert books.settle() == []
    assert not books.settled
    assert list(books.missing) == [Run(0, SLOT, 1, 0)]
    moving = False
    assert books.settle() == [child]
    assert books.settled
    assert not books.missing
    assert list(child.missing) == [Run(SLOT, 2 * SLOT, 1, 0)]


def _in(slots: dict[int, int]) -> Callable[[int], bool]:
    return lambda address: address // SLOT in slots


class Memory:
    """The truth: what is to be read in each slot that is mapped (0: zeros), and its books. torn: slots of which a child
    may find either."""

    def __init__(self, slots: dict[int, int], books: Books, torn: Collection[int] = ()) -> None:
        self.slots, self.books, self.torn = slots, books, torn

    def check(self) -> None:
        noted = {run.start // SLOT: run for run in self.books.missing}
        for slot, contents in self.slots.items():
            run = noted.get(slot)
            if run is None:
                assert not contents or slot in self.torn, f"slot {slot} would read as zeros"
            else:
                assert run == Run(slot * SLOT, (slot + 1) * SLOT, contents, 0), f"slot {slot} would read as {run.ref}"


class Thread:
    """told: what is still to be told of what it has done. then: what it does once all of that was read."""

    def __init__(self) -> None:
        self.told: list[Callable[[], None]] = []
        self.then: Callable[[], None] | None = None
        self.places: set[int] = set()
        """Slots that nobody else knows of yet, or has any business with."""


class Kernel:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        slots = {slot: slot + 1 for slot in range(0, SLOTS, 2)}
        runs = [Run(slot * SLOT, (slot + 1) * SLOT, contents, 0) for slot, contents in slots.items()]
        self.memory = Memory(slots, Books([(slot * SLOT, (slot + 1) * SLOT) for slot in slots], runs, _in(slots)))
        self.children: list[Memory] = []
        self.threads = [Thread() for _ in range(3)]
        self.dropping: set[int] = set()
        self.torn: list[set[int]] = []
        self.stale: set[int] = set()
        """What was left mapped just now."""

    def act(self, thread: Thread) -> None:
        memory, books = self.memory, self.memory.books
        mapped = sorted(
            set(memory.slots) - self.dropping - self.stale - set().union(*(other.places for other in self.threads))
        )
        if not mapped:
            return
        slot = self.random.choice(mapped)
        deed = self.random.choice(("move", "move", "unmap", "drop", "fork", "leave"))
        free = [at for at in range(SLOTS) if at not in memory.slots]
        if deed == "unmap" and len(mapped) > 2:
            del memory.slots[slot]
            thread.told.append(lambda: books.unmapped(slot * SLOT, (slot + 1) * SLOT))
        elif deed in ("move", "leave") and free:
            to = self.random.choice(free)
            memory.slots[to] = memory.slots.pop(slot)
            thread.places = {slot, to}
            thread.told.append(lambda: books.remapped(slot * SLOT, to * SLOT, SLOT))
            if deed == "leave" and self.alone(thread):
                memory.slots[slot] = 0  # MREMAP_DONTUNMAP
                self.stale.add(slot)
            else:
                thread.told.append(lambda: books.unmapped(slot * SLOT, (slot + 1) * SLOT))
        elif deed == "drop":
            self.dropping.add(slot)

            def drop() -> None:
                self.dropping.discard(slot)
                memory.slots[slot] = 0

            def tell() -> None:
                books.removed(slot * SLOT, (slot + 1) * SLOT)
                for torn in self.torn:
                    torn.add(slot)

            thread.told.append(tell)
            thread.then = drop
        elif deed == "fork":
            slots, torn = dict(memory.slots), set(self.dropping)
            self.torn.append(torn)  # and what is dropped until it is told of: nobody can know which came first

            def born() -> None:
                self.torn = [each for each in self.torn if each is not torn]
                self.children.append(Memory(slots, books.forked(_in(slots)), torn))

            thread.told.append(born)

    def alone(self, thread: Thread) -> bool:
        """Known to be told in another order only if nothing else is under way: see books.py."""
        return not any(other.told or other.then for other in self.threads if other is not thread)

    def step(self) -> None:
        thread = self.random.choice(self.threads)
        if thread.told:
            thread.told.pop(0)()
        elif thread.then is not None:
            thread.then()
            thread.then = None
        elif self.random.random() < 0.8:
            thread.places.clear()
            self.act(thread)
        if not any(thread.told or thread.then for thread in self.threads):
            for memory in (self.memory, *self.children):
                memory.books.settle()
                memory.check()
            self.children.clear()
            self.stale.clear()


@pytest.mark.parametrize("seed", range(60))
def test_the_books_are_right_whenever_all_was_told(seed: int) -> None:
    kernel = Kernel(seed)
    with contextlib.suppress(Unclear):
        for _ in range(60):
            kernel.step()


def test_it_is_rarely_unclear() -> None:
    """Even where three threads do nothing else, in a space that is almost full."""
    clear = 0
    for seed in range(20):
        kernel = Kernel(seed)
        with contextlib.suppress(Unclear):
            for _ in range(60):
                kernel.step()
                clear += 1
    assert clear > 20 * 60 * 3 // 4
