"""Fixtures for the links: a driver that polls, and worlds in which several hosts have a link."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import worlds


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for time to pass is tried without servers and with three in `make test`, with one in `make exam`."""
    for item in items:
        slow = item.path.name in ("test_lease.py", "test_members.py")
        if slow and hasattr(item, "callspec") and item.callspec.params.get("world") == "one":
            item.add_marker(pytest.mark.exam)


@pytest.fixture
def folder() -> Iterator[str]:
    """A folder of this test's own, on a real disk."""
    path = tempfile.mkdtemp(prefix="torpor-link-", dir="/var/tmp")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Callable[[int], worlds.Servers]]:
    """Servers, one or three of them, that the tests of a module share and do no harm to."""
    path = tempfile.mkdtemp(prefix="torpor-link-", dir="/var/tmp")
    running: dict[int, worlds.Servers] = {}

    def get(count: int) -> worlds.Servers:
        if count not in running:
            running[count] = worlds.Servers(os.path.join(path, str(count)), count)
        return running[count]

    try:
        yield get
    finally:
        for each in running.values():
            each.close()
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=["direct", "one", "three"])
def world(request: pytest.FixtureRequest, cluster: Callable[[int], worlds.Servers]) -> Iterator[worlds.World]:
    """Within a process, over one server, and over a cluster of three. Each test is a job of its own."""
    if request.param == "direct":
        made: worlds.World = worlds.Direct()
    else:
        made = worlds.Nats(cluster(1 if request.param == "one" else 3))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def one(folder: str) -> Iterator[worlds.Nats]:
    """One server, to be harmed."""
    yield from _harmed(folder, 1)


@pytest.fixture
def three(folder: str) -> Iterator[worlds.Nats]:
    """A cluster of three, to be harmed."""
    yield from _harmed(folder, 3)


def _harmed(folder: str, count: int) -> Iterator[worlds.Nats]:
    servers = worlds.Servers(os.path.join(folder, "servers"), count)
    try:
        made = worlds.Nats(servers)
        try:
            yield made
        finally:
            made.close()
    finally:
        servers.close()
