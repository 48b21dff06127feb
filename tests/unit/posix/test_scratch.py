"""Folders that are saved whole, and names beside a saved file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from descriptor_bench import FakeJob, FakeRestart

from torpor.posix import scratch


def captured(job: FakeJob, folders: list[Path], saved: list[Path] = []) -> scratch.Scratch:  # noqa: B006
    return scratch.capture([str(f) for f in folders], [os.fsencode(p) for p in saved], job)()


def picture(top: Path) -> dict[str, object]:
    out: dict[str, object] = {}
    for path in sorted([top, *top.rglob("*")]):
        st = path.lstat()
        what: object = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
        out[str(path.relative_to(top))] = (stat.filemode(st.st_mode), st.st_mtime_ns, what)
    return out


def furnish(top: Path) -> None:
    (top / "in" / "deep").mkdir(parents=True)
    (top / "empty").mkdir(mode=0o700)
    (top / "in" / "data").write_bytes(os.urandom(300_000))
    (top / "in" / "deep" / "small").write_text("small")
    (top / "in" / "deep" / "small").chmod(0o640)
    with open(top / "holes", "wb") as f:
        f.seek(1 << 20)
        f.write(b"end")
    (top / "none").touch()
    (top / "link").symlink_to("in/data")


def spoil(top: Path) -> None:
    (top / "in" / "data").write_bytes(b"changed")
    (top / "in" / "deep" / "small").unlink()
    (top / "in" / "deep" / "new").write_text("new")
    (top / "link").unlink()
    (top / "link").mkdir()
    (top / "link" / "inside").write_text("a folder instead")
    (top / "empty").rmdir()
    (top / "none").write_text("not empty any more")
    (top / "more").mkdir()
    (top / "more" / "and").write_text("more")


def test_a_folder_is_as_it_was(tmp_path: Path) -> None:
    top = tmp_path / "state"
    furnish(top)
    before = picture(top)
    job = FakeJob([])
    record = captured(job, [top])
    spoil(top)
    spoiled = picture(top)
    restart = FakeRestart(job.sink)
    scratch.restore(record, restart)
    assert picture(top) == before
    aside = tmp_path / "state.after-train@3"
    assert (aside / "in" / "data").read_bytes() == b"changed"
    assert (aside / "in" / "deep" / "new").read_text() == "new"
    assert (aside / "link" / "inside").read_text() == "a folder instead"
    assert (aside / "more" / "and").read_text() == "more"
    assert len(restart.said) == 1 and str(aside) in restart.said[0]
    restart.undo()
    after = picture(top)
    assert {k: v[2] for k, v in after.items()} == {k: v[2] for k, v in spoiled.items()}  # type: ignore[index]
    assert not aside.exists()


def test_a_folder_that_is_gone_is_made_again(tmp_path: Path) -> None:
    top = tmp_path / "state"
    furnish(top)
    before = picture(top)
    job = FakeJob([])
    record = captured(job, [top])
    top.rename(tmp_path / "elsewhere")
    restart = FakeRestart(job.sink)
    scratch.restore(record, restart)
    assert picture(top) == before
    restart.undo()
    assert not top.exists()


def test_what_is_as_it_was_is_left_alone(tmp_path: Path) -> None:
    top = tmp_path / "state"
    furnish(top)
    job = FakeJob([])
    record = captured(job, [top])
    numbers = {path: path.lstat().st_ino for path in top.rglob("*")}
    restart = FakeRestart(job.sink)
    scratch.restore(record, restart)
    assert {path: path.lstat().st_ino for path in top.rglob("*")} == numbers
    assert not restart.said and not list(tmp_path.glob("*after*"))


def test_newcomers_beside_a_saved_file_are_set_aside(tmp_path: Path) -> None:
    base = tmp_path / "base.db"
    base.touch()
    (tmp_path / "base.db-known").write_text("known")
    (tmp_path / "base.db-folder").mkdir()
    job = FakeJob([])
    record = captured(job, [], [base])
    for name in ("base.db-journal", "base.db2", "base", "other.db-journal", "base.db.after-train@1"):
        (tmp_path / name).write_text(name)
    restart = FakeRestart(job.sink)
    scratch.restore(record, restart)
    assert (tmp_path / "base.db-journal.after-train@3").read_text() == "base.db-journal"
    assert not (tmp_path / "base.db-journal").exists()
    for name in ("base.db-known", "base.db-folder", "base.db2", "base", "other.db-journal", "base.db.after-train@1"):
        assert (tmp_path / name).exists()
    restart.undo()
    assert (tmp_path / "base.db-journal").read_text() == "base.db-journal"


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root reads everything")
    top = tmp_path / "state"
    top.mkdir()
    (top / "secret").touch(mode=0)
    with pytest.raises(OSError, match="secret"):
        captured(FakeJob([]), [top])


def test_a_mount_point_cannot_be_exchanged(tmp_path: Path) -> None:
    (refusal,) = scratch.survey([str(tmp_path), "/proc"])
    assert "/proc is a mount point" in str(refusal) and "name one in it" in str(refusal)
