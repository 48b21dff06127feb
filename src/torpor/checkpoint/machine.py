"""What a machine is like, as far as a restarted program can tell; and whether another one will do."""

from __future__ import annotations

import os
import time

from torpor.image.manifest import ClockRecord, MachineRecord
from torpor.linux import proc

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


def look(xsave: int) -> MachineRecord:
    """This machine. xsave: bytes of the extended state of a thread here."""
    name = os.uname()
    return MachineRecord(
        name.nodename, name.release, name.machine, proc.boot_id(), cpu_flags(), xsave, os.getuid(), os.getgid()
    )


def clocks() -> ClockRecord:
    """The clocks of our own time namespace, now."""
    return ClockRecord(
        time.time_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC), time.clock_gettime_ns(CLOCK_BOOTTIME)
    )


# Features a program chooses code by (through CPUID, at its start); what is not listed cannot make a program die.
USED = frozenset(
    [
        "fpu",
        "cx8",
        "cmov",
        "mmx",
        "fxsr",
        "sse",
        "sse2",
        "pni",
        "ssse3",
        "sse4_1",
        "sse4_2",
        "sse4a",
        "popcnt",
        "movbe",
        "aes",
        "pclmulqdq",
        "rdrand",
        "rdseed",
        "f16c",
        "fma",
        "avx",
        "avx2",
        "bmi1",
        "bmi2",
        "abm",
        "adx",
        "sha_ni",
        "lzcnt",
        "xsave",
        "xsavec",
        "xsaves",
        "xsaveopt",
        "erms",
        "fsrm",
        "clflushopt",
        "clwb",
        "vaes",
        "vpclmulqdq",
        "gfni",
        "avx512f",
        "avx512dq",
        "avx512cd",
        "avx512bw",
        "avx512vl",
        "avx512ifma",
        "avx512vbmi",
        "avx512_vbmi2",
        "avx512_vnni",
        "avx512_bitalg",
        "avx512_vpopcntdq",
        "avx512_bf16",
        "avx512_fp16",
        "avx512_vp2intersect",
        "avx_vnni",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
        "rdtscp",
        "rdpid",
        "fsgsbase",
        "pku",
        "ospke",
        "rtm",
        "hle",
        "cx16",
        "lahf_lm",
        "syscall",
        "nx",
        "tsc",
        "movdiri",
        "movdir64b",
        "serialize",
        "waitpkg",
    ]
)


def missing(saved: MachineRecord, here: MachineRecord) -> list[str]:
    """What this machine lacks that the saved job may be using; each in a few words."""
    lacks = []
    if saved.arch != here.arch:
        return [f"the architecture {saved.arch} (this is {here.arch})"]
    gone = [flag for flag in saved.cpu if flag in USED and flag not in here.cpu]
    if gone:
        lacks.append(f"the CPU features {' '.join(gone)}")
    if saved.xsave > here.xsave > 0:
        lacks.append(f"an extended CPU state of {saved.xsave} bytes (this CPU has {here.xsave})")
    return lacks
