"""The numbers of a job's checkpoints: 1, 2, 3..., never given twice, also not after a checkpoint was removed.

`claims/<job>/<number>` is put, if absent, before the root of that number, and stays. A claim without a root
is a number that was skipped (a save that was killed) or whose checkpoint was removed. Only the highest claims
matter; a collection deletes older ones.
"""

from __future__ import annotations

from torpor.store.backend import Backend

KEEP = 64
"""Highest claims of a job that a collection keeps: a save that listed them and then slept would have to be
overtaken by so many others to reuse a number."""


def existing(backend: Backend, job: str) -> list[int]:
    """The numbers of the checkpoints a job has, in order."""
    return _numbers(backend, f"roots/{job}")


def claim(backend: Backend, job: str) -> int:
    """A number that nobody else has or had. Raises OSError."""
    number = latest(backend, job) + 1
    while not backend.put(f"claims/{job}/{number}", [b""], durable=False):
        number += 1
    return number


def latest(backend: Backend, job: str) -> int:
    """The highest number that somebody has or had; 0 for none. Raises OSError."""
    return max(existing(backend, job) + _numbers(backend, f"claims/{job}"), default=0)


def keep_claim(backend: Backend, job: str, number: int) -> None:
    """See to it that `number` stays claimed although its root is about to go, also after a loss of power."""
    backend.put(f"claims/{job}/{number}", [b""])


def thin(backend: Backend) -> None:
    """Delete claims that do not matter any more."""
    for job in backend.list("claims"):
        for number in _numbers(backend, f"claims/{job}")[:-KEEP]:
            backend.delete(f"claims/{job}/{number}")


def _numbers(backend: Backend, folder: str) -> list[int]:
    # isascii: isdigit alone is also true of other scripts' digits; a leading zero is not a number of ours
    return sorted(int(n) for n in backend.list(folder) if n.isascii() and n.isdigit() and n[0] != "0")
