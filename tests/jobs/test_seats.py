"""Jobs that use what is outside of them: a restart is honest towards it. The licence server, what is wrapped around it
and the licensed programs are tests/programs/licence_server.py, checkout.py, licensed.c (static) and licensed.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import harness
import pytest
from toolchain import needs

TTL = "2s"


class Licences:
    """A licence server that runs."""

    def __init__(self, bench: harness.Bench, seats: int) -> None:
        self.folder = os.path.join(bench.folder, "licences")
        os.makedirs(self.folder)
        words = [sys.executable, harness.script("licence_server.py"), self.folder, str(seats)]
        # Not of the job, nor of the bench: killing those leaves it alone.
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd="/")
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline().split()[1])

    def log(self) -> list[str]:
        return harness.text(f"{self.folder}/server.log").splitlines()

    def expire(self, yes: bool) -> None:
        path = f"{self.folder}/expired"
        if yes:
            with open(path, "w"):
                pass
        else:
            os.unlink(path)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def licences(bench: harness.Bench) -> Iterator[Licences]:
    found = Licences(bench, 2)
    yield found
    found.close()


def command(kind: str, bench: harness.Bench, port: int) -> list[str]:
    if kind == "c":
        needs("gcc")
        return [harness.build("licensed.c", "-static"), bench.go, "0", str(port)]
    return [bench.account.python, harness.script("licensed.py"), bench.go, str(port)]


def napping(bench: harness.Bench) -> list[str]:
    return [bench.account.python, "-c", "import time; print('READY', flush=True); time.sleep(1000)"]


def checkout(bench: harness.Bench, licences: Licences, more: str = "") -> str:
    """A policy under which the server's seats have to be had."""
    words = json.dumps([bench.account.python, harness.script("checkout.py"), str(licences.port)])
    return (
        f'[[service]]\naddress = "127.0.0.1"\nport = {licences.port}\naction = "seat"\nseat = "sim"\n'
        f'[seats.sim]\nprovider = "command"\ncommand = {words}\nat_start = false\n{more}'
    )


def written(bench: harness.Bench, name: str, text: str) -> str:
    path = os.path.join(bench.folder, name)
    with open(path, "w") as file:
        file.write(text)
    return path


def audit(bench: harness.Bench, event: str) -> list[dict[str, Any]]:
    lines = harness.text(os.path.join(bench.home, ".local/state/torpor/log.jsonl")).splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


def refused(bench: harness.Bench, name: str, *words: str) -> str:
    """The one line with which a restart is refused; the checkpoint stays what it was."""
    before = bench.must("list", "--json", "--store", bench.store).out
    said = bench.torpor("restart", name, "--store", bench.store, *words)
    assert said.status == 1 and said.err.count("\n") <= 2, said
    assert bench.must("list", "--json", "--store", bench.store).out == before
    return said.err


@pytest.mark.diagonal
@pytest.mark.parametrize("kind", ["c", pytest.param("python", marks=pytest.mark.exam)])
def test_a_licence_that_expired_between_checkpoint_and_restart(
    bench: harness.Bench, licences: Licences, kind: str
) -> None:
    """(a) of issue 6: the program asks once at the start and never again."""
    job = bench.run(command(kind, bench, licences.port), flags=["--watch"])
    job.ready()
    bench.checkpoint(job, "--stop")
    job.finish()
    name, where = f"{job.name}@1", f"127.0.0.1:{licences.port}"
    said = refused(bench, name)
    assert where in said and "no policy says what it is" in said, said
    policy = written(bench, "p.toml", checkout(bench, licences))
    told = bench.torpor("policy", "explain", name, "--store", bench.store, "--json")
    (service,) = told.json()["services"]
    assert told.status == 1 and service["action"] == "ask" and service["service"].startswith(where), told
    told = bench.must("policy", "explain", name, "--store", bench.store, "--policy", policy)
    assert "seat sim" in told.out and "seats: sim (command)" in told.out, told
    drilled = bench.torpor("drill", name, "--store", bench.store)
    assert drilled.status == 1 and "no policy says what it is" in drilled.out + drilled.err, drilled
    licences.expire(True)
    said = refused(bench, name, "--policy", policy)
    assert "no seat sim is to be had: the licence has expired" in said, said
    bench.gone("after the restart was refused")
    licences.expire(False)
    again = bench.restart(name, "--policy", policy, detach=True)
    assert licences.log()[-1] == f"CHECKOUT {job.name} OK"
    bench.checkpoint(again)
    bench.kill()
    harness.until(lambda: licences.log()[-1] == f"BACK {job.name}", "the seat given back")
    # A second generation: the policy is sealed into the checkpoint, and holds without being named.
    licences.expire(True)
    assert "has expired" in refused(bench, f"{job.name}@2")
    licences.expire(False)
    last = bench.restart(f"{job.name}@2")
    last.verified()
    harness.until(lambda: licences.log()[-1] == f"BACK {job.name}", "the seat given back")
    bench.gone("after the licensed job has ended")
    asked = audit(bench, "policy")
    assert {(line["do"], line["outcome"]) for line in asked} == {("ask", "refused"), ("seat", "done")}
    done = [(line["do"], line["outcome"]) for line in audit(bench, "seat")]
    assert done.count(("acquire", "refused")) == 2 and ("acquire", "done") in done and ("release", "done") in done


def pool(bench: harness.Bench, count: int, more: str = "") -> str:
    bench.must("seats", "create", "sims", "--count", str(count), "--ttl", TTL, "--store", bench.store)
    return written(
        bench, "pool.toml",
        f'[[service]]\nprogram = "*"\naction = "seat"\nseat = "sim"\n'
        f'[seats.sim]\nprovider = "pool"\npool = "sims"\nstore = "{bench.store}"\n{more}',
    )  # fmt: skip


def taken(bench: harness.Bench) -> list[str]:
    said = bench.must("seats", "status", "sims", "--json", "--store", bench.store).json()
    return sorted(holder["job"] for holder in said["holders"])


@pytest.mark.diagonal
@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.exam)])
def test_more_saved_jobs_than_seats(bench: harness.Bench, count: int) -> None:
    """(b) of issue 6: all seats in use, the next one is told why, and goes on as soon as a seat is free."""
    policy = pool(bench, count)
    names: list[str] = []
    for day in range(2):
        for _ in range(count):
            job = bench.run(napping(bench), flags=["--policy", policy])
            job.ready()
            names.append(job.name)
            if day == 1 and len(names) == 2 * count:
                said = bench.torpor("run", "--store", bench.store, "--policy", policy, "--", "true")
                assert said.status == 1 and f"all {count} seats of sims are taken" in said.err, said
        assert taken(bench) == sorted(names[-count:])
        for name in names[-count:]:
            bench.must("checkpoint", name, "--stop", "--store", bench.store)
        assert taken(bench) == []
    for name in names[:count]:
        bench.must("restart", name, "--detach", "--store", bench.store)
    assert taken(bench) == sorted(names[:count])
    late = names[count:]
    said = refused(bench, late[0])
    assert f"all {count} seats of sims are taken" in said and f"{names[0]} on " in said, said
    waiting = [bench.restart(name, "--wait", "100s") for name in late]
    harness.until(lambda: all("waiting for a seat sim" in harness.text(job.out + ".err") for job in waiting), "waiting")
    assert taken(bench) == sorted(names[:count])
    for name in names[:count]:
        bench.must("stop", name)
    harness.until(lambda: taken(bench) == sorted(late), "the seats of those that have ended")
    for job, name in zip(waiting, late):
        bench.must("stop", name)
        job.finish()
    bench.gone("after all jobs have ended")
    harness.until(lambda: taken(bench) == [], "their seats")  # a supervisor waits for a moment only


def entry(bench: harness.Bench, name: str) -> dict[str, Any]:
    """The job as it stands in the registry."""
    path = f"/tmp/torpor-{bench.account.uid}/{name}/info.json"
    found: dict[str, Any] = json.loads(harness.text(path))
    return found


@pytest.mark.exam
def test_a_lost_seat_pauses_the_job_and_it_goes_on_when_it_is_back(user_bench: harness.Bench) -> None:
    bench, licences = user_bench, Licences(user_bench, 1)
    try:
        policy = written(bench, "p.toml", checkout(bench, licences, 'grace = "1s"\n').replace("at_start = false\n", ""))
        job = bench.run(command("c", bench, licences.port), flags=["--policy", policy])
        root = int(job.wait_for(r"^READY pid \d+$").split()[2])
        assert licences.log()[0] == f"CHECKOUT {job.name} OK"
        licences.expire(True)
        (holder,) = [
            p for p in harness.tagged(bench.tag) if "checkout.py" in harness.text_of_proc(f"/proc/{p}/cmdline")
        ]
        os.kill(holder, signal.SIGKILL)
        harness.until(lambda: harness.state_of(root) == "T", "the pause")
        told = harness.text(job.out + ".err")
        assert f"the seat sim of {job.name} is lost" in told and "is paused until it has its seat sim again" in told
        # It can be saved all the same, and is paused again.
        bench.checkpoint(job)
        harness.until(lambda: harness.state_of(root) == "T", "the pause")
        licences.expire(False)
        harness.until(lambda: harness.state_of(root) != "T", "the end of the pause")
        bench.kill()
        last = bench.restart(f"{job.name}@1")
        last.verified()
        bench.gone("after the licensed job has ended")
        assert {"pause", "resume"} <= {line["do"] for line in audit(bench, "seat")}
    finally:
        licences.close()


@pytest.mark.exam
def test_a_seat_outlives_those_who_keep_it(user_bench: harness.Bench) -> None:
    """Keeper and supervisor are killed; as long as the job runs and one of them lives, the seat is its own."""
    bench = user_bench
    policy = pool(bench, 1)
    job = bench.run(napping(bench), flags=["--policy", policy])
    job.ready()
    assert taken(bench) == [job.name]
    keeper = entry(bench, job.name)["keeper"][0]
    os.kill(keeper, signal.SIGKILL)
    harness.until(lambda: entry(bench, job.name)["keeper"][0] not in (0, keeper), "another keeper")
    saved = bench.checkpoint(job)
    assert saved["processes"] == 1
    os.kill(entry(bench, job.name)["supervisor"][0], signal.SIGKILL)
    assert job.popen is not None
    job.popen.wait()
    for _ in range(2):  # longer than a seat is kept for somebody who is not heard of
        said = bench.torpor("run", "--store", bench.store, "--policy", policy, "--wait", "1.5s", "--", "true")
        assert said.status == 1 and "seats of sims are taken" in said.err, said
        assert taken(bench) == [job.name]
    bench.must("stop", job.name)
    harness.until(lambda: taken(bench) == [], "the seat given back")


@pytest.mark.exam
def test_a_job_that_crashes_keeps_its_seat(user_bench: harness.Bench) -> None:
    bench = user_bench
    policy = pool(bench, 1)
    job = bench.run(napping(bench), flags=["--policy", policy, "--on-crash", "restart:2"])
    job.ready()
    assert taken(bench) == [job.name]
    bench.checkpoint(job)
    root, keeper = entry(bench, job.name)["root"][0], entry(bench, job.name)["keeper"]
    os.kill(root, signal.SIGKILL)
    harness.until(lambda: entry(bench, job.name)["root"][0] not in (0, root), "the restart")
    assert entry(bench, job.name)["keeper"] == keeper and taken(bench) == [job.name]
    bench.must("stop", job.name)
    job.finish()
    assert taken(bench) == []
    bench.gone("after the job has ended")


@pytest.mark.exam
def test_a_job_over_hosts_holds_one(user_bench: harness.Bench) -> None:
    """From its first host, at its start and after a restart."""
    pytest.importorskip("nats")
    bench = user_bench
    policy = pool(bench, 1)
    hosts = ["--hosts", "127.0.0.1"]
    job = bench.run(napping(bench), flags=[*hosts, "--policy", policy])
    job.ready()
    assert taken(bench) == [job.name]
    said = bench.torpor("run", *hosts, "--store", bench.store, "--policy", policy, "--", "true")
    assert said.status == 1 and "all 1 seats of sims are taken" in said.err, said
    bench.must("checkpoint", job.name, "--stop")
    job.finish()
    assert taken(bench) == []
    again = bench.restart(job.name, *hosts)
    harness.until(lambda: taken(bench) == [job.name], "the seat")
    refusal = bench.torpor("restart", job.name, "--store", bench.store, *hosts)
    assert refusal.status in (1, 2) and "running already" in refusal.err, refusal
    harness.until(lambda: bench.torpor("checkpoint", job.name).status == 0, "it runs")
    bench.must("stop", job.name)
    again.finish()
    assert taken(bench) == []
    bench.gone("after the job has ended")


@pytest.mark.diagonal
def test_a_saved_job_runs_once(bench: harness.Bench) -> None:
    """Also from a copy of its checkpoint, and under another name; a clone is another job."""
    job = bench.run(napping(bench))
    job.ready()
    bench.checkpoint(job)
    other = os.path.join(bench.folder, "other")
    bench.must("copy", f"{job.name}@1", other, "--store", bench.store)
    for words in ((), ("--name", "another")):
        for store in (bench.store, other):
            said = bench.torpor("restart", f"{job.name}@1", "--store", store, "--detach", *words)
            assert said.status == 1 and "still running here" in said.err, said
    bench.must("restart", f"{job.name}@1", "--store", other, "--detach", "--clone", "--name", "clone")
    bench.must("stop", "clone")
    bench.kill()
    bench.must("restart", f"{job.name}@1", "--store", other, "--detach", "--name", "another")
    said = bench.torpor("restart", f"{job.name}@1", "--store", bench.store, "--detach")
    assert said.status == 1 and "still running here, as another" in said.err, said
    bench.must("stop", "another")
    assert {line["outcome"] for line in audit(bench, "lease")} == {"done", "refused"}


def test_a_program_that_holds_a_seat_is_asked_to_end(user_bench: harness.Bench) -> None:
    """By a SIGTERM that a shell can trap: after the job, and when somebody does not wait any more until it answers."""
    bench = user_bench
    ended = os.path.join(bench.folder, "ended")
    with open(ended, "w"):
        pass
    os.chown(ended, bench.account.uid, bench.account.gid)
    for says in ("OK", ""):
        script = f"trap 'echo {says} >> {ended}; exit' TERM; echo {says}; while :; do sleep 0.02; done"
        policy = written(bench, "policy.toml", (
            '[[service]]\nname = "x"\naction = "seat"\nseat = "s"\n'
            f'[seats.s]\nprovider = "command"\ncommand = {json.dumps(["sh", "-c", script])}\n'
        ))  # fmt: skip
        job = bench.run(["true"], flags=["--policy", policy])
        if not says:
            harness.until(
                lambda out=job.out: "waiting for an answer: s" in harness.text(out + ".err"), "what it waits for"
            )
            assert job.popen is not None
            os.kill(job.popen.pid, signal.SIGINT)
        assert job.finish(8) == (0 if says else -signal.SIGINT)
        bench.gone("after the job")
    assert harness.text(ended) == "OK\n\n"


@pytest.mark.exam
def test_who_does_not_wait_any_more_gets_nothing(user_bench: harness.Bench) -> None:
    """The command that waits for a seat is interrupted: nothing is started when one is free, and none is held."""
    bench = user_bench
    policy = pool(bench, 1)
    job = bench.run(napping(bench), flags=["--policy", policy])
    job.ready()
    commands = [
        [
            "run",
            "--detach",
            "--name",
            "late",
            "--policy",
            policy,
            "--wait",
            "100s",
            "--store",
            bench.store,
            "--",
            "true",
        ],
        ["run", "--name", "late", "--policy", policy, "--wait", "100s", "--store", bench.store, "--", "true"],
    ]
    for words in commands:
        with open(os.path.join(bench.folder, "said"), "w+") as said:
            waiting = bench.popen([*bench.account.torpor, *words], stderr=said, start_new_session=True)
            harness.until(lambda: "waiting for a seat" in harness.text(said.name), "waiting")
        os.kill(waiting.pid, signal.SIGINT)
        waiting.wait()
        harness.until(lambda: [one["name"] for one in bench.must("jobs", "--json").json()] == [job.name], "its end")
    bench.must("stop", job.name)
    bench.gone("after the job has ended")
    assert taken(bench) == []


class Echo:
    """An echo server outside of the job."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.count = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            self.count += 1
            threading.Thread(target=self._talk, args=(one,), daemon=True).start()

    def _talk(self, one: socket.socket) -> None:
        with one:
            try:
                while data := one.recv(64):
                    one.sendall(data)
            except OSError:
                pass

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.mark.diagonal
@pytest.mark.parametrize(
    "how",
    [
        "reconnect",
        *(pytest.param(how, marks=pytest.mark.exam) for how in ("reset", "reconnect elsewhere", "nobody there")),
    ],
)
def test_what_becomes_of_a_connection_to_outside(bench: harness.Bench, via: str, how: str) -> None:
    echo = Echo()
    job = bench.run([bench.account.python, harness.script("outward.py"), bench.go, str(echo.port)], via)
    job.ready()
    name = f"{job.name}@{bench.checkpoint(job)['number']}"
    bench.kill()
    rule = '[[service]]\naddress = "127.0.0.1"\naction = "reconnect"\n'
    where = echo
    if how == "reconnect elsewhere":
        echo.close()
        where = Echo()
        rule += f'to = "127.0.0.1:{where.port}"\n'
    elif how == "nobody there":
        echo.close()
        policy = written(bench, "p.toml", rule + 'otherwise = "refuse"\n')
        said = refused(bench, name, "--policy", policy)
        assert "cannot be reached at" in said, said
    policy = [] if how == "reset" else ["--policy", written(bench, "p.toml", rule)]
    again = bench.restart(name, *policy, detach=True)
    second = f"{job.name}@{bench.checkpoint(again)['number']}"
    bench.kill()
    last = bench.restart(second)  # what was given is sealed into it
    same = how in ("reconnect", "reconnect elsewhere")
    last.verified(says="SAME" if same else "RESET")
    where.close()


def test_a_licence_port_and_a_variable_are_known_without_a_policy(user_bench: harness.Bench) -> None:
    bench = user_bench
    bench.env["LM_LICENSE_FILE"] = "27000@licences.example.org"
    job = bench.run(napping(bench))
    job.ready()
    bench.checkpoint(job)
    bench.kill()
    said = refused(bench, job.name)
    assert "licences.example.org" in said and "LM_LICENSE_FILE in the environment names it" in said, said
    policy = written(bench, "p.toml", '[[service]]\nname = "licences.*"\naction = "reset"\n')
    bench.must("restart", job.name, "--store", bench.store, "--detach", "--policy", policy)
    # Only whoever holds the key that sealed it may put another policy in its place; the stricter one holds else.
    bench.must("checkpoint", job.name, "--store", bench.store)
    bench.kill()
    strict = written(bench, "strict.toml", '[[service]]\naction = "refuse"\n')
    assert "the policy refuses" in refused(bench, f"{job.name}@2", "--policy", strict)
    bench.must("restart", f"{job.name}@2", "--store", bench.store, "--detach", "--policy", policy)
    bench.must("stop", job.name)
    # The same the other way round: what is sealed is the stricter one, but for whoever holds the key.
    again = bench.run(napping(bench), flags=["--policy", strict])
    again.ready()
    bench.checkpoint(again, "--stop")
    again.finish()
    assert "the policy refuses" in refused(bench, again.name, "--policy", policy)
    bench.must("restart", again.name, "--store", bench.store, "--detach", "--new-policy", policy)
    bench.must("stop", again.name)
    key = bench.must("key", "export").out
    os.rename(os.path.join(bench.home, ".config/torpor/keys/default.key"), os.path.join(bench.home, "old.key"))
    bench.must("key", "trust", key.strip(), "--name", "old")
    bench.must("key", "new")
    foreign = bench.torpor("restart", f"{job.name}@2", "--store", bench.store, "--new-policy", policy)
    assert foreign.status == 2 and "a key that you do not hold" in foreign.err, foreign
