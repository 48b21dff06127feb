"""Files that a job maps or runs, or of which there are to be copies: each stands once in the manifest."""

from __future__ import annotations

import os
from collections.abc import Iterable

from torpor.checkpoint.copies import Copies
from torpor.image.manifest import FileRecord
from torpor.model.errors import Refusal, Refused
from torpor.posix import paths, regular
from torpor.posix.contents import store_file
from torpor.posix.memory.area import FILE, PROT_WRITE, AreaRecord
from torpor.posix.service import Job


class MappedFiles:
    """The files of one checkpoint, by their places in Manifest.files."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self.found: list[paths.FileIdentity] = []
        self._number: dict[str, int] = {}

    def records(self, view: Job, areas: Iterable[AreaRecord]) -> tuple[FileRecord, ...]:
        """For the manifest; a file counts as written if the job could write to it in any way."""
        open_for_writing = {(seen.dev, seen.ino) for seen in view.descriptors if seen.access}
        shared = [area for area in areas if area.kind == FILE and area.shared]
        mapped = {area.what for area in shared if area.prot & PROT_WRITE}
        records = tuple(
            self._record(view, file, (file.dev, file.ino) in open_for_writing or number in mapped)
            for number, file in enumerate(self.found)
        )
        may_write = {area.what for area in shared if area.may_write}
        for number, record in enumerate(records):
            if not (record.written or record.restored or number in may_write):
                self._copies.add(number, record.identity)
        return records

    def _record(self, view: Job, file: paths.FileIdentity, written: bool) -> FileRecord:
        if view.in_saved_folder(file.path):
            return FileRecord(file, written, restored=True)
        in_memory = view.files != "keep" and regular.is_shared_memory(os.getpid(), file.dev, file.ino, view)
        if not in_memory and not (written and view.save_contents(file.path)):
            return FileRecord(file, written)
        same = [seen for seen in view.descriptors if (seen.dev, seen.ino) == (file.dev, file.ino)]
        if any(not seen.flags & os.O_PATH and (in_memory or seen.access) for seen in same):
            return FileRecord(file, written, restored=True)
        try:
            fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            thing = f"the mapped file {file.path} cannot be read ({error.strerror})"
            raise Refused([Refusal(0, "", thing, "run torpor as its owner or as root")]) from error
        try:
            return FileRecord(file, written, store_file(fd, view.sink), restored=True)
        finally:
            os.close(fd)

    def number(self, path: str) -> int:
        """The place of a path in Manifest.files. Raises OSError."""
        if path not in self._number:
            self._number[path] = len(self.found)
            self.found.append(paths.identity(path))
        return self._number[path]
