"""A flipped bit, wherever it is in a signed or in an encrypted store, is noticed and named in one line.

Every byte of every object is flipped once, but for the inside of long chunks, and the zeros between chunks, which
nobody reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from torpor.image import crypto, keys, seal
from torpor.model.errors import Damaged, TorporError
from torpor.store import Store, open_store, pack
from torpor.store.folder import Folder

ME = keys.Key(bytes(range(32)), keys.Public(*crypto.public_of(bytes(range(32)))), "/me")
CHUNKS = [os.urandom(8192), b"text " * 4000, bytes(7000), b"x" * 130, os.urandom(5000)]


@pytest.fixture(params=["signed", "encrypted"])
def store(request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(keys, "own", lambda make=False: ME)
    monkeypatch.setattr(keys, "trusted", lambda signer: signer == ME.public.signer)
    made = open_store(str(tmp_path / "st"))
    saving = made.begin("j", seal.Sealing(ME, [ME.public] if request.param == "encrypted" else []))
    for chunk in CHUNKS:
        saving.put(chunk)
    saving.commit(b"the body " * 40, {"note": "n"})
    return made


def use(place: str) -> None:
    """Everything that a restart uses, and what an index is made of anew."""
    store = open_store(place)
    info = store.resolve("j")
    if info.damaged:
        raise Damaged(info.damaged)
    load = store.load("j", 1, seal.Opening())
    assert [bytes(load.get(ref)) for ref in load.refs] == CHUNKS
    for name in store.backend.list("packs"):
        list(pack.contents(store.backend, bytes.fromhex(name)))


def flipped(place: str) -> TorporError | None:
    """What a restart says now; None if it found everything as it was."""
    try:
        use(place)
    except TorporError as error:
        return error
    return None


def compressed(place: str, name: str, at: int) -> bool:
    """Is there a compressed chunk at that place in a pack, not encrypted?"""
    if not name.startswith("packs/") or store_is_encrypted(place):
        return False
    rows = (p for _, p in pack.contents(Folder(place), bytes.fromhex(name[6:])))
    return any(p.encoding == 1 and p.offset <= at < p.offset + p.stored for p in rows)


def store_is_encrypted(place: str) -> bool:
    return bool(open_store(place).list()[0].recipients)


def objects(place: str) -> Iterator[str]:
    yield "store"
    yield "roots/j/1"
    for name in os.listdir(f"{place}/packs"):
        yield f"packs/{name}"


def unread(place: str, name: str, size: int) -> set[int]:
    """The bytes of a pack that are left out: inside of chunks, and between them."""
    if not name.startswith("packs/"):
        return set()
    pack_id = bytes.fromhex(name[6:])
    found = sorted((p.offset, p.stored) for _, p in pack.contents(Folder(place), pack_id))
    with open(f"{place}/{name}", "rb") as file:
        file.seek(size - pack.TAIL.size)
        end = pack.TAIL.unpack(file.read())[0]
    used = set(range(16)) | set(range(end, size))
    for offset, stored in found:
        used |= {*range(offset, offset + min(40, stored)), *range(offset + max(0, stored - 20), offset + stored)}
        used |= set(range(offset, offset + stored, 997))
    return set(range(size)) - used


def test_every_flip_is_noticed(store: Store) -> None:
    place = store.location
    use(place)
    count = harmless = 0
    for name in objects(place):
        path = f"{place}/{name}"
        size = os.stat(path).st_size
        left_out = unread(place, name, size)
        with open(path, "r+b", buffering=0) as file:
            whole = file.read()
            for at in range(size):
                if at in left_out:
                    continue
                os.pwrite(file.fileno(), bytes([whole[at] ^ 1 << at % 8]), at)
                error = flipped(place)
                os.pwrite(file.fileno(), whole[at : at + 1], at)
                if error is None:
                    # A few bits of a Zstandard frame mean nothing: the chunk was the right one, by its name.
                    assert compressed(place, name, at), f"{name} at {at}: not noticed"
                    harmless += 1
                    continue
                text = str(error)
                assert "\n" not in text and error.status == 1, f"{name} at {at}: {text}"
                assert "j@1" in text or place in text, f"{name} at {at}: {text}"
                count += 1
    use(place)
    assert count > 1000 and harmless < 10


def test_a_flipped_index_does_no_harm(store: Store) -> None:
    """It only helps a save; one that is damaged is not believed."""
    place = store.location
    (name,) = os.listdir(f"{place}/index")
    path = f"{place}/index/{name}"
    with open(path, "rb") as file:
        whole = file.read()
    for at in range(0, len(whole), 23):
        with open(path, "wb") as file:
            file.write(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        saving = open_store(place).begin("other", seal.Sealing(ME))
        saving.put(CHUNKS[0])
        number = saving.commit(b"", {}).number
        load = store.load("other", number, seal.Opening())
        assert bytes(load.get(0)) == CHUNKS[0]
        for other in set(os.listdir(f"{place}/index")) - {name}:
            os.unlink(f"{place}/index/{other}")
