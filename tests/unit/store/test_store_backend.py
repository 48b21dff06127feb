"""The conformance suite: what the store relies on, of every back end."""

from __future__ import annotations

import os
import threading

import pytest

from torpor.store.backend import Backend
from torpor.store.folder import Folder


@pytest.fixture
def backend(place: str, variant: str) -> Backend:
    return Folder(place)


def test_put_is_whole_and_only_once(backend: Backend) -> None:
    assert backend.put("a/b/c", [b"one", b"", memoryview(b"two")])
    assert not backend.put("a/b/c", [b"other"])
    assert backend.get("a/b/c") == b"onetwo"


def test_one_of_many_writers_wins(backend: Backend) -> None:
    won: list[int] = []
    start = threading.Barrier(8)

    def write(me: int) -> None:
        start.wait()
        if backend.put("x/same", [b"%d" % me]):
            won.append(me)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert backend.get("x/same") == b"%d" % won[0]


def test_ranges(backend: Backend) -> None:
    backend.put("r", [b"0123456789"])
    assert backend.get("r", 3, 4) == b"3456"
    assert backend.get("r", 8, 100) == b"89"
    assert backend.get("r", 4) == b"456789"
    assert backend.get("r", 20) == b""


def test_missing(backend: Backend) -> None:
    assert backend.list("nothing") == []
    for call in (backend.get, backend.stat, backend.touch):
        with pytest.raises(FileNotFoundError):
            call("nothing/here")
    backend.delete("nothing/here")


def test_list_names_what_is_directly_there(backend: Backend) -> None:
    for name in ("d/one", "d/two", "d/e/three"):
        backend.put(name, [b"x"])
    assert sorted(backend.list("d")) == ["e", "one", "two"]
    backend.delete("d/one")
    assert sorted(backend.list("d")) == ["e", "two"]


def test_upload_is_invisible_until_finished(backend: Backend) -> None:
    upload = backend.create("packs/p")
    upload.write(0, b"head")
    upload.write(4096, b"tail")
    assert backend.list("packs") == []
    upload.finish()
    backend.sync("packs")
    assert backend.get("packs/p") == b"head" + bytes(4092) + b"tail"
    upload.discard()
    assert backend.list("packs") == ["p"]


def test_discarded_upload_leaves_nothing(backend: Backend) -> None:
    upload = backend.create("packs/p")
    upload.write(0, b"x")
    upload.discard()
    upload.discard()
    backend.tidy(1e12)
    left = [files for _, _, files in os.walk(backend.place) if files]
    assert left == []


def test_touch_moves_the_time(backend: Backend) -> None:
    backend.put("t", [b""])
    path = backend.path("t")
    if path is None:
        pytest.skip("no local path to age")
    os.utime(path, (1000, 1000))
    assert backend.stat("t") == (0, 1000)
    backend.touch("t")
    assert backend.stat("t").time > 1000


def test_files_and_folders_are_private(backend: Backend) -> None:
    backend.put("roots/j/1", [b"x"])
    upload = backend.create("packs/p")
    upload.finish()
    for above, folders, files in os.walk(backend.place):
        assert all(os.stat(f"{above}/{name}").st_mode & 0o777 == 0o700 for name in folders)
        assert all(os.stat(f"{above}/{name}").st_mode & 0o777 == 0o600 for name in files)
    assert os.stat(backend.place).st_mode & 0o777 == 0o700
