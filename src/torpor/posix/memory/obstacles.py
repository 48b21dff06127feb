"""Memory that cannot be saved, named before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import lru_cache

from torpor.linux import proc
from torpor.model.errors import Refusal

HARMLESS_DEVICES = ("/dev/zero", "/dev/zero (deleted)")


def survey(pid: int, areas: Iterable[proc.Area], program_of: Callable[[int], str]) -> Iterable[Refusal]:
    """Look at the areas of a process (host pid); it may be running. program_of: reads the link to its program."""
    try:
        program = program_of(pid)
    except OSError:
        return  # it is just ending
    if program.endswith(" (deleted)") and not os.path.exists(program):
        thing = f"runs a program file that has been removed or replaced, {program.removesuffix(' (deleted)')}"
        yield Refusal(pid, proc.comm(pid), thing, "start it again from the file that is there now")
    first: dict[str, int] = {}
    for area in areas:
        first.setdefault(area.path, area.start)
    for path, start in first.items():
        found = special(path)
        if found is not None:
            yield Refusal(pid, proc.comm(pid), f"{found[0]} at {start:#x}", found[1])


@lru_cache(256)
def special(path: str) -> tuple[str, str] | None:
    """What memory that is not ordinary a path in maps stands for, and the way out; None for ordinary memory. Pure."""
    if path.startswith("/dev/"):
        if path in HARMLESS_DEVICES or path.startswith(("/dev/shm/", "/dev/hugepages/")):
            return None
        return f"maps the device {path}", "a device's memory cannot be saved; run without that device"
    if path.startswith("/[aio]"):
        return "has an asynchronous I/O context", "io_destroy it before the checkpoint, or run without io_setup(2)"
    if path.startswith("/secretmem"):
        return "has secret memory", "unmap it before the checkpoint: nobody else can read it, by design"
    if path.startswith("anon_inode:[io_uring]"):
        return "maps an io_uring instance", "close it before the checkpoint, or have the program use epoll instead"
    if path.startswith("anon_inode:"):
        return f"maps {path}", "not supported; run without it"
    if path == "[uprobes]":
        return "is being probed (uprobes)", "end the probing first"
    if path == "[shstk]":
        return "has a shadow stack", "run it with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK"
    return None


def refuse_flags(pid: int, comm: str, area: proc.Area, fields: dict[str, str], flags: frozenset[str]) -> Refusal | None:
    """What only smaps shows of an area of a stopped process."""
    where = f"memory at {area.start:#x} ({area.path or 'anonymous'})"
    if flags & {"io", "pf", "mm"} and not area.path.startswith("[") and area.path not in HARMLESS_DEVICES:
        return Refusal(pid, comm, f"{where} belongs to a device", "a device's memory cannot be saved; run without it")
    if flags & {"um", "ui"}:
        return Refusal(
            pid,
            comm,
            f"{where} is handled by a userfaultfd of the program, or has not arrived yet",
            "not supported; after a restart with --lazy wait until all memory is there",
        )
    if "ht" in flags and area.path.startswith("/SYSV"):
        thing = f"{where} is System V memory of huge pages"
        return Refusal(pid, comm, thing, "not supported yet; run it without SHM_HUGETLB")
    if "ss" in flags:
        return Refusal(pid, comm, f"{where} is a shadow stack", "run it with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK")
    if fields.get("ProtectionKey", "0").strip() not in ("", "0"):
        return Refusal(pid, comm, f"{where} has a protection key", "not supported yet")
    return None
