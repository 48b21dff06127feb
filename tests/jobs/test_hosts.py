"""`torpor run --hosts`: here all hosts are addresses of one machine, and what is called in place of ssh runs its
command on it, with folders of the host's own. (With hosts that are apart, and ssh: tests/hosts.)"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import harness
import pytest

pytest.importorskip("nats")
HOSTS = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
SSH = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
export TORPOR_RUNTIME={folder}/run-$1 XDG_STATE_HOME={folder}/state-$1 HOSTNAME=$1
shift
exec sh -c "$*"
"""


class Over:
    """A job over hosts."""

    def __init__(self, bench: harness.Bench) -> None:
        self.bench = bench
        self.python = os.path.join(os.path.dirname(bench.account.torpor[0]), "python")
        self.rsh = f"{self.python} -m torpor rsh"
        path = f"{bench.folder}/ssh"
        with open(path, "w") as file:
            file.write(SSH.format(folder=bench.folder))
        os.chmod(path, 0o755)
        bench.env |= {"TORPOR_SSH": path, **self.env(HOSTS[0])}

    def env(self, host: str) -> dict[str, str]:
        folder = self.bench.folder
        return {"TORPOR_RUNTIME": f"{folder}/run-{host}", "XDG_STATE_HOME": f"{folder}/state-{host}"}

    def run(self, script: str, hosts: Sequence[str] = HOSTS, **options: str) -> harness.Running:
        return self.bench.run(["sh", "-c", script], flags=["--hosts", ",".join(hosts)])

    def on(self, host: str, *words: str) -> harness.Said:
        return self.bench.torpor(*words, env=self.env(host))

    def ended(self, job: harness.Running, status: int) -> None:
        assert job.finish() == status, job.trace()
        for host in HOSTS:
            assert self.on(host, "jobs").out == "no job is running\n"
        self.bench.gone("after the job has ended")


@pytest.fixture
def over(bench: harness.Bench) -> Over:
    return Over(bench)


@pytest.mark.diagonal
def test_saved_from_any_host_and_goes_on(over: Over) -> None:
    """A command on each of the others counts until the file is there; not a line is lost."""
    bench = over.bench
    loop = f"n=0; while ! [ -e {bench.go} ]; do n=$((n+1)); echo $n; sleep 0.02; done; echo $HOSTNAME; exit 3"
    count = 'n=0; while read x; do n=$((n+1)); [ "$x" = $n ] || echo "$1 $x"; [ "$x" != 5 ] || echo READY $1; done'
    parts = " ".join(f"{over.rsh} {host} '{loop}' | (set {host}; {count}) &" for host in HOSTS[1:])
    job = over.run(f"{parts} wait; exit 6")
    for host in HOSTS[1:]:
        job.wait_for(f"^READY {host}$")
    for number, host in enumerate(HOSTS, 1):
        assert [each["name"] for each in over.on(host, "jobs", "--json").json()] == [job.name]
        said = over.on(host, "checkpoint", job.name)
        assert said.status == 0 and f"saved {job.name}@{number}," in said.out, (said, job.trace())
        assert f"saved on 3 hosts: {', '.join(HOSTS)}" in said.err, said
    bench.tell()
    over.ended(job, 6)
    lines = set(re.sub(r"READY \S+\n", "", job.output()).splitlines())
    assert lines == {f"{host} {host}" for host in HOSTS[1:]}, job.trace()


@pytest.mark.exam
def test_the_program_has_the_streams_and_the_status(over: Over) -> None:
    read, write = os.pipe()
    os.write(write, b"one\ntwo\n")
    os.close(write)
    words = [*over.bench.account.torpor, "run", "--name", "x", "--hosts", ",".join(HOSTS[:2]), "--store"]
    said = over.bench.torpor(*words[len(over.bench.account.torpor) :], over.bench.store, "--", "sh", "-c",
                             f"cat; {over.rsh} {HOSTS[1]} 'pwd; exit 4'", stdin=read)  # fmt: skip
    os.close(read)
    assert said == (4, f"one\ntwo\n{over.bench.folder}\n", ""), said
    over.bench.gone("after the job has ended")


@pytest.mark.diagonal
def test_what_cannot_be_started_is_said_in_one_line_and_leaves_nothing(over: Over) -> None:
    def refused(*words: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        flags = ["run", "--name", "x", "--store", over.bench.store]
        said = over.bench.torpor(*flags, *words, env=env)
        assert said.out == "", said
        return said.status, said.err

    two = ["--hosts", ",".join(HOSTS[:2])]
    assert refused(*two, "--", "/no/such") == (127, "torpor: /no/such: No such file or directory\n")
    assert refused(*two, "--remote-torpor", "/no/torpor", "--", "true") == (
        1, f"torpor: {HOSTS[1]}: sh: 1: /no/torpor: not found\n")  # fmt: skip
    assert refused(*two, "--", "true", env={"TORPOR_SSH": "false"}) == (
        1, f"torpor: {HOSTS[1]}: ssh has ended with status 1\n")  # fmt: skip
    assert refused("--hosts", f"192.0.2.1,{HOSTS[1]}", "--", "true") == (
        2, "torpor: --hosts: the first host has to be this one, and 192.0.2.1 (192.0.2.1) is not\n")  # fmt: skip
    assert refused("--hosts", f"{HOSTS[1]},{HOSTS[1]}", "--", "true")[0] == 2
    for host in HOSTS[:2]:
        assert over.on(host, "jobs").out == "no job is running\n"
    harness.until(lambda: not harness.tagged(over.bench.tag), "nothing is left")
