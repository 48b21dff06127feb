"""The extended state of a thread (FPU, SSE, AVX, AVX-512, AMX): which components there are, and how they are laid out.

PTRACE_GETREGSET gives it as the XSAVE instruction writes it: each component at an offset of this processor's own, in
an area of a size that PTRACE_SETREGSET wants exactly. Offsets differ between makers (AVX-512 begins at 832 or at
1088), and so do sizes wherever they do: two areas with the same components and the same size have the same layout.

Source: arch/x86/include/asm/user.h (bytes 464 to 471 of the area: the components that the kernel has turned on),
arch/x86/kernel/fpu/regset.c; Intel SDM volume 1, 13.4.
"""

from __future__ import annotations

import os

from torpor.linux import cpuid, ptrace
from torpor.named_tuple import NamedTuple

NAMES = {
    0: "x87", 1: "SSE", 2: "AVX", 3: "MPX", 4: "MPX", 5: "AVX-512", 6: "AVX-512", 7: "AVX-512", 9: "PKRU",
    17: "AMX", 18: "AMX", 19: "APX",
}  # fmt: skip
"""Components by their bit in XCR0."""

_MASK_AT = 464
_LEAF = 0xD


class Layout(NamedTuple):
    """size: bytes of the area. states: its components, as the bits of XCR0. Zeros where nothing is known."""

    size: int
    states: int


def of_area(area: bytes) -> Layout:
    """The layout of an area that PTRACE_GETREGSET gave."""
    return Layout(len(area), int.from_bytes(area[_MASK_AT : _MASK_AT + 8], "little"))


def of_processor(answers: cpuid.Answers) -> Layout:
    """The layout of this machine, from leaf (13, 0)."""
    return Layout(answers.leaves[_LEAF, 0].ebx, answers.xcr0)


def of_tracee() -> Layout:
    """The same, read from a child that is forked and traced for it. Raises OSError. Takes 2 to 7 ms."""
    return of_area(ptrace.of_child(lambda tid: ptrace.get_regset(tid, ptrace.NT_X86_XSTATE)))


def look() -> Layout:
    """The layout on this machine; zeros if it cannot be found out.

    By CPUID (0.1 ms) or, where executable memory is forbidden, by a tracee. Not to be called while other threads run:
    it may fork.
    """
    try:
        found = of_processor(cpuid.ask([(_LEAF, 0)]))
        if found.size and found.states:
            return found
    except OSError:
        pass
    try:
        return of_tracee()
    except OSError:
        return Layout(0, 0)


def names(states: int) -> str:
    """Components as words: 'AVX, AVX-512'."""
    words = [NAMES.get(bit, f"component {bit}") for bit in range(states.bit_length()) if states >> bit & 1]
    return ", ".join(dict.fromkeys(words))


def probe() -> tuple[bool, str]:
    """Is the layout known?"""
    if os.uname().machine != "x86_64":
        return False, "x86-64 only"
    found = look()
    if not found.size:
        return False, "neither CPUID nor a tracee tells it; the kernel needs XSAVE (no `noxsave`)"
    return True, f"{found.size} bytes: {names(found.states)}"
