"""`torpor core`: a saved process as a core file, for a debugger."""

from __future__ import annotations

import os

from torpor.checkpoint import core_file
from torpor.image.manifest import Manifest, ProcessRecord
from torpor.launch.checkpoint import reading
from torpor.model.errors import NotFound, TorporError, UsageError
from torpor.named_tuple import NamedTuple


class Core(NamedTuple):
    """What was written. pid: as the job sees it. size: of the file, with its holes; bytes: what it takes on the
    disk. program: what the process ran."""

    checkpoint: str
    pid: int
    threads: int
    path: str
    size: int
    bytes: int
    program: str


def core(
    checkpoint: str | None, store: str | None, path: str, pid: int = 0, untrusted: bool = False, part: str = ""
) -> Core:
    """Write a core file of process `pid` (as the job sees it; 0: its first one) to `path`, which must not exist.

    Raises NotFound, Damaged, Untrusted, Sealed, UsageError, TorporError; no file is left then."""
    with reading(checkpoint, store, untrusted, part) as (opened, load):
        manifest = opened.manifest
        process = _process(opened.name, manifest, pid or manifest.root)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise UsageError(f"{path} exists already") from None
        try:
            size = core_file.write(manifest, process, load, fd)
            taken = os.fstat(fd).st_blocks * 512
        except BaseException as error:
            os.unlink(path)
            if isinstance(error, OSError):
                raise TorporError(f"{path} cannot be written: {error.strerror}") from error
            raise
        finally:
            os.close(fd)
        exe = manifest.files[process.exe].identity.path if 0 <= process.exe < len(manifest.files) else ""
        return Core(opened.name, process.pid, len(process.threads), path, size, taken, exe)


def _process(name: str, manifest: Manifest, pid: int) -> ProcessRecord:
    found = next((process for process in manifest.processes if process.pid == pid), None)
    if found is None:
        pids = " ".join(str(process.pid) for process in manifest.processes)
        raise NotFound(f"{name} has no process {pid}; it has {pids}")
    if not found.threads:
        raise UsageError(f"process {pid} of {name} has ended: it has no memory any more")
    return found
