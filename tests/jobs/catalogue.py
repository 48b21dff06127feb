"""The programs of tests/programs: how each is built and started, and what it needs."""

from __future__ import annotations

from typing import NamedTuple

import harness
import pytest


class Program(NamedTuple):
    """One self-checking program, in one of its modes."""

    source: str
    mode: str = ""
    wrong: int = 1
    """Number of ways in which it can be told to be wrong; each must make it fail."""
    rewind: bool = True
    """May a checkpoint of it be restarted after the program has gone on and ended? (harness.Bench.cycle)"""
    flags: tuple[str, ...] = ()
    skip: str = ""

    @property
    def label(self) -> str:
        stem = self.source.partition(".")[0]
        return f"{stem}:{self.mode}" if self.mode else stem

    def command(self, go: str, wrong: int = 0) -> list[str]:
        words = [harness.build(self.source, *self.flags), go, str(wrong)]
        return [*words, self.mode] if self.mode else words


CALLS = {
    "call_sleep.c": (
        "nanosleep nanosleep-rem monotonic-for monotonic-until boottime-for boottime-until realtime-for "
        "realtime-until tai-until"
    ),
    "call_ready.c": (
        "poll poll-long poll-timeout ppoll ppoll-long ppoll-timeout select select-long select-timeout pselect "
        "pselect-timeout epoll_wait epoll_wait-long epoll_wait-timeout epoll_pwait epoll_pwait-timeout epoll_pwait2 "
        "epoll_pwait2-timeout"
    ),
    "call_signal.c": "pause sigsuspend sigwaitinfo sigtimedwait sigtimedwait-timeout",
    "call_futex.c": (
        "futex futex-shared futex-relative futex-relative-timeout futex-absolute futex-absolute-timeout "
        "futex-realtime-timeout futex-requeue futex-inherit futex-waitv"
    ),
    "call_io.c": (
        "read readv read-end write write-half read-eventfd write-eventfd read-timerfd read-signalfd open-fifo splice"
    ),
    "call_wait.c": "wait4 waitpid-any waitid join",
    "call_later.c": (
        "semop semtimedop msgrcv msgsnd flock fcntl recv recv-timeo recvmsg-timeo recvmmsg send-timeo sendmsg "
        "sendmmsg accept accept-timeo connect connect-tcp read-inotify mq_receive mq_timedreceive mq_send mq_timedsend"
    ),
}
LATER = "io_getevents"

INTERRUPTED = [Program(source, mode) for source, modes in CALLS.items() for mode in modes.split()]
"""One interrupted system call each."""

GOING_ON = [*(Program("call_later.c", mode) for mode in LATER.split())]
"""Interrupted calls on services that a restart does not bring back: they must go on unharmed all the same."""

STATE = [
    Program("threads.c", wrong=3),
    Program("leader_exited.c"),
    Program("tree.c", wrong=2),
    Program("family.c", wrong=4),
    Program("mappings.c", wrong=2),
    *(Program("cpu.c", mode) for mode in ("general", "x87", "sse", "avx2", "avx512")),
    Program("memory.c", wrong=5),
    Program("huge_pages.c"),
    Program("rewrite.c", wrong=10),
    Program("rewrite.c", "plain", wrong=5),
    Program("unseen.c", wrong=3),
    Program("shared.c", wrong=3, rewind=False),
    Program("stack.c", wrong=2),
    Program("guard.c"),
    Program("signals.c", wrong=4),
    Program("timers.c", wrong=4),
    Program("clocks.c", wrong=2),
    Program("files.c", wrong=5),
    Program("pipes.c", wrong=5),
    Program("events.c", wrong=5),
    Program("sockets_unix.c", wrong=5),
    Program("credentials.c", wrong=3),
    Program("sockets_inet.c", wrong=5),
    Program("sockets_inet.c", "v6", wrong=5),
    Program("identity.c", wrong=4),
    Program("identity.c", "privileges"),
    Program("sysv.c", wrong=4),
    Program("mqueue.c", wrong=5),
    Program("mqueue_notify.c", wrong=5),
    Program("fifo.c"),
    Program("shm.c", wrong=3),
    Program("pidfd.c"),
    Program("inotify.c"),
    Program("inotify.c", "pending", rewind=False),
    Program("nameless.c", wrong=2),
    Program("owner.c", wrong=2),
]
"""One service each."""

ROOT_ONLY = [
    Program("identity.c", "undumpable"),
    Program("identity.c", "other-uid"),
    Program("sockets_users.c", rewind=False),
]
"""What an ordinary user cannot have, or cannot have saved."""

PING_PONG = [
    Program("pingpong.c", mode)
    for mode in [
        "futex",
        "semaphore",
        "condition",
        "eventfd",
        "sigsuspend",
        "sigwait",
        "signalfd",
        "epoll",
        "epoll-timeout",
        "epoll-eventfd",
        "poll",
        "poll-timeout",
        "ppoll",
        "select",
        "pipe",
    ]
]
"""Processes that wake each other all the time: checkpoints fall into every moment of a wake-up."""

SERVED = [Program("service.c", "tcp", 2), Program("service.c", "unix", 2)]
"""Servers and clients that never rest."""

BACKLOG = [
    Program("backlog_data.c", mode, wrong=3)
    for mode in ("abstract-full", "path-apart", "packet-apart", "tcp4-full", "tcp6-apart")
]
"""Connections that wait to be accepted and have data in them."""

TERMINALS = [
    Program("terminals.c", "pair", 2),
    Program("terminals.c", "canonical", 2),
    Program("terminals.c", "raw"),
    Program("terminals.c", "full"),
    Program("terminals.c", "stopped"),
    Program("terminals.c", "session", 2),
    Program("terminals.c", "ends"),
    Program("proc_files.c"),
]
"""Pairs of pseudo-terminals that the program holds itself, and open files of processes."""

SANDBOX = [Program("sandbox.c", "all")]
"""Filters for system calls: root only."""


def odd(program: Program) -> bool:
    """Is it every second one of STATE?"""
    return program in STATE and bool(STATE.index(program) % 2)


def parameters(programs: list[Program]) -> list[object]:
    """For pytest.mark.parametrize."""
    return [pytest.param(p, id=p.label, marks=[pytest.mark.skip(p.skip)] if p.skip else []) for p in programs]
