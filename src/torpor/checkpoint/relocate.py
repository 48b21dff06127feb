"""A manifest with other paths: for a job whose files are elsewhere now. Nothing is looked at.

What is found by its path at a restart: mapped and executed files, open files, folders, FIFOs and descriptors opened
with O_PATH, working directories, folders that are saved whole. Names that the program itself goes by (sockets bound to
a path, watches, whatever stands in its memory) are left as they are.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from torpor.image.manifest import FileRecord, Manifest, ObjectRecord, ProcessRecord
from torpor.model.path_map import PathMap
from torpor.posix.scratch import Scratch

_NAMED = ("directory", "path", "fifo")
"""Descriptor services whose record has the path as `name`."""
_replace = msgspec.structs.replace


def relocate(manifest: Manifest, moved: PathMap) -> Manifest:
    """The same manifest with each path as `moved` gives it."""
    if not moved:
        return manifest
    return _replace(
        manifest,
        files=tuple(_file(record, moved) for record in manifest.files),
        objects=tuple(_object(record, moved) for record in manifest.objects),
        processes=tuple(_process(record, moved) for record in manifest.processes),
        scratch=_scratch(manifest.scratch, moved),
    )


def _file(record: FileRecord, moved: PathMap) -> FileRecord:
    return _replace(record, identity=_replace(record.identity, name=moved(record.identity.name)))


def _object(record: ObjectRecord, moved: PathMap) -> ObjectRecord:
    if record.service != "file" and record.service not in _NAMED:
        return record
    state: dict[str, Any] = msgspec.msgpack.decode(record.state)
    where = state["file"] if record.service == "file" else state
    where["name"] = moved(where["name"])
    return _replace(record, state=msgspec.Raw(msgspec.msgpack.encode(state)))


def _process(record: ProcessRecord, moved: PathMap) -> ProcessRecord:
    kept = record.services.get("workdir")
    if kept is None:
        return record
    state: dict[str, Any] = msgspec.msgpack.decode(kept)
    state["directory"] = moved(state["directory"])
    return _replace(record, services={**record.services, "workdir": msgspec.Raw(msgspec.msgpack.encode(state))})


def _scratch(scratch: Scratch, moved: PathMap) -> Scratch:
    beside = [_replace(one, path=moved(one.path)) for one in scratch.beside]
    return Scratch(
        tuple(_replace(folder, path=moved(folder.path)) for folder in scratch.folders),
        # The names beside a file begin with its own: of a file that is called otherwise now nothing is known.
        tuple(
            now
            for now, then in zip(beside, scratch.beside)
            if os.path.basename(now.path) == os.path.basename(then.path)
        ),
    )
