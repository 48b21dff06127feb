"""torpor doctor"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from torpor.cli.options import add_json, add_store, store
from torpor.named_tuple import NamedTuple

HELP = """Show what this machine allows: one line for each facility, and for what is missing how to get it.
Exit status 0 if jobs can be saved and restarted here, 1 if something needed for that is missing."""
EXAMPLE = """  torpor doctor
  sudo torpor doctor
  TORPOR_WITHOUT=pagemap_scan torpor doctor --json"""


class Facility(NamedTuple):
    """Something the machine may have. mask: its name in TORPOR_WITHOUT, '' if it cannot be done without or is not
    torpor's to leave unused."""

    name: str
    purpose: str
    probe: Callable[[], tuple[bool, str]]
    needed: bool = False
    mask: str = ""


class Finding(NamedTuple):
    """What a probe found. detail: why it is missing and how to get it, or what is special about it."""

    facility: Facility
    ok: bool
    detail: str


def options(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    from torpor.cli.text import complain, say, say_json
    from torpor.linux import masks

    for word in masks.unknown():
        complain(f"TORPOR_WITHOUT: there is no facility {word}")
    findings = [examine(facility) for facility in facilities(store(options) or None)]
    lacking = [finding.facility.name for finding in findings if finding.facility.needed and not finding.ok]
    if options.json:
        say_json([
            {
                "name": finding.facility.name,
                "ok": finding.ok,
                "needed": finding.facility.needed,
                "purpose": finding.facility.purpose,
                "detail": finding.detail,
                "mask": finding.facility.mask,
            }
            for finding in findings
        ])  # fmt: skip
        return 1 if lacking else 0
    width = max(len(finding.facility.name) for finding in findings)
    for finding in findings:
        say(line(finding, width))
    say(verdict(findings))
    return 1 if lacking else 0


def line(finding: Finding, width: int) -> str:
    """`missing  name  what it is for; how to get it`"""
    facility, ok, detail = finding
    state = "ok" if ok else "MISSING" if facility.needed else "missing"
    return f"{state:<7}  {facility.name:<{width}}  {facility.purpose}" + (f"; {detail}" if detail else "")


def verdict(findings: list[Finding]) -> str:
    """All in one line."""
    missing = {finding.facility.name: finding.facility.needed for finding in findings if not finding.ok}
    lacking = [name for name, needed in missing.items() if needed]
    if lacking:
        return f"torpor cannot work here without: {', '.join(lacking)}"
    if "pid_namespace" in missing:
        return "torpor can work here; restarts are in place, without a PID namespace"
    return "torpor can work here"


def examine(facility: Facility) -> Finding:
    """Run a probe. One that fails is an answer, too."""
    try:
        return Finding(facility, *facility.probe())
    except OSError as error:
        return Finding(facility, False, str(error))


def facilities(location: str | None) -> list[Facility]:
    """Everything that is looked at. location: of the store, None for the default one."""
    from torpor.linux import (
        capability,
        clone,
        cpuid,
        devpts,
        epoll,
        eventfd,
        kcmp,
        kernel,
        membarrier,
        mqueue,
        multicall,
        namespaces,
        pagemap,
        pidfd,
        pipes,
        prctl,
        proc,
        ptrace,
        pty,
        seccomp_notify,
        signalfd,
        timerfd,
        uio,
        userfaultfd,
        xsave,
    )
    from torpor.posix.memory import vdso

    def capable(name: str, purpose: str) -> Facility:
        number = capability.NAMES.index(name)
        return Facility(f"cap_{name}", purpose, lambda: capability.probe(number))

    return [
        Facility("kernel", "Linux 5.14 or newer on x86-64", kernel.probe, needed=True),
        Facility("ptrace", "stop a job and ask on its behalf", ptrace.probe, needed=True),
        Facility("ptrace_rseq", "take restartable sequences along", ptrace.probe_rseq, needed=True),
        Facility("proc", "find processes, their timers and memory", proc.probe, needed=True),
        Facility("process_vm", "copy memory", uio.probe, needed=True),
        Facility("pidfd_getfd", "look at a job's open files", pidfd.probe, needed=True),
        Facility("kcmp", "tell which open files are shared", kcmp.probe, needed=True),
        Facility("epoll", "save epoll instances", epoll.probe),
        Facility("signalfd", "save signalfds", signalfd.probe),
        Facility("tee", "save what is in pipes", pipes.probe, needed=True),
        Facility("mm_map", "give arguments, heap and stack back their places", prctl.probe_mm_map, needed=True),
        Facility("xsave", "put the CPU state of threads back", xsave.probe, needed=True),
        Facility("cpuid", "know the CPU at a restart at once", cpuid.probe, mask="cpuid"),
        Facility("multicall", "ask many threads at once", multicall.probe, mask="multicall"),
        Facility("user_namespace", "restart without root", namespaces.probe_user, mask="user_namespace"),
        Facility("pid_namespace", "restart with the same pids", namespaces.probe_pid, mask="pid_namespace"),
        Facility("set_tid", "choose pids in a new namespace", namespaces.probe_set_tid),
        Facility("set_tid_in_place", "choose pids without a namespace", clone.probe, mask="set_tid"),
        Facility("proc_mount", "a /proc that shows the job's pids", namespaces.probe_proc, mask="proc_mount"),
        Facility("time_namespace", "clocks that do not jump", namespaces.probe_time, mask="time_namespace"),
        Facility("snapshot", "let a job go on while it is saved", clone.probe_copy, mask="snapshot"),
        Facility("pagemap_scan", "find used memory fast", pagemap.probe, mask="pagemap_scan"),
        Facility("userfaultfd", "track writes, fill memory late", userfaultfd.probe, mask="userfaultfd"),
        Facility(
            "userfaultfd_kernel", "fill memory after the restart", userfaultfd.probe_missing, mask="userfaultfd_kernel"
        ),
        Facility(
            "userfaultfd_wp", "know what changed since the last checkpoint", userfaultfd.probe_wp, mask="userfaultfd_wp"
        ),
        Facility("mqueue", "save POSIX message queues", mqueue.probe),
        Facility("pty", "save pairs of pseudo-terminals", pty.probe),
        Facility("devpts", "numbers of pseudo-terminals that are taken here", devpts.probe, mask="devpts"),
        Facility("seccomp_notify", "see calls that leave no trace", seccomp_notify.probe, mask="seccomp_notify"),
        Facility("timer_ids", "POSIX timers with high ids", prctl.probe, mask="timer_ids"),
        Facility("timerfd_ticks", "unread expiries of timerfds", timerfd.probe, mask="timerfd_ticks"),
        Facility("eventfd_semaphore", "eventfds that are semaphores", eventfd.probe, mask="eventfd_semaphore"),
        Facility("membarrier_query", "registrations for barriers", membarrier.probe, mask="membarrier_query"),
        Facility("same_vdso", "the kernel's code can be read, to be compared", vdso.probe, mask="same_vdso"),
        capable("sys_ptrace", "save what other users, and setuid programs, run"),
        capable("sys_admin", "namespaces without a user namespace"),
        capable("checkpoint_restore", "choose pids without a namespace"),
        capable("sys_resource", "give back raised limits"),
        Facility("store", "keep checkpoints", lambda: probe_store(location), needed=True),
        Facility("runtime", "find running jobs", probe_runtime, needed=True),
    ]


def probe_store(location: str | None) -> tuple[bool, str]:
    """Could the store be written to, and how much room is there? Nothing is made."""
    from torpor.cli.text import size
    from torpor.model.errors import TorporError
    from torpor.store import open_store

    try:
        store = open_store(location)
        local = store.backend.path("store")
        if local is None:
            count = len(store.list())
            store.close()
            return True, f"{store.location}, {count} checkpoints"
    except TorporError as error:
        return False, f"{error}; use --store or TORPOR_STORE"
    folder = store.location
    place = os.path.dirname(local)
    while not os.path.isdir(place):
        above = os.path.dirname(place)
        if above == place or os.path.lexists(place):
            return False, f"{place} is not a folder; use --store or TORPOR_STORE"
        place = above
    if not os.access(place, os.W_OK | os.X_OK):
        return False, f"{place} is not writable by us; use --store or TORPOR_STORE"
    room = os.statvfs(place)
    free = room.f_bavail * room.f_frsize
    if room.f_flag & os.ST_RDONLY:
        return False, f"{place} is on a file system that is mounted read-only; use --store or TORPOR_STORE"
    if not free:
        return False, f"no space left in {folder}; make some, or use --store or TORPOR_STORE"
    return True, f"{folder}, {size(free)} free"


def probe_runtime() -> tuple[bool, str]:
    """Is there a folder for the sockets of running jobs? It is made if need be."""
    from torpor.model.errors import TorporError
    from torpor.supervise import registry

    try:
        return True, registry.runtime()
    except TorporError as error:
        return False, str(error)
