"""Files that a checkpoint carries, read after the job goes on and made again where they are missing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from torpor.checkpoint import copies
from torpor.checkpoint.copies import Copies
from torpor.image.manifest import FileRecord
from torpor.model.data import Buffer
from torpor.model.errors import CheckpointFailed, Refused, RestartFailed
from torpor.posix import paths


class Chunks:
    """A sink and source in memory."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def put(self, data: Buffer) -> int:
        self.kept.append(bytes(data))
        return len(self.kept) - 1

    def get(self, ref: int) -> Buffer:
        return self.kept[ref]


class Undo:
    """As much of a `Restart` as is needed."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []

    def on_failure(self, undo: Callable[[], None]) -> None:
        self.steps.append(undo)

    def fail(self) -> None:
        for step in reversed(self.steps):
            try:
                step()
            except OSError:
                continue


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program"
    with open(path, "wb") as file:
        file.write(os.urandom(300_000))
        file.truncate(900_000)
        file.seek(800_000)
        file.write(b"end")
    os.chmod(path, 0o4755)
    return str(path)


def saved(path: str, chunks: Chunks, between: Callable[[], None] = lambda: None) -> FileRecord:
    record = FileRecord(paths.identity(path), False)
    found = Copies(asked=True)
    try:
        found.add(0, record.identity)
        between()
        return found.read((record,), chunks)[0]
    finally:
        found.close()


def test_there_and_back(program: str, tmp_path: Path) -> None:
    chunks, undo, folder = Chunks(), Undo(), str(tmp_path / "state" / "provided")
    record = saved(program, chunks)
    assert not copies.needed(record)
    assert sum(map(len, chunks.kept)) < 500_000  # the hole is not among them
    with open(program, "rb") as file:
        was = file.read()
    os.unlink(program)
    assert copies.needed(record)
    assert not copies.needed(msgspec.structs.replace(record, copy=None))
    restart: Any = undo
    path = copies.provide(record, chunks, folder, restart)
    with open(path, "rb") as file:
        assert file.read() == was
    st = os.stat(path)
    assert (stat.S_IMODE(st.st_mode), st.st_mtime_ns) == (0o755, record.identity.mtime_ns)
    assert os.path.basename(path) == "program"
    other: Any = Undo()
    assert copies.provide(record, chunks, folder, other) == path
    other.fail()
    assert os.stat(path).st_ino == st.st_ino  # not what another had made
    with open(path, "r+b") as file:
        file.write(b"spoiled")
    assert copies.provide(record, chunks, folder, restart) == path
    with open(path, "rb") as file:
        assert file.read() == was
    undo.fail()
    assert os.listdir(tmp_path) == []


def test_damage_leaves_nothing(program: str, tmp_path: Path) -> None:
    chunks, undo = Chunks(), Undo()
    record = saved(program, chunks)
    os.unlink(program)
    chunks.kept.pop()
    restart: Any = undo
    with pytest.raises(IndexError):
        copies.provide(record, chunks, str(tmp_path / "provided"), restart)
    undo.fail()
    assert os.listdir(tmp_path) == []


def test_no_folder_to_be_had(program: str, tmp_path: Path) -> None:
    chunks = Chunks()
    record = saved(program, chunks)
    restart: Any = Undo()
    with pytest.raises(RestartFailed, match="program is gone and cannot be made"):
        copies.provide(record, chunks, f"{program}/provided", restart)


def test_written_to_meanwhile(program: str) -> None:
    def write() -> None:
        with open(program, "r+b") as file:
            file.write(b"other")
        os.utime(program, ns=(0, 0))

    with pytest.raises(CheckpointFailed, match="program was written to or replaced"):
        saved(program, Chunks(), write)


def test_replaced_before_it_was_opened(program: str) -> None:
    identity = paths.identity(program)
    os.rename(program, f"{program}.old")
    with open(program, "wb") as file:
        file.write(b"new")
    found = Copies(asked=True)
    with pytest.raises(CheckpointFailed):
        found.add(0, identity)
    found.close()


def test_replaced_afterwards(program: str) -> None:
    """An upgrade renames a new file into place: the old one is still what the job runs."""
    chunks = Chunks()

    def replace() -> None:
        with open(f"{program}.new", "wb") as file:
            file.write(b"new")
        os.rename(f"{program}.new", program)

    record = saved(program, chunks, replace)
    assert record.copy is not None and record.copy.size == 900_000


def test_not_asked(program: str) -> None:
    found = Copies(asked=False)
    record = FileRecord(paths.identity(program), False)
    found.add(0, record.identity)
    assert found.read((record,), Chunks()) == (record,)


def test_not_readable(tmp_path: Path) -> None:
    identity = paths.FileIdentity(os.fsencode(tmp_path / "nothing"), 0, 0, 0, 0, 0o100755)
    with pytest.raises(Refused, match="nothing, which the job reads or runs, cannot be read"):
        Copies(asked=True).add(0, identity)


@pytest.mark.parametrize(
    ("path", "is_provided"),
    [
        ("/home/u/.local/state/torpor/jobs/n/provided/0123456789abcdef0123456789abcdef/libc.so.6", True),
        ("/home/u/.local/state/torpor/jobs/n/provided/0123456789abcdef/libc.so.6", False),
        ("/home/u/.local/state/torpor/jobs/n/log", False),
        ("/usr/lib/libc.so.6", False),
    ],
)
def test_what_a_restart_has_made(path: str, is_provided: bool) -> None:
    assert copies.provided(paths.FileIdentity(path.encode(), 0, 0, 0, 0, 0)) is is_provided
