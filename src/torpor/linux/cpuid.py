"""CPUID and XGETBV: what the processor tells a program about itself.

Both are unprivileged instructions and not system calls; nothing in /proc tells all that they do. Some forty bytes of
machine code make them, in a page that is unmapped again (linux/executable.py). A security module may forbid it, and the
instruction can be turned off for a process (arch_prctl(2), ARCH_SET_CPUID), where it would kill: then `ask` raises
OSError. Takes about 0.1 ms.

Source: Intel SDM volume 2, CPUID, XGETBV; volume 1, 13.2.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

from torpor.linux import executable, masks, prctl
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.named_tuple import NamedTuple

_CPUID = bytes.fromhex(
    "f30f1efa"  # endbr64
    "53"  # push rbx
    "4989d0"  # mov r8, rdx
    "89f8"  # mov eax, edi
    "89f1"  # mov ecx, esi
    "0fa2"  # cpuid
    "418900"  # mov [r8], eax
    "41895804"  # mov [r8+4], ebx
    "41894808"  # mov [r8+8], ecx
    "4189500c"  # mov [r8+12], edx
    "5b"  # pop rbx
    "c3"  # ret
)
_XGETBV = bytes.fromhex(
    "f30f1efa"  # endbr64
    "31c9"  # xor ecx, ecx
    "0f01d0"  # xgetbv
    "48c1e220"  # shl rdx, 32
    "4809d0"  # or rax, rdx
    "c3"  # ret
)
_XGETBV_AT = 64
_PAGE = 4096
_OSXSAVE = 1 << 27


class Leaf(NamedTuple):
    """The four registers that CPUID answers in."""

    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


class Answers(NamedTuple):
    """leaves: by (leaf, subleaf) as asked for. xcr0: the state components that the kernel has turned on, 0 without
    XSAVE."""

    leaves: dict[tuple[int, int], Leaf]
    xcr0: int


def ask(questions: Sequence[tuple[int, int]]) -> Answers:
    """Ask for leaves; one that this processor does not have reads as zeros. Raises OSError where it is forbidden."""
    if masks.masked("cpuid"):
        raise OSError(errno.EPERM, masks.REASON)
    if os.uname().machine != "x86_64":
        raise OSError(errno.ENOSYS, "no CPUID on this architecture")
    if syscall(NR.arch_prctl, prctl.ARCH_GET_CPUID, 0) == 0:
        raise OSError(errno.EPERM, "CPUID is turned off for this process")
    page = executable.place(_CPUID.ljust(_XGETBV_AT, b"\xcc") + _XGETBV)
    try:
        return _ask(page, questions)
    finally:
        syscall(NR.munmap, page, _PAGE)


def _ask(page: int, questions: Sequence[tuple[int, int]]) -> Answers:
    cpuid = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(page)
    room = ctypes.create_string_buffer(16)

    def leaf(number: int, sub: int) -> Leaf:
        cpuid(number, sub, ctypes.addressof(room))
        return Leaf(*struct.unpack("<4I", room.raw))

    highest = leaf(0, 0).eax
    leaves = {(n, sub): leaf(n, sub) if n <= highest else Leaf() for n, sub in questions}
    xcr0 = 0
    if leaf(1, 0).ecx & _OSXSAVE:
        xcr0 = int(ctypes.CFUNCTYPE(ctypes.c_uint64)(page + _XGETBV_AT)())
    return Answers(leaves, xcr0)


UNLISTED = {
    ("eax", 0): "sha512",
    ("eax", 1): "sm3",
    ("eax", 2): "sm4",
    ("eax", 3): "rao_int",
    ("eax", 7): "cmpccxadd",
    ("eax", 21): "amx_fp16",
    ("eax", 23): "avx_ifma",
    ("eax", 31): "movrs",
    ("edx", 4): "avx_vnni_int8",
    ("edx", 5): "avx_ne_convert",
    ("edx", 8): "amx_complex",
    ("edx", 10): "avx_vnni_int16",
    ("edx", 19): "avx10",
    ("edx", 21): "apx",
}
"""Instructions of leaf 7.1 that /proc/cpuinfo leaves out, on most kernels: register and bit, name."""


def in_leaf(leaf: Leaf) -> tuple[str, ...]:
    """The names of UNLISTED that leaf 7, subleaf 1 has."""
    values = leaf._asdict()
    return tuple(name for (register, bit), name in UNLISTED.items() if values[register] >> bit & 1)


def unlisted() -> tuple[str, ...] | None:
    """The names of UNLISTED that this processor has; None if it cannot be asked."""
    try:
        return in_leaf(ask([(7, 1)]).leaves[7, 1])
    except OSError:
        return None


def probe() -> tuple[bool, str]:
    """Can the processor be asked?"""
    try:
        ask([(0, 0)])
    except OSError as error:
        return False, f"{error.strerror}; a tracee is asked instead (some ms)"
    return True, ""
