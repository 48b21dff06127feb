"""x86-64: the machine code that runs a batch of system calls in a stopped task, and heals it.

The code is assembled for one task at one moment, since the way home is part of it: every register of the program as
it was found. Its parts (see `assemble`):

    loop   while count (r13): load a table row (r12), make the call, store the result, leave out as many rows as the
           row says, next row
    one    make a single call whose registers are already set, keep the result in rbx
    tail   take our hand off the scratch memory, then send a signal to this very thread: a traced task stops here,
           and the tracer sees rip == `stop`
    heal   reached only if nobody traces this task any more: unmap the scratch memory, restore the signal mask, the
           flags and every register, and jump to where the program was

`assemble_plain` makes code for tasks that are being recreated, which need no way home. `assemble_gate` is for threads
that run no calls but must not go home before another one has, `assemble_split` for the moment in which a process makes
a copy of itself, `assemble_function` for calls of our own.

What binds it: no `rt_sigreturn` (it resets the restart block and the alternate stack), no use of the FPU, no write to
the stack (rsp is never touched, so that a signal handler that runs in between finds a stack).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

from torpor.linux.arch.x86_64 import NR
from torpor.linux.ptrace import REGISTERS, Regs
from torpor.named_tuple import NamedTuple

MAGIC = b"\xebtorpor\x01"
"""In front of our code in the padding it lives in, so that left-overs of a killed tracer are recognised."""

ROW = 64
"""Bytes of a table row: number, six arguments, result; eight bytes each. The upper half of the number says how many
rows behind it are left out: its lower 16 bits if the call fails, its upper 16 if it does not."""

GUESTS = 4
"""So many guests may use the scratch memory of another thread at the same time; each has a word of four bytes there."""

SYSCALL = b"\x0f\x05"

ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 512, 513, 514, 516
"""include/linux/errno.h; only ever seen by a tracer."""

_MOV = {
    "rax": b"\x48\xb8", "rcx": b"\x48\xb9", "rdx": b"\x48\xba", "rbx": b"\x48\xbb", "rbp": b"\x48\xbd",
    "rsi": b"\x48\xbe", "rdi": b"\x48\xbf", "r8": b"\x49\xb8", "r9": b"\x49\xb9", "r10": b"\x49\xba",
    "r11": b"\x49\xbb", "r12": b"\x49\xbc", "r13": b"\x49\xbd", "r14": b"\x49\xbe", "r15": b"\x49\xbf",
}  # fmt: skip

_LOOP = (
    b"\x4d\x85\xed"  # test r13, r13
    b"\x74\x53"  # jz tail
    b"\x41\x8b\x04\x24"  # mov eax, [r12]
    b"\x49\x8b\x7c\x24\x08"  # mov rdi, [r12+8]
    b"\x49\x8b\x74\x24\x10"  # mov rsi, [r12+16]
    b"\x49\x8b\x54\x24\x18"  # mov rdx, [r12+24]
    b"\x4d\x8b\x54\x24\x20"  # mov r10, [r12+32]
    b"\x4d\x8b\x44\x24\x28"  # mov r8, [r12+40]
    b"\x4d\x8b\x4c\x24\x30"  # mov r9, [r12+48]
    b"\x0f\x05"  # syscall
    b"\x49\x89\x44\x24\x38"  # mov [r12+56], rax
    b"\x41\x8b\x4c\x24\x04"  # mov ecx, [r12+4]
    b"\x48\x85\xc0"  # test rax, rax
    b"\x78\x03"  # js failed
    b"\xc1\xe9\x10"  # shr ecx, 16
    b"\x0f\xb7\xc9"  # failed: movzx ecx, cx
    b"\x49\x29\xcd"  # sub r13, rcx
    b"\x48\xc1\xe1\x06"  # shl rcx, 6
    b"\x49\x01\xcc"  # add r12, rcx
    b"\x49\x83\xc4\x40"  # add r12, 64
    b"\x49\xff\xcd"  # dec r13
    b"\xeb\xaf"  # jmp loop
)
_ONE = (
    b"\x0f\x05"  # syscall
    b"\x48\x89\xc3"  # mov rbx, rax
    b"\xeb\x00"  # jmp tail (next)
)


class Code(NamedTuple):
    """Assembled code and the addresses inside it that matter."""

    blob: bytes
    loop: int
    one: int
    stop: int
    tail: int


class Split(NamedTuple):
    """Code that makes a copy of a process, and its entries: where the task sets out, and where the copy makes the calls
    of a table (`rows`), which ends in a trap."""

    blob: bytes
    entry: int
    rows: int


def _imm32(op: bytes, value: int) -> bytes:
    return op + struct.pack("<I", value & 0xFFFFFFFF)


def assemble(
    base: int, tgid: int, tid: int, signal: int, home: Regs, mask: int, scratch_size: int, guest: bool
) -> Code:
    """The code for one task, to be put at address `base`.

    tgid, tid: as the task itself sees them.  signal: what it sends itself.  home, mask: the way home. scratch_size:
    what heal unmaps at the address in rbx (unless rbx is 0 or negative).  guest: the scratch memory belongs to
    another thread of the process; instead of unmapping it, count down the word at r14 (one of GUESTS, with which that
    memory begins) once it is no longer needed.
    """
    code = _before_home(tgid, signal, scratch_size, guest)
    blob = code.front + tid.to_bytes(4, "little") + code.back + _way_home(home, mask)
    return Code(blob, base + len(MAGIC), base + code.one, base + code.stop, base + code.tail)


class _Before(NamedTuple):
    """What is in front of the way home, without the four bytes that are the number of the thread: what comes before
    these, and what behind; and where, from the first byte on, the parts begin."""

    front: bytes
    back: bytes
    one: int
    tail: int
    stop: int


@lru_cache(64)
def _before_home(tgid: int, signal: int, scratch_size: int, guest: bool) -> _Before:
    """The same for all threads of a process but one. For the arguments see `assemble`."""
    front = MAGIC + _LOOP
    one = len(front)
    front += _ONE
    tail = len(front)
    assert _LOOP[4] == len(_LOOP) - 5 + len(_ONE), "the jump to the tail"
    if guest:
        front += b"\xf0\x41\xff\x0e"  # lock dec dword [r14]
    front += _imm32(b"\xb8", NR.tgkill) + _imm32(b"\xbf", tgid) + b"\xbe"
    back = _imm32(b"\xba", signal) + SYSCALL
    stop = len(front) + 4 + len(back)
    if not guest:
        # Wait for guests that are still using the scratch memory, then unmap it; after a million yields leave it.
        unmap = _imm32(b"\xb8", NR.munmap) + b"\x48\x89\xdf" + _imm32(b"\xbe", scratch_size) + SYSCALL
        wait = (
            b"\x41\xbc\x40\x42\x0f\x00"  # mov r12d, 1000000
            b"\x48\x8b\x03"  # again: mov rax, [rbx]
            b"\x48\x0b\x43\x08"  # or rax, [rbx+8]
            b"\x74\x0e"  # jz unmap
            b"\xb8\x18\x00\x00\x00"  # mov eax, 24 (sched_yield)
            b"\x0f\x05"  # syscall
            b"\x41\xff\xcc"  # dec r12d
            b"\x75\xeb"  # jnz again
            b"\xeb" + bytes([len(unmap)])  # jmp past
        )
        back += b"\x48\x85\xdb\x7e" + bytes([len(wait) + len(unmap)]) + wait + unmap  # test rbx, rbx; jle past
    return _Before(front, back, one, tail, stop)


def assemble_plain(base: int, tgid: int, signal: int) -> Code:
    """Code for address `base` that every task of a process may run, one after the other or all at once: `loop`, `one`
    and `tail` as above, and nothing behind `stop`.

    r15: the number of the task that runs it, as it sees it itself.  tgid, signal: as for `assemble`.
    """
    head = MAGIC + _LOOP + _ONE
    tail = _imm32(b"\xb8", NR.tgkill) + _imm32(b"\xbf", tgid) + b"\x44\x89\xfe"  # mov esi, r15d
    tail += _imm32(b"\xba", signal) + SYSCALL
    loop, end = base + len(MAGIC), base + len(head)
    return Code(head + tail + b"\x0f\x0b", loop, loop + len(_LOOP), end + len(tail), end)  # ud2


def assemble_gate(base: int, home: Regs, mask: int, address: int) -> tuple[bytes, int]:
    """(code, address of its entry) for a thread that is to go home only when the page at `address` is not mapped any
    more; after two million looks (some seconds) it does so all the same."""
    look = _imm32(b"\xb8", NR.msync) + b"\x48\xbf" + struct.pack("<Q", address)
    look += _imm32(b"\xbe", 4096) + _imm32(b"\xba", 1) + SYSCALL  # MS_ASYNC: does nothing, but looks
    again = b"\xb8\x18\x00\x00\x00" + SYSCALL + b"\x41\xff\xcc"  # sched_yield; dec r12d
    body = look + b"\x85\xc0\x75" + bytes([len(again) + 2]) + again  # test eax, eax; jnz out
    body += b"\x75" + struct.pack("b", -len(body) - 2)  # jnz look
    return MAGIC + _imm32(b"\x41\xbc", 2_000_000) + body + _way_home(home, mask), base + len(MAGIC)


def assemble_split(base: int, tail: int) -> Split:
    """Code for address `base` by which a task makes a copy of its process: of its memory, and of nothing else.

    The task sets out at `entry`, with the flags of two clones in r13 and r14, two words of memory at r12 and rbx as the
    rest of its code wants it; it goes on at `tail`. What it makes with the first clone (which has to be one with
    CLONE_VM and CLONE_VFORK) makes the copy with the second, writes its number, or the error, into the first word, and
    ends. The second word is what the first clone returned; what it made is waited for.

    The copy ends at once, unless a tracer sends it elsewhere: it never goes home.
    """
    clear = b"\x31\xf6\x31\xd2\x45\x31\xd2\x45\x31\xc0"  # xor esi, esi; edx; r10d; r8d
    rows = _LOOP + _ONE + b"\xcc"  # int3
    end = _imm32(b"\xb8", NR.exit_group) + b"\x31\xff" + SYSCALL  # xor edi, edi
    copy = _imm32(b"\xb8", NR.clone) + b"\x4c\x89\xf7" + clear + SYSCALL  # mov rdi, r14
    copy += b"\x48\x85\xc0\x74\x04"  # test rax, rax; jz past
    copy += b"\x49\x89\x04\x24"  # mov [r12], rax
    wait = _imm32(b"\xb8", NR.wait4) + b"\x49\x8b\x7c\x24\x08\x31\xf6"  # mov rdi, [r12+8]; xor esi, esi
    wait += _imm32(b"\xba", 0x80000000) + b"\x45\x31\xd2" + SYSCALL  # __WCLONE; xor r10d, r10d
    wait += b"\x48\x83\xf8\xfc\x74" + struct.pack("b", -len(wait) - 6)  # cmp rax, -EINTR; jz wait
    made = b"\x49\x89\x44\x24\x08"  # mov [r12+8], rax
    made += b"\x48\x85\xc0\x78" + bytes([len(wait)]) + wait  # test rax, rax; js past
    made += b"\xff\x25\x00\x00\x00\x00" + struct.pack("<Q", tail)
    first = _imm32(b"\xb8", NR.clone) + b"\x4c\x89\xef" + clear + SYSCALL  # mov rdi, r13
    first += b"\x48\x85\xc0\x75" + bytes([len(copy) + len(end)])  # test rax, rax; jnz made
    head = MAGIC + first + copy + end + made
    return Split(head + rows + end, base + len(MAGIC), base + len(head))


def assemble_function() -> bytes:
    """Code for any address that our own process may call as a C function: make the calls of a table. Its arguments are
    the address of the first row, and how many there are."""
    begin = b"\x41\x54\x41\x55\x49\x89\xfc\x49\x89\xf5"  # push r12; push r13; mov r12, rdi; mov r13, rsi
    gap = b"\xcc" * len(_ONE)  # int3: never reached, the loop ends behind it
    return begin + _LOOP + gap + b"\x41\x5d\x41\x5c\xc3"  # pop r13; pop r12; ret


def _way_home(home: Regs, mask: int) -> bytes:
    """Restore the signal mask, the flags and every register, and jump to where the program was."""
    words = _WORDS(home)
    rax, orig_rax, rip, flags = words[_RAX], words[_ORIG_RAX], words[_RIP], words[_EFLAGS]
    if orig_rax < 1 << 63:
        # Interrupted in a system call: nobody will restart it for us once we have run code of our own.
        result = rax - (1 << 64) if rax >> 63 else rax
        if result in (-ERESTARTSYS, -ERESTARTNOINTR, -ERESTARTNOHAND):
            rax, rip = orig_rax, rip - 2
        elif result == -ERESTART_RESTARTBLOCK:
            rax, rip = NR.restart_syscall, rip - 2
    # sahf sets SF ZF AF PF CF from ah; adding 0x7f to al sets OF if al is 1. No stack needed, unlike popfq.
    code = _UNMASK + _imm32(b"\xb8", ((flags & 0xD5 | 2) << 8) | (1 if flags & 0x800 else 0)) + b"\x04\x7f\x9e"
    code += b"\xfd" if flags & 0x400 else b"\xfc"
    values: list[Any] = [*_MOVES]
    values[1::2] = words[: len(_MOV)]
    values[2 * _RAX + 1] = rax
    return code + _LAST.pack(*values, _JUMP, rip & (1 << 64) - 1, mask)


_WORDS = struct.Struct(f"<{len(REGISTERS)}Q").unpack_from
_RAX, _ORIG_RAX, _RIP, _EFLAGS = map(REGISTERS.index, ("rax", "orig_rax", "rip", "eflags"))
_MOVES = [part for name in REGISTERS[: len(_MOV)] for part in (_MOV[name], 0)]
"""Every register, in the order of the kernel's struct, and room for its value."""
_JUMP = b"\xff\x25\x00\x00\x00\x00"
_LAST = struct.Struct("<" + "2sQ" * len(_MOV) + "6sQQ")
"""What ends the way home: every register, the jump and where it goes, the mask."""


def _unmask() -> bytes:
    """Restore the signal mask, which ends the blob: rsi is rip and the distance to it."""
    after = b"\x31\xd2" + _imm32(b"\x41\xba", 8) + SYSCALL
    distance = len(after) + len(_imm32(b"\xb8", 0) + b"\x04\x7f\x9e\xfc") + _LAST.size - 8
    return _imm32(b"\xb8", NR.rt_sigprocmask) + _imm32(b"\xbf", 2) + _imm32(b"\x48\x8d\x35", distance) + after


_UNMASK = _unmask()


SIZE = 512
"""Room that `assemble` and `assemble_gate` may need, rounded up."""
