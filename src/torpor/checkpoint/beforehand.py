"""How the memory of a running job is marked, which is looked up before it is stopped.

For that the kernel walks all page tables (some 20 ms for each GiB of 4K pages), which takes another processor, if there
is one, while this one looks for what cannot be saved.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from torpor.posix.memory import capture

Flags = Mapping[int, capture.Flags]
"""By host pid: how its memory is marked."""


def flags(pids: Iterable[int], known: Flags) -> Flags:
    """How the memory of a running job is marked. It may be otherwise when it is stopped. known: how it was at the last
    checkpoint (`Held.flags`), which saves a look at all page tables as long as it holds."""
    supposed = {pid: known.get(pid, {}) for pid in pids}
    return {pid: marks if capture.hold(pid, marks) else capture.flags_of(pid) for pid, marks in supposed.items()}


class Meanwhile:
    """`flags`, found by a thread. pids: the processes there are now."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._found: Flags = {}
        self._thread = threading.Thread(target=self._look, name="torpor-marks", daemon=True)
        self._thread.start()

    def found(self, pids: Iterable[int]) -> Flags:
        """Wait for it. pids: the processes there are by then; those that are new are looked at now."""
        self._thread.join()
        return {**self._found, **flags([pid for pid in pids if pid not in self._found], {})}

    def _look(self) -> None:
        self._found = flags(self._pids, {})
