"""seccomp(2) user notification: one process sees system calls of others before they are made, and answers them.

A *filter*, a small program that the kernel runs at every system call, picks the calls; a *listener*, a descriptor,
receives them. The task waits until it is answered: with a result, or "go on" (`proceed`), after which it makes the call
as if nothing had been. Children inherit the filter, and nothing takes it away again. There can be one listener only
among the filters of a task.

When the last descriptor of a listener is closed, the calls that were picked fail with ENOSYS, now and for ever.

Source: seccomp(2), seccomp_unotify(2), include/uapi/linux/seccomp.h, kernel/seccomp.c.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable

from torpor.linux import prctl
from torpor.linux.arch.x86_64 import AUDIT_ARCH, NR
from torpor.linux.libc import syscall
from torpor.linux.masks import REASON, masked
from torpor.linux.trial import trial
from torpor.named_tuple import NamedTuple

SET_MODE_FILTER = 1
_FILTER_FLAG_TSYNC, _FILTER_FLAG_NEW_LISTENER, _FILTER_FLAG_TSYNC_ESRCH = 1, 1 << 3, 1 << 4
_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5
_RET_ALLOW = 0x7FFF0000
_RET_USER_NOTIF = 0x7FC00000

# Instructions (linux/bpf_common.h): load a word of the call; compare; mask; return.
_LOAD, _JUMP_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_INSTRUCTION = struct.Struct("<HBBI")
_AT_NR, _AT_ARCH, _AT_ARGS = 0, 4, 16
"""Where things are in struct seccomp_data."""
_MARK = 0x746F7270
"""A filter of ours begins by masking the accumulator, which is 0, with this: a mark that changes nothing. (Not by
loading it: the kernel would no longer find out beforehand which calls the filter lets pass, and run it for each.)"""

_RECV, _SEND, _ID_VALID, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082102, 0x40082104
_SYNC_WAKE_UP = 1
_NOTICE = struct.Struct("<QIIiIQ6Q")
_ANSWER = struct.Struct("<QqiI")
_ID = struct.Struct("<Q")
_CONTINUE = 1
ROOM = 4096
"""Bytes of the buffer for `receive`: above 1024, so that fcntl.ioctl has the kernel write into it at once."""
_BLANK = bytes(_NOTICE.size)


FOR_ALL_THREADS = (
    _FILTER_FLAG_TSYNC | _FILTER_FLAG_TSYNC_ESRCH | _FILTER_FLAG_NEW_LISTENER | _FILTER_FLAG_WAIT_KILLABLE_RECV
)
"""Flags for a filter with a listener on all threads of a process (Linux 5.7): ESRCH if some have filters that others
have not."""


class Notice(NamedTuple):
    """A call that waits. id: names it in answers; task: its thread, in our numbers."""

    id: int
    task: int
    nr: int
    args: tuple[int, ...]


def program(calls: Iterable[int], with_fifth: Iterable[int] = (), listeners: bool = False) -> bytes:
    """The filter that picks `calls`, and those of `with_fifth` whose fifth argument is not 0 (struct sock_filter each).
    listeners: and calls that would make a listener, which fail: there is one already.

    All else passes; so do calls made in another way than a 64-bit program makes them (32 bits, x32).
    """
    fifth = _AT_ARGS + 4 * 8
    # (label, code, where to go if equal, if not, operand); '' is the next line. Jumps go forward only.
    lines = [
        ("", _AND, "", "", _MARK),
        ("", _LOAD, "", "", _AT_ARCH),
        ("", _JUMP_EQUAL, "", "pass", AUDIT_ARCH),
        ("", _LOAD, "", "", _AT_NR),
        *(("", _JUMP_EQUAL, "pick", "", nr) for nr in calls),
        *(("", _JUMP_EQUAL, "fifth", "", nr) for nr in with_fifth),
        *((("", _JUMP_EQUAL, "flags", "", NR.seccomp),) if listeners else ()),
        ("pass", _RETURN, "", "", _RET_ALLOW),
        ("flags", _LOAD, "", "", _AT_ARGS + 8),
        ("", _AND, "", "", _FILTER_FLAG_NEW_LISTENER),
        ("", _JUMP_EQUAL, "null", "pick", 0),
        ("fifth", _LOAD, "", "", fifth),
        ("", _JUMP_EQUAL, "", "pick", 0),
        ("", _LOAD, "", "", fifth + 4),
        ("", _JUMP_EQUAL, "null", "pick", 0),
        ("pick", _RETURN, "", "", _RET_USER_NOTIF),
        ("null", _RETURN, "", "", _RET_ALLOW),
    ]
    at = {line[0]: number for number, line in enumerate(lines) if line[0]}
    return b"".join(
        _INSTRUCTION.pack(code, at[yes] - here - 1 if yes else 0, at[no] - here - 1 if no else 0, operand)
        for here, (_, code, yes, no, operand) in enumerate(lines)
    )


def ours(filter_program: bytes) -> bool:
    """Was this filter made by `program`?"""
    return filter_program.startswith(_INSTRUCTION.pack(_AND, 0, 0, _MARK))


def install(filter_program: bytes) -> int:
    """Put the filter on the calling thread, for good; the listener, close-on-exec.

    Without CAP_SYS_ADMIN that takes no_new_privs, which is then set. Where the kernel can (Linux 5.19), a task whose
    call we have received is interrupted by deadly signals only, until it is answered. Raises OSError: EBUSY if there is
    a listener already.
    """
    code = ctypes.create_string_buffer(filter_program, len(filter_program))
    filters = ctypes.create_string_buffer(struct.pack("<H6xQ", len(filter_program) // 8, ctypes.addressof(code)), 16)
    flags = _FILTER_FLAG_NEW_LISTENER | _FILTER_FLAG_WAIT_KILLABLE_RECV
    while True:
        try:
            return syscall(NR.seccomp, SET_MODE_FILTER, flags, ctypes.addressof(filters))
        except OSError as error:
            if error.errno == errno.EACCES and not syscall(NR.prctl, prctl.GET_NO_NEW_PRIVS, 0, 0, 0, 0):
                syscall(NR.prctl, prctl.SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            elif error.errno == errno.EINVAL and flags & _FILTER_FLAG_WAIT_KILLABLE_RECV:
                flags = _FILTER_FLAG_NEW_LISTENER
            else:
                raise


def wake_here(listener: int) -> None:
    """From now on whoever receives a call is woken on the processor of the task that makes it, and the task on that of
    the answer: one of them sleeps in any case, and to wake a processor that sleeps takes several times as long (Linux
    6.6, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP). Does nothing where the kernel cannot."""
    try:
        fcntl.ioctl(listener, _SET_FLAGS, _SYNC_WAKE_UP)
    except OSError:
        pass


def receive(listener: int, room: memoryview) -> Notice:
    """Take the next call that waits; blocks. room: `ROOM` bytes to receive it in, where it stays to be seen.

    Raises OSError: ENOENT where the task was interrupted or nobody has the filter any more, EINTR.
    """
    room[: _NOTICE.size] = _BLANK
    fcntl.ioctl(listener, _RECV, room)
    id, task, _, nr, _, _, *args = _NOTICE.unpack_from(room)
    return Notice(id, task, nr, tuple(args))


def received(room: memoryview) -> int:
    """The id of the call that was received last in this room, 0 for none: what somebody who died may owe an answer."""
    found: int = _ID.unpack_from(room)[0]
    return found


def proceed(listener: int, id: int) -> None:
    """Let the task make the call itself. Raises OSError: ENOENT if it waits no more."""
    fcntl.ioctl(listener, _SEND, _ANSWER.pack(id, 0, 0, _CONTINUE))


def answer(listener: int, id: int, value: int, error: int) -> None:
    """The call was made for the task: its result, or its errno. Raises OSError: ENOENT if it waits no more."""
    fcntl.ioctl(listener, _SEND, _ANSWER.pack(id, value, -error, 0))


def waits(listener: int, id: int) -> bool:
    """Does the task still wait for the answer? If so, its number still meant that task when we last used it."""
    try:
        fcntl.ioctl(listener, _ID_VALID, _ID.pack(id))
    except OSError:
        return False
    return True


def _listen() -> tuple[bool, str]:
    """In a child: install a filter that lets everything pass, with a listener."""
    try:
        os.close(install(program(())))
    except OSError as error:
        return False, why_not(error)
    return True, ""


def why_not(error: OSError) -> str:
    """Why a filter with a listener could not be installed, and what helps."""
    if error.errno == errno.EBUSY:
        return "somebody above us listens already (a container, a sandbox); run outside of it"
    return f"{error.strerror}; use a kernel with CONFIG_SECCOMP_FILTER"


def probe() -> tuple[bool, str]:
    """Can a filter with a listener be installed?"""
    return (False, REASON) if masked("seccomp_notify") else trial(_listen)
