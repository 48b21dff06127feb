"""Several disks: written in parallel, the slow one gets less, a missing one is named."""

from __future__ import annotations

import os
import shutil
import threading
import time
from typing import Any

import pytest

from torpor.model.data import Buffer
from torpor.model.errors import CheckpointFailed, Damaged, TorporError, UsageError
from torpor.store import Store, folder, open_store, pack
from torpor.store.backend import Upload
from torpor.store.stripe import Stripe

CHUNKS = [os.urandom(60_000) for _ in range(12)]


@pytest.fixture
def disks(place: str) -> list[str]:
    return [f"{place}{number}" for number in range(3)]


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "FULL", 64 << 10)


def stripe(disks: list[str]) -> Store:
    return open_store(f"stripe:{','.join(disks)}")


def test_packs_are_on_all_disks(disks: list[str], save: Any, check: Any) -> None:
    save(stripe(disks), "j", CHUNKS)
    counts = [len(os.listdir(f"{disk}/packs")) for disk in disks]
    assert sum(counts) >= 6 and min(counts) >= 1
    check(stripe(disks), {("j", 1): CHUNKS})


def test_a_disk_that_is_missing_is_named(disks: list[str], save: Any, check: Any) -> None:
    save(stripe(disks), "j", CHUNKS)
    os.rename(disks[1], f"{disks[1]}.away")
    for empty in (False, True):  # not there at all, and the empty folder of a disk that is not mounted
        if empty:
            os.mkdir(disks[1])
        store = stripe(disks)
        assert [info.number for info in store.list()] == [1]
        with pytest.raises(CheckpointFailed, match=f"folder {disks[1]} of the stripe is empty or not there"):
            save(stripe(disks), "j", CHUNKS)
        with pytest.raises(TorporError, match=disks[1]):
            stripe(disks).collect()
        with pytest.raises(Damaged, match=disks[1]):
            load = store.load("j", 1)
            [load.get(ref) for ref in load.refs]
        assert not empty or os.listdir(disks[1]) == []
    os.rmdir(disks[1])
    os.rename(f"{disks[1]}.away", disks[1])
    check(stripe(disks), {("j", 1): CHUNKS})


def test_the_first_disk_is_missing(disks: list[str], save: Any) -> None:
    save(stripe(disks), "j", CHUNKS)
    shutil.rmtree(disks[0])
    with pytest.raises(TorporError, match=f"folder {disks[0]} of the stripe is empty or not there"):
        save(stripe(disks), "j", CHUNKS)
    assert not os.path.exists(disks[0])
    with pytest.raises(TorporError, match=disks[0]):
        stripe(disks).list()


def test_a_disk_that_is_left_out(disks: list[str], save: Any) -> None:
    save(stripe(disks), "j", CHUNKS)
    with pytest.raises(CheckpointFailed, match=f"folder {disks[2]} of the stripe is not named"):
        save(stripe(disks[:2]), "j", CHUNKS)


def test_a_disk_of_another_stripe(disks: list[str], save: Any) -> None:
    save(stripe(disks[:2]), "j", CHUNKS)
    save(stripe([disks[2], f"{disks[2]}b"]), "j", CHUNKS)
    with pytest.raises(CheckpointFailed, match="part of another stripe"):
        save(stripe([disks[0], disks[1], f"{disks[2]}b"]), "j", CHUNKS)


def test_a_disk_is_added_and_another_moves(disks: list[str], save: Any, check: Any) -> None:
    save(stripe(disks[:2]), "j", CHUNKS)
    save(stripe(disks), "j", [c[::-1] for c in CHUNKS])
    assert os.listdir(f"{disks[2]}/packs")
    os.rename(disks[1], f"{disks[1]}.moved")
    disks[1] += ".moved"
    save(stripe(disks), "j", CHUNKS[:1])
    check(stripe(disks), {("j", 1): CHUNKS, ("j", 2): [c[::-1] for c in CHUNKS], ("j", 3): CHUNKS[:1]})


def test_a_folder_becomes_the_first_of_a_stripe(disks: list[str], save: Any, check: Any) -> None:
    save(open_store(disks[0]), "j", CHUNKS)
    save(stripe(disks), "j", [*CHUNKS, b"new" * 100])
    check(stripe(disks), {("j", 1): CHUNKS, ("j", 2): [*CHUNKS, b"new" * 100]})


def test_a_full_disk_is_named(disks: list[str], save: Any, faults: Any) -> None:
    save(stripe(disks), "j", CHUNKS[:1])
    faults(25, "full")
    with pytest.raises(CheckpointFailed, match="No space left"):
        save(stripe(disks), "j", CHUNKS)


def test_one_folder_is_no_stripe(disks: list[str]) -> None:
    for wrong in ("", disks[0], f"{disks[0]},{disks[0]}"):
        with pytest.raises(UsageError):
            open_store(f"stripe:{wrong}")


class Disk(folder.Folder):
    """A folder on a disk that writes `RATE` bytes a second, whoever writes."""

    rates: dict[str, float] = {}
    rate = 16e6

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.lock = threading.Lock()
        self.free = 0.0
        self.written = 0

    def spend(self, count: int) -> None:
        """Wait until the disk has written so much more."""
        with self.lock:
            self.written += count
            self.free = max(self.free, time.monotonic()) + count / self.rates.get(self.place, self.rate)
            until = self.free
        time.sleep(max(0.0, until - time.monotonic()))

    def create(self, name: str, lane: int = 0) -> Any:
        return _Throttled(super().create(name, lane), self)


class _Throttled:
    def __init__(self, upload: Upload, disk: Disk) -> None:
        self.upload, self.disk = upload, disk
        self.finish, self.discard = upload.finish, upload.discard

    def write(self, offset: int, data: Buffer) -> None:
        self.disk.spend(len(data))
        self.upload.write(offset, data)


def timed_save(backend: Any, size: int) -> float:
    """Seconds that a save of `size` random bytes takes, from one thread."""
    store = Store(backend)
    saving = store.begin("j")
    block = os.urandom(256 << 10)
    began = time.monotonic()
    for number in range(size >> 18):
        saving.put(number.to_bytes(8, "little") + block[8:])
    saving.commit(b"", {})
    return time.monotonic() - began


def test_more_disks_save_faster(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rate-limited disks at least 1.8 times, four at least 3.4 times as fast as one."""
    monkeypatch.setattr(pack, "FULL", 8 << 20)
    size = 80 << 20
    times = {1: timed_save(Disk(f"{place}one"), size)}
    for count in (2, 4):
        disks = Stripe([f"{place}{count}of{number}" for number in range(count)], Disk)
        times[count] = timed_save(disks, size)
    assert times[1] >= size / Disk.rate  # the limit is one
    assert times[1] / times[2] >= 1.8, times
    assert times[1] / times[4] >= 3.4, times


def test_a_slow_disk_gets_less(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One disk of three has a tenth of the others' speed: it holds nobody up."""
    monkeypatch.setattr(pack, "FULL", 8 << 20)
    folders = [f"{place}{number}" for number in range(3)]
    monkeypatch.setattr(Disk, "rates", {folders[1]: Disk.rate / 10})
    disks = Stripe(folders, Disk)
    size = 64 << 20
    took = timed_save(disks, size)
    written = [disk.written for disk in disks._folders]  # type: ignore[attr-defined]
    assert written[1] < size / 8 and min(written[0], written[2]) > size / 4, written
    assert took < 0.5 * (size / 3) / (Disk.rate / 10), took  # of what it would be with equal parts
