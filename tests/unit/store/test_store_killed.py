"""A writer that is killed at each of its operations on the back end, whatever kind of place that is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from torpor.store import Store, lease, locations, open_store, pack

OLD = [os.urandom(70_000) for _ in range(2)]
NEW = [OLD[1], os.urandom(70_000)]
CALLS = ("put", "create", "write", "finish", "sync", "get", "list", "stat", "touch", "delete")


class Deadly:
    """A back end, or an upload of it, in whose n-th call this process is killed: just before it, or just after."""

    count = 0

    def __init__(self, inner: Any, at: int) -> None:
        self._inner, self._at = inner, at

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in CALLS:
            return found

        def call(*arguments: Any, **more: Any) -> Any:
            Deadly.count += 1
            mine = Deadly.count
            if 2 * mine == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            made = found(*arguments, **more)
            if 2 * mine + 1 == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            return Deadly(made, self._at) if name == "create" else made

        return call


REMOTE = ("s3", "tier-s3", "az")
KILLED = [
    "tmpfile",
    "stripe",
    "onefile",
    "tier",
    *(pytest.param(kind, marks=pytest.mark.exam) for kind in REMOTE),
]
FRESH = "TORPOR_TEST_FRESH"


@pytest.mark.parametrize("kind", KILLED)
def test_killed_at_every_operation(
    kind: str, location_of: Any, save: Any, check: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if kind in REMOTE and FRESH not in os.environ:
        in_fresh_process(request.node.nodeid)
        return
    monkeypatch.setattr(pack, "FULL", 64 << 10)
    location = location_of(kind)
    step, killed = 2, 0
    assert in_child(lambda: save(open_store(location), "j", OLD)) == 0
    done = 1
    while step < 400:
        job = f"k{step}"

        def work(step: int = step, job: str = job) -> None:
            save(Store(Deadly(locations.open_backend(location), step)), job, NEW)  # type: ignore[arg-type]

        status = in_child(work)
        assert status in (0, -signal.SIGKILL)
        killed += status != 0

        def look(job: str = job, status: int = status) -> None:
            store = open_store(location)
            expected = {("j", 1): OLD}
            if store.list(job) or status == 0:
                expected[job, 1] = NEW
            check(store, expected)
            if store.list(job):
                store.remove(job, 1)
            lease.EXPIRY = -1.0  # a day later
            store.collect()
            store.collect()
            check(store, {("j", 1): OLD})
            used = {name.hex() for name in store.load("j", 1)._table.packs}  # type: ignore[call-arg]
            assert set(store.backend.list("packs")) == used
            assert [store.backend.list(name) for name in ("leases", "warrants")] == [[], []]

        assert in_child(look) == 0, f"killed at {step}"
        if status == 0:
            done = 0
            break
        step += 1
    assert not done and killed > 20


def in_fresh_process(test: str) -> None:
    """Run a test in another pytest, which has used no object store yet: the client has threads that a fork loses, and
    waits for them for ever. There it is used in forked processes only."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=3000", "-m", "exam", test]
    said = subprocess.run(words, env=os.environ | {FRESH: "1"}, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout[-5000:] + said.stderr[-2000:]


def in_child(work: Any) -> int:
    """Run `work` in a forked process; how it ended."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
