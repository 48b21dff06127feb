"""A job of several parts, each with a supervisor and a member process of its own, here all on one machine over one real
NATS server: saved as a whole or not at all, whoever dies on the way."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator

import harness
import pytest

pytest.importorskip("nats")

from torpor.coordinate.phases import Limits
from torpor.link import secret as secrets
from torpor.link import server
from torpor.supervise import part as parts

HASTY = Limits(repeat=0.3, silence=2.0, host=3.0, ending=5.0, commit=5.0)


def counted(path: str) -> list[int]:
    """The numbers that a program has written; they follow one another, or the test fails."""
    numbers = [int(line) for line in harness.text(path).split("\n")[:-1] if line.isdigit()]
    assert numbers == list(range(1, len(numbers) + 1)), numbers
    return numbers


class Whole:
    """A job of parts."""

    def __init__(self, bench: harness.Bench, names: str) -> None:
        self.bench, self.names = bench, names.split()
        self.supervisors: dict[str, subprocess.Popen[bytes]] = {}
        self.servers: list[server.Server] = []
        self.python = os.path.join(os.path.dirname(bench.account.torpor[0]), "python")

    def start(self, *more: str, checkpoint: str = "", breaks: str = "", upkeep: str = "") -> None:
        """Every run of a job has a secret and servers of its own."""
        secret = secrets.fresh()
        (port,) = server.free_ports("127.0.0.1", 1)
        node = server.Node(self.names[0], "127.0.0.1", port)
        self.close()
        self.servers.append(server.start(f"{self.bench.folder}/nats-{port}", secret, node))
        for name in self.names:
            argv = [self.python, harness.script("tick.py"), self.out(name), *(more if name == self.names[-1] else ())]
            part = parts.Part(
                job="train", part=name, first=name == self.names[0], address="127.0.0.1",
                hosts=dict.fromkeys(self.names, "127.0.0.1"), nodes=(node,), store=self.bench.store,
                argv=tuple(map(os.fsencode, argv)), checkpoint=checkpoint, limits=HASTY, upkeep=upkeep,
                lease=2.0, silent=3.0,
            )  # fmt: skip
            with open(self.err(name), "w") as err:
                self.supervisors[name] = self.bench.popen(
                    [self.python, harness.script("supervised.py")],
                    stdin=subprocess.PIPE, stdout=err, stderr=err, env=self.env(name) | {"TORPOR_TEST_BREAKS": breaks},
                )  # fmt: skip
            stdin = self.supervisors[name].stdin
            assert stdin is not None
            stdin.write(secret.line() + parts.line(part))
            stdin.close()

    def ready(self) -> None:
        for name in self.names:
            self.until(lambda name=name: "READY" in harness.text(self.out(name)), f"{name} runs")  # type: ignore[misc]
            self.until(lambda name=name: self.entry(name)["root"][0], f"{name} is registered")  # type: ignore[misc]

    def until(self, condition: object, what: str) -> None:
        assert callable(condition)
        try:
            harness.until(condition, what)
        except harness.Failed as failed:
            said = {name: harness.text(self.err(name)) for name in self.names}
            log = harness.text(f"{self.servers[0].folder}/server.log")[-2000:]
            raise harness.Failed(f"{failed}; {said}; {self.bench.history[-3:]}; {log}") from None

    def out(self, name: str) -> str:
        return f"{self.bench.folder}/{name}.out"

    def err(self, name: str) -> str:
        return f"{self.bench.folder}/{name}.err"

    def env(self, name: str) -> dict[str, str]:
        return {**self.bench.env, "TORPOR_RUNTIME": f"{self.bench.folder}/run-{name}"}

    def entry(self, name: str) -> dict[str, list[int]]:
        found: dict[str, list[int]] = json.loads(
            harness.text(f"{self.bench.folder}/run-{name}/train/info.json") or '{"root": [0]}'
        )
        return found

    def member(self, name: str) -> int:
        """Its member process; 0 if there is none just now."""
        found = [pid for pid in harness.children(self.supervisors[name].pid)
                 if "torpor.supervise.member" in harness.text_of_proc(f"/proc/{pid}/cmdline")]  # fmt: skip
        return found[0] if found else 0

    def torpor(self, name: str, *words: str) -> harness.Said:
        return self.bench.torpor(*words, env=self.env(name))

    def checkpoints(self) -> dict[int, list[str]]:
        """Number, and names of parts, of all that exist."""
        if not os.path.exists(self.bench.store):
            return {}
        said = self.bench.must("list", "--store", self.bench.store, "--json").json()
        return {each["number"]: sorted(each["parts"]) for each in said}

    def run_on(self) -> None:
        """All programs go on."""
        for name in self.names:
            before = len(counted(self.out(name)))
            self.until(lambda name=name, n=before: len(counted(self.out(name))) > n + 3, f"{name} goes on")  # type: ignore[misc]

    def saved(self, name: str, *words: str) -> str:
        """It can be saved, asked for from that part; the checkpoint."""
        said = self.torpor(name, "checkpoint", "train", *words)
        errors = {each: harness.text(self.err(each)) for each in self.names}
        assert said.status == 0 and said.out.startswith("saved train@"), (said, errors)
        return said.out.split()[1].rstrip(",")

    def finish(self) -> None:
        """The first program ends, and with it all."""
        os.kill(self.entry(self.names[0])["root"][0], signal.SIGUSR1)
        assert self.supervisors[self.names[0]].wait(harness.PATIENCE) == 7
        assert harness.text(self.out(self.names[0])).endswith("OK\n")
        for name in self.names[1:]:
            assert self.supervisors[name].wait(harness.PATIENCE) == -signal.SIGTERM
        for name in self.names:
            assert not os.path.exists(f"{self.bench.folder}/run-{name}/train")
        self.until(lambda: not harness.tagged(self.bench.tag), "nothing is left")

    def close(self) -> None:
        for process in self.supervisors.values():
            process.kill()
            process.wait()
        while self.servers:
            self.servers.pop().stop()


@pytest.fixture
def whole(bench: harness.Bench) -> Iterator[Whole]:
    with contextlib.closing(Whole(bench, "h1 h2")) as made:
        yield made


@pytest.mark.diagonal
def test_saved_from_either_and_restarted_twice(whole: Whole) -> None:
    whole.start()
    whole.ready()
    for name in whole.names:
        whole.saved(name)
    assert whole.checkpoints() == {1: ["h1", "h2"], 2: ["h1", "h2"]}
    whole.run_on()
    assert whole.saved("h2", "--stop") == "train@3"
    for name in whole.names:
        assert whole.supervisors[name].wait(harness.PATIENCE) == 75, harness.text(whole.err(name))
        assert not os.path.exists(f"{whole.bench.folder}/run-{name}/train")
    log = [json.loads(line) for line in harness.text(f"{whole.bench.home}/.local/state/torpor/log.jsonl").splitlines()]
    named = [line["checkpoint"] for line in log if line["event"] == "checkpoint" and line["outcome"] == "done"]
    assert named == ["train@1", "train@2", "train@3"], log
    assert sorted(line["part"] for line in log if line["event"] == "part") == ["h1"] * 3 + ["h2"] * 3, log
    before = {name: len(counted(whole.out(name))) for name in whole.names}
    whole.start(checkpoint="train@3")
    whole.until(lambda: all(len(counted(whole.out(n))) > before[n] + 3 for n in whole.names), "it has come back")
    again = whole.saved("h2", "--stop")
    for process in whole.supervisors.values():
        assert process.wait(harness.PATIENCE) == 75
    whole.start(checkpoint=again)
    whole.ready()
    whole.run_on()
    whole.finish()


@pytest.mark.diagonal
def test_what_cannot_be_saved_is_named_with_its_host(whole: Whole) -> None:
    lease = f"{whole.bench.folder}/leased"
    whole.start(lease)
    whole.ready()
    for name in whole.names:
        said = whole.torpor(name, "checkpoint", "train")
        assert said.status == 1 and said.err.count("\n") == 1, said
        assert "h2: " in said.err and "lease" in said.err and "(survey)" in said.err, said
    assert not whole.checkpoints()
    whole.run_on()
    with open(f"{lease}.let", "w"):
        pass
    whole.run_on()
    whole.saved("h1")
    whole.finish()


@pytest.mark.diagonal
def test_a_restart_that_fails_on_one_host_leaves_nothing_on_any(whole: Whole) -> None:
    whole.start()
    whole.ready()
    whole.saved("h1", "--stop")
    for process in whole.supervisors.values():
        assert process.wait(harness.PATIENCE) == 75
    whole.start(checkpoint="train@1", breaks="h2")
    for name in whole.names:
        assert whole.supervisors[name].wait(harness.PATIENCE) == 1
    assert "h2: the test wants it so" in harness.text(whole.err("h1"))
    whole.until(lambda: not harness.tagged(whole.bench.tag), "nothing is left")


@pytest.mark.exam
def test_it_is_saved_unasked(whole: Whole) -> None:
    """By the first part only: all others have been told the same."""
    whole.start(upkeep='{"every": 1.0, "keep": 2}')
    whole.ready()
    whole.until(lambda: max(whole.checkpoints(), default=0) >= 4, "four checkpoints")
    whole.until(lambda: len(whole.checkpoints()) <= 3, "two are kept")
    log = [json.loads(line) for line in harness.text(f"{whole.bench.home}/.local/state/torpor/log.jsonl").splitlines()]
    assert {line["why"] for line in log if line["event"] == "checkpoint"} == {"every"}
    times = [line for line in log if line["event"] == "checkpoint"]
    assert [line["outcome"] for line in times] == ["done"] * len(times), times
    whole.run_on()
    whole.finish()


@pytest.mark.exam
def test_member_processes_are_killed_at_any_moment(whole: Whole) -> None:
    """Also the one that coordinates: the job runs on, and is saved the next time."""
    whole.start()
    whole.ready()
    chance = random.Random(5)
    for round_ in range(4):
        victim = whole.names[round_ % 2]
        asker = whole.bench.popen(
            [*whole.bench.account.torpor, "checkpoint", "train"], env=whole.env(chance.choice(whole.names)),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(chance.uniform(0.1, 0.8))
        pid = whole.member(victim)
        if pid:
            os.kill(pid, signal.SIGKILL)
        asker.wait(harness.PATIENCE)
        whole.run_on()
    whole.until(lambda: all(map(whole.member, whole.names)), "there are member processes again")
    whole.until(lambda: whole.torpor("h1", "checkpoint", "train").status == 0, "it can be saved")
    assert all(found == ["h1", "h2"] for found in whole.checkpoints().values())
    whole.run_on()
    whole.finish()


@pytest.mark.diagonal
def test_a_stopped_job_to_which_nobody_speaks_is_let_go(whole: Whole) -> None:
    """The member process of one host does not move any more while the job is stopped: both hosts let it go."""
    whole.start()
    whole.ready()
    whole.saved("h1")
    root = whole.entry("h2")["root"][0]

    def tracer() -> bool:
        return "\nTracerPid:\t0\n" not in harness.text_of_proc(f"/proc/{root}/status")

    frozen = False
    for _ in range(20):
        asker = whole.bench.popen(
            [*whole.bench.account.torpor, "checkpoint", "train"], env=whole.env("h1"),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while asker.poll() is None and not tracer():
            pass
        os.kill(whole.member("h2"), signal.SIGSTOP)
        frozen = tracer()
        if frozen:
            break
        os.kill(whole.member("h2"), signal.SIGCONT)
        asker.wait(harness.PATIENCE)
    assert frozen
    whole.until(lambda: not tracer(), "it is let go")
    whole.run_on()
    os.kill(whole.member("h2"), signal.SIGCONT)
    asker.wait(harness.PATIENCE)
    whole.until(lambda: whole.torpor("h2", "checkpoint", "train").status == 0, "it can be saved")
    whole.finish()


@pytest.mark.exam
def test_a_host_whose_supervisor_is_dead_is_named(whole: Whole) -> None:
    whole.start()
    whole.ready()
    whole.supervisors["h2"].kill()
    whole.supervisors["h2"].wait()
    whole.until(lambda: "h2 cannot be reached" in _why(whole), "h2 is missed")
    said = whole.torpor("h2", "checkpoint", "train")
    assert said.status == 1 and "part h2 has died" in said.err and not whole.checkpoints(), said
    whole.run_on()
    os.kill(whole.entry("h2")["root"][0], signal.SIGKILL)
    os.kill(whole.entry("h1")["root"][0], signal.SIGUSR1)
    assert whole.supervisors["h1"].wait(harness.PATIENCE) == 7


def _why(whole: Whole) -> str:
    said = whole.torpor("h1", "checkpoint", "train")
    return said.err if said.status else ""
