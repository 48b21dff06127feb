"""A system call as data: what is to be run in a stopped task, and what came of it.

Services describe the calls; `Task.run` carries many out in one go (a *batch*: one ptrace round trip for hundreds of
calls). Pointers are written as `In` (bytes the kernel reads) and `Out` (room the kernel fills); the task's scratch
memory provides for both.
"""

from __future__ import annotations

import errno
from collections.abc import Collection
from typing import NamedTuple, TypeAlias


class In(NamedTuple):
    """A pointer to `data`. `pointers` patches pointers inside it: (offset, what is pointed to)."""

    data: bytes
    pointers: tuple[tuple[int, In | Out], ...] = ()


class Out(NamedTuple):
    """A pointer to `size` bytes that the kernel fills; they come back in Answer.outs, in the order of the arguments."""

    size: int


class Object(NamedTuple):
    """At restart: the descriptor under which the job's open file description `number` is held while places are
    being filled (stage PLACE only)."""

    number: int


Argument: TypeAlias = int | In | Out | Object


class Call(NamedTuple):
    """One system call. `accept`: errno values that are not failures (`ANY` accepts every one)."""

    nr: int
    args: tuple[Argument, ...]
    accept: Collection[int] = ()


ANY: Collection[int] = frozenset(range(1, 4096))
"""For `accept`: no error of this call is a failure; the answer's `error` tells."""


class Answer(NamedTuple):
    """What a call returned: `value` (negative errno on error, as the kernel returns it) and the filled buffers."""

    value: int
    outs: tuple[bytes, ...] = ()

    @property
    def error(self) -> int:
        """The errno of a call that failed, 0 where it did not."""
        return -self.value if -4096 < self.value < 0 else 0


def call(nr: int, *args: Argument, accept: Collection[int] = ()) -> Call:
    """`call(NR.prctl, 38, 1)`: a Call, written the way a system call is written."""
    return Call(nr, args, accept)


class CallFailed(Exception):
    """A call in a task returned an error that was not expected."""

    def __init__(self, pid: int, what: Call, error: int) -> None:
        from torpor.linux.arch.x86_64 import NR

        try:
            name = NR(what.nr).name
        except ValueError:
            name = f"system call {what.nr}"
        self.pid, self.call, self.errno = pid, what, error
        super().__init__(f"{name} in process {pid}: {errno.errorcode.get(error, error)}")
