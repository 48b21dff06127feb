"""The kernel's own code in every process: [vdso] and the pages of data beside it.

The program has addresses of the old vDSO in its tables. If this kernel's is byte for byte the same, the stub's is
moved to where the old one was (mremap(2) keeps the kernel's idea of where it is). If it differs, the old code comes
back as ordinary memory at its old place, and each function it exports begins with a jump to the same function of this
kernel's vDSO, which is put somewhere else; or to a plain system call where this kernel's does not have it. The old
pages of data become pages of zeros: to code that was interrupted in the middle of an old function they say that the
clock cannot be read here, so that it makes the system call (VDSO_CLOCKMODE_NONE, lib/vdso/gettimeofday.c). A later
checkpoint sees the old code as the ordinary memory that it is.

Format: a small ELF shared object (elf(5)); functions are told by their names in .dynsym (vdso(7)).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping

from torpor.linux import masks, proc, uio
from torpor.named_tuple import NamedTuple

CODE = "[vdso]"
NAMES = ("[vvar]", "[vvar_vclock]", CODE)

CALLS = {
    "__vdso_gettimeofday": 96, "__vdso_time": 201, "__vdso_clock_gettime": 228, "__vdso_clock_getres": 229,
    "__vdso_getcpu": 309, "__vdso_getrandom": 318,
}  # fmt: skip
"""The functions that are redirected, and the system calls they stand for (x86-64)."""

_ALWAYS_CALLED = frozenset(("__vdso_getrandom",))
"""Functions that keep state in the program's memory, in a layout of the old kernel's."""

_JUMP = b"\xff\x25\x00\x00\x00\x00"  # jmp [rip+0]; the address follows
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 4, 5, 6, 0x6FFFFEF5
_STT_FUNC = 2


class Function(NamedTuple):
    """Where a function is in the image, bytes."""

    offset: int
    size: int


def functions(image: bytes) -> dict[str, Function]:
    """The functions that a vDSO exports, by name; empty if it cannot be read."""
    try:
        return _functions(image)
    except (struct.error, IndexError, ValueError):
        return {}


def _functions(image: bytes) -> dict[str, Function]:
    if image[:5] != b"\x7fELF\x02":
        return {}
    (table,) = struct.unpack_from("<Q", image, 32)
    entry_size, count = struct.unpack_from("<HH", image, 54)
    load, dynamic = 0, (0, 0)
    for at in range(table, table + entry_size * count, entry_size):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", image, at)
        if kind == _PT_LOAD:
            load = address - offset
        elif kind == _PT_DYNAMIC:
            dynamic = offset, size
    tags = dict(struct.iter_unpack("<QQ", image[dynamic[0] : sum(dynamic)]))
    strings, symbols = tags[_DT_STRTAB] - load, tags[_DT_SYMTAB] - load
    found = {}
    for number in range(_symbol_count(image, tags, load)):
        name, info, _, section, value, size = struct.unpack_from("<IBBHQQ", image, symbols + 24 * number)
        if info & 15 == _STT_FUNC and section:
            start = strings + name
            found[image[start : image.index(b"\0", start)].decode("ascii", "replace")] = Function(value - load, size)
    return found


def _symbol_count(image: bytes, tags: Mapping[int, int], load: int) -> int:
    """The length of .dynsym, which only its hash tables tell."""
    if _DT_HASH in tags:
        return int(struct.unpack_from("<I", image, tags[_DT_HASH] - load + 4)[0])
    at = tags[_DT_GNU_HASH] - load
    buckets, first, bloom = struct.unpack_from("<III", image, at)
    at += 16 + 8 * bloom
    last = max(struct.unpack_from(f"<{buckets}I", image, at), default=0)
    if last < first:
        return int(first)
    chain = at + 4 * buckets
    while not struct.unpack_from("<I", image, chain + 4 * (last - first))[0] & 1:
        last += 1
    return int(last) + 1


def redirected(old: bytes, new: bytes, at: int) -> bytes:
    """The old image with its functions redirected to those of the new one, which is at address `at`.

    Raises ValueError where the old one cannot be made sense of.
    """
    image = bytearray(old)
    here = functions(new)
    for name, function in _redirections(old):
        target = here.get(name)
        if target is None or name in _ALWAYS_CALLED:
            code = b"\xb8" + struct.pack("<I", CALLS[name]) + b"\x0f\x05\xc3"  # mov eax, number; syscall; ret
        else:
            code = _JUMP + struct.pack("<Q", at + target.offset)
        if len(code) > function.size:
            raise ValueError(f"{name} is too short")
        image[function.offset : function.offset + len(code)] = code
    return bytes(image)


def _redirections(old: bytes) -> list[tuple[str, Function]]:
    there = functions(old)
    if old and not there:
        raise ValueError("no functions are found in it")
    return [(name, function) for name, function in there.items() if name in CALLS]


def cut_off(old: bytes, at: int, addresses: Iterable[int]) -> bool:
    """Does a thread stand in those first instructions of an old function that are overwritten? at: of the old image.
    addresses: instruction pointers."""
    starts = [at + function.offset for _, function in _redirections(old)]
    return any(0 < address - start < len(_JUMP) + 8 for address in addresses for start in starts)


Places = Mapping[str, tuple[int, int]]
"""Areas of the kernel's by name: (start, size)."""


def same(old: bytes, new: bytes, old_places: Places, new_places: Places) -> bool:
    """May this kernel's vDSO be moved to where the old one was? old: empty if it was not saved.

    Masked by TORPOR_WITHOUT=same_vdso.
    """
    if masks.masked("same_vdso"):
        return False

    def shape(places: Places) -> dict[str, tuple[int, int]]:
        base = places.get(CODE, (0, 0))[0]
        return {name: (start - base, size) for name, (start, size) in places.items()}

    return shape(old_places) == shape(new_places) and (not old or old == new)


def probe() -> tuple[bool, str]:
    """Are the functions of this kernel's vDSO found?"""
    if masks.masked("same_vdso"):
        return False, masks.REASON
    here = next((area for area in proc.maps(os.getpid()) if area.path == CODE), None)
    if here is None:
        return True, "this kernel has none (vdso=0)"
    if functions(uio.force_read(os.getpid(), here.start, here.size)):
        return True, ""
    return False, "no functions are found in it; a job can only be restarted on the same kernel"
