"""`torpor run --join`: a program becomes part of a job that runs already.

On a host where the job runs, its supervisor starts the program (supervise/joined.py), and this process stands for it:
it has its exit status, and passes signals on. On another host it becomes a part of the job (part.py).
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torpor.launch import program
from torpor.model.errors import TorporError, UsageError
from torpor.supervise import client, protocol, registry
from torpor.supervise.joined import Program
from torpor.supervise.registry import Entry
from torpor.supervise.signals import PASSED_ON

if TYPE_CHECKING:
    from torpor.supervise.part import Part

LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_CORE, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE,
          resource.RLIMIT_MEMLOCK, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_STACK)  # fmt: skip
"""Those that a shell sets."""


PATIENCE = 60.0
"""Seconds for the job to come."""


def join(job: str, argv: Sequence[str], host: str = "", patience: float = PATIENCE) -> int:
    """Have a program become part of a job, and wait for its end; its wait status.

    job: the name of one that runs on this host, or (with a `/`) the path of its job file.  host: what the other hosts
    are to call this one, a name or address; '': by what it calls itself, at the address that leads to the job.  Raises
    TorporError.
    """
    if "/" not in job:
        if host:
            raise UsageError(f"run: --hosts goes with a job file: {job} runs on this host")
        return here(registry.find(job), argv)
    from torpor.launch import job_file, part

    secret, guest = job_file.read(job, patience)
    program.check(argv[0])
    until = time.monotonic() + patience
    while True:
        entry = registry.running(guest.job)
        try:
            if entry is None:
                return part.joined(secret, _part(guest, argv, host))
            if entry.identity != guest.identity:
                raise UsageError(f"another job named {guest.job} is running on this host")
            return here(entry, argv)
        except (part.Taken, client.NoAnswer):
            if time.monotonic() > until:
                raise
            time.sleep(0.1)  # another program of this host is just joining, or the last one leaving


def _part(guest: Part, argv: Sequence[str], host: str) -> Part:
    """What we are in the job."""
    import msgspec

    from torpor.launch.hosts import address_of

    if host:
        name, address = host, address_of(host)
    else:
        name, address = socket.gethostname(), _towards(guest)
    return msgspec.structs.replace(
        guest, part=name, address=address, hosts={**guest.hosts, name: address}, argv=tuple(map(os.fsencode, argv))
    )


def _towards(guest: Part) -> str:
    """Our address, as those see it who are where the job began: that of the interface that leads there (connecting a
    datagram socket sends nothing, udp(7))."""
    there = next(iter(guest.hosts.values()))
    with socket.socket(socket.AF_INET6 if ":" in there else socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.connect((there, 9))
            return str(trial.getsockname()[0])
        except OSError as error:
            raise TorporError(f"{there}, where the job began, cannot be reached: {error.strerror}") from None


def here(entry: Entry, argv: Sequence[str]) -> int:
    """Have a program started by the supervisor of a job on this host, and wait for its end; its wait status.

    Raises TorporError.
    """
    program.hold_standard()
    ours = Program(
        argv=list(argv), env={os.fsdecode(name): os.fsdecode(value) for name, value in program.environment().items()},
        cwd=os.getcwd(), umask=_umask(), mask=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        ignored=[number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN],
        limits=[(which, resource.getrlimit(which)[0]) for which in LIMITS],
    )  # fmt: skip
    passed = _Passed()
    request = {"do": "join", "program": ours._asdict()}
    try:
        return int(client.ask(entry, request, passed.on_event, fds=(0, 1, 2))["status"])
    except client.NoAnswer:
        raise
    except client.NoSupervisor as error:
        raise TorporError(f"{error}; the exit status of {argv[0]} is not known") from None
    finally:
        passed.close()


def _umask() -> int:
    mask = os.umask(0o77)
    os.umask(mask)
    return mask


class _Passed:
    """Signals that this process gets are passed on to the program; if that stops, so do we."""

    def __init__(self) -> None:
        self._fd = -1
        self._early: list[int] = []
        self._before: dict[int, Any] = {}
        for number in (*PASSED_ON, signal.SIGTSTP, signal.SIGCONT):
            if number < signal.SIGRTMIN and signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._got)

    def close(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._fd >= 0:
            os.close(self._fd)

    def on_event(self, event: protocol.Message) -> None:
        if event.get("event") == "joined":
            try:
                self._fd = os.pidfd_open(int(event["pid"]))
            except OSError:
                return  # it has ended already
            for number in self._early:
                self._got(number, None)
        elif event.get("event") == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)

    def _got(self, number: int, _frame: object) -> None:
        if self._fd < 0:
            self._early.append(number)
            return
        # Nobody could continue a program alone in its session, so the kernel lets it take no notice of SIGTSTP.
        sent = signal.SIGSTOP if number == signal.SIGTSTP else signal.Signals(number)
        try:
            signal.pidfd_send_signal(self._fd, sent)
        except OSError:
            pass  # it has just ended
