"""A saved job runs once: also where the other one is on another host, or its host has died."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

import msgspec
import pytest

from torpor.model.errors import Refused
from torpor.store.folder import Folder
from torpor.store.holds import Holder
from torpor.supervise import lease
from torpor.supervise.registry import Pid
from torpor.supervise.standing import Standing


def mine() -> Holder:
    return lease.myself("i", "train")


def far(**more: Any) -> Holder:
    """The same job on another host."""
    return msgspec.structs.replace(mine(), boot="another", host="far", **more)


def take(place: Folder, me: Holder, wait: float = 0.0) -> lease.Lease | None:
    return lease.take(place.place, place, me, wait, lambda line: None)


@pytest.fixture
def place(tmp_path: Any) -> Folder:
    made = Folder(str(tmp_path / "st"))
    made.prepare()
    return made


def test_another_host_has_it(place: Folder) -> None:
    assert take(place, far()) is not None
    with pytest.raises(
        Refused, match=r"running already: train on far \(.*\), seen 0 s ago; .*its lease ends 60 s after"
    ):
        take(place, mine())
    assert take(place, lease.myself("other", "train")) is not None


def test_a_host_that_died_loses_it(place: Folder) -> None:
    began = time.monotonic()
    held = take(place, far(ttl=3.0))
    assert held is not None
    told: list[str] = []
    assert lease.take(place.place, place, mine(), 20.0, told.append) is not None
    # By the clock of the store, which may be a tick behind.
    assert 2.9 < time.monotonic() - began < 20
    assert [line for line in told if line] == [f"waiting for the end of {far()}"]
    assert not held.holds(place).renew(held.hold)


def test_a_process_of_this_host_that_died_is_no_holder(place: Folder) -> None:
    child = subprocess.Popen(["sleep", "100"])
    dead = Pid.of(child.pid)
    assert take(place, msgspec.structs.replace(mine(), pid=dead.pid, start=dead.start)) is not None
    with pytest.raises(Refused, match="running already"):
        take(place, mine())
    child.kill()
    child.wait()
    assert take(place, mine()) is not None


def test_our_own_is_ours(place: Folder) -> None:
    """After an execve (launch/again.py) it is the same process."""
    first = take(place, mine())
    again = take(place, mine())
    assert first is not None and again is not None and first.hold == again.hold


def test_a_place_that_cannot_be_written_to_keeps_nobody_from_it(place: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(place, "put", refuse)
    told: list[str] = []
    assert lease.take(place.place, place, mine(), 0.0, told.append) is None
    assert told == [
        f"whether train runs on another host is not known: {place.place} cannot be written to (Permission denied)"
    ]


def test_copies_know_of_each_other(place: Folder, tmp_path: Any) -> None:
    copy = Folder(str(tmp_path / "copy"))
    copy.prepare()
    lease.relate("i", place, copy, place.place, copy.place)
    assert lease.kin(place, "i") == [copy.place] and lease.kin(copy, "i") == [place.place]
    lease.elsewhere(mine(), copy, lambda line: None)
    assert take(place, far()) is not None
    with pytest.raises(Refused, match="train on far"):
        lease.elsewhere(mine(), copy, lambda line: None)
    lease.relate("i", copy, copy, "s9://nowhere", "s9://nowhere")
    told: list[str] = []
    with pytest.raises(Refused):
        lease.elsewhere(mine(), copy, told.append)
    assert all("s9://nowhere" in line for line in told)


def test_one_who_was_overtaken_says_so(place: Folder, capfd: pytest.CaptureFixture[str], tmp_path: Any,
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("TORPOR_LOG", str(tmp_path / "log"))
    standing = Standing("i", "train")
    found = take(place, mine())
    assert found is not None
    standing.add(found)
    os.utime(f"{place.place}/{found.hold.name}", (0, time.time() - 100))
    assert take(place, far()) is not None
    standing._renew()
    assert "another one runs: train on far" in capfd.readouterr().err
    standing._renew()
    assert capfd.readouterr().err == ""
    assert '"event": "lease", "outcome": "failed"' in (tmp_path / "log").read_text()


def test_what_was_given_back_is_free(place: Folder) -> None:
    standing = Standing("i", "train")
    standing.add(take(place, mine()))
    standing.close()
    assert take(place, far()) is not None


def test_how_long_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lease.ttl() == 60
    monkeypatch.setenv(lease.VARIABLE, "5m")
    assert lease.ttl() == 300 and mine().ttl == 300
    monkeypatch.setenv(lease.VARIABLE, "soon")
    assert lease.ttl() == 60
