"""What a part of a job over hosts may be called by, where the job's own name was not free yet when it began."""

from __future__ import annotations

import os

import pytest

from torpor.model.errors import NotFound
from torpor.supervise import registry
from torpor.supervise.registry import Entry, Pid


def claim(part: str, names: tuple[str, ...]) -> Entry:
    root = Pid.of(os.getpid())
    found = registry.claim(Entry(name="", part=part, root=root, argv=("sh",), store=""), iter(names), lambda _: False)
    assert found is not None
    return registry.update(found)


def test_a_part_is_found_by_the_name_of_its_job(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    monkeypatch.setenv("TORPOR_RUNTIME", os.fspath(tmp_path))
    os.chmod(tmp_path, 0o700)
    old = claim("h3", ("heat", "heat.h3"))
    new = claim("h3", ("heat", "heat.h3"))
    assert (old.name, new.name) == ("heat", "heat.h3")
    assert registry.find("heat").name == "heat", "a name that is somebody's is nobody else's"
    registry.release(old)
    assert registry.find("heat").folder == registry.find("heat.h3").folder == new.folder
    with pytest.raises(NotFound):
        registry.find("heat.h4")
    registry.release(new)
    with pytest.raises(NotFound):
        registry.find("heat")
