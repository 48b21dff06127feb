"""The layout of a process' memory that the kernel remembers: where code, data, heap, stack, arguments and environment
begin and end, and the auxiliary vector.

Read from /proc/PID/stat and /proc/PID/auxv, the break from brk(2); set again by prctl(PR_SET_MM, PR_SET_MM_MAP),
which also renames /proc/PID/exe where privileges allow (kernel/sys.c, prctl_set_mm_map).
"""

from __future__ import annotations

import struct

import msgspec

from torpor.linux import proc
from torpor.linux.arch.x86_64 import NR
from torpor.tracee.call import Call, In, call

_PR_SET_MM, _PR_SET_MM_MAP = 35, 14


class LayoutRecord(msgspec.Struct, frozen=True):
    """Addresses in bytes. exe: what /proc/PID/exe pointed to."""

    start_code: int
    end_code: int
    start_data: int
    end_data: int
    start_brk: int
    brk: int
    start_stack: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    auxv: bytes
    exe: str


def questions() -> list[Call]:
    """What only the process itself can tell: its break."""
    return [call(NR.brk, 0)]


def capture(stat: proc.Stat, auxv: bytes, brk: int, exe: str) -> LayoutRecord:
    """stat: of a live thread of the stopped process. auxv: its /proc/PID/auxv. Pure."""
    return LayoutRecord(
        stat.start_code, stat.end_code, stat.start_data, stat.end_data, stat.start_brk, brk, stat.start_stack,
        stat.arg_start, stat.arg_end, stat.env_start, stat.env_end, auxv, exe,
    )  # fmt: skip


def restore(record: LayoutRecord, exe_fd: int) -> Call:
    """The call that sets it all. exe_fd: the program's descriptor in the task, -1 to leave /proc/PID/exe alone."""
    auxv = record.auxv[:368]  # AT_VECTOR_SIZE words is all the kernel keeps
    fixed = struct.pack(
        "<11Q", record.start_code, record.end_code, record.start_data, record.end_data, record.start_brk, record.brk,
        record.start_stack, record.arg_start, record.arg_end, record.env_start, record.env_end,
    )  # fmt: skip
    body = fixed + struct.pack("<QIi", 0, len(auxv), exe_fd)
    return call(NR.prctl, _PR_SET_MM, _PR_SET_MM_MAP, In(body, ((88, In(auxv)),)), len(body), 0)
