"""A system call as data: what is to be run in a stopped task, and what came of it.

Services describe the calls; `Task.run` carries many out in one go (a *batch*: one ptrace round trip for hundreds of
calls). Pointers are written as `In` (bytes the kernel reads) and `Out` (room the kernel fills); the task's scratch
memory provides for both.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Sequence
from typing import TypeAlias

from torpor.named_tuple import NamedTuple


class In(NamedTuple):
    """A pointer to `data`. `pointers` patches pointers inside it: (offset, what is pointed to)."""

    data: bytes
    pointers: tuple[tuple[int, Pointer], ...] = ()


class Out(NamedTuple):
    """A pointer to `size` bytes that the kernel fills; they come back in Answer.outs, in the order of the arguments."""

    size: int


class Common(NamedTuple):
    """A pointer into room that the calls of a batch have in common, `offset` bytes from its start: one call fills it,
    another takes what is there. The same name means the same room, which is `size` bytes, zeros at first. It comes back
    whole in Answer.outs, as it is at the end of the batch."""

    name: str
    size: int
    offset: int = 0


class Word(NamedTuple):
    """A pointer to the 64-bit argument `arg` (from 0) of the call named `call` in the same batch, or (RESULT) to what
    it has returned: for `copy`, which so gives to one call what another has returned."""

    call: str
    arg: int


RESULT = 6
"""Word.arg of what a call has returned."""

Pointer: TypeAlias = In | Out | Common | Word


class Object(NamedTuple):
    """At restart: the descriptor under which the job's open file description `number` is held while places are
    being filled (stage PLACE only)."""

    number: int


Argument: TypeAlias = int | Pointer | Object


class Call(NamedTuple):
    """One system call. `accept`: errno values that are not failures (`ANY` accepts every one).

    if_failed, if_done: the name of the call, further down, to go on with if it fails, or if it does not; '' for the
    next one. This, Common and Word tie calls together: they are made in one go, which is brought to its end also if we
    die meanwhile. So what would do harm half done is written as one.
    """

    nr: int
    args: tuple[Argument, ...]
    accept: Collection[int] = ()
    name: str = ""
    if_failed: str = ""
    if_done: str = ""

    @property
    def tied(self) -> bool:
        """Does it belong to other calls of its batch?"""
        return bool(self.if_failed or self.if_done) or any(_tied(arg) for arg in self.args)


def _tied(arg: Argument) -> bool:
    return isinstance(arg, (Common, Word)) or (isinstance(arg, In) and any(_tied(target) for _, target in arg.pointers))


ANY: Collection[int] = frozenset(range(1, 4096))
"""For `accept`: no error of this call is a failure; the answer's `error` tells."""


class Answer(NamedTuple):
    """What a call returned: `value` (negative errno on error, as the kernel returns it; LEFT_OUT if it was not made)
    and the filled buffers."""

    value: int
    outs: tuple[bytes, ...] = ()

    @property
    def error(self) -> int:
        """The errno of a call that failed, 0 where it did not."""
        return -self.value if -4096 < self.value < 0 else 0


LEFT_OUT = -errno.ECANCELED
"""Answer.value of a call that was left out."""


def call(
    nr: int, *args: Argument, accept: Collection[int] = (), name: str = "", if_failed: str = "", if_done: str = ""
) -> Call:
    """`call(NR.prctl, 38, 1)`: a Call, written the way a system call is written."""
    return Call(nr, args, accept, name, if_failed, if_done)


def copy(pid: int, *pairs: tuple[Pointer, Pointer, int]) -> Call:
    """Copy memory within the process that makes the call: (to, from, bytes). pid: the one it has itself.

    process_vm_readv(2); a process may always read its own memory.
    """
    from torpor.linux.arch.x86_64 import NR

    def vector(ends: list[Pointer]) -> In:
        data = b"".join(bytes(8) + size.to_bytes(8, "little") for _, _, size in pairs)
        return In(data, tuple((16 * i, end) for i, end in enumerate(ends)))

    to, source = vector([pair[0] for pair in pairs]), vector([pair[1] for pair in pairs])
    return call(NR.process_vm_readv, pid, to, len(pairs), source, len(pairs), 0)


def failed(pid: int, calls: Sequence[Call], answers: Sequence[Answer]) -> None:
    """Raise CallFailed for the first error that its call does not accept."""
    for what, answer in zip(calls, answers):
        if answer.error and answer.error not in what.accept:
            raise CallFailed(pid, what, answer.error)


class CallFailed(Exception):
    """A call in a task returned an error that was not expected."""

    def __init__(self, pid: int, what: Call, error: int) -> None:
        from torpor.linux.arch.x86_64 import name_of

        self.pid, self.call, self.errno = pid, what, error
        super().__init__(f"{name_of(what.nr)} in process {pid}: {errno.errorcode.get(error, error)}")
