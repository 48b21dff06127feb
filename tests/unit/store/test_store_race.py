"""Real processes that save, remove and prune in one store at the same time: no checkpoint ever misses a chunk."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest

from torpor.store import open_store, pack

CHUNKS = [os.urandom(20_000) for _ in range(12)]
SECONDS = 4.0


def start(work: Any) -> int:
    pid = os.fork()
    if not pid:
        try:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(99)
    return pid


@pytest.mark.parametrize("kind", ["tmpfile", "stripe", "tier"])
def test_prune_beside_saves(kind: str, location_of: Any, save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "FULL", 32 << 10)
    location = location_of(kind)
    save(open_store(location), "first", CHUNKS)

    def saver(job: str) -> None:
        random.seed()
        store = open_store(location)
        put = random.sample(CHUNKS, 4)
        info, _ = save(store, job, put)
        load = store.load(job, info.number)  # type: ignore[call-arg]
        assert [bytes(load.get(ref)) for ref in load.refs] == put
        if info.number > 3:
            store.remove(job, info.number - 2)

    pids = [start(lambda: saver("a")), start(lambda: saver("b")), start(lambda: open_store(location).collect())]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    store = open_store(location)
    assert len(store.list()) >= 5
    for info in store.list():
        load = store.load(info.job, info.number)  # type: ignore[call-arg]
        assert all(bytes(load.get(ref)) in CHUNKS for ref in load.refs)
