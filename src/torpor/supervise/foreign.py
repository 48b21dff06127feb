"""Processes that were never started under torpor: the tree of one is saved or checked by its pid, by the command
itself."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torpor.linux import proc
from torpor.model.errors import NotFound, UsageError
from torpor.supervise import registry, saving
from torpor.supervise.job import Job
from torpor.supervise.report import Checked, Saved, as_checked, as_saved
from torpor.supervise.saving import Progress
from torpor.supervise.tree import Reach, members


def checkpoint_pid(
    pid: int,
    *,
    stop: bool = False,
    files: str = "auto",
    with_files: bool = False,
    compress: str | None = None,
    store: str | None = None,
    name: str | None = None,
    encrypt_to: Sequence[str] | None = None,
    on: Sequence[tuple[str, str]] | None = None,
    forget: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Saved:
    """Save the tree of process `pid`, whoever started it; as `Job.checkpoint`.

    It gets the name `name`, or else NAME-PID of the process, so that a second checkpoint of the same process
    continues the series and another process of that name does not. Raises as that, and NotFound, UsageError.
    """
    from torpor.supervise import choices

    job = _job(pid)
    if job is not None:
        return job.checkpoint(
            stop=stop, files=files, with_files=with_files, compress=compress, store=store, name=name,
            encrypt_to=encrypt_to, on=on, forget=forget, progress=progress,
        )  # fmt: skip
    where = _tree(pid)
    label = registry.check_name(name) if name else registry.fit_name(f"{proc.comm(pid)}-{pid}")
    files, readers, compress = choices.files(files), choices.readers(encrypt_to), choices.compression(compress)
    return as_saved(
        saving.save(
            label,
            where,
            choices.location(store),
            stop=stop,
            files=files,
            with_files=with_files,
            compress=compress,
            encrypt_to=readers,
            progress=progress,
            on=choices.parsed_hooks(on),
            forget=forget or (),
        )
    )


def check_pid(pid: int) -> Checked:
    """Could the tree of process `pid` be saved? Touches nothing. Raises NotFound, UsageError."""
    job = _job(pid)
    return job.check() if job is not None else as_checked(saving.check(_tree(pid)))


def _job(pid: int) -> Job | None:
    """The job of which a process is the root, if one was started under torpor."""
    return next((Job(entry) for entry in registry.jobs() if entry.root.pid == pid), None)


def _tree(pid: int) -> Reach:
    """The tree of a process that was never started under torpor. Raises NotFound, UsageError."""
    if pid <= 0 or not os.path.exists(f"/proc/{pid}"):
        raise NotFound(f"there is no process {pid}")
    where = Reach(pid, True, (), pid)
    if os.getpid() in members(where):
        raise UsageError(f"process {pid} is an ancestor of this command: ask from somewhere else")
    return where
