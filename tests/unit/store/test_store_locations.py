"""What --store takes, and the configuration file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torpor.model.errors import UsageError
from torpor.store import locations, open_store, settings
from torpor.store.folder import Folder
from torpor.store.memory import Memory
from torpor.store.stripe import Stripe
from torpor.store.tier import Tier


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "cfg"))
    monkeypatch.delenv("TORPOR_STORE", raising=False)
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> None:
        (tmp_path / "cfg" / "torpor").mkdir(parents=True, exist_ok=True)
        (tmp_path / "cfg" / "torpor" / "config.toml").write_text(text)

    return write


def test_kinds(config: Any, tmp_path: Path) -> None:
    for location, kind, place in (
        ("x/y", Folder, f"{tmp_path}/x/y"),
        ("plain", Folder, f"{tmp_path}/plain"),
        ("stripe:a,/b", Stripe, f"stripe:{tmp_path}/a,/b"),
        ("memory:m", Memory, "memory:m"),
        ("tier:f,/s", Tier, f"tier:{tmp_path}/f,/s"),
        ("tier:stripe:a,b,/s", Tier, f"tier:stripe:{tmp_path}/a,{tmp_path}/b,/s"),
        ("tier:f,stripe:a,b", Tier, f"tier:{tmp_path}/f,stripe:{tmp_path}/a,{tmp_path}/b"),
    ):
        store = open_store(location)
        assert isinstance(store.backend, kind)
        assert store.location == store.backend.place == place
        assert locations.absolute(store.location) == store.location


def test_names(config: Any, tmp_path: Path) -> None:
    config(
        'store = "behind"\n[stores.disk]\nlocation = "/d"\n'
        '[stores.behind]\nlocation = "tier:/f,disk"\n[stores.loop]\nlocation = "loop"\n'
    )
    assert locations.default() == "behind"
    assert open_store().backend.place == "tier:/f,/d"
    assert open_store("disk").backend.place == "/d"
    assert locations.absolute("disk") == "disk"
    assert open_store("./disk").backend.place == f"{tmp_path}/disk"
    with pytest.raises(UsageError, match="defined by itself"):
        open_store("loop")


def test_the_environment_goes_before_the_file(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config('store = "/from/file"')
    assert locations.default() == "/from/file"
    monkeypatch.setenv("TORPOR_STORE", "/from/environment")
    assert locations.default() == "/from/environment"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("store = ", "config.toml"),
        ("store = 3", "store has to be a string"),
        ("stroe = 'x'", "'stroe' is not a setting"),
        ("[stores.x]\nplace = 'y'", r"\[stores.x\] needs location"),
        ("stores = 3", "has to be tables"),
        ("encrypt_to = 'self'", "encrypt_to has to be a list of keys"),
        ("encrypt_to = ['self', 3]", "encrypt_to has to be a list of keys"),
        ("encrypt_to = ['']", "encrypt_to has to be a list of keys"),
    ],
)
def test_a_file_that_cannot_be_understood(config: Any, text: str, says: str) -> None:
    config(text)
    with pytest.raises(UsageError, match=says):
        settings.read()


@pytest.mark.parametrize("wrong", ["tier:x", "tier:,x", "tier:x,", "stripe:", "nothing:such", "nothing://such"])
def test_what_is_no_location(config: Any, wrong: str) -> None:
    with pytest.raises(UsageError) as failed:
        open_store(wrong)
    assert wrong.partition(":")[0] in str(failed.value)


def test_options_reach_the_back_end(onefile: Callable[[str], str], config: Any, tmp_path: Path) -> None:
    where = onefile(f"{tmp_path}/f.db")
    config(f'[stores.mine]\nlocation = "{where}"\ntimeout = 7.5\n[stores.bad]\nlocation = "{where}"\ntimeuot = 1\n')
    assert open_store("mine").backend._timeout == 7.5  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="timeuot"):
        open_store("bad")
    with pytest.raises(UsageError, match="whole path"):
        open_store("onefile:f.db")
    assert not os.path.exists(f"{tmp_path}/f.db")


def test_memory_is_shared_by_name(save: Any, check: Any) -> None:
    name = f"memory:{os.urandom(4).hex()}"
    save(open_store(name), "j", [b"chunk" * 100])
    check(open_store(name), {("j", 1): [b"chunk" * 100]})
    assert open_store(name + "other").backend.list("") == []
