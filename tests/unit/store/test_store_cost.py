"""What must stay cheap: importing, memory, looking things up."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from torpor.store import index, table
from torpor.store.folder import Folder

HEAVY = "asyncio logging subprocess dataclasses pathlib tempfile concurrent inspect ctypes threading"
OURS = "save collect index lease"
FORBIDDEN = {*HEAVY.split(), "backports.zstd", *(f"torpor.store.{name}" for name in OURS.split())}


def run(code: str, *args: str) -> str:
    path = os.pathsep.join(p for p in sys.path if p)
    env = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_loading_imports_little(store: Any, save: Any) -> None:
    save(store, "j", [os.urandom(5000), bytes(100)])
    code = (
        "import sys, msgspec, blake3; before = set(sys.modules)\n"
        "from torpor.store import open_store\n"
        "store = open_store(sys.argv[1]); info = store.resolve('')\n"
        "from torpor.image.seal import Opening\n"
        "load = store.load(info.job, info.number, Opening(untrusted=True)); load.get(0); load.get(1)\n"
        "print(*(set(sys.modules) - before))"
    )
    imported = set(run(code, store.location).split())
    assert "torpor.store.load" in imported
    assert not imported & FORBIDDEN


def test_memory_is_bounded(place: str) -> None:
    code = """
import mmap, os, resource, sys, threading
from torpor.image import crypto, keys, seal
from torpor.store import open_store
me = keys.Key(bytes(32), keys.Public(*crypto.public_of(bytes(32))), "")
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
store = open_store(sys.argv[1])
saving = store.begin("j", seal.Sealing(me))
before = peak()
def work():
    data = bytearray(os.urandom(1 << 18))
    for i in range(400):
        data[:8] = os.urandom(8)
        saving.put(data)
threads = [threading.Thread(target=work) for _ in range(2)]
for t in threads: t.start()
for t in threads: t.join()
saving.commit(b"", {})
print(peak() - before)
load = store.load("j", 1, seal.Opening(untrusted=True))
for ref in load.refs: load.get(ref)
print(peak() - before)
"""
    saving, loading = map(int, run(code, place).split())
    assert saving < 30
    assert loading < 190  # four packs of 32 MiB mapped, and a fifth on its way


def entries(count: int, pack: bytes = b"p" * 16) -> list[tuple[bytes, table.Place]]:
    return [(os.urandom(32), table.Place(pack, i, 2, 3, 0)) for i in range(count)]


@pytest.mark.parametrize("count", [1, 15, 16, 33, 5000])
def test_a_segment_finds_what_is_in_it(place: str, count: int) -> None:
    rows = dict(entries(count))
    backend = Folder(place)
    index.add(backend, rows.items())
    (name,) = backend.list("index")
    segment = index.open_segment(backend, name)
    segment.believe({b"p" * 16})
    assert all(segment.find(name) == where for name, where in rows.items())
    assert all(segment.find(os.urandom(32)) is None for _ in range(100))
    inside = segment.table.names[7 : 7 + 32] if count > 1 else os.urandom(32)
    assert segment.find(bytes(inside)) is None  # not at a row's start
    segment.believe(set())
    assert segment.find(next(iter(rows))) is None


def test_names_that_begin_alike(place: str) -> None:
    rows = [(bytes([255] * 31 + [i]), table.Place(b"p" * 16, i, 2, 3, 0)) for i in range(200)]
    backend = Folder(place)
    index.add(backend, rows)
    segment = index.open_segment(backend, backend.list("index")[0])
    segment.believe({b"p" * 16})
    assert all(segment.find(name) == where for name, where in rows)
    assert segment.find(bytes(32)) is None


def test_which_segments_are_merged() -> None:
    assert index.to_merge({}) == []
    assert index.to_merge({"a": 5}) == []
    assert index.to_merge({"a": 5, "b": 10}) == ["a", "b"]
    assert index.to_merge({"a": 5, "b": 11}) == []
    assert index.to_merge({"a": 1, "b": 1, "c": 4, "d": 100}) == ["a", "b", "c"]
    assert index.to_merge({"a": 1, "b": 100, "c": 100}) == ["a", "b", "c"]
    assert index.to_merge({"a": 10, "b": 11}, limit=10) == []


def test_segments_stay_few_however_many_are_added() -> None:
    sizes: dict[str, int] = {}
    rewritten = 0
    for i in range(1000):
        sizes[str(i)] = 50 if i % 10 else 16_000
        if chosen := index.to_merge(sizes):
            total = sum(sizes.pop(name) for name in chosen)
            rewritten += total
            sizes[f"m{i}"] = total
        assert len(sizes) <= 10
    assert rewritten < 8 * sum(50 if i % 10 else 16_000 for i in range(1000))
