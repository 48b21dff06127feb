"""Copying, verifying and retention."""

from __future__ import annotations

import glob
import json
import os
from typing import Any

import pytest

from torpor.cli.main import main
from torpor.model.errors import UsageError
from torpor.store import open_store, pack
from torpor.store.copying import copy
from torpor.store.retention import surplus

A, B, C = (os.urandom(70_000) for _ in range(3))
HOUR = 3600.0


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "FULL", 64 << 10)


def test_only_what_is_missing_travels(place: str, location: str, save: Any, check: Any) -> None:
    """To every kind of store."""
    source, target = open_store(f"{place}source"), open_store(location)
    save(source, "j", [A, B])
    save(source, "j", [B, C])
    assert 140_000 < copy(source, "j", 1, target) < 142_000
    assert 70_000 < copy(source, "j", 2, open_store(location)) < 71_000
    assert copy(source, "j", 2, open_store(location)) == -1
    check(open_store(location), {("j", 1): [A, B], ("j", 2): [B, C]})
    assert open_store(location).collect() == (0, 0)
    assert save(open_store(location), "j", [A, B, C])[0].bytes_new == 0
    assert open_store(location).backend.list("leases") == []


def test_a_store_with_another_key(place: str, save: Any, check: Any) -> None:
    source, target = open_store(f"{place}a"), open_store(f"{place}b")
    save(source, "j", [A])
    save(target, "k", [A])
    with pytest.raises(UsageError, match="another key"):
        copy(source, "j", 1, open_store(f"{place}b"))
    check(open_store(f"{place}b"), {("k", 1): [A]})


def test_verify(place: str, save: Any, capsys: Any) -> None:
    store = open_store(place)
    save(store, "j", [A])
    save(store, "j", [B])
    for words in ([], ["j@1"], ["--deep"]):
        assert main(["verify", "--store", place, *words]) == 0
    (of_a,) = [name.hex() for name in store.load("j", 1)._table.packs]  # type: ignore[call-arg]
    path = f"{place}/packs/{of_a}"
    with open(path, "r+b") as file:
        file.seek(5000)
        file.write(b"another")
    assert main(["verify", "--store", place]) == 0
    assert main(["verify", "--store", place, "--deep"]) == 1
    assert f"pack {path} is damaged" in capsys.readouterr().err
    os.truncate(path, 1000)
    assert main(["verify", "--store", place]) == 1
    assert "is truncated" in capsys.readouterr().err
    os.unlink(path)
    assert main(["verify", "--store", place, "j@1"]) == 1
    assert "is missing" in capsys.readouterr().err
    assert main(["verify", "--store", place, "j@2", "--deep"]) == 0


def test_prune(place: str, save: Any, check: Any) -> None:
    store = open_store(place)
    for chunk in (A, B, C):
        save(store, "j", [chunk])
    save(store, "k", [A])
    assert main(["prune", "--store", place]) == 0
    assert len(store.list()) == 4
    assert main(["prune", "--store", place, "--keep-last", "0"]) == 2
    assert main(["prune", "--store", place, "--keep-last", "1"]) == 0
    check(open_store(place), {("j", 3): [C], ("k", 1): [A]})
    assert len(os.listdir(f"{place}/packs")) == 2


def test_what_was_done_is_in_the_log(place: str, save: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_LOG", str(tmp_path / "log"))
    store = open_store(place)
    for chunk in (A, B, C):
        save(store, "j", [chunk])
    assert main(["copy", "j@3", f"{place}2", "--store", place]) == 0
    assert main(["prune", "--store", place, "--keep-last", "2"]) == 0
    assert main(["rm", "--store", place, "j@2"]) == 0
    os.unlink(glob.glob(f"{place}/packs/*")[0])
    assert main(["copy", "j@3", f"{place}3", "--store", place]) == 1
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    told = [(line["event"], line["outcome"], line.get("why"), line.get("checkpoint")) for line in lines]
    assert told == [
        ("copy", "done", "command", "j@3"),
        ("remove", "done", "prune", "j@1"), ("prune", "done", "prune", None),
        ("remove", "done", "command", "j@2"), ("prune", "done", "command", None),
        ("copy", "failed", "command", "j@3"),
    ]  # fmt: skip
    assert lines[0]["target"] == f"{place}2" and lines[0]["bytes_new"] >= len(C) and lines[0]["seconds"] >= 0
    assert lines[2]["packs"] == 1 and lines[2]["bytes_freed"] >= len(A)
    assert "is missing" in lines[5]["reason"]


@pytest.mark.parametrize(
    ("times", "last", "every", "gone"),
    [
        ([], 3, 0, []),
        ([0, 1, 2], 3, 0, []),
        ([0, 1, 2, 3], 2, 0, [1, 2]),
        ([0, 1, 2], 0, 0, [1, 2]),
        ([0, 1, 6, 7, 12, 13], 1, 6, [2, 4]),
        ([5, 7, 11, 13, 14], 1, 6, [3]),
        ([0, 20, 40], 1, 6, []),
    ],
)
def test_what_is_surplus(times: list[float], last: int, every: float, gone: list[int]) -> None:
    saved = [(number, when * HOUR) for number, when in enumerate(times, 1)]
    assert surplus(saved, last, every * HOUR) == gone
    assert surplus(saved[::-1], last, every * HOUR) == gone
