"""Paths that are elsewhere now."""

from __future__ import annotations

import os

import pytest

from torpor.model.errors import UsageError
from torpor.model.path_map import PathMap


@pytest.mark.parametrize(
    ("rules", "path", "now"),
    [
        ([], "/a/b", "/a/b"),
        (["/a=/x"], "/a", "/x"),
        (["/a=/x"], "/a/b", "/x/b"),
        (["/a=/x"], "/ab", "/ab"),
        (["/a=/x"], "/c/a/b", "/c/a/b"),
        (["/a/=/x/"], "/a/b", "/x/b"),
        (["/a=/x", "/a/b=/y"], "/a/b/c", "/y/c"),
        (["/a/b=/y", "/a=/x"], "/a/bc", "/x/bc"),
        (["/a=/b", "/b=/a"], "/a/f", "/b/f"),
        (["/a=/b", "/b=/a"], "/b/f", "/a/f"),
        (["/=/x"], "/a/b", "/x/a/b"),
        (["/a=/"], "/a/b", "/b"),
        (["/a=/"], "/a", "/"),
        (["/a/f=/x/g"], "/a/f", "/x/g"),
        (["/a=/x=y"], "/a/b", "/x=y/b"),
    ],
)
def test_where_to_look(rules: list[str], path: str, now: str) -> None:
    assert PathMap.parse(rules)(path.encode()) == now.encode()


def test_relative_to_where_we_are() -> None:
    assert PathMap.parse(["/a=b"])(b"/a/f") == os.fsencode(os.getcwd()) + b"/b/f"


@pytest.mark.parametrize("wrong", [["a=/b"], ["/a"], ["/a="], ["=/b"], ["/a=/b", "/a/=/c"]])
def test_what_makes_no_sense(wrong: list[str]) -> None:
    with pytest.raises(UsageError, match="--map-path"):
        PathMap.parse(wrong)


def test_any_bytes() -> None:
    assert PathMap.parse([f"/{os.fsdecode(bytes([255]))}=/x"])(b"/\xff/f") == b"/x/f"


def test_nothing_to_do() -> None:
    assert not PathMap() and PathMap([(b"/a", b"/b")])
