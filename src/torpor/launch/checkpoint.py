"""A saved checkpoint, opened to be looked at."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import msgspec

from torpor.image import codec
from torpor.image.manifest import Manifest, ObjectRecord, ProcessRecord
from torpor.image.seal import Opening
from torpor.image.whole import Whole
from torpor.model.errors import Damaged, UsageError
from torpor.model.ledger import Ledger
from torpor.named_tuple import NamedTuple
from torpor.posix.memory.pages import unpack
from torpor.store import RootInfo, Store, open_store
from torpor.store.load import Load

PAGE = 4096


class SavedDescriptor(NamedTuple):
    """An open file of a process. kind: the service that has it; what: a path or the like, '' if there is
    none."""

    number: int
    kind: str
    what: str


class SavedProcess(NamedTuple):
    """A process in a checkpoint, pids as the job sees them. bytes: memory saved; mapped: address space in
    use."""

    pid: int
    parent: int
    comm: str
    state: str
    threads: int
    bytes: int
    mapped: int
    areas: int
    exe: str
    descriptors: tuple[SavedDescriptor, ...]


class Needs(NamedTuple):
    """What a checkpoint asks of the machine that restarts it.

    files: those that must be there unchanged. written: those that must be there, and are cut back to their
    saved length. carried: those that may be missing, but not be there and differ. cpu: feature flags of the CPU it
    ran on. xsave: bytes of extended CPU state.
    """

    arch: str
    kernel: str
    host: str
    uid: int
    gid: int
    cpu: tuple[str, ...]
    xsave: int
    files: tuple[str, ...]
    written: tuple[str, ...]
    services: tuple[str, ...]
    terminal: bool
    carried: tuple[str, ...] = ()


class Checkpoint(NamedTuple):
    """A checkpoint that was read and decoded."""

    info: RootInfo
    manifest: Manifest

    @property
    def name(self) -> str:
        """As the commands take it: `train@3`."""
        return f"{self.info.job}@{self.info.number}"

    def processes(self) -> list[SavedProcess]:
        """Its processes, parents before their children."""
        what = [_describe(record) for record in self.manifest.objects]
        return [self._process(record, what) for record in self.manifest.processes]

    def needs(self) -> Needs:
        """What it asks of a machine."""
        machine = self.manifest.machine
        files = self.manifest.files
        services = {record.service for record in self.manifest.objects}
        for process in self.manifest.processes:
            services.update(process.services)
            for thread in process.threads:
                services.update(thread.services)
        return Needs(
            arch=machine.arch,
            kernel=machine.kernel,
            host=machine.host,
            uid=machine.uid,
            gid=machine.gid,
            cpu=machine.cpu,
            xsave=machine.xsave,
            files=tuple(file.identity.path for file in files if not file.written and file.copy is None),
            written=tuple(file.identity.path for file in files if file.written),
            services=tuple(sorted(services)),
            terminal=self.manifest.terminal is not None,
            carried=tuple(file.identity.path for file in files if file.copy is not None),
        )

    def _process(self, record: ProcessRecord, what: list[tuple[str, str]]) -> SavedProcess:
        files = self.manifest.files
        pages = sum(window.bitmap.bit_count() for window, _ in unpack(record.pages))
        return SavedProcess(
            pid=record.pid,
            parent=record.parent,
            comm=record.comm,
            state=record.state,
            threads=len(record.threads),
            bytes=pages * PAGE,
            mapped=sum(area.size for area in record.areas),
            areas=len(record.areas),
            exe=files[record.exe].identity.path if 0 <= record.exe < len(files) else "",
            descriptors=tuple(SavedDescriptor(d.number, *what[d.object]) for d in record.descriptors),
        )


def open_checkpoint(
    name: str | None = None, store: str | None = None, untrusted: bool = False, part: str = ""
) -> Checkpoint:
    """Read a checkpoint by its name (`NAME`, `NAME@3`, `NAME@-1`, None for the only job's newest).

    part: of a job over hosts, which of its parts. Raises NotFound, Damaged, Untrusted, Sealed, UsageError.
    """
    with reading(name, store, untrusted, part) as (opened, _):
        return opened


@contextlib.contextmanager
def reading(
    name: str | None, store: str | None, untrusted: bool = False, part: str = ""
) -> Iterator[tuple[Checkpoint, Load]]:
    """The same with its contents, for the length of a `with`."""
    opened = open_store(store)
    info = _resolve(opened, name)
    called = f"checkpoint {info.job}@{info.number}"
    load = opened.load(info.job, info.number, Opening(untrusted))
    try:
        # The parts are as trustworthy as the root that names them, once that was verified.
        found = load.info.parts
        if not found and not part:
            yield Checkpoint(load.info, codec.decode(load.body, Manifest, called)), load
            return
    finally:
        load.close()
    wanted = next((each for each in found if each.name == part), None)
    if wanted is None:
        names = ", ".join(each.name for each in found)
        if not found:
            raise UsageError(f"{called} has no parts: it was saved on one host")
        raise UsageError(f"{called} has a part for each host; choose one with --part: {names}")
    load = opened.load(info.job, info.number, Opening(untrusted), wanted)
    try:
        yield Checkpoint(load.info, codec.decode(load.body, Manifest, f"{called}, part {part}")), load
    finally:
        load.close()


def open_whole(
    name: str | None = None, store: str | None = None, untrusted: bool = False
) -> tuple[RootInfo, Whole] | None:
    """What a checkpoint of a job over hosts consists of; None if it was saved on one host. Raises as
    `open_checkpoint`."""
    opened = open_store(store)
    info = _resolve(opened, name)
    if not info.parts:
        return None
    load = opened.load(info.job, info.number, Opening(untrusted))
    try:
        return load.info, codec.decode(load.body, Whole, f"checkpoint {info.job}@{info.number}")
    finally:
        load.close()


def ledgers(
    name: str | None, store: str | None, untrusted: bool = False, part: str = ""
) -> tuple[str, list[tuple[str, Ledger | None]]]:
    """The checkpoint's name, and what each part has asked for ('' for a job on one host). part: only that one. Raises
    as `open_checkpoint`."""
    parts = [part]
    if not part and (whole := open_whole(name, store, untrusted)) is not None:
        parts = [record.part.name for record in whole[1].parts]
        name = f"{whole[0].job}@{whole[0].number}"
    opened = [(each, open_checkpoint(name, store, untrusted, each)) for each in parts]
    return opened[0][1].name, [(each, found.manifest.ledger) for each, found in opened]


def _resolve(opened: Store, name: str | None) -> RootInfo:
    info = opened.resolve(name)
    if info.damaged:
        raise Damaged(info.damaged)
    return info


def _describe(record: ObjectRecord) -> tuple[str, str]:
    """Kind and a word about an open file, from whatever fields its service gave its record: the service
    itself may not be installed here."""
    fields: Any = msgspec.msgpack.decode(record.state)
    if not isinstance(fields, dict):
        return record.service, ""
    file = fields.get("file")
    path = file.get("name") if isinstance(file, dict) else fields.get("name")
    if isinstance(path, bytes):
        text = os.fsdecode(path)
        if fields.get("deleted"):
            text += " (deleted)"
        return record.service, text
    if isinstance(fields.get("kind"), str) and "number" in fields:
        return record.service, f"inherited {fields['kind']}, number {fields['number']}"
    for key in ("pipe", "count"):
        if isinstance(fields.get(key), int):
            return record.service, f"{key} {fields[key]}"
    return record.service, ""
