"""What the store's tests share: stores with small packs, back ends, and faults injected at every system
call."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import tempfile
import tomllib
import types
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import azureserver
import objectserver
import pytest

from torpor.image import crypto
from torpor.image.keys import Key, Public
from torpor.image.seal import Opening, Sealing
from torpor.store import Store, folder, locations, open_store, pack
from torpor.store.backend import Backend
from torpor.store.root import RootInfo

CALLS = ("open", "pwrite", "fsync", "fdatasync", "link", "unlink", "mkdir", "utime", "listdir", "stat")
"""What the folder back end does to the file system."""


ME = Key(bytes(range(32)), Public(*crypto.public_of(bytes(range(32)))), "")
"""Who signs in these tests."""


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not say otherwise signs as ME, and opens what anybody has signed."""
    monkeypatch.setattr(Store.begin, "__defaults__", (Sealing(ME), ""))
    monkeypatch.setattr(Store.begin_part, "__defaults__", (Sealing(ME), ""))
    monkeypatch.setattr(Store.load, "__defaults__", (Opening(untrusted=True), None))


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
        monkeypatch.setattr(folder, "open_unnamed", _refuse_unnamed)
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


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[objectserver.Server]:
    """A real S3 server."""
    with objectserver.of_session(tmp_path_factory) as server:
        yield server


@pytest.fixture
def bucket(s3: objectserver.Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a place of its own on the S3 server, which the environment says how to reach."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://torpor/{os.urandom(6).hex()}"


@pytest.fixture
def proxy(s3: objectserver.Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[objectserver.Proxy]:
    """In front of the S3 server; the environment leads here now."""
    made = objectserver.Proxy(s3.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An Azure server: the environment for it."""
    with azureserver.of_session(tmp_path_factory) as environment:
        yield environment


@pytest.fixture
def container(azure: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a place of its own on the Azure server, which the environment says how to reach."""
    for name, value in azure.items():
        monkeypatch.setenv(name, value)
    return f"az://{azureserver.CONTAINER}/{os.urandom(6).hex()}"


KINDS = [
    *("tmpfile", "named", "stripe", "memory", "s3", "tier", "tier-s3", "onefile"),
    pytest.param("az", marks=pytest.mark.exam),
]


@pytest.fixture
def onefile(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The location of a store of the example back end, which is registered as if it were installed."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    example = os.path.join(root, "examples", "store-onefile")
    with open(f"{example}/pyproject.toml", "rb") as file:
        points = tomllib.load(file)["project"]["entry-points"]
    info = tmp_path / "site" / "torpor_store_onefile-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torpor-store-onefile\nVersion: 0.1.0\n")
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in names.items()) for group, names in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.syspath_prepend(example)
    return lambda path: f"onefile:{path}"


@pytest.fixture
def location_of(request: pytest.FixtureRequest, place: str) -> Callable[[str], str]:
    """The location of a store of some kind, for one test."""

    def locate(kind: str) -> str:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if kind == "stripe":
            return f"stripe:{place}1,{place}2,{place}3"
        if kind == "memory":
            return f"memory:{os.urandom(6).hex()}"
        if kind == "s3":
            return str(request.getfixturevalue("bucket"))
        if kind == "az":
            return str(request.getfixturevalue("container"))
        if kind == "onefile":
            return str(request.getfixturevalue("onefile")(f"{place}/one.db"))
        if kind == "tier":
            return f"tier:{place}fast,{place}slow"
        if kind == "tier-s3":
            return f"tier:{place}fast,{request.getfixturevalue('bucket')}"
        return place

    return locate


@pytest.fixture(params=KINDS)
def location(request: pytest.FixtureRequest, location_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A location for a store of every kind."""
    if request.param == "named":
        monkeypatch.setattr(folder, "open_unnamed", _refuse_unnamed)
    return location_of(request.param)


@pytest.fixture
def backend(location: str) -> Iterator[Backend]:
    made = locations.open_backend(location)
    made.prepare()
    yield made
    made.close()


def _refuse_unnamed(_: str) -> int:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
