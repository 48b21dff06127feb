"""What is put comes back; equal chunks are stored once; the numbers are right."""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.model.data import CHUNK_SIZE
from torpor.model.errors import CheckpointFailed, Damaged, NotFound, UsageError
from torpor.store import Store, open_store

Saver = Callable[..., Any]
RANDOM = [os.urandom(CHUNK_SIZE) for _ in range(4)]


def packs(store: Store) -> int:
    return sum(store.backend.stat(f"packs/{name}").size for name in store.backend.list("packs"))


def test_every_kind_of_chunk_comes_back(store: Store, save: Saver) -> None:
    chunks = [RANDOM[0], bytes(CHUNK_SIZE), bytes(5), b"ab" * 100_000, b"x", b"\0\1", os.urandom(4097)]
    info, refs = save(store, "j", chunks, b"the body", kind="test", n=3)
    load = store.load("j", 1)
    assert [bytes(load.get(ref)) for ref in refs] == chunks
    assert bytes(load.body) == b"the body"
    assert [load.size(ref) for ref in refs] == [len(chunk) for chunk in chunks]
    assert load.info == info == store.list()[0]
    assert info.label == {"kind": "test", "n": 3}
    assert info.bytes_total == sum(map(len, chunks))


def test_what_is_kept_is_verified_once_and_needs_no_store(store: Store, save: Saver) -> None:
    chunks = [RANDOM[0], bytes(CHUNK_SIZE), b"ab" * 100_000, b"x", os.urandom(4097)]
    _, refs = save(store, "j", chunks)
    load = store.load("j", 1)
    assert not load.keep(1000)
    assert load.keep(1 << 20)
    for name in list(store.backend.list("packs")):
        store.backend.delete(f"packs/{name}")
    assert [bytes(load.get(ref)) for ref in refs] == chunks
    with pytest.raises(TypeError):
        load.get(refs[0])[0] = 1  # type: ignore[index]
    with pytest.raises(Damaged):
        store.load("j", 1).keep(1 << 20)


def test_a_buffer_may_be_reused_at_once(store: Store) -> None:
    saving = store.begin("j")
    buffer = bytearray(8192)
    refs, wanted = [], []
    for i in range(50):
        buffer[:] = bytes([i + 1, i, 7, 9]) * 2048
        wanted.append(bytes(buffer))
        refs.append(saving.put(memoryview(buffer)))
    saving.commit(b"", {})
    load = store.load("j", 1)
    assert [bytes(load.get(ref)) for ref in refs] == wanted


def test_equal_chunks_are_stored_once(store: Store, save: Saver) -> None:
    _, refs = save(store, "a", [RANDOM[0], RANDOM[0], RANDOM[1]])
    assert refs == [0, 0, 1]
    size = packs(store)
    assert 2 * CHUNK_SIZE <= size < 2 * CHUNK_SIZE + 20_000
    info, _ = save(store, "other", [RANDOM[1], RANDOM[0]])
    assert packs(store) == size
    assert (info.bytes_new, info.bytes_total) == (0, 2 * CHUNK_SIZE)
    info, _ = save(open_store(store.location), "a", [RANDOM[1], RANDOM[2]])
    assert info.bytes_new == CHUNK_SIZE
    load = store.load("a", 2)
    assert bytes(load.get(0)) == RANDOM[1]


def test_zero_chunks_cost_nothing(store: Store, save: Saver) -> None:
    info, refs = save(store, "j", [bytes(CHUNK_SIZE)] * 10 + [bytes(100)])
    assert refs == [0] * 10 + [1]
    assert info.bytes_new == 0 and packs(store) == 0
    assert bytes(store.load("j", 1).get(1)) == bytes(100)


def test_compressible_data_is_compressed(store: Store, save: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_COMPRESS", "fast")
    info, _ = save(store, "j", [b"%06d" % i * 40_000 for i in range(10)])
    assert info.bytes_new < info.bytes_total / 20


def test_raw_chunks_are_not_copied_and_outlive_the_load(store: Store, save: Saver) -> None:
    save(store, "j", RANDOM)
    load = store.load("j", 1)
    data = [load.get(ref) for ref in load.refs]
    assert all(isinstance(d, memoryview) and d.readonly for d in data)
    load.close()
    del load
    assert [bytes(d) for d in data] == RANDOM


def test_many_threads(store: Store) -> None:
    chunks = [bytes([i & 255, i >> 8, 1]) * 500 + os.urandom(3000) for i in range(400)]
    saving = store.begin("j")
    refs: list[list[int]] = [[] for _ in range(4)]

    def work(me: int) -> None:
        refs[me] = [saving.put(chunk) for chunk in chunks[me * 50 : me * 50 + 250]]  # they overlap

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    info = saving.commit(b"", {})
    load = store.load("j", 1)
    for me in range(4):
        assert [bytes(load.get(ref)) for ref in refs[me]] == chunks[me * 50 : me * 50 + 250]
    assert len(load.refs) == 400
    assert info.bytes_total == 1000 * 4500


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3000)), max_size=30))
def test_whatever_is_put_comes_back(tmp_path_factory: Any, kinds: list[tuple[int, int]]) -> None:
    chunks = [RANDOM[kind][:size] if kind < 4 else bytes([kind - 4]) * size for kind, size in kinds]
    store = open_store(str(tmp_path_factory.mktemp("h") / "s"))
    for number in (1, 2):
        saving = store.begin("j")
        refs = [saving.put(chunk) for chunk in chunks]
        assert saving.commit(b"b", {}).number == number
        load = store.load("j", number)
        assert [bytes(load.get(ref)) for ref in refs] == chunks


@pytest.mark.parametrize("size", [0, CHUNK_SIZE + 1])
def test_chunk_sizes_are_checked(store: Store, size: int) -> None:
    with pytest.raises(ValueError):
        store.begin("j").put(bytes(size))


def test_nothing_is_there_before_the_commit(store: Store) -> None:
    saving = store.begin("j")
    saving.put(RANDOM[0])
    assert store.list() == []
    with pytest.raises(NotFound):
        store.load("j", 1)
    saving.abort()
    saving.abort()
    assert store.list() == [] and packs(store) == 0 and store.backend.list("leases") == []
    with pytest.raises(CheckpointFailed):
        saving.put(RANDOM[1])


def test_abort_after_commit_does_nothing(store: Store) -> None:
    saving = store.begin("j")
    saving.put(RANDOM[0])
    saving.commit(b"", {})
    saving.abort()
    assert bytes(store.load("j", 1).get(0)) == RANDOM[0]


def test_two_saves_of_one_job_at_once(store: Store) -> None:
    one, two = store.begin("j"), store.begin("j")
    one.put(RANDOM[0]), two.put(RANDOM[0])
    assert [two.commit(b"two", {}).number, one.commit(b"one", {}).number] == [1, 2]
    assert bytes(store.load("j", 2).body) == b"one"
    assert bytes(store.load("j", 2).get(0)) == RANDOM[0]


def test_a_failed_save_does_not_take_what_others_use(store: Store, save: Saver) -> None:
    save(store, "j", [RANDOM[0]])
    failed = store.begin("j")
    failed.put(RANDOM[0])
    failed.put(RANDOM[1])
    failed.abort()
    assert bytes(store.load("j", 1).get(0)) == RANDOM[0]


def test_a_reference_that_does_not_exist(store: Store, save: Saver) -> None:
    save(store, "j", [b"x"])
    with pytest.raises(Damaged, match=r"j@1.*no chunk 7"):
        store.load("j", 1).get(7)


@pytest.mark.parametrize("job", ["", ".", "..", "a/b", "a@1", "a b", "ä", "x" * 201])
def test_impossible_job_names(store: Store, job: str) -> None:
    with pytest.raises(UsageError):
        store.begin(job)


def test_what_an_earlier_save_kept_is_taken_over(store: Store, save: Saver) -> None:
    """Without its bytes: also what is there already, or twice, or zero."""
    chunks = [RANDOM[0], bytes(CHUNK_SIZE), RANDOM[1], b"short"]
    earlier = store.begin("j")
    refs = [earlier.put(chunk) for chunk in chunks]
    earlier.commit(b"", {})
    for before, wanted in (([], [0, 1, 2, 3]), ([RANDOM[1], RANDOM[2]], [3, 2, 1]), ([], [1, 0, 1, 0])):
        saving = store.begin("j")
        for chunk in before:
            saving.put(chunk)
        taken = saving.take_over(earlier.kept(), array("I", [refs[i] for i in wanted]).tobytes())
        assert taken is not None
        own = saving.put(b"more")
        info = saving.commit(b"", {})
        load = store.load("j", info.number)
        assert [bytes(load.get(ref)) for ref in array("I", taken)] == [chunks[i] for i in wanted]
        assert bytes(load.get(own)) == b"more"
        assert info.bytes_total == sum(len(chunks[i]) for i in wanted) + sum(map(len, before)) + 4
    assert store.list()[0].bytes_new > CHUNK_SIZE


def test_nothing_is_taken_over_of_a_pack_that_is_gone(store: Store) -> None:
    earlier = store.begin("j")
    refs = array("I", [earlier.put(RANDOM[0]), earlier.put(bytes(9))])
    earlier.commit(b"", {})
    for name in list(store.backend.list("packs")):
        store.backend.delete(f"packs/{name}")
    saving = store.begin("j")
    assert saving.take_over(earlier.kept(), refs.tobytes()) is None
    assert saving.take_over(earlier.kept(), refs[1:].tobytes()) is not None, "zeros are in no pack"
    saving.abort()


def test_the_index_is_only_a_help(store: Store, save: Saver) -> None:
    save(store, "j", RANDOM[:2])
    for name in store.backend.list("index"):
        store.backend.delete(f"index/{name}")
    info, _ = save(store, "j", RANDOM[:2])
    assert info.bytes_new == 2 * CHUNK_SIZE  # stored again, but right
    for name in store.backend.list("index"):
        store.backend.delete(f"index/{name}")
    store.collect()  # makes the index anew from the packs
    info, _ = save(store, "j", RANDOM[:2])
    assert info.bytes_new == 0


def test_an_index_entry_without_its_pack_is_not_believed(store: Store, save: Saver) -> None:
    save(store, "j", RANDOM[:1])
    for name in store.backend.list("packs"):
        store.backend.delete(f"packs/{name}")
    info, _ = save(store, "j", RANDOM[:1])
    assert info.bytes_new == CHUNK_SIZE
    assert bytes(store.load("j", 2).get(0)) == RANDOM[0]


def test_a_damaged_index_is_done_without(store: Store, save: Saver) -> None:
    save(store, "j", RANDOM[:1])
    for name in store.backend.list("index"):
        with open(f"{store.location}/index/{name}", "r+b") as file:
            file.write(b"garbage!")
    info, _ = save(store, "j", RANDOM[:1])
    assert info.number == 2
    assert bytes(store.load("j", 2).get(0)) == RANDOM[0]
    assert len(store.backend.list("index")) == 1  # the bad one is gone


def test_index_stays_in_few_segments(store: Store, save: Saver) -> None:
    for i in range(60):
        save(store, f"j{i % 3}", [b"%d" % i * 10, b"same" * 10])
    assert len(store.backend.list("index")) <= 4
    again, _ = save(store, "all", [b"%d" % i * 10 for i in range(60)])
    assert again.bytes_new == 0


def test_a_pack_that_vanishes_during_a_save_is_noticed(store: Store, save: Saver) -> None:
    save(store, "j", RANDOM[:1])
    saving = store.begin("j")
    saving.put(RANDOM[0])
    for name in store.backend.list("packs"):
        store.backend.delete(f"packs/{name}")
    with pytest.raises(CheckpointFailed, match="vanished"):
        saving.commit(b"", {})
    assert [info.number for info in store.list()] == [1]


@pytest.mark.parametrize("policy", ["none", "fast", "zstd"])
def test_compression_by_choice(store: Store, save: Saver, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_COMPRESS", policy)
    chunks = [(b"a line that comes again and again, %06d\n" % n) * 4000 for n in range(8)] + [RANDOM[0]]
    info, refs = save(store, "j", chunks)
    whole = sum(map(len, chunks))
    assert info.bytes_new >= whole if policy == "none" else CHUNK_SIZE <= info.bytes_new < CHUNK_SIZE + whole / 8
    load = store.load("j", 1)
    assert [bytes(load.get(ref)) for ref in refs] == chunks


def test_compression_that_is_none_of_these(store: Store, save: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_COMPRESS", "lots")
    with pytest.raises(UsageError, match="TORPOR_COMPRESS is one of auto, none, fast, zstd, not 'lots'"):
        save(store, "j", [b"x" * 1000])
