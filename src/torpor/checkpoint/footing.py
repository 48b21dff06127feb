"""What a tree of processes is planted on (checkpoint/plant.py): new namespaces (checkpoint/anew.py), or the place
where we are (checkpoint/inplace.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torpor.checkpoint.plan import Plan
    from torpor.checkpoint.plant import Ground, World
    from torpor.image.manifest import ProcessRecord
    from torpor.tracee.stub import StubProcess

T = TypeVar("T")


class Turns(Protocol):
    """In the forked processes: lets them fork one at a time, where numbers cannot be chosen."""

    def take(self, world: World, forker: int, things: Mapping[int, T], make: Callable[[T], bool]) -> None:
        """Call `make` once for each thing (by number), when it is its turn, until it says that it worked."""
        ...

    def approach(self, wanted: int) -> None:
        """Right before a fork: make the last steps to the number."""
        ...

    def fits(self, wanted: int, got: int) -> bool:
        """Will that number do? wanted: below 0 for any that nobody else has to get."""
        ...


class Footing(Protocol):
    """How a tree is planted, and on what: in new namespaces, or in place.

    inherits: shared anonymous memory reaches the processes by inheritance. executes: processes have to execute their
    program before they are taken over, so that /proc/PID/exe is right. chooses: numbers can be chosen. first: the
    number of the first process, 0 if that is the one it has here.
    """

    inherits: bool
    executes: bool
    chooses: bool
    first: int
    turns: Turns | None

    def fork(self, flags: int = 0) -> int:
        """Fork the first process of the tree; 0 in it. flags: further ones of clone(2). Raises OSError."""
        ...

    def arrive(self) -> None:
        """In the first process, at once. Raises OSError."""
        ...

    def settle(self, world: World, ground: Ground) -> None:
        """In the first process, before it forks the others."""
        ...

    def hear(self, subject: int, value: int, step: int) -> None:
        """In the restarting process: something was reported (READY and so on; 0: a process is there)."""
        ...

    def hosts(self, init: int, plan: Plan) -> dict[int, int]:
        """Our pids of the whole tree, by its own numbers. init: the pid of the first process."""
        ...

    def make_threads(self, wanted: Sequence[tuple[StubProcess, Sequence[int]]]) -> None:
        """Make the threads, by number, of taken-over processes. Raises RestartFailed."""
        ...

    def shed(self) -> None:
        """In a process that is none of the job's, with all below it forked: let go of what only these need."""
        ...

    def fill(self, pid: int, tell: Callable[[int, int], None]) -> None:
        """In a process of the job (by number) that will not fork any more: put memory in that it can put in itself.
        tell: reports a value and a step (210 and above), which the restarting process will `hear`. Raises OSError."""
        ...

    def there(self, pid: int) -> list[tuple[int, int]]:
        """The areas (start, end) that a process of the tree has with their contents already, ascending."""
        ...

    def rest(self, record: ProcessRecord) -> ProcessRecord:
        """A process with no more contents than are still to be put in."""
        ...

    def abandoned(self) -> None:
        """In the first process: the restarting process is gone before it was done."""
        ...

    def uproot(self, init: int) -> None:
        """The restart has failed, its pipes are closed: nothing may remain."""
        ...
