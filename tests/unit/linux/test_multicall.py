"""Tables of system calls of our own."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator

import pytest

from torpor.linux import masks, multicall
from torpor.linux.arch.x86_64 import NR
from torpor.linux.multicall import Room, Table


@pytest.fixture(params=["by code of ours", "one by one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(multicall, "_known", None)
    if request.param == "one by one":
        monkeypatch.setattr(masks, "masked", lambda name: name == "multicall")
    yield


@pytest.mark.usefixtures("way")
def test_all_are_made_in_order_whatever_comes_of_any() -> None:
    source, target = os.pipe()
    try:
        room = Room(3, 8)
        room.memory[:3] = b"abc"
        table = Table(
            [
                (NR.write, target, room.at(0), 3),
                (NR.write, -1, room.at(0), 3),
                (NR.read, source, room.at(1, 1), 2),
                (NR.read, source, room.at(2), 8),
                (NR.getppid,),
            ]
        )
        assert table.make() == [3, -errno.EBADF, 2, 1, os.getppid()]
        assert room.bytes(1, 0, 8) == b"\0ab\0\0\0\0\0" and room.word(2) == ord("c")
        assert table.make(waits=True) == [3, -errno.EBADF, 2, 1, os.getppid()], "they may be made again"
    finally:
        os.close(source)
        os.close(target)


@pytest.mark.usefixtures("way")
def test_six_arguments_and_large_ones_arrive() -> None:
    room = Room(1, 4096)
    room.memory[:2] = b"\x5a" * 2
    size, high = 1 << 20, (1 << 64) - 1
    at = Table([(NR.mmap, 0, size, 3, 0x22, high, 0)]).make()[0]
    assert at > 1 << 32
    assert Table([(NR.munmap, at, size), (NR.munmap, high & ~4095, size)]).make() == [0, -errno.EINVAL]


@pytest.mark.usefixtures("way")
def test_others_go_on_while_one_waits() -> None:
    source, target = os.pipe()
    try:
        other = threading.Timer(0.01, lambda: os.write(target, b"x"))
        other.start()
        room = Room(1, 8)
        assert Table([(NR.read, source, room.at(0), 1)]).make(waits=True) == [1]
        other.join()
    finally:
        os.close(source)
        os.close(target)


def test_a_table_of_nothing() -> None:
    assert Table([]).make() == []
