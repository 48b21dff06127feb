"""A process that carries out Calls on itself: stands in for a stopped task, so that what a service captures,
restores and captures again can be compared without ptrace.

Each thread of it takes lists of Calls over a pipe, makes them through libc.syscall and sends the Answers
back.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import struct
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from torpor.linux import proc, ptrace
from torpor.linux.libc import libc
from torpor.posix.service import Stage
from torpor.tracee.call import Answer, Call, CallFailed, In, Out

_long = ctypes.c_long


def carry_out(calls: Sequence[Call]) -> list[Answer]:
    """Make the calls in the calling thread."""
    answers = []
    for call in calls:
        keep: list[Any] = []
        outs: list[Any] = []

        def place(arg: Any, keep: list[Any] = keep, outs: list[Any] = outs) -> int:
            if isinstance(arg, Out):
                room = ctypes.create_string_buffer(arg.size)
                outs.append(room)
            elif isinstance(arg, In):
                data = bytearray(arg.data)
                for offset, target in arg.pointers:
                    struct.pack_into("<Q", data, offset, place(target))
                room = ctypes.create_string_buffer(bytes(data), len(data))
            else:
                return int(arg)
            keep.append(room)
            return ctypes.addressof(room)

        args = [_long(place(arg)) for arg in call.args]
        args += [_long(0)] * (6 - len(args))
        ctypes.set_errno(0)
        value = libc.syscall(_long(call.nr), *args)
        if value == -1 and ctypes.get_errno():
            value = -ctypes.get_errno()
        answers.append(Answer(value, tuple(room.raw for room in outs)))
    return answers


class FakeTask:
    """One thread of an Executor: what services expect of a Task."""

    def __init__(self, tid: int, tgid: int, ends: tuple[int, int]) -> None:
        self.tid = self.vtid = tid
        self.tgid = tgid
        self._to, self._from = ends
        self.waiting: Sequence[bytes] = ()
        self.owner = SimpleNamespace(pid=tgid)
        """Of its own: nothing is remembered from one thread to the next."""

    @property
    def status(self) -> dict[str, str]:
        return proc.status(self.tgid, self.tid)

    def do(self, what: Callable[[], Any] | Sequence[Call]) -> Any:
        """Run calls, or a picklable function, in the thread; the result."""
        _send(self._to, what)
        result = _receive(self._from)
        if isinstance(result, BaseException):
            raise result
        return result

    def run(self, calls: Sequence[Call], check: bool = True) -> list[Answer]:
        if not calls:
            return []
        answers: list[Answer] = self.do(list(calls))
        for call, answer in zip(calls, answers):
            if check and answer.error and answer.error not in call.accept:
                raise CallFailed(self.tgid, call, answer.error)
        return answers


def _send(fd: int, what: Any) -> None:
    raw = pickle.dumps(what)
    raw = struct.pack("<Q", len(raw)) + raw
    while raw:
        raw = raw[os.write(fd, raw) :]


def _exactly(fd: int, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = os.read(fd, size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return parts


def _receive(fd: int) -> Any:
    return pickle.loads(_exactly(fd, struct.unpack("<Q", _exactly(fd, 8))[0]))


def _serve(inlet: int, outlet: int) -> None:
    while True:
        try:
            what = _receive(inlet)
        except EOFError:
            return
        try:
            result = what() if callable(what) else carry_out(what)
        except BaseException as error:
            result = error
        _send(outlet, result)


class Executor:
    """A forked process with `threads` threads; a context manager that ends it. What services expect of a
    Process.

    prepare: run in the child at its start, for example to change its user.
    """

    def __init__(self, threads: int = 1, prepare: Callable[[], None] | None = None) -> None:
        pipes = [(os.pipe(), os.pipe()) for _ in range(threads)]
        ready = os.pipe()
        self.pid = self.vpid = os.fork()
        if not self.pid:
            try:
                for (_, to), (back, _) in pipes:
                    os.close(to)
                    os.close(back)
                # As a stub has it: nothing of the test runner's.
                for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                    signal.signal(number, signal.SIG_DFL)
                # As it is while a batch runs.
                signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
                if prepare is not None:
                    prepare()
                tids = [os.getpid()]
                for (inlet, _), (_, outlet) in pipes[1:]:
                    thread = threading.Thread(target=_serve, args=(inlet, outlet), daemon=True)
                    thread.start()
                    tids.append(thread.native_id or 0)
                _send(ready[1], tids)
                _serve(pipes[0][0][0], pipes[0][1][1])
            finally:
                os._exit(0)
        for (inlet, _), (_, outlet) in pipes:
            os.close(inlet)
            os.close(outlet)
        os.close(ready[1])
        tids = _receive(ready[0])
        os.close(ready[0])
        self.peeked = 0
        self.ends = [(to, back) for (_, to), (back, _) in pipes]
        self.tasks = [FakeTask(tid, self.pid, ends) for tid, ends in zip(tids, self.ends)]

    @property
    def leader(self) -> FakeTask:
        return self.tasks[0]

    @property
    def status(self) -> dict[str, str]:
        return proc.status(self.pid)

    @property
    def comm(self) -> str:
        return proc.comm(self.pid)

    def run(self, calls: Sequence[Call], check: bool = True) -> list[Answer]:
        return self.leader.run(calls, check)

    def peek(self) -> None:
        """What is known of a stopped process when its services make their records."""
        self.waiting = ptrace.pending(self.leader.tid, True)
        self.peeked = time.clock_gettime_ns(time.CLOCK_REALTIME)
        self.fdinfo = {
            number: proc.text(f"/proc/{self.pid}/fdinfo/{number}").splitlines() for number in proc.descriptors(self.pid)
        }

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        for pair in self.ends:
            for fd in pair:
                os.close(fd)


def capture(service: Any, owner: Any) -> Any:
    """What `service` records of a process or thread. Its threads are traced while the record is made, as in
    real life."""
    answers = owner.run(service.questions if hasattr(service, "questions") else service.ask(owner))
    tasks = owner.tasks if isinstance(owner, Executor) else [owner]
    for task in tasks:
        ptrace.request(ptrace.SEIZE, task.tid)
        ptrace.request(ptrace.INTERRUPT, task.tid)
        ptrace.wait(task.tid)
    try:
        for task in tasks:
            task.waiting = ptrace.pending(task.tid, False)
        if isinstance(owner, Executor):
            owner.peek()
        return service.capture(owner, answers)
    finally:
        for task in tasks:
            ptrace.request(ptrace.DETACH, task.tid)


def restore(service: Any, record: Any, owner: Any) -> None:
    """Everything the service does to bring a record back, in the order of the pipeline."""
    steps = service.restore(record, owner)
    for stage in Stage:
        owner.run(steps.get(stage, ()))
        if stage == Stage.PROCESS:
            service.outside(record, owner)
