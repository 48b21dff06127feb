"""Signals as a descriptor: who sent which, read in the event loop instead of in a handler.

The sender matters. Ctrl-C reaches the supervisor and the program alike, because both are in the terminal's
foreground group; passing it on would deliver it twice. The same signal sent to the supervisor alone has to be
passed on. The kernel says which it was (si_code), but only signalfd(2) and sigwaitinfo(2) hand that out.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterable

from torpor.linux import signalfd
from torpor.named_tuple import NamedTuple

SI_USER = 0
SI_KERNEL = 0x80
_SIZE = 128  # struct signalfd_siginfo
_HEAD = struct.Struct("=IiiII")  # signo, errno, code, pid, uid

STOPS = frozenset((signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU))
"""Stop signals that a terminal sends; blocked in the supervisor, which stops when the program has."""

_OWN = frozenset((
    signal.SIGKILL, signal.SIGSTOP,
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT,
    signal.SIGSYS, signal.SIGPIPE, signal.SIGXCPU, signal.SIGXFSZ,
))  # fmt: skip
"""What is about the supervisor itself, or cannot be taken."""

PASSED_ON = frozenset(signal.valid_signals()) - _OWN - STOPS - {signal.SIGCHLD, signal.SIGCONT}
"""What a supervisor that gets it passes on to the job, or does something about in its place."""


class Got(NamedTuple):
    """One signal. sender: its pid, 0 where the kernel (the terminal) sent it or the sender is not known."""

    number: int
    from_kernel: bool
    sender: int


class Signals:
    """Every signal that concerns the job, blocked and readable from `fd`.

    A signal that was ignored at our start (nohup, `&` in a script) stays ignored, here and in the program.
    `before` is the mask that was in force, which the program is to get.  wanted: signals that are taken even if they
    were ignored (the kernel keeps a blocked signal also then).
    """

    def __init__(self, wanted: Iterable[int] = ()) -> None:
        taken: set[int] = {
            number for number in signal.valid_signals() - _OWN if signal.getsignal(number) != signal.SIG_IGN
        }
        taken |= {signal.SIGCHLD, *STOPS, *wanted}
        self.taken = taken
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, taken)
        self.fd = signalfd.create(_mask(taken), os.O_CLOEXEC | os.O_NONBLOCK)

    def drain(self) -> list[Got]:
        """What has arrived since the last look."""
        out: list[Got] = []
        while True:
            try:
                data = os.read(self.fd, _SIZE * 16)
            except BlockingIOError:
                return out
            for at in range(0, len(data), _SIZE):
                number, _, code, pid, _ = _HEAD.unpack_from(data, at)
                out.append(Got(number, code == SI_KERNEL, pid if code <= SI_USER else 0))

    def hush(self, on: bool) -> None:
        """While it is on, SIGCHLD waits and wakes nobody, in whichever thread this is called.

        Every stop of a task that one of our threads traces sends it (ptrace(2)). Once it is pending, further ones cost
        nothing (legacy_queue in kernel/signal.c).
        """
        signalfd.change(self.fd, _mask(self.taken - {signal.SIGCHLD} if on else self.taken))

    def stop_self(self, number: int) -> bool:
        """Stop this process as that signal would; returns when it is continued.

        Returns False if it did not come to a stop: nobody could continue a process of an orphaned group, and
        the kernel then drops stop signals other than SIGSTOP.
        """
        os.kill(os.getpid(), number)
        if number != signal.SIGSTOP:
            # Still blocked when it is sent, so that it becomes one with the Ctrl-Z that the terminal has sent
            # us too.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
            signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        # Sending a stop signal removes a SIGCONT that was pending, so one that pends now has come since. It is taken:
        # read from the descriptor later, it would undo a stop of the program that has come after it.
        return signal.sigtimedwait((signal.SIGCONT,), 0) is not None

    def close(self) -> None:
        """Give the signals back to their dispositions."""
        os.close(self.fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.before)


def _mask(numbers: Iterable[int]) -> int:
    """As the kernel has it: bit n - 1 is signal n."""
    return sum(1 << (number - 1) for number in numbers)


def die_of(number: int) -> None:
    """End this process by that signal, leaving no core. Returns only if the signal does not kill."""
    import resource

    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    except (OSError, ValueError):
        pass
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)


def exit_with(status: int) -> int:
    """End as a program with that wait status did: die of its signal, or return the exit status to leave
    with."""
    if os.WIFSIGNALED(status):
        die_of(os.WTERMSIG(status))
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)
