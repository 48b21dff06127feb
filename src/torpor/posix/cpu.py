"""The CPU state of a thread: general registers, FPU and vector state, TLS bases, signal mask, restartable sequences.

Read by PTRACE_GETREGS, PTRACE_GETREGSET (NT_X86_XSTATE: the XSAVE area as the CPU lays it out), PTRACE_GETSIGMASK and
PTRACE_GET_RSEQ_CONFIGURATION; set by the same requests. What a thread that was inside a system call goes on with is
decided here, too.
"""

from __future__ import annotations

import msgspec

from torpor.linux import ptrace
from torpor.linux.arch.x86_64 import NR
from torpor.linux.arch.x86_64_code import (
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    ERESTARTNOINTR,
    ERESTARTSYS,
)
from torpor.linux.ptrace import NT_X86_XSTATE, Regs
from torpor.tracee.call import Call, call
from torpor.tracee.process import Process
from torpor.tracee.task import Task

RESTARTS = (-ERESTARTSYS, -ERESTARTNOINTR, -ERESTARTNOHAND)


class CpuRecord(msgspec.Struct, frozen=True):
    """regs: struct user_regs_struct. xstate: the XSAVE area. mask: blocked signals. rseq: address (0: none), size and
    signature of the registered area. restarting: the call behind a restart_syscall the thread is in, -1 if unknown."""

    regs: bytes
    xstate: bytes
    mask: int
    rseq: tuple[int, int, int] = (0, 0, 0)
    restarting: int = -1


def capture(process: Process, task: Task) -> CpuRecord:
    """The record of a frozen thread, with the registers it was found with and what was learned of it since."""
    restarting = -1
    if task.in_call == NR.restart_syscall:
        try:
            restarting = restarted_call(process.read(task.regs.rip - 34, 34))
        except OSError:
            pass
    xstate = task.xstate or ptrace.get_regset(task.tid, NT_X86_XSTATE)
    return CpuRecord(bytes(task.regs), xstate, task.mask, task.rseq, restarting)


def restarted_call(code: bytes) -> int:
    """Which call restart_syscall stands for, told from the code that ends in the `syscall` instruction; -1 if unknown.

    The kernel puts the number of restart_syscall in the place of the call's own. Only four calls use a restart block,
    and the number is loaded by `mov eax, imm32` shortly before.
    """
    found = -1, -1
    for number in (7, NR.nanosleep, NR.futex, NR.clock_nanosleep):
        at = code.rfind(b"\xb8" + int(number).to_bytes(4, "little"))
        found = max(found, (at, int(number)))
    return found[1]


def registration(record: CpuRecord) -> list[Call]:
    """The call that registers the restartable-sequence area again (rseq(2), kernel/rseq.c)."""
    address, size, signature = record.rseq
    return [call(NR.rseq, address, size, 0, signature)] if address else []


def going_on(regs: Regs, handler_due: bool, restarting: int = -1) -> Regs:
    """The registers a recreated thread starts with. handler_due: a signal that has a handler is pending, unblocked.

    A call that the kernel restarts by itself (-512..-514) keeps its state: the kernel decides, after the pending
    signals were queued again. A call with a restart block (-516) has lost that block with the old task: if a handler
    runs it returns EINTR as it would have, else it is made again. Its sleep may become longer, never shorter;
    nanosleep with a `rem` argument goes on with what the kernel wrote there.
    """
    new = regs.copy()
    if new.orig_rax >> 63:
        return new
    result = new.rax - (1 << 64) if new.rax >> 63 else new.rax
    if result != -ERESTART_RESTARTBLOCK or handler_due:
        return new
    number = restarting if new.orig_rax == NR.restart_syscall else int(new.orig_rax)
    if number == NR.nanosleep and new.rsi:
        new.rdi = new.rsi
    elif number == NR.clock_nanosleep and new.r10 and not new.rsi & 1:
        new.rdx = new.r10
    elif number < 0:
        new.rax = (1 << 64) - 4  # EINTR: all that can be said
        new.orig_rax = (1 << 64) - 1
        return new
    new.rax = number
    new.orig_rax = (1 << 64) - 1
    new.rip -= 2
    return new
