"""What the store's tests share: stores with small packs, back ends, and faults injected at every system
call."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from torpor.image import crypto
from torpor.image.keys import Key, Public
from torpor.image.seal import Opening, Sealing
from torpor.store import Store, folder, open_store, pack
from torpor.store.root import RootInfo

CALLS = ("open", "pwrite", "fsync", "fdatasync", "link", "unlink", "mkdir", "utime", "listdir", "stat")
"""What the folder back end does to the file system."""


ME = Key(bytes(range(32)), Public(*crypto.public_of(bytes(range(32)))), "")
"""Who signs in these tests."""


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not say otherwise signs as ME, and opens what anybody has signed."""
    monkeypatch.setattr(Store.begin, "__defaults__", (Sealing(ME),))
    monkeypatch.setattr(Store.load, "__defaults__", (Opening(untrusted=True),))


class Faults:
    """Stands where the folder back end finds the `os` module, and does something before the n-th call."""

    def __init__(self, at: int, fault: Callable[[str], None]) -> None:
        self.at, self.fault, self.count = at, fault, 0

    def module(self) -> types.SimpleNamespace:
        replaced: dict[str, Any] = {n: getattr(os, n) for n in dir(os) if not n.startswith("__")}
        for name in CALLS:
            replaced[name] = self.wrap(name, getattr(os, name))
        return types.SimpleNamespace(**replaced)

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                self.fault(name)
            return call(*args, **kwargs)

        return wrapped


def die(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full(_: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], Faults]:
    """Install a fault before the n-th system call: 'die' (kill -9) or 'full' (ENOSPC)."""

    def install(at: int, fault: str) -> Faults:
        made = Faults(at, {"die": die, "full": full}[fault])
        monkeypatch.setattr(folder, "os", made.module())
        return made

    return install


@pytest.fixture(params=["tmpfile", "named"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder back end with and without O_TMPFILE."""
    if request.param == "named":

        def refuse(_: str) -> int:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(folder, "open_unnamed", refuse)
    return str(request.param)


@pytest.fixture
def place(tmp_path: Any) -> Iterator[str]:
    """Where a store may be made; in memory if possible: these tests make files durable thousands of times."""
    memory = "/dev/shm"
    if not os.access(memory, os.W_OK):
        yield str(tmp_path / "st")
        return
    made = tempfile.mkdtemp(prefix="torpor-test-", dir=memory)
    try:
        yield f"{made}/st"
    finally:
        shutil.rmtree(made)


@pytest.fixture
def store(place: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store whose packs are full at 64 KiB."""
    monkeypatch.setattr(pack, "FULL", 64 << 10)
    yield open_store(place)


@pytest.fixture
def save() -> Callable[..., tuple[RootInfo, list[int]]]:
    def run(store: Store, job: str, chunks: list[bytes], body: bytes = b"body", **label: Any) -> Any:
        saving = store.begin(job)
        refs = [saving.put(chunk) for chunk in chunks]
        return saving.commit(body, label), refs

    return run


@pytest.fixture
def check() -> Callable[..., None]:
    """Load every checkpoint that is listed, wholly: none may be damaged."""

    def run(store: Store, expected: dict[tuple[str, int], list[bytes]]) -> None:
        found = {}
        for info in store.list():
            assert not info.damaged
            load = store.load(info.job, info.number)
            found[info.job, info.number] = [bytes(load.get(ref)) for ref in load.refs]
        assert found == expected

    return run
