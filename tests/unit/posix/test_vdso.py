"""The vDSO of this very kernel, read and redirected to itself."""

from __future__ import annotations

import os

import pytest

from torpor.linux import proc, uio
from torpor.posix.memory import vdso

AREA = next((area for area in proc.maps(os.getpid()) if area.path == vdso.CODE), None)
pytestmark = pytest.mark.skipif(AREA is None, reason="this kernel has no vDSO")


def image() -> bytes:
    assert AREA is not None
    return uio.read(os.getpid(), AREA.start, AREA.size)


def test_functions_are_found() -> None:
    found = vdso.functions(image())
    assert {"__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time", "__vdso_getcpu"} <= found.keys()
    assert all(0 < f.offset < len(image()) and f.size > 14 for name, f in found.items() if name in vdso.CALLS)


def test_redirection_touches_only_the_entries() -> None:
    old = image()
    new = vdso.redirected(old, old, 0x7F0000000000)
    where = vdso.functions(old)["__vdso_clock_gettime"].offset
    assert new[where : where + 6] == b"\xff\x25\0\0\0\0"
    assert int.from_bytes(new[where + 6 : where + 14], "little") == 0x7F0000000000 + where
    touched = {at for at in range(len(old)) if old[at] != new[at]}
    entries = [f.offset for name, f in vdso.functions(old).items() if name in vdso.CALLS]
    assert all(any(entry <= at < entry + 14 for entry in entries) for at in touched)


def test_what_is_missing_becomes_a_system_call() -> None:
    old = image()
    new = vdso.redirected(old, b"", 0)
    where = vdso.functions(old)["__vdso_clock_gettime"].offset
    assert new[where : where + 8] == b"\xb8\xe4\0\0\0\x0f\x05\xc3"


def test_rubbish() -> None:
    assert vdso.functions(b"") == vdso.functions(b"\x7fELF\x02" + bytes(100)) == vdso.functions(bytes(8192)) == {}
    with pytest.raises(ValueError, match="no functions"):
        vdso.redirected(bytes(8192), image(), 0)


def test_sameness() -> None:
    places = {"[vvar]": (0x1000, 0x4000), "[vdso]": (0x5000, 0x2000)}
    moved = {name: (start + 0x10000, size) for name, (start, size) in places.items()}
    apart = {**moved, "[vvar]": (0x9000, 0x4000)}
    assert vdso.same(b"a", b"a", places, moved)
    assert vdso.same(b"", b"a", places, moved)
    assert not vdso.same(b"a", b"b", places, moved)
    assert not vdso.same(b"a", b"a", places, apart)


def test_threads_at_the_entry() -> None:
    old = image()
    entry = vdso.functions(old)["__vdso_time"].offset
    assert vdso.cut_off(old, 0x1000, [0x1000 + entry + 3])
    assert not vdso.cut_off(old, 0x1000, [0x1000 + entry, 0x1000 + entry + 20, 0])
