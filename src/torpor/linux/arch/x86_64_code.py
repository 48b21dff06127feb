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

from torpor.linux import clone
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
_JUMP = b"\xff\x25\x00\x00\x00\x00"
"""To the address that stands behind it."""
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
    """Code that makes a copy of a process. entry: where the task sets out.  loop: where a copy makes the calls of a
    table; it goes on where rbp says.  trap: a place that it may say: the copy stops there."""

    blob: bytes
    entry: int
    loop: int
    trap: int


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


SPLIT = struct.Struct("<3q 2I 2Q")
"""The words that the code of `assemble_split` finds, and uses: room for three numbers (of the copy, of the
intermediate, of the adviser), how many rows the table has, with which flags an adviser is made (0 for none), all
signals, and those that are blocked while the task runs our calls."""
_MIDDLE, _ADVISER, _COUNT, _FLAGS, _BLOCKED, _MASK = 8, 16, 24, 28, 32, 40
PATIENCE = 10
"""Seconds for which whoever is not traced waits for it."""
_PR_SET_PTRACER = 0x59616D61
"""include/uapi/linux/prctl.h: -1 for anybody who has the rights; only the Yama security module asks for it."""


def assemble_split(base: int, tail: int, scratch_size: int) -> Split:
    """Code for address `base` by which a task makes a copy of its process: of its memory, and of nothing else.

    The task sets out at `entry`, with the address of the words (SPLIT, behind which the table is) in r12 and that of
    the scratch memory in rbx. It makes an intermediate (CLONE_VM, CLONE_VFORK, CLONE_FILES), which makes the calls of
    the table, then the copy and what else is wanted, and ends; it is waited for. What the calls have changed of the
    intermediate (its descriptors, its session, its name), the copy has from its birth; there is none if the last of
    them has failed. Then the task unmaps the scratch memory and goes on at `tail`, with the numbers of the copy, of the
    intermediate and of the adviser in r12, r13 and rbp: negative for an error, 0 for none.

    The copy waits to be traced, and ends if nobody has come in time (PATIENCE): it never goes home. So does an adviser,
    which has the memory of the process: it has to be traced while this code is still there.
    """
    clear = b"\x31\xf6\x31\xd2\x45\x31\xd2\x45\x31\xc0"  # xor esi, esi; edx; r10d; r8d
    test = b"\x48\x85\xc0"  # test rax, rax
    fork = _imm32(b"\xb8", NR.clone)
    end = _imm32(b"\xb8", NR.exit_group) + b"\x31\xff" + SYSCALL  # xor edi, edi

    def mask(word: int) -> bytes:
        code = _imm32(b"\xb8", NR.rt_sigprocmask) + _imm32(b"\xbf", 2)
        code += b"\x49\x8d\x76" + bytes([word])  # lea rsi, [r14+word]
        return code + b"\x31\xd2" + _imm32(b"\x41\xba", 8) + SYSCALL

    wait = _imm32(b"\xb8", NR.wait4) + b"\x49\x8b\x7e" + bytes([_MIDDLE]) + b"\x31\xf6"  # mov rdi, [r14+]; xor esi, esi
    wait += _imm32(b"\xba", 0x80000000) + b"\x45\x31\xd2" + SYSCALL  # __WCLONE; xor r10d, r10d
    wait += b"\x48\x83\xf8\xfc\x74" + struct.pack("b", -len(wait) - 6)  # cmp rax, -EINTR; jz wait
    made = b"\x49\x89\x46" + bytes([_MIDDLE]) + test + b"\x78" + bytes([len(wait)]) + wait  # mov [r14+], rax; js past
    made += mask(_MASK)
    made += b"\x4d\x8b\x26\x4d\x8b\x6e" + bytes([_MIDDLE])  # mov r12, [r14]; mov r13, [r14+]
    made += b"\x49\x8b\x6e" + bytes([_ADVISER])  # mov rbp, [r14+]
    made += _imm32(b"\xb8", NR.munmap) + b"\x48\x89\xdf" + _imm32(b"\xbe", scratch_size) + SYSCALL  # mov rdi, rbx
    made += b"\x31\xdb" + _JUMP + struct.pack("<Q", tail)  # xor ebx, ebx

    park = _imm32(b"\xb8", NR.prctl) + _imm32(b"\xbf", _PR_SET_PTRACER) + b"\x48\xc7\xc6\xff\xff\xff\xff" + SYSCALL
    park += _imm32(b"\xb8", NR.ppoll) + b"\x31\xff\x31\xf6\x45\x31\xd2" + _imm32(b"\x41\xb8", 8)
    rest, gap = SYSCALL + end, b"\xcc" * len(_ONE) + b"\xff\xe5"  # int3; jmp rbp
    park += _imm32(b"\x48\x8d\x15", len(rest) + len(made) + len(_LOOP) + len(gap)) + rest  # lea rdx, [rip+]: the end

    adviser = fork + clear + SYSCALL + test + b"\x74"  # jz park
    noted = b"\x49\x89\x46" + bytes([_ADVISER])  # mov [r14+], rax
    adviser += bytes([len(noted) + len(end)]) + noted
    wanted = b"\x41\x8b\x7e" + bytes([_FLAGS]) + b"\x85\xff\x74" + bytes([len(adviser)])  # mov edi, [r14+]; jz end
    copied = b"\x49\x89\x06\x78" + bytes([len(wanted) + len(adviser)])  # note: mov [r14], rax; js end
    copied += wanted + adviser + end
    birth = fork + b"\x31\xff" + clear + SYSCALL + test + b"\x74" + bytes([len(copied)])  # jz park
    copy = test + b"\x78" + bytes([len(birth)]) + birth + copied  # js note

    head = MAGIC + b"\x4d\x89\xe6" + mask(_BLOCKED)  # mov r14, r12
    head += fork + _imm32(b"\xbf", clone.VM | clone.VFORK | clone.FILES) + clear + SYSCALL + test
    middle = b"\x4d\x8d\x66" + bytes([SPLIT.size])  # lea r12, [r14+]
    middle += b"\x45\x8b\x6e" + bytes([_COUNT])  # mov r13d, [r14+]
    middle += _imm32(b"\x48\x8d\x2d", 5)  # lea rbp, [rip+5]: behind the jump
    middle += _imm32(b"\xe9", len(copy) + len(park) + len(made))  # jmp loop
    head += _imm32(b"\x0f\x85", len(middle) + len(copy) + len(park))  # jnz made
    front = head + middle + copy + park + made
    loop = base + len(front)
    blob = front + _LOOP + gap + struct.pack("<qq", PATIENCE, 0)
    return Split(blob, base + len(MAGIC), loop, loop + len(_LOOP))


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
