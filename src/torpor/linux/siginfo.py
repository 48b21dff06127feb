"""siginfo_t: what the kernel queues with a signal, as 128 raw bytes.

Layout on 64-bit machines (include/uapi/asm-generic/siginfo.h): signo, errno, code, padding, four bytes each;
then the part that depends on the code. For SI_TIMER that is: timer id, overrun, value (8 bytes), and a
private field of the kernel's. Pids and uids in it are those of the receiver's namespaces, put there when the
signal was sent.
"""

from __future__ import annotations

import struct

SIZE = 128

SI_TIMER = -2
"""Sent by a POSIX timer."""

SIGKILL = 9
SIGSTOP = 19


def number(info: bytes) -> int:
    """Which signal."""
    return int.from_bytes(info[:4], "little")


def code(info: bytes) -> int:
    """Where it came from (SI_USER, SI_QUEUE, SI_TIMER, ...)."""
    return int.from_bytes(info[8:12], "little", signed=True)


def timer(info: bytes) -> int:
    """The id of the POSIX timer that sent it, or -1 if none did."""
    return int.from_bytes(info[16:20], "little", signed=True) if code(info) == SI_TIMER else -1


def bare(signal: int) -> bytes:
    """What a handler is given for a signal that is pending without a queue entry (kernel/signal.c,
    collect_signal)."""
    return struct.pack("<i", signal).ljust(SIZE, b"\0")


def of_timer(signal: int, timer_id: int, value: int) -> bytes:
    """What timer `timer_id` sends when it expires; value: sigev_value, as an unsigned 64-bit number."""
    return struct.pack("<iii4xiiQ", signal, 0, SI_TIMER, timer_id, 0, value).ljust(SIZE, b"\0")
