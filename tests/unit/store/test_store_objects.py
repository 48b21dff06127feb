"""Object stores where the network and the server are not well."""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import Any

import pytest
from objectserver import Fault, Proxy, is_pack

from torpor.model.errors import CheckpointFailed, UsageError
from torpor.store import Store, lease, locations, objects, open_store, pack
from torpor.store.apart import Apart

CHUNKS = [os.urandom(60_000) for _ in range(8)]
FINE = Fault()


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "FULL", 128 << 10)
    monkeypatch.setattr(objects, "BACKOFF", 0.01)


def store_of(url: str, **options: Any) -> Store:
    return Store(objects.Objects(url, **options))


@pytest.mark.parametrize("status", [500, pytest.param(503, marks=pytest.mark.exam), 0])
def test_every_request_fails_once(status: int, bucket: str, proxy: Proxy, save: Any, check: Any) -> None:
    """A 500, or a cut connection, for each request the first time it is made."""
    seen: set[tuple[str, str]] = set()

    def decide(method: str, path: str) -> Fault:
        if (method, path) in seen:
            return FINE
        seen.add((method, path))
        return Fault(status=status) if status else Fault(cut=1000)

    proxy.decide = decide
    store = store_of(bucket)
    save(store, "j", CHUNKS)
    save(store, "j", [*CHUNKS[4:], b"more" * 1000])
    check(store, {("j", 1): CHUNKS, ("j", 2): [*CHUNKS[4:], b"more" * 1000]})
    store.remove("j", 1)
    store.collect()
    check(store, {("j", 2): [*CHUNKS[4:], b"more" * 1000]})
    assert len(seen) > 40


def test_an_answer_that_is_lost_is_not_another_writer(bucket: str, proxy: Proxy) -> None:
    """The object is there, the writer does not know it, and repeats: it was the one."""
    backend = objects.Objects(bucket)
    lost = itertools.count()
    proxy.decide = lambda method, path: Fault(lose=True) if method == "PUT" and not next(lost) else FINE
    assert backend.put("claims/j/1", [b""])
    assert next(lost) > 1
    assert not backend.put("claims/j/1", [b""])


def test_cut_in_the_middle_of_an_upload(bucket: str, proxy: Proxy, save: Any, check: Any) -> None:
    cuts: list[str] = []

    def decide(method: str, path: str) -> Fault:
        if method == "PUT" and is_pack(path) and path not in cuts:
            cuts.append(path)
            return Fault(cut=50_000)
        return FINE

    proxy.decide = decide
    save(store_of(bucket), "j", CHUNKS)
    assert len(cuts) >= 3
    check(store_of(bucket), {("j", 1): CHUNKS})


def test_a_server_that_stays_away(bucket: str, proxy: Proxy, save: Any, check: Any) -> None:
    """The save fails in one line and in time, and what was there before is whole."""
    save(store_of(bucket), "j", CHUNKS[:2])
    for what in ("packs", "roots", "leases"):
        proxy.decide = lambda method, path, what=what: Fault(status=503) if method == "PUT" and what in path else FINE
        began = time.monotonic()
        with pytest.raises(CheckpointFailed) as failed:
            save(store_of(bucket, patience=1.0), "j", CHUNKS)
        assert time.monotonic() - began < 30
        assert "\n" not in str(failed.value) and bucket in str(failed.value)
        proxy.decide = lambda method, path: FINE
        check(store_of(bucket), {("j", 1): CHUNKS[:2]})


def test_slow(bucket: str, proxy: Proxy, save: Any, check: Any) -> None:
    """Packs go at the same time: eight of them do not take eight times as long as one."""
    running = high = 0
    lock = threading.Lock()

    def decide(method: str, path: str) -> Fault:
        nonlocal running, high
        if method == "PUT" and is_pack(path):
            with lock:
                running += 1
                high = max(high, running)
            time.sleep(0.3)
            with lock:
                running -= 1
        return FINE

    proxy.decide = decide
    many = [os.urandom(130_000) for _ in range(40)]
    save(store_of(bucket), "j", many)
    assert high == objects.LANES
    check(store_of(bucket), {("j", 1): many})


@pytest.mark.exam
def test_a_listing_that_lags(bucket: str, proxy: Proxy, save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listings up to LAG seconds old: saves and collections at the same time never lose a chunk."""
    lag = 0.6
    monkeypatch.setattr(pack, "FULL", 1)

    def decide(method: str, path: str) -> Fault:
        if "list-type=2" in path and path in proxy.listings:
            return Fault(stale=time.monotonic() - proxy.listings[path][0] < lag)
        return FINE

    proxy.decide = decide
    expected: dict[tuple[str, int], list[bytes]] = {}
    saver, collector, remover, fresh = (store_of(bucket, lag=of) for of in (lag, lag, lag, 0))
    for turn in range(4):
        chunks = [CHUNKS[turn % 5], CHUNKS[(turn + 1) % 5], b"%d" % turn * 200]
        saving = saver.begin("j")
        for chunk in chunks:
            saving.put(chunk)
        collector.collect()
        expected["j", saving.commit(b"", {}).number] = chunks
        if turn % 2:
            gone = min(expected)
            del expected[gone]
            remover.remove(*gone)
        collector.collect()
        time.sleep(lag / 2)
    proxy.decide = lambda method, path: FINE
    monkeypatch.setattr(lease, "EXPIRY", 3600.0)
    for (job, number), chunks in expected.items():
        load = fresh.load(job, number)
        assert [bytes(load.get(ref)) for ref in load.refs] == chunks
    end = time.monotonic() + 30
    while True:  # and in the end what nobody needs is gone
        collector.collect()
        used = {name.hex() for i in expected for name in fresh.load(*i)._table.packs}
        if set(fresh.backend.list("packs")) == used:
            break
        assert time.monotonic() < end
        time.sleep(0.1)


def test_no_such_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for as long as for one that has answered before."""
    pytest.importorskip("obstore")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr(objects, "FIRST", 0.5)
    began = time.monotonic()
    with pytest.raises(UsageError) as failed:
        Store(objects.Objects("s3://b/p", patience=300)).list()
    assert time.monotonic() - began < 30
    assert "s3://b/p" in str(failed.value) and "\n" not in str(failed.value)


def test_once_it_has_answered_it_is_waited_for(bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "FIRST", 0.5)
    backend = objects.Objects(bucket, patience=60)
    backend.put("one", [b"1"])
    end = time.monotonic() + 2
    proxy.decide = lambda method, path: Fault(status=500 if time.monotonic() < end else 0)
    assert backend.get("one") == b"1"


def test_wrong_key(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-it")
    with pytest.raises(UsageError) as failed:
        store_of(bucket).list()
    assert "403" in str(failed.value) or "denied" in str(failed.value).lower()


def test_no_bucket(bucket: str) -> None:
    with pytest.raises(OSError, match="there is no such bucket"):
        objects.Objects("s3://nosuch/x", patience=300).list("roots")


def test_no_credentials() -> None:
    """As obstore says it; the address is not asked from here."""
    said = (
        "Generic GCS error: Error performing GET http://169.254.169.254/computeMetadata/v1/x in 48 s\n\nDebug source: y"
    )
    assert objects._line(OSError(said)).startswith("no credentials are set")
    assert objects._line(OSError("Generic S3 error: 500\n\nDebug source: y")) == "Generic S3 error: 500"


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match=r"pip install 'torpor\[cloud\]'"):
        open_store("s3://bucket/folder")


def test_apart_reads_the_same(bucket: str, save: Any) -> None:
    """The helper process, also from a process that was forked from one which used the library."""
    save(store_of(bucket), "j", CHUNKS)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            store = open_store(bucket, apart=True)
            assert isinstance(store.backend, Apart)
            load = store.load("j", store.resolve("j").number)
            assert [bytes(load.get(ref)) for ref in load.refs] == CHUNKS
            assert store.list("none") == []
            helper = store.backend._helper
            store.close()
            assert not os.path.exists(f"/proc/{helper}")
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_apart_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    backend = locations.open_backend("s3://bucket/p", apart=True, options={"nonsense": "x"})
    with pytest.raises(UsageError, match="nonsense"):
        backend.list("roots")
    backend.close()
