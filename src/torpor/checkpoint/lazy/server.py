"""Bring a running job the memory that it does not have yet: pages that threads wait for, what is beside them, and in
between all the rest. When a process has everything, its userfaultfd is closed, which leaves no trace.

What cannot be fetched, or is not what it should be, is asked for again every few seconds, and the job waits.

Source: Documentation/admin-guide/mm/userfaultfd.rst, userfaultfd(2), fs/userfaultfd.c.
"""

from __future__ import annotations

import errno
import os
import select
import time

from torpor.linux import uio, userfaultfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from torpor.checkpoint.lazy.books import Books, Run
    from torpor.model.data import Buffer, Ref

PAGE = 4096
_AHEAD = 8
"""Requests under way that nobody waits for."""
_TRAIL = 16
"""Chunks that are fetched behind one that was waited for."""
_KEPT = 64
"""Chunks that are kept for whoever else wants them: at most 16 MiB."""
_AGAIN = 2.0
"""Seconds until the store is asked again for what it could not give."""
_SPINS = 30
"""How often it is looked whether all that was done was told: whoever has just been heard needs a moment."""
_TELL = 0.25
"""Seconds between two reports of how far it is."""


class Space:
    """One address space. pid: of a process that has it, 0 if that is not known. waited: pages for which a thread
    waits."""

    def __init__(self, fd: int, pid: int, books: Books, wiped: Sequence[tuple[int, int]] = ()) -> None:
        self.fd, self.pid, self.books, self.wiped = fd, pid, books, list(wiped)
        self.waited: set[int] = set()
        self.again: set[int] = set()
        """Addresses that were to be brought while there were events to be read."""
        self.sweep = 0
        self.stirred = True


def books(fd: int, areas: Iterable[tuple[int, int]], runs: Iterable[Run]) -> Books:
    """Those of an address space that is asked for through `fd`."""
    from torpor.checkpoint.lazy.books import Books

    return Books(areas, runs, lambda page: _asked_for(fd, page))


def _asked_for(fd: int, page: int) -> bool:
    """See `books.Books`."""
    try:
        return userfaultfd.asked_for(fd, page)
    except OSError as error:
        if error.errno == errno.ESRCH:
            return False
        if error.errno != errno.EAGAIN:
            raise
    from torpor.checkpoint.lazy.books import Stirred

    raise Stirred


class Server:
    """See above. fetcher: where chunks are asked for. tell: told (bytes brought, why nothing comes)."""

    def __init__(self, spaces: Iterable[Space], fetcher: Any, tell: Any) -> None:
        self._spaces = {space.fd: space for space in spaces}
        self._fetcher, self._tell = fetcher, tell
        self._poll = select.poll()
        for fd in self._spaces:
            self._poll.register(fd, select.POLLIN)
        self._poll.register(fetcher.ready, select.POLLIN)
        self._asked: dict[Ref, set[tuple[int, int]]] = {}
        """Chunks that are on their way: for which spaces (descriptors), at which addresses."""
        self._later: set[Ref] = set()
        """Those of them that nobody waits for."""
        self._unread: dict[int, Space] = {}
        """Children of which it is not known yet what they have, by the identity of their books."""
        self._failed: dict[Ref, float] = {}
        """Those of them that are to be asked for again, and when."""
        self._kept: dict[Ref, Buffer] = {}
        self._trail: list[tuple[Space, int, int]] = []
        """Where threads have waited: (space, address behind, chunks left)."""
        self._requests = 0
        self.brought = 0
        self.why = ""

    def serve(self, watched: Sequence[int]) -> int:
        """Until everything is there (-1), or one of the descriptors `watched` can be read from: that one."""
        for fd in watched:
            self._poll.register(fd, select.POLLIN)
        last = 0.0
        while self._spaces:
            self._ask_ahead()
            ready = self._poll.poll(self._patience())
            now = time.monotonic()
            for fd, _ in ready:
                if fd in watched:
                    return fd
                if fd in self._spaces:
                    self._spaces[fd].stirred = True
            for space in list(self._spaces.values()):
                if space.stirred or space.again:
                    self._attend(space)
            for ref, found in self._fetcher.take():
                self._arrived(ref, found)
            for ref in [ref for ref, due in self._failed.items() if due <= now]:
                del self._failed[ref]
                self._fetcher.ask([ref], ref not in self._later)
            for space in [space for space in self._spaces.values() if not space.waited and space.books.empty]:
                self._let_go(space)
            if now - last > _TELL:
                last = now
                self._tell(self.brought, self.why)
        self._tell(self.brought, "")
        return -1

    def _patience(self) -> int | None:
        """Milliseconds until there is something to do, whatever comes."""
        if any(space.again for space in self._spaces.values()):
            return 1
        if self._failed:
            return max(1, int((min(self._failed.values()) - time.monotonic()) * 1000))
        return 1000

    # What the kernel says.

    def _attend(self, space: Space) -> None:
        """Read all events of a space, then see to those who wait."""
        books, faults = space.books, []
        try:
            for event in userfaultfd.events(space.fd):
                if event.kind == userfaultfd.FAULT:
                    faults.append(event.first)
                elif event.kind == userfaultfd.FORK:
                    self._born(space, event.first)
                elif event.kind == userfaultfd.REMOVE:
                    books.removed(event.first, event.second)
                elif event.kind == userfaultfd.UNMAP:
                    books.unmapped(event.first, event.second)
                elif event.kind == userfaultfd.REMAP:
                    books.remapped(event.first, event.second, event.third)
            space.stirred = False
            if any(userfaultfd.settled(space.fd) for _ in range(_SPINS)):
                for child in books.settle():
                    self._read(child)
            if not books.settled:
                space.stirred = True  # what is under way will be told
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise
            self._drop(space)
            return
        again, space.again = space.again, set()
        space.waited.update(faults)
        for address in (*faults, *again):
            if not self._bring(space, address, urgent=True):
                return
        if space.stirred and not space.again:
            space.again.add(0)  # look soon

    def _born(self, parent: Space, fd: int) -> None:
        """A child has been forked."""
        wiped = [*parent.wiped, *(_wiped(parent.pid) if parent.pid else ())]
        child = parent.books.forked(lambda page: _asked_for(fd, page), wiped)
        self._unread[id(child)] = Space(fd, 0, child, wiped)

    def _read(self, books: Books) -> None:
        """It is known what a child has: from now on it is attended to."""
        space = self._unread.pop(id(books))
        self._spaces[space.fd] = space
        self._poll.register(space.fd, select.POLLIN)

    def _drop(self, space: Space) -> None:
        """The process has ended, or runs another program; or has everything."""
        del self._spaces[space.fd]
        self._poll.unregister(space.fd)
        for child in space.books.settle():
            self._read(child)
        os.close(space.fd)
        space.books.missing.take(0, 1 << 64)
        space.again.clear()
        space.waited.clear()

    def _let_go(self, space: Space) -> None:
        """The kernel takes its marks off, and nobody is asked any more."""
        self._attend(space)
        if space.fd in self._spaces and space.books.empty and not space.waited and not space.stirred:
            self._drop(space)

    # What is brought.

    def _bring(self, space: Space, address: int, urgent: bool = False) -> bool:
        """Have the page at an address brought, and what is around it; False if the process is gone."""
        if space.fd not in self._spaces or self._spaces[space.fd] is not space:
            return False
        if not space.books.settled:
            space.again.add(address)
            return True
        run = space.books.missing.find(address)
        try:
            if run is None:
                page = address & -PAGE
                if page in space.waited:
                    self._put_zeros(space, page)
            elif run.ref in self._kept:
                self._put(space, run, self._kept[run.ref])
                if urgent:
                    self._trail = [*self._trail[-3:], (space, run.end, _TRAIL)]
            else:
                self._ask(run.ref, space, run.start if not urgent else address, urgent)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise
            self._drop(space)
            return False
        return True

    def _put(self, space: Space, run: Run, data: Buffer) -> None:
        """Put in what is missing of a run. Raises OSError (ESRCH)."""
        view = memoryview(data)
        local, at = uio.address_of_readonly(view) + run.skip - run.start, run.start
        most = run.end - run.start
        while at < run.end:
            size = min(most, run.end - at)
            try:
                done = userfaultfd.copy(space.fd, at, size, local + at)
            except OSError as error:
                done = PAGE
                if error.errno == errno.ENOENT and size > PAGE:
                    most = PAGE  # more than one mapping: page by page
                    continue
                if error.errno in (errno.EAGAIN, errno.ENOMEM):
                    space.again.add(at)
                    return
                if error.errno not in (errno.EEXIST, errno.ENOENT):
                    raise
                userfaultfd.wake(space.fd, at, PAGE)
            else:
                self.brought += done
            space.books.missing.take(at, at + done)
            if space.waited:
                space.waited.difference_update(range(at, at + done, PAGE))
            at += done

    def _put_zeros(self, space: Space, page: int) -> None:
        """A page without contents. Raises OSError (ESRCH)."""
        try:
            userfaultfd.zero(space.fd, page, PAGE)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOMEM):
                space.again.add(page)
                return
            if error.errno not in (errno.EEXIST, errno.ENOENT):
                raise
            userfaultfd.wake(space.fd, page, PAGE)
        space.waited.discard(page)

    def _ask(self, ref: Ref, space: Space, address: int, urgent: bool) -> None:
        if ref in self._asked:
            self._asked[ref].add((space.fd, address))
            if urgent and ref in self._later:
                self._later.discard(ref)
                self._fetcher.ask([ref], True)  # once more, and not behind its neighbours
            return
        self._asked[ref] = {(space.fd, address)}
        self._fetcher.ask([ref], urgent)

    def _arrived(self, ref: Ref, found: Buffer | str) -> None:
        if isinstance(found, str):
            self.why = found
            self._failed[ref] = time.monotonic() + _AGAIN
            return
        if self.why and not self._failed:
            self.why = ""
        self._later.discard(ref)
        self._kept[ref] = found
        if len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        for fd, address in self._asked.pop(ref, ()):
            space = self._spaces.get(fd)
            if space is not None:
                urgent = address & -PAGE in space.waited
                self._bring(space, address, urgent)

    def _ask_ahead(self) -> None:
        """Ask for some of what nobody waits for yet."""
        from torpor.checkpoint.lazy.fetch import TOGETHER

        while len(self._later) < _AHEAD * TOGETHER:
            refs: list[Ref] = []
            for space, run in self._next():
                if run.ref in self._kept:
                    self._bring(space, run.start)
                    continue
                fresh = run.ref not in self._asked
                self._asked.setdefault(run.ref, set()).add((space.fd, run.start))
                if fresh:
                    refs.append(run.ref)
                    self._later.add(run.ref)
                if len(refs) == TOGETHER:
                    break
            if not refs:
                return
            self._fetcher.ask(refs, False)

    def _next(self) -> Iterator[tuple[Space, Run]]:
        """What is to be brought next: behind where threads have waited last, then the rest by address, processes that
        were restarted before their children."""
        while self._trail:
            space, address, left = self._trail.pop()
            run = space.books.missing.after(address) if space.fd in self._spaces else None
            if run is None or run.start < address:
                continue
            if left > 1:
                self._trail.append((space, run.end, left - 1))
            yield space, run
        for space in list(self._spaces.values()):
            while space.fd in self._spaces:
                run = space.books.missing.after(space.sweep)
                if run is None or run.start + (run.end - run.start) <= space.sweep or run.start < space.sweep:
                    break
                space.sweep = run.end
                yield space, run
            if space.fd in self._spaces and space.books.missing and not self._asked and not space.again:
                space.sweep = 0  # once more, for what came to lie behind


def _wiped(pid: int) -> list[tuple[int, int]]:
    """The ranges of a process that are empty in its children (MADV_WIPEONFORK)."""
    from torpor.linux import proc

    try:
        return [(area.start, area.end) for area, fields in proc.smaps(pid) if "wf" in fields.get("VmFlags", "").split()]
    except OSError:
        return []
