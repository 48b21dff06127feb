"""Pages that another process is made to have for itself."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import struct
from collections.abc import Iterator

import pytest

from torpor.linux import proc, uio
from torpor.linux.pagemap import PAGE, Pagemap, probe

SIZE = 1024 * PAGE
MIB = 1 << 20

pytestmark = pytest.mark.skipif(not probe()[0], reason="a kernel without PAGEMAP_SCAN")


class Forked:
    """A child that shares `memory` with us since its fork, and writes to it when it is told to."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.address = uio.address_of(memory)
        self._told, tell = os.pipe()
        hear, self._tell = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.read(hear, 1)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            whole = all(memory[at : at + 8] == struct.pack("<q", at) for at in range(0, SIZE, PAGE))
            for at in range(0, SIZE, PAGE):
                memory[at] = 255
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            os.write(tell, struct.pack("<2q", whole, faults))
            signal.pause()

    def writes(self) -> tuple[bool, int]:
        """Was everything there that was to be? And how many faults did it cost to write to all of it?"""
        os.write(self._tell, b"w")
        whole, faults = struct.unpack("<2q", os.read(self._told, 16))
        return bool(whole), faults

    def own(self) -> int:
        """Bytes of the memory that are the child's alone."""
        fields = next(fields for area, fields in proc.smaps(self.pid) if area.start <= self.address < area.end)
        return sum(int(fields[name].split()[0]) * 1024 for name in ("Private_Clean", "Private_Dirty"))


@pytest.fixture
def forked() -> Iterator[Forked]:
    memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for at in range(0, SIZE, PAGE):
        memory[at : at + 8] = struct.pack("<q", at)
    child = Forked(memory)
    yield child
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)


def test_without_help_each_page_is_a_fault(forked: Forked) -> None:
    assert forked.own() < MIB
    whole, faults = forked.writes()
    assert whole and faults >= SIZE // PAGE


def test_it_takes_pages_of_its_own(forked: Forked) -> None:
    uio.unshare(forked.pid, forked.address, SIZE)
    assert forked.own() >= SIZE
    assert forked.writes()[0]


def test_it_writes_without_a_fault_and_finds_what_was_there(forked: Forked) -> None:
    uio.unshare(forked.pid, forked.address, SIZE)
    uio.claim(forked.pid, forked.address, SIZE)
    whole, faults = forked.writes()
    assert whole and faults < SIZE // PAGE // 4


def test_nothing_there_and_nobody_there(forked: Forked) -> None:
    uio.claim(forked.pid, 1 << 20, SIZE)
    uio.unshare(forked.pid, 1 << 20, SIZE)
    os.kill(forked.pid, signal.SIGKILL)
    os.waitid(os.P_PID, forked.pid, os.WEXITED | os.WNOWAIT)
    for touch in (uio.claim, uio.unshare):
        with pytest.raises(ProcessLookupError):
            touch(forked.pid, forked.address, SIZE)


def test_which_pages_are_anonymous() -> None:
    with open("/proc/self/exe", "rb") as file:
        exe = mmap.mmap(file.fileno(), 4 * PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    shared = mmap.mmap(-1, 4 * PAGE)
    own = mmap.mmap(-1, 4 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages = Pagemap(os.getpid())
    try:
        for memory in (exe, shared, own):
            assert memory[3 * PAGE] is not None  # read: a page of the file, of the object, the zero page
            if memory is not exe:
                memory[PAGE] = 1
        exe[2 * PAGE] = 1  # a copy of the file's
        at = uio.address_of(exe), uio.address_of(shared), uio.address_of(own)
        found = [[start - a for start, _ in pages.anonymous(a, a + 4 * PAGE)] for a in at]
        assert found == [[2 * PAGE], [], [PAGE]]
    finally:
        pages.close()
