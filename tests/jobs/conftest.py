"""Fixtures for the tests of whole jobs: `account` (user and root), `via` (run and pid), `bench`."""

from __future__ import annotations

import fcntl
import functools
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import accounts
import catalogue
import harness

# Byte code makes a start of torpor fast; the environment of the tests must not switch it off.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.pop("XDG_RUNTIME_DIR", None)
os.environ.pop("TORPOR_STORE", None)


@functools.cache
def _ordinary() -> accounts.Account | str:
    return accounts.own() if os.getuid() else accounts.ordinary()


@pytest.fixture(params=["user", "root"])
def account(request: pytest.FixtureRequest) -> accounts.Account:
    """The user that the job runs as."""
    if request.param == "root":
        if os.getuid():
            pytest.skip("needs root")
        return accounts.own()
    found = _ordinary()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def user() -> accounts.Account:
    """An ordinary user only."""
    found = _ordinary()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def root() -> accounts.Account:
    """Root only."""
    if os.getuid():
        pytest.skip("needs root")
    return accounts.own()


@pytest.fixture(params=["run", "pid"])
def via(request: pytest.FixtureRequest) -> str:
    """How the job is taken: started by `torpor run`, or attached to with `--pid`."""
    return str(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`@pytest.mark.diagonal`: every account and every way is met in `make test`, all pairs of them in `make exam`.
    `@pytest.mark.crosswise`: the same, and every second program is met in the two other pairs."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        pair = params.get("account"), params.get("via", "run" if params.get("account") == "user" else "other")
        straight = pair in (("user", "run"), ("root", "pid"))
        if item.get_closest_marker("crosswise") and catalogue.odd(params["program"]):
            straight = not straight
        if (item.get_closest_marker("diagonal") or item.get_closest_marker("crosswise")) and not straight:
            item.add_marker(pytest.mark.exam)


def _bench(who: accounts.Account) -> Iterator[harness.Bench]:
    folder = tempfile.mkdtemp(prefix="torpor-test-", dir="/var/tmp")
    os.chmod(folder, 0o755)
    place = harness.Bench(who, os.path.join(folder, "b"))
    try:
        yield place
    finally:
        place.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bench(account: accounts.Account) -> Iterator[harness.Bench]:
    """A place for one test; at its end nothing of it is left, whatever happened."""
    yield from _bench(account)


@pytest.fixture
def user_bench(user: accounts.Account) -> Iterator[harness.Bench]:
    yield from _bench(user)


@pytest.fixture
def root_bench(root: accounts.Account) -> Iterator[harness.Bench]:
    yield from _bench(root)


@pytest.fixture
def one_walk() -> Iterator[None]:
    """For tests that walk to pids: each walk takes numbers from under the feet of others, so there is one at a time."""
    os.makedirs(accounts.STAGE, mode=0o755, exist_ok=True)
    with open(os.path.join(accounts.STAGE, "walking.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_leftovers() -> Iterator[None]:
    """Orphans are adopted; shared-memory files that programs made and could not remove are deleted."""
    harness.adopt_orphans()
    yield
    for path in glob.glob("/dev/shm/torpor-test.*"):
        pid = path.split(".")[1]
        if not os.path.exists(f"/proc/{pid}"):
            os.unlink(path)
