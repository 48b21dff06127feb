"""Whatever is flipped, cut off or taken away is noticed, and named in one line."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torpor.model.errors import Damaged, UsageError
from torpor.store import Store, envelope, open_store, pack, root
from torpor.store.backend import Backend
from torpor.store.folder import Folder

CHUNKS = [os.urandom(20_000), b"text " * 2000, bytes(100)]


def one_line(error: pytest.ExceptionInfo[Any], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def only_pack(store: Store) -> str:
    (name,) = store.backend.list("packs")
    return f"{store.location}/packs/{name}"


def read_all(store: Store) -> list[bytes]:
    load = store.load("j", 1)
    return [bytes(load.get(ref)) for ref in load.refs]


def test_missing_pack(store: Store, save: Any) -> None:
    save(store, "j", CHUNKS)
    path = only_pack(store)
    os.unlink(path)
    with pytest.raises(Damaged) as error:
        read_all(store)
    one_line(error, "j@1", path, "missing")


@pytest.mark.parametrize("size", [0, 10, 15_000])
def test_truncated_pack(store: Store, save: Any, size: int) -> None:
    save(store, "j", CHUNKS)
    path = only_pack(store)
    os.truncate(path, size)
    with pytest.raises(Damaged) as error:
        read_all(store)
    one_line(error, "j@1", path, "truncated")


def test_unreadable_pack(store: Store, save: Any) -> None:
    save(store, "j", CHUNKS)
    path = only_pack(store)
    os.unlink(path)
    os.symlink(path, path)  # ELOOP, also for root
    with pytest.raises(Damaged) as error:
        read_all(store)
    one_line(error, "j@1", path, "cannot be read")


def flip(path: str, at: int, bit: int = 0) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def test_every_flip_in_a_chunk_is_noticed(store: Store, save: Any) -> None:
    save(store, "j", CHUNKS)
    path = only_pack(store)
    load = store.load("j", 1)
    for ref in (0, 1):
        start, stored = load._table.offset[ref], load._table.stored[ref]
        for at in {start, start + stored // 2, start + stored - 1, start + 9}:
            for bit in (0, 5, 7):
                flip(path, at, bit)
                with pytest.raises(Damaged) as error:
                    read_all(store)
                one_line(error, "j@1", path, "damaged")
                flip(path, at, bit)
    assert read_all(store) == CHUNKS


def test_every_flip_and_cut_of_a_root_is_noticed(store: Store, save: Any) -> None:
    save(store, "j", CHUNKS, b"body" * 30)
    path = f"{store.location}/roots/j/1"
    with open(path, "rb") as file:
        whole = file.read()
    for at in range(len(whole)):
        flip(path, at, at % 8)
        with pytest.raises(Damaged) as error:
            store.load("j", 1)
        one_line(error, "j@1")
        (info,) = store.list()  # never raises
        assert (info.job, info.number) == ("j", 1)
        flip(path, at, at % 8)
    for size in range(0, len(whole), 7):
        os.truncate(path, size)
        with pytest.raises(Damaged) as error:
            store.load("j", 1)
        one_line(error, "j@1")
        (info,) = store.list()
        assert "\n" not in info.damaged and info.damaged
        with open(path, "wb") as file:
            file.write(whole)
    with open(path, "ab") as file:
        file.write(b"x")
    with pytest.raises(Damaged):
        store.load("j", 1)
    assert store.list()[0].damaged


def test_a_root_under_another_name_is_noticed(store: Store, save: Any) -> None:
    save(store, "j", CHUNKS)
    os.link(f"{store.location}/roots/j/1", f"{store.location}/roots/j/7")
    with pytest.raises(Damaged, match=r"j@7.*is really j@1"):
        store.load("j", 7)
    assert store.list()[1].damaged


def test_damaged_roots_are_listed_beside_whole_ones(store: Store, save: Any) -> None:
    for _ in range(3):
        save(store, "j", CHUNKS)
    os.truncate(f"{store.location}/roots/j/2", 20)
    assert [bool(info.damaged) for info in store.list("j")] == [False, True, False]
    assert store.resolve("j@2").damaged
    assert not store.resolve("j").damaged
    with pytest.raises(Damaged, match="j@2"):
        store.collect()  # what it needs is not known
    store.remove("j", 2)
    assert store.collect() == (0, 0)


def test_strange_files_do_not_matter(store: Store, save: Any) -> None:
    save(store, "j", CHUNKS)
    strange = ["roots/j/x", "roots/j/007", "roots/j/²", "roots/strange", "packs/c", "index/x", "claims/j/-"]
    for name in strange:
        with open(f"{store.location}/{name}", "wb"):
            pass
    assert [info.number for info in store.list()] == [1]
    assert save(store, "j", CHUNKS)[0].number == 2
    assert store.resolve("").number == 2
    assert store.collect() == (0, 0)
    assert read_all(store) == CHUNKS


def test_damaged_or_newer_configuration(store: Store, save: Any) -> None:
    save(store, "j", CHUNKS)
    path = f"{store.location}/store"
    flip(path, 30)
    with pytest.raises(Damaged, match=re.escape(store.location)):
        open_store(store.location)
    flip(path, 30)
    flip(path, 8, 1)
    with pytest.raises(Damaged, match="newer torpor"):
        open_store(store.location)


def test_a_newer_root_is_said_to_be_newer(store: Store, save: Any) -> None:
    save(store, "j", CHUNKS)
    flip(f"{store.location}/roots/j/1", 8, 0)
    with pytest.raises(Damaged, match=r"format 3, written by a newer torpor; this one reads up to 2"):
        store.load("j", 1)
    assert "newer" in store.list()[0].damaged


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200), st.data())
def test_envelopes(payload: bytes, data: Any) -> None:
    whole = envelope.wrap(b"magic 8b", 3, payload)
    assert bytes(envelope.unwrap(b"magic 8b", 3, whole + b"behind", "it")) == payload
    at = data.draw(st.integers(0, len(whole) - 1))
    broken = bytearray(whole)
    broken[at] ^= 1 << data.draw(st.integers(0, 7))
    for bad in (bytes(broken), whole[:at], b"", b"something else altogether"):
        with pytest.raises(Damaged):
            envelope.unwrap(b"magic 8b", 3, bad, "it")


def test_a_sealed_object_is_refused() -> None:
    whole = bytearray(envelope.wrap(root.MAGIC, 1, b""))
    whole[10] = 1
    with pytest.raises(Damaged, match="sealed"):
        envelope.unwrap(root.MAGIC, 1, bytes(whole), "it")


def test_a_pack_lists_its_chunks(store: Store, save: Any) -> None:
    save(store, "j", CHUNKS)
    path = only_pack(store)
    backend: Backend = Folder(store.location)
    pack_id = bytes.fromhex(os.path.basename(path))
    table = store.load("j", 1)._table
    listed = dict(pack.contents(backend, pack_id))
    assert listed == {table.name(row): table.place(row) for row in (0, 1)}
    size = os.stat(path).st_size
    for at in (size - 1, size - 12, size - 20):
        flip(path, at)
        with pytest.raises(Damaged):
            list(pack.contents(backend, pack_id))
        flip(path, at)
    os.truncate(path, 20)
    with pytest.raises(Damaged):
        list(pack.contents(backend, pack_id))


def test_not_a_store(tmp_path: Any) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    store = open_store(str(tmp_path))
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        store.begin("j")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        store.list()
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_the_location_is_a_file(tmp_path: Any) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(UsageError, match=re.escape(str(tmp_path / "f"))):
        open_store(str(tmp_path / "f"))


def test_a_store_without_its_configuration_is_not_an_empty_one(store: Store, save: Any) -> None:
    """Neither is it listed as one, nor saved to with a new key: with the old one put back all is as it was."""
    save(store, "j", CHUNKS)
    os.rename(f"{store.location}/store", f"{store.location}.kept")
    for use in (lambda: open_store(store.location).list(), lambda: save(open_store(store.location), "k", CHUNKS)):
        with pytest.raises(Damaged) as error:
            use()
        one_line(error, store.location, "'store' is missing")
    os.rename(f"{store.location}.kept", f"{store.location}/store")
    assert read_all(open_store(store.location)) == CHUNKS


@pytest.mark.parametrize("folder", ["index", "packs"])
def test_a_flip_in_what_no_checkpoint_needs_is_named(store: Store, save: Any, folder: str) -> None:
    save(store, "j", CHUNKS)
    (name,) = store.backend.list(folder)
    path = f"{store.location}/{folder}/{name}"
    end = os.path.getsize(path)
    start = 0
    if folder == "packs":
        with open(path, "rb") as file:
            file.seek(end - 16)
            start = int.from_bytes(file.read(8), "little")
    assert not store.damage_beside(packs=True)
    for at in range(start, end):
        flip(path, at)
        (said,) = store.damage_beside(packs=True)
        assert path in said and "\n" not in said, at
        flip(path, at)
    assert not store.damage_beside(packs=True)
