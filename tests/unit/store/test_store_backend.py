"""The conformance suite: what the store relies on, of every back end."""

from __future__ import annotations

import os
import threading
import time

import pytest

from torpor.store import locations
from torpor.store.backend import Backend
from torpor.store.folder import Folder


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
    with pytest.raises(FileNotFoundError):
        backend.get("nothing/here", 3, 4)
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
    assert backend.list("packs") == []
    assert backend.list("tmp") == []
    with pytest.raises(FileNotFoundError):
        backend.stat("packs/p")


def test_touch_moves_the_time(backend: Backend) -> None:
    backend.put("leases/t", [b""])
    before = backend.stat("leases/t")
    assert before.size == 0 and abs(before.time - time.time()) < 60
    end = time.monotonic() + 20
    while backend.stat("leases/t").time <= before.time:  # some places count whole seconds
        assert time.monotonic() < end
        time.sleep(0.05)
        backend.touch("leases/t")
    backend.delete("leases/t")
    with pytest.raises(FileNotFoundError):
        backend.touch("leases/t")
    with pytest.raises(FileNotFoundError):
        backend.stat("leases/t")


def test_touch_changes_nothing_else(backend: Backend) -> None:
    backend.put("leases/t", [b"contents"])
    backend.touch("leases/t")
    assert backend.get("leases/t") == b"contents"


def test_a_large_object_in_pieces(backend: Backend) -> None:
    data = os.urandom(1 << 20) * 9
    uploads = [backend.create(f"packs/{lane}", lane) for lane in range(backend.lanes)]
    buffer = bytearray(1 << 20)
    for at in range(0, len(data), len(buffer)):
        buffer[:] = data[at : at + len(buffer)]
        for upload in uploads:
            upload.write(at, buffer)
    for upload in uploads:
        upload.finish()
    backend.sync("packs")
    assert sorted(backend.list("packs")) == [str(lane) for lane in range(backend.lanes)]
    for lane in range(backend.lanes):
        assert backend.get(f"packs/{lane}") == data
        assert backend.get(f"packs/{lane}", 5 << 20, 100) == data[5 << 20 : (5 << 20) + 100]
        assert backend.stat(f"packs/{lane}").size == len(data)


def test_a_local_path_leads_to_the_object(backend: Backend) -> None:
    backend.put("roots/j/1", [b"one"])
    upload = backend.create("packs/p", backend.lanes - 1)
    upload.write(0, b"two")
    upload.finish()
    for name, data in (("roots/j/1", b"one"), ("packs/p", b"two")):
        path = backend.path(name)
        if path is not None:
            with open(path, "rb") as file:
                assert file.read() == data


def test_what_was_put_is_there_for_others(backend: Backend, location: str) -> None:
    backend.put("roots/j/1", [b"x"])
    other = locations.open_backend(location)
    assert other.list("roots/j") == ["1"] and other.get("roots/j/1") == b"x"
    assert not other.put("roots/j/1", [b"y"])
    other.delete("roots/j/1")
    assert backend.list("roots/j") == []
    other.close()


def test_files_and_folders_are_private(place: str, variant: str) -> None:
    backend = Folder(place)
    backend.put("roots/j/1", [b"x"])
    upload = backend.create("packs/p")
    upload.finish()
    for above, folders, files in os.walk(backend.place):
        assert all(os.stat(f"{above}/{name}").st_mode & 0o777 == 0o700 for name in folders)
        assert all(os.stat(f"{above}/{name}").st_mode & 0o777 == 0o600 for name in files)
    assert os.stat(backend.place).st_mode & 0o777 == 0o700
