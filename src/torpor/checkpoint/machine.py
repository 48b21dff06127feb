"""What a machine is like, as far as a restarted program can tell; and whether another one will do."""

from __future__ import annotations

import os
import time

from torpor.image.manifest import ClockRecord, MachineRecord
from torpor.linux import cpuid, proc, xsave
from torpor.linux.xsave import Layout

CLOCK_BOOTTIME = 7


def cpu_flags() -> tuple[str, ...]:
    """The feature flags of the first CPU in /proc/cpuinfo."""
    fd = os.open("/proc/cpuinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.read(fd, 8192)
    finally:
        os.close(fd)
    for line in os.fsdecode(head).splitlines():
        if line.startswith("flags"):
            return tuple(line.partition(":")[2].split())
    return ()


def look(size: int) -> MachineRecord:
    """This machine. size: bytes of the extended state of a thread here."""
    name = os.uname()
    flags = dict.fromkeys((*cpu_flags(), *(cpuid.unlisted() or ())))
    return MachineRecord(
        name.nodename, name.release, name.machine, proc.boot_id(), tuple(flags), size, os.getuid(), os.getgid()
    )


def clocks() -> ClockRecord:
    """The clocks of our own time namespace, now."""
    return ClockRecord(
        time.time_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC), time.clock_gettime_ns(CLOCK_BOOTTIME)
    )


_BASE = """
fpu cx8 cmov mmx fxsr sse sse2 syscall tsc cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2
avx avx2 bmi1 bmi2 f16c fma abm movbe xsave avx512f avx512bw avx512cd avx512dq avx512vl
"""  # x86-64 and its levels 2 to 4
_VECTORS = """
avx_vnni avx512ifma avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg avx512_vpopcntdq avx512_bf16
avx512_fp16 avx512_vp2intersect avx512er avx512pf avx512_4vnniw avx512_4fmaps
amx_tile amx_int8 amx_bf16 vaes vpclmulqdq gfni sse4a fma4 xop tbm 3dnow 3dnowext
"""
_OTHERS = """
aes pclmulqdq sha_ni rdrand rdseed adx rtm
xsavec xsaveopt xgetbv1 fsgsbase rdtscp rdpid rdpru ospke clflush clflushopt clwb clzero
movdiri movdir64b enqcmd serialize waitpkg mwaitx
"""  # ciphers, random numbers, transactions; state of a thread, clocks, protection keys, cache lines, waiting

USED = frozenset(_BASE.split() + _VECTORS.split() + _OTHERS.split()) | frozenset(cpuid.UNLISTED.values())
"""Features whose instructions a program may have chosen at its start (by CPUID), and without which they kill it
(SIGILL, SIGSEGV), as /proc/cpuinfo names them. Not among them: hints that older processors ignore (erms, fsrm, hle,
prefetch), and what only the kernel uses (nx, xsaves, pcid)."""


def missing(saved: MachineRecord, here: MachineRecord, blind: bool = False) -> list[str]:
    """What this machine lacks that the saved job may be using; each in a few words.

    blind: CPUID could not be asked here, so that what only it tells is not known of `here` and not looked at.
    """
    if saved.arch != here.arch:
        return [f"the architecture {saved.arch} (this is {here.arch})"]
    lacks = []
    used = USED.difference(cpuid.UNLISTED.values()) if blind else USED
    gone = [flag for flag in saved.cpu if flag in used and flag not in here.cpu]
    if gone:
        lacks.append(f"the CPU features {' '.join(gone)}")
    if saved.xsave and here.xsave and saved.xsave != here.xsave:
        # Not even a larger one will do: components stand elsewhere, and PTRACE_SETREGSET wants the exact size.
        lacks.append(f"the layout of the extended CPU state: {saved.xsave} bytes there, {here.xsave} here")
    return lacks


def missing_states(saved: Layout, here: Layout) -> list[str]:
    """The same for components of the extended state, such as AVX-512, that the kernel here has not turned on. With
    equal sizes (see `missing`) and no component missing the layout is the same (linux/xsave.py)."""
    gone = saved.states & ~here.states if here.states else 0
    return [f"CPU state of {xsave.names(gone)}"] if gone else []
