"""`torpor run --join`: a program becomes part of a job that runs already.

On a host where the job runs, its supervisor starts the program (supervise/joined.py), and this process stands for it:
it has its exit status, and passes signals on. On another host it becomes a part of the job (part.py).
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.launch import program
from torpor.model.errors import TorporError
from torpor.supervise import client, protocol
from torpor.supervise.joined import Program
from torpor.supervise.registry import Entry
from torpor.supervise.signals import PASSED_ON

LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_CORE, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE,
          resource.RLIMIT_MEMLOCK, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_STACK)  # fmt: skip
"""Those that a shell sets."""


def here(entry: Entry, argv: Sequence[str]) -> int:
    """Have a program started by the supervisor of a job on this host, and wait for its end; its wait status.

    Raises TorporError.
    """
    program.hold_standard()
    ours = Program(
        argv=list(argv), env={os.fsdecode(name): os.fsdecode(value) for name, value in program.environment().items()},
        cwd=os.getcwd(), umask=_umask(), mask=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        ignored=[number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN],
        limits={which: resource.getrlimit(which)[0] for which in LIMITS},
    )  # fmt: skip
    passed = _Passed()
    request = {"do": "join", "program": msgspec.to_builtins(ours, str_keys=True)}
    try:
        return int(client.ask(entry, request, passed.on_event, fds=(0, 1, 2))["status"])
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
            self._fd = os.pidfd_open(int(event["pid"]))
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
