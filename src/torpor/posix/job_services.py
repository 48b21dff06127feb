"""The services of a whole job: what the kernel keeps for an IPC namespace and not for a process.

They are captured first. At the restart their objects are made after the tree has been forked and before memory is
mapped; a job that has any is restarted in an IPC namespace of its own. A restart imports only those that the
checkpoint has records of.

Adding one: a module with `SERVICE`, one line in `_TABLE`.
"""

from __future__ import annotations

from collections.abc import Container
from importlib import import_module

from torpor.posix.service import JobService

_TABLE = (
    # name (as in the manifest), module; in the order in which they are captured and made
    ("sysv_shm", "sysv_shm"),
    ("sysv_semaphores", "sysv_semaphores"),
    ("sysv_messages", "sysv_messages"),
    ("mqueue_notify", "mqueue_notify"),
)


def job_services(wanted: Container[str] | None = None) -> list[JobService]:
    """The services with these names, in order; all of them if `wanted` is None."""
    return [
        import_module(f"torpor.posix.{module}").SERVICE for name, module in _TABLE if wanted is None or name in wanted
    ]
