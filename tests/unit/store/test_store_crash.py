"""A writer that is killed, or refused by the file system, at each of its system calls in turn."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from torpor.model.errors import CheckpointFailed, UsageError
from torpor.store import Store, lease, open_store

OLD = [os.urandom(30_000) for _ in range(3)]
NEW = [OLD[1], *(os.urandom(30_000) for _ in range(5)), b"text" * 5000, bytes(4096)]


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; how it ended, as os.waitstatus_to_exitcode says it."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def files(place: str) -> list[str]:
    return [f"{above}/{name}" for above, _, names in os.walk(place) for name in names]


@pytest.mark.parametrize("what", ["first", "second", "collect", "remove"])
def test_killed_at_every_step(
    what: str, place: str, variant: str, store: Store, save: Any, faults: Any, check: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    step = 0
    while True:
        step += 1
        here = f"{place}{step}"
        before: dict[tuple[str, int], list[bytes]] = {}
        if what != "first":
            save(open_store(here), "j", OLD)
            before["j", 1] = OLD
        if what in ("collect", "remove"):
            save(open_store(here), "gone", NEW)
            if what == "collect":
                open_store(here).remove("gone", 1)
            else:
                before["gone", 1] = NEW

        def work(here: str = here, step: int = step) -> None:
            faults(step, "die")
            store = open_store(here)
            if what == "collect":
                store.collect()
            elif what == "remove":
                store.remove("gone", 1)
            else:
                save(store, "j", NEW)

        status = in_child(work)
        assert status in (0, -signal.SIGKILL)
        if not os.path.exists(here):
            assert what == "first" and step <= 2
            continue
        store = open_store(here)
        after = dict(before)
        listed = {(info.job, info.number) for info in store.list()}
        if what in ("first", "second") and ("j", len(before) + 1) in listed:
            after["j", len(before) + 1] = NEW
        if what == "remove" and not store.list("gone"):
            del after["gone", 1]
        check(store, after)
        info, _ = save(store, "j", NEW)
        assert info.number > max((n for job, n in after if job == "j"), default=0)
        after["j", info.number] = NEW
        if what == "remove":
            assert save(store, "gone", OLD)[0].number == 2
            after["gone", 2] = OLD
        check(store, after)
        with monkeypatch.context() as aged:  # a day later
            aged.setattr(lease, "EXPIRY", -1.0)
            open_store(here).collect()
            open_store(here).collect()
        check(store, after)
        used = {name.hex() for i in after for name in store.load(*i)._table.packs}
        assert set(store.backend.list("packs")) == used
        assert [store.backend.list(name) for name in ("tmp", "leases", "warrants")] == [[], [], []]
        if status == 0:
            assert step > 5
            return


def test_disk_full_at_every_step(place: str, variant: str, store: Store, save: Any, faults: Any, check: Any) -> None:
    failed = 0
    for step in range(1, 200):
        here = f"{place}{step}"
        save(open_store(here), "j", OLD)
        expected = {("j", 1): OLD}
        injected = faults(step, "full")
        try:
            info, _ = save(open_store(here), "j", NEW)
            expected["j", info.number] = NEW
        except (CheckpointFailed, UsageError) as error:
            failed += 1
            assert "No space left" in str(error) and here in str(error) and "\n" not in str(error)
        injected.at = 0
        check(open_store(here), expected)
        if injected.count < step:
            break
        save(open_store(here), "j", NEW)
    else:
        raise AssertionError("it never ended")
    assert failed > 10


def test_after_a_failure_nothing_of_it_is_left(place: str, store: Store, save: Any, faults: Any) -> None:
    save(store, "j", OLD)
    had = sorted(files(place))
    saving = store.begin("j")
    faults(12, "full")
    with pytest.raises(CheckpointFailed, match="No space left"):
        for chunk in NEW * 3:
            saving.put(chunk)
        saving.commit(b"", {})
    saving.abort()
    assert sorted(files(place)) == had
