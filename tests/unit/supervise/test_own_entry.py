"""What a supervisor writes into its job's entry: above all, which of its children are not of the job."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor.supervise import registry
from torpor.supervise.own_entry import OwnEntry
from torpor.supervise.registry import Entry, Pid

ENTRY = Entry("it", holder=Pid(7, 1), skip=(7, 8))


def test_children_that_are_not_of_the_job() -> None:
    one = OwnEntry(ENTRY)
    one.set_own((20, 21))
    assert one.now.skip == (7, 8, 20, 21)
    one.set_aside(30)
    assert one.now.skip == (7, 8, 20, 21, 30)
    one.holder_replaced(9)
    assert one.now.skip == (9, 8, 20, 21, 30) and one.now.holder.pid == 9
    one.set_own((22,))
    assert one.now.skip == (9, 8, 22), "the helper has gone"


def test_a_holder_that_comes_late_stays() -> None:
    one = OwnEntry(ENTRY._replace(holder=registry.NOBODY, skip=()))
    one.set_aside(30)
    one.know_holder(9)
    assert one.now.skip == (30, 9) and one.now.holder.pid == 9
    one.set_aside(0)
    assert one.now.skip == (9,)


def test_what_changes_is_written_down(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    folder.mkdir(0o700)
    one = OwnEntry(ENTRY._replace(folder=str(folder)))
    one.saved("it@3")
    found = registry.read(str(folder))
    assert found is not None and found == one.now and found.saved == "it@3" and found.saved_at > 0


def test_no_runtime_folder_disturbs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's own is gone, and there cannot be another."""
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("TORPOR_RUNTIME", str(file))
    one = OwnEntry(ENTRY._replace(folder=f"{file}/it"))
    one.saved("it@3")
    assert one.now.saved == "it@3" and one.now.folder == f"{file}/it"
