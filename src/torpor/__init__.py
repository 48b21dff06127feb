"""torpor: save a running computation and start it again later, without a change to the program.

    job = torpor.run(["python3", "train.py"], name="train")
    saved = job.checkpoint()                # the job goes on
    job.stop()
    job = torpor.restart("train")           # where it was at the checkpoint
    job.wait()

The commands of `torpor` are thin over what stands here. Nothing is imported until it is used.
"""

from __future__ import annotations

import sys
from types import ModuleType

TYPE_CHECKING = False  # as type checkers know it; the module `typing` is not imported for it
if TYPE_CHECKING:
    from torpor.launch.api import (
        attach,
        check,
        checkpoint,
        drill,
        jobs,
        list_checkpoints,
        open_checkpoint,
        restart,
        run,
    )
    from torpor.launch.drill import Drilled
    from torpor.model.errors import (
        CheckpointFailed,
        Damaged,
        NotFound,
        Refusal,
        Refused,
        RestartFailed,
        Sealed,
        TorporError,
        Untrusted,
        UsageError,
    )
    from torpor.supervise.job import Job
    from torpor.supervise.report import Checked, Saved

__version__ = "0.1.0"

__all__ = [
    "Checked",
    "CheckpointFailed",
    "Damaged",
    "Drilled",
    "Job",
    "NotFound",
    "Refusal",
    "Refused",
    "RestartFailed",
    "Saved",
    "Sealed",
    "TorporError",
    "Untrusted",
    "UsageError",
    "__version__",
    "attach",
    "check",
    "checkpoint",
    "drill",
    "jobs",
    "list_checkpoints",
    "open_checkpoint",
    "restart",
    "run",
]

_WHERE = {
    "torpor.launch.api": (
        "attach", "check", "checkpoint", "drill", "jobs", "list_checkpoints", "open_checkpoint", "restart", "run",
    ),
    "torpor.launch.drill": ("Drilled",),
    "torpor.supervise.job": ("Job",),
    "torpor.supervise.report": ("Checked", "Saved"),
    "torpor.model.errors": (
        "CheckpointFailed", "Damaged", "NotFound", "Refusal", "Refused", "RestartFailed", "Sealed", "TorporError",
        "Untrusted", "UsageError",
    ),
}  # fmt: skip


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _WHERE.items():
        if name in names:
            value: object = getattr(import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'torpor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """`torpor.checkpoint` is a function for whoever uses this package, and one of our own packages as well: whenever
    that was imported, Python would put it in the place of the function (importlib, "Submodules")."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "checkpoint" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
