"""Core files, as the kernel writes them (fs/binfmt_elf.c, elf_core_dump) and debuggers read them: an ELF file with a
segment for each memory area, and notes that tell of the process and of its threads.

Pure: values in, bytes out. Layouts for x86-64 from include/linux/elfcore.h, include/uapi/linux/elf.h and core(5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from torpor.named_tuple import NamedTuple

PAGE = 4096

_ET_CORE, _EM_X86_64, _PT_LOAD, _PT_NOTE = 4, 62, 1, 4
_PN_XNUM = 0xFFFF
"""In e_phnum: the number of program headers does not fit there and stands in sh_info of the first section header."""

NT_PRSTATUS, NT_FPREGSET, NT_PRPSINFO, NT_AUXV = 1, 2, 3, 6
NT_X86_XSTATE, NT_SIGINFO, NT_FILE = 0x202, 0x53494749, 0x46494C45

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_FXSAVE = 512


class Segment(NamedTuple):
    """A run of the address space. flags: PROT_* bits (mmap(2)). held: its contents are in the file; else it is only
    known that it is there."""

    start: int
    end: int
    flags: int
    held: bool

    @property
    def size(self) -> int:
        return self.end - self.start


class Layout(NamedTuple):
    """head: everything before the first segment. offsets: where in the file each segment that is held begins. size: of
    the file."""

    head: bytes
    offsets: tuple[int, ...]
    size: int


def layout(segments: Sequence[Segment], notes: bytes) -> Layout:
    """The file around the contents of the segments."""
    count = len(segments) + 1
    many = count >= _PN_XNUM
    programs_at = _HEADER.size
    notes_at = programs_at + count * _PROGRAM.size
    sections_at = notes_at + len(notes)
    at = _up(sections_at + (_SECTION.size if many else 0))
    head = _HEADER.pack(
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), _ET_CORE, _EM_X86_64, 1, 0, programs_at, sections_at if many else 0, 0,
        _HEADER.size, _PROGRAM.size, _PN_XNUM if many else count, _SECTION.size if many else 0, int(many), 0,
    )  # fmt: skip
    programs = [_PROGRAM.pack(_PT_NOTE, 0, notes_at, 0, 0, len(notes), 0, 4)]
    offsets = []
    for segment in segments:
        held = segment.size if segment.held else 0
        programs.append(
            _PROGRAM.pack(_PT_LOAD, _flags(segment.flags), at, segment.start, 0, held, segment.size, PAGE)
        )  # fmt: skip
        offsets.append(at)
        at += held
    last = _SECTION.pack(0, 0, 0, 0, 0, 1, 0, count, 0, 0) if many else b""
    return Layout(head + b"".join(programs) + notes + last, tuple(offsets), at)


def _flags(prot: int) -> int:
    """PROT_READ, _WRITE, _EXEC (1, 2, 4) as PF_R, _W, _X (4, 2, 1)."""
    return (prot & 1) << 2 | prot & 2 | (prot & 4) >> 2


def _up(size: int) -> int:
    return (size + PAGE - 1) & ~(PAGE - 1)


# -- notes ------------------------------------------------------------------------------------------------------------


def note(kind: int, data: bytes, owner: bytes = b"CORE") -> bytes:
    """One note: Elf64_Nhdr, owner and contents, each padded to four bytes."""
    name = owner + b"\0"
    return struct.pack("<III", len(name), len(data), kind) + _four(name) + _four(data)


def _four(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


class Ids(NamedTuple):
    """Of a process, as it sees them."""

    pid: int
    ppid: int
    pgrp: int
    sid: int


def thread(tid: int, ids: Ids, regs: bytes, blocked: int) -> bytes:
    """NT_PRSTATUS, which begins what is said of a thread. regs: struct user_regs_struct. blocked: its signal mask."""
    return note(
        NT_PRSTATUS,
        struct.pack("<iiihxxQQiiii", 0, 0, 0, 0, 0, blocked, tid, ids.ppid, ids.pgrp, ids.sid)
        + bytes(4 * 16)
        + regs
        + struct.pack("<ixxxx", 1),
    )


def floating(xstate: bytes) -> bytes:
    """NT_FPREGSET and NT_X86_XSTATE of a thread, from its XSAVE area, which begins with the older one."""
    return note(NT_FPREGSET, xstate[:_FXSAVE].ljust(_FXSAVE, b"\0")) + note(NT_X86_XSTATE, xstate, b"LINUX")


def process(ids: Ids, uid: int, gid: int, letter: str, nice: int, name: bytes, arguments: bytes) -> bytes:
    """NT_PRPSINFO. letter: of its state. name: of its first thread. arguments: as /proc/PID/cmdline has them."""
    states = "RSDTZW"
    said = arguments.rstrip(b"\0").replace(b"\0", b" ")[:79]
    return note(
        NT_PRPSINFO,
        struct.pack(
            "<bcbbxxxxQIIiiii16s80s", max(0, states.find(letter)), letter.encode(), letter == "Z", nice, 0, uid, gid,
            *ids, name[:15], said,
        ),
    )  # fmt: skip


def signal(info: bytes = bytes(128)) -> bytes:
    """NT_SIGINFO: zeros if no signal ended the process."""
    return note(NT_SIGINFO, info)


def auxv(data: bytes) -> bytes:
    """NT_AUXV."""
    return note(NT_AUXV, data)


def files(mapped: Iterable[tuple[int, int, int, bytes]]) -> bytes:
    """NT_FILE: (start, end, offset in the file, path) of each mapping; offsets are written in pages."""
    rows, names = [], []
    for start, end, offset, path in mapped:
        rows.append(struct.pack("<QQQ", start, end, offset // PAGE))
        names.append(path + b"\0")
    return note(NT_FILE, struct.pack("<QQ", len(rows), PAGE) + b"".join(rows) + b"".join(names))
