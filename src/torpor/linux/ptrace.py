"""ptrace(2): requests, registers and stops.

All requests for a tracee must come from the OS thread that attached to it. Only PTRACE_SEIZE is used: a seized task
is not sent a SIGSTOP, and stops can be told from signals.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from ctypes import byref, c_uint64
from typing import TypeVar

from torpor.linux import capability, proc
from torpor.linux.libc import libc

T = TypeVar("T")

CONT = 7
PEEKUSER = 3
DETACH = 17
SYSCALL = 24
GETREGSET = 0x4204
SETREGSET = 0x4205
SETOPTIONS = 0x4200
GETEVENTMSG = 0x4201
GETSIGINFO = 0x4202
SETSIGINFO = 0x4203
SEIZE = 0x4206
INTERRUPT = 0x4207
LISTEN = 0x4208
PEEKSIGINFO = 0x4209
GETSIGMASK = 0x420A
SETSIGMASK = 0x420B
GETREGS = 12
SETREGS = 13
GET_RSEQ_CONFIGURATION = 0x420F
GET_SYSCALL_USER_DISPATCH = 0x4210

O_TRACESYSGOOD = 1
O_TRACEVFORK = 4
O_TRACECLONE = 8
O_TRACEEXEC = 16
O_EXITKILL = 1 << 20
O_SUSPEND_SECCOMP = 1 << 21

EVENT_VFORK = 2
EVENT_CLONE = 3
EVENT_EXEC = 4
EVENT_STOP = 128

NT_X86_XSTATE = 0x202

WALL = 0x40000000

_ptrace = libc.ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long


def request(req: int, tid: int, addr: int = 0, data: int = 0) -> int:
    """One ptrace request. Raises OSError (ESRCH: gone, or not stopped, or traced by another thread)."""
    result: int = _ptrace(req, tid, addr, data)
    if result == -1:
        raise _failed(req, tid)
    return result


def _failed(req: int, tid: int) -> OSError:
    error = ctypes.get_errno()
    return OSError(error, os.strerror(error), f"ptrace {req:#x} of {tid}")


REGISTERS = [
    "r15",
    "r14",
    "r13",
    "r12",
    "rbp",
    "rbx",
    "r11",
    "r10",
    "r9",
    "r8",
    "rax",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "orig_rax",
    "rip",
    "cs",
    "eflags",
    "rsp",
    "ss",
    "fs_base",
    "gs_base",
    "ds",
    "es",
    "fs",
    "gs",
]


RIP = 8 * REGISTERS.index("rip")


class Regs(ctypes.Structure):
    """struct user_regs_struct (arch/x86/include/asm/user_64.h)."""

    _fields_ = [(name, ctypes.c_uint64) for name in REGISTERS]

    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int
    ds: int
    es: int
    fs: int
    gs: int

    def copy(self) -> Regs:
        return Regs.from_buffer_copy(self)


class _IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


# A pause is made of these four, several times for each thread: so they do without `request`.


def get_regs(tid: int) -> Regs:
    regs = Regs()
    if _ptrace(GETREGS, tid, 0, byref(regs)) == -1:
        raise _failed(GETREGS, tid)
    return regs


def set_regs(tid: int, regs: Regs) -> None:
    if _ptrace(SETREGS, tid, 0, byref(regs)) == -1:
        raise _failed(SETREGS, tid)


def set_raw_regs(tid: int, regs: bytes) -> None:
    """The same from the bytes of a `Regs`."""
    if _ptrace(SETREGS, tid, 0, regs) == -1:
        raise _failed(SETREGS, tid)


def instruction(tid: int) -> int:
    """Where a stopped task stands: rip alone, for which the kernel need not gather the others."""
    found: int = _ptrace(PEEKUSER, tid, RIP, 0)
    if found == -1:
        raise _failed(PEEKUSER, tid)
    return found & (1 << 64) - 1


_LARGEST_SET = 16384
_room_for: dict[int, int] = {}
"""By register set: the room that it took last, and eight bytes more, by which one sees that nothing was cut off. (Room
has to be a multiple of eight bytes: kernel/ptrace.c, ptrace_regset.)"""


def get_regset(tid: int, kind: int) -> bytes:
    """A register set (NT_*) as the kernel lays it out."""
    for size in (_room_for.get(kind, _LARGEST_SET), _LARGEST_SET):
        room = ctypes.create_string_buffer(size)
        vector = _IoVec(ctypes.addressof(room), size)
        request(GETREGSET, tid, kind, ctypes.addressof(vector))
        if vector.length < size:
            break
    _room_for[kind] = min(vector.length + 8, _LARGEST_SET)
    return room.raw[: vector.length]


def usual_room(kind: int) -> int:
    """The room that a register set took last, and eight bytes more; 0 if none has been read yet."""
    return _room_for.get(kind, 0)


def set_regset(tid: int, kind: int, data: bytes) -> None:
    room = ctypes.create_string_buffer(data, len(data))
    vector = _IoVec(ctypes.addressof(room), len(data))
    request(SETREGSET, tid, kind, ctypes.addressof(vector))


def get_mask(tid: int) -> int:
    """The blocked signals of a stopped task: bit N-1 for signal N."""
    mask = c_uint64()
    if _ptrace(GETSIGMASK, tid, 8, byref(mask)) == -1:
        raise _failed(GETSIGMASK, tid)
    return mask.value


def set_mask(tid: int, mask: int) -> None:
    if _ptrace(SETSIGMASK, tid, 8, byref(c_uint64(mask))) == -1:
        raise _failed(SETSIGMASK, tid)


def get_siginfo(tid: int) -> bytes:
    """The siginfo of the signal-delivery-stop the task is in."""
    info = ctypes.create_string_buffer(128)
    request(GETSIGINFO, tid, 0, ctypes.addressof(info))
    return info.raw


def set_siginfo(tid: int, info: bytes) -> None:
    room = ctypes.create_string_buffer(info, 128)
    request(SETSIGINFO, tid, 0, ctypes.addressof(room))


def event_message(tid: int) -> int:
    """PTRACE_GETEVENTMSG: for EVENT_CLONE the new tid as the tracer sees it."""
    message = ctypes.c_ulong()
    request(GETEVENTMSG, tid, 0, ctypes.addressof(message))
    return message.value


_RSEQ = struct.Struct("<QII8x")
"""struct ptrace_rseq_configuration: pointer, size, signature, flags and padding."""


def rseq_configuration(tid: int) -> tuple[int, int, int]:
    """(address, size, signature) of the registered restartable-sequence area; address 0 if there is none.

    Since Linux 5.13. A kernel without CONFIG_RSEQ answers EIO: there nothing can be registered.
    """
    try:
        return _rseq(tid)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return 0, 0, 0


def _rseq(tid: int) -> tuple[int, int, int]:
    room = ctypes.create_string_buffer(_RSEQ.size)
    request(GET_RSEQ_CONFIGURATION, tid, _RSEQ.size, ctypes.addressof(room))
    return unpack_rseq(room.raw)


def unpack_rseq(raw: bytes) -> tuple[int, int, int]:
    """`rseq_configuration` from the kernel's structure."""
    pointer, size, signature = _RSEQ.unpack(raw)
    return pointer, size, signature


def pending(tid: int, shared: bool) -> list[bytes]:
    """Pending signals as siginfo (128 bytes each), in queue order: of the process (`shared`) or of this thread.

    Nothing is consumed (PTRACE_PEEKSIGINFO).
    """
    out: list[bytes] = []
    step = 1  # mostly there are none
    while True:
        room = ctypes.create_string_buffer(128 * step)
        args = ctypes.create_string_buffer(struct.pack("QIi", len(out), 1 if shared else 0, step), 16)
        count = request(PEEKSIGINFO, tid, ctypes.addressof(args), ctypes.addressof(room))
        raw = room.raw
        out += [raw[128 * i : 128 * (i + 1)] for i in range(count)]
        if count < step:
            return out
        step = 32


reaped: dict[int, int] = {}
"""Wait statuses of tracees that have ended: a tracer that is the parent, too, takes the status that its other half
waits for."""


def wait(tid: int) -> int:
    """Wait for the next stop, or the end, of one tracee; its wait status."""
    _, status = os.waitpid(tid, WALL)
    if not os.WIFSTOPPED(status):
        reaped[tid] = status
    return status


def poll(tid: int) -> int | None:
    """The wait status of a tracee that has stopped or ended, None if it runs."""
    found, status = os.waitpid(tid, WALL | os.WNOHANG)
    if found and not os.WIFSTOPPED(status):
        reaped[tid] = status
    return status if found else None


def has_continued(tid: int) -> bool:
    """Does the process of a stopped tracee go on after a stop (SIGCONT), without its parent having been told by wait?
    Nothing is consumed: there is one such state for parent and tracer (kernel/exit.c, wait_consider_task). Raises
    ProcessLookupError if it has ended."""
    try:
        seen = os.waitid(os.P_PID, tid, os.WCONTINUED | os.WNOHANG | os.WNOWAIT | WALL)
    except ChildProcessError:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
    return seen is not None and seen.si_code == os.CLD_CONTINUED


def of_child(look: Callable[[int], T]) -> T:
    """What `look` says of a child (by its tid) that is forked, seized and stopped for it, and killed afterwards.

    Raises OSError.
    """
    source, target = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(target)
            os.read(source, 1)  # end of file once the parent is gone
        finally:
            os._exit(0)
    try:
        request(SEIZE, child, 0, O_EXITKILL)
        request(INTERRUPT, child)
        wait(child)
        return look(child)
    finally:
        os.kill(child, 9)
        os.waitpid(child, WALL)
        os.close(source)
        os.close(target)


def probe() -> tuple[bool, str]:
    """Can a child be seized? The yama scope, where it keeps us from others."""
    scope = proc.sysctl("kernel/yama/ptrace_scope")
    try:
        of_child(get_regs)
    except OSError as error:
        if scope in ("2", "3"):
            way = "as root" if scope == "2" else "after a boot with another setting"
            return False, f"kernel.yama.ptrace_scope is {scope}; {way}, or with a lower one"
        return False, f"{error.strerror}; in a container: --cap-add SYS_PTRACE, or another seccomp profile"
    if scope not in ("", "0") and not capability.have(capability.SYS_PTRACE):
        return True, f"kernel.yama.ptrace_scope is {scope}: own descendants only (sysctl kernel.yama.ptrace_scope=0)"
    return True, ""


def probe_rseq() -> tuple[bool, str]:
    """Does the kernel tell a registered restartable-sequence area?"""
    try:
        of_child(_rseq)
    except OSError as error:
        if error.errno == errno.EIO:
            return True, "this kernel has no rseq at all (CONFIG_RSEQ)"
        return False, f"{error.strerror}; needs Linux 5.13"
    return True, ""
