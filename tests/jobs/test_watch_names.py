"""What name servers called the addresses that a job asks for stands in its ledger, and a policy can speak of it.

The jobs run in a network of their own, with a name server of ours (tests/programs/name_server.py). The programs look
some names up before they say READY, and more later.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import accounts
import harness
import pytest
from test_watch import entry
from toolchain import needs


class Inside(accounts.Account):
    """Who enters a network and its files first: that takes root, so the commands become the user by themselves."""

    def popen_options(self) -> dict[str, object]:
        return {}


@pytest.fixture
def resolving(bench: harness.Bench) -> Iterator[harness.Bench]:
    """A place for one test, where names are looked up at our name server."""
    if os.getuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter", "setpriv"))):
        pytest.skip("needs root, iproute2 and util-linux")
    files = {"resolv.conf": "nameserver 127.0.0.1\noptions timeout:5\n", "nsswitch.conf": "hosts: files dns\n"}
    for name, words in files.items():
        with open(f"{bench.folder}/{name}", "w") as file:
            file.write(words)
        os.chmod(file.name, 0o644)
    mounts = " && ".join(f"mount --bind {bench.folder}/{name} /etc/{name}" for name in files)
    out = bench.output_file()
    account = bench.account
    server = f"exec {account.python} {harness.script('name_server.py')}"
    with open(out, "ab") as file:
        bench.account = Inside(*account)
        place = bench.popen(
            ["unshare", "--net", "--mount", "sh", "-c", f"ip link set lo up && {mounts} && {server}"], stdout=file
        )
    harness.until(lambda: "READY" in harness.text(out) or place.poll() is not None, "the name server")
    assert place.poll() is None
    enter = ["nsenter", f"--net=/proc/{place.pid}/ns/net", f"--mount=/proc/{place.pid}/ns/mnt", "--"]
    become = ["setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups", "--"]
    bench.account = Inside(*account._replace(torpor=(*enter, *(become if account.uid else []), *account.torpor)))
    try:
        yield bench
    finally:
        bench.account = account


def command(kind: str, bench: harness.Bench) -> list[str]:
    if kind == "python":
        return [bench.account.python, harness.script("names.py"), bench.go, bench.go + ".end"]
    needs("gcc")
    return [harness.build("names.c", *(["-static"] if kind == "static" else [])), bench.go, bench.go + ".end"]


def called(bench: harness.Bench, name: str) -> dict[str, list[str]]:
    """The names that the ledger has, by address."""
    said: dict[str, Any] = bench.must("inspect", name, "--services", "--json", "--store", bench.store).json()
    # The resolver connects UDP sockets to all addresses of a name, to see which way they are.
    return {
        each["host"]: each["names"] for each in said["services"] if (each["protocol"], each["port"]) == ("tcp", 7000)
    }


BEFORE = {"127.53.0.1": ["licence.test", "other.test"], "127.53.0.4": ["before.test"]}


@pytest.mark.diagonal
@pytest.mark.parametrize(
    "kind", ["c", pytest.param("static", marks=pytest.mark.exam), pytest.param("python", marks=pytest.mark.exam)]
)
def test_names_that_were_looked_up(resolving: harness.Bench, kind: str) -> None:
    """They outlive the holder, the supervisor, and the job; and decide what a policy says."""
    bench = resolving
    bench.policy()
    job = bench.run(command(kind, bench), flags=["--watch"])
    job.ready()
    found = called(bench, job.name)
    (two,) = set(found) - set(BEFORE)
    assert found == {**BEFORE, two: ["two.test"]} and two in ("127.53.0.2", "127.53.0.3")
    assert "licence.test, other.test" in bench.must("inspect", job.name, "--services").out
    holder = entry(bench, job.name)["holder"][0]
    os.kill(holder, signal.SIGKILL)
    harness.until(lambda: entry(bench, job.name)["holder"][0] != holder, "another holder")
    assert called(bench, job.name) == found
    os.kill(entry(bench, job.name)["supervisor"][0], signal.SIGKILL)
    assert job.popen is not None
    job.popen.wait(harness.PATIENCE)
    saved = bench.checkpoint(job)
    first = f"{job.name}@{saved['number']}"
    bench.must("stop", job.name)
    assert called(bench, first) == found

    for name in ("licence.test", "other.*"):
        bench.policy(f'[[service]]\nname = "{name}"\naction = "refuse"\n[[service]]\naction = "reset"\n')
        said = bench.torpor("restart", first, "--store", bench.store)
        assert said.status != 0 and "127.53.0.1:7000 (licence.test, other.test): the policy refuses" in said.err, said
    bench.policy('[[service]]\nname = "later.test"\naction = "refuse"\n[[service]]\naction = "reset"\n')
    for _ in range(2):
        job = bench.restart(first, detach=True)
        assert called(bench, job.name) == found
        first = f"{job.name}@{bench.checkpoint(job)['number']}"
        bench.must("stop", job.name)
    # A name that it looked up before it was saved, and asks for only now.
    job = bench.restart(first, detach=True)
    bench.tell()
    job.wait_for("^DONE$")
    assert called(bench, job.name) == {**found, "127.53.0.5": ["later.test"], "127.53.0.6": ["after.test"]}
    first = f"{job.name}@{bench.checkpoint(job)['number']}"
    with open(bench.go + ".end", "w"):
        pass
    job.verified()
    said = bench.torpor("restart", first, "--store", bench.store)
    assert said.status != 0 and "127.53.0.5:7000 (later.test): the policy refuses" in said.err, said


@pytest.mark.exam
def test_names_are_not_looked_for_unasked(resolving: harness.Bench) -> None:
    """`--watch=connect`, and a policy that speaks of no names; one that does has them looked for."""
    bench = resolving
    bench.policy()
    with open(bench.go + ".end", "w"):
        pass
    seat = '[[service]]\n{}action = "seat"\nseat = "s"\n[seats.s]\nprovider = "command"\n' + (
        'command = ["sh", "-c", "echo OK; cat"]\nat_start = false\n'
    )
    file = os.path.join(bench.folder, "policy.toml")
    for flags, policy, wanted in (
        (["--watch=connect"], "", []),
        (["--policy", file], seat.format(""), []),
        (["--policy", file], seat.format('name = "x"\n'), ["licence.test", "other.test"]),
        (["--watch", "--policy", file], seat.format(""), ["licence.test", "other.test"]),
    ):
        with open(file, "w") as into:
            into.write(policy)
        os.chmod(file, 0o644)
        bench.untell()
        job = bench.run(command("c", bench), flags=flags)
        job.ready()
        assert called(bench, job.name)["127.53.0.1"] == wanted, flags
        job.verified()


@pytest.mark.exam
def test_a_running_job_whose_names_are_seen_from_then_on(resolving: harness.Bench) -> None:
    bench = resolving
    bench.policy()
    job = bench.run(command("python", bench))
    job.ready()
    bench.must("watch", job.name, "--no-new-privs")
    bench.tell()
    job.wait_for("^DONE$")
    assert called(bench, job.name) == {"127.53.0.5": [], "127.53.0.6": ["after.test"]}
    with open(bench.go + ".end", "w"):
        pass
    job.verified()
