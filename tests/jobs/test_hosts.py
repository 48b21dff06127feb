"""`torpor run --hosts`: here all hosts are addresses of one machine, and what is called in place of ssh runs its
command on it, with folders of the host's own. (With hosts that are apart, and ssh: tests/hosts.)"""

from __future__ import annotations

import json
import os
import re
import signal
import threading

import harness
import pytest
from loopback import HOSTS, Over

pytest.importorskip("nats")


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
        2, "torpor: --hosts: 192.0.2.1 (192.0.2.1) is another host than the one that ssh leads to\n")  # fmt: skip
    assert refused("--hosts", f"{HOSTS[1]},{HOSTS[1]}", "--", "true")[0] == 2
    for host in HOSTS[:2]:
        assert over.on(host, "jobs").out == "no job is running\n"
    harness.until(lambda: not harness.tagged(over.bench.tag), "nothing is left")


def server(over: Over, name: str, host: str) -> dict[str, list[int]]:
    """Pids and start times of the job's NATS server on a host, and of its keeper."""
    found: dict[str, list[int]] = json.loads(harness.text(f"{over.bench.folder}/run-{host}/{name}/nats/keeper.json"))
    return found


def counting(over: Over, status: int) -> harness.Running:
    """A program on the first host and one on the second that count until they are told to end."""
    loop = f"n=0; while ! [ -e {over.bench.go} ]; do n=$((n+1)); echo $1 $n; sleep 0.02; done"
    there = f"{over.rsh} {HOSTS[1]} 'set two; {loop}'"
    job = over.run(f"{there} & set one; {loop}; wait; exit {status}")
    for each in ("one", "two"):
        job.wait_for(f"^{each} 5$")
    return job


def all_counted(job: harness.Running) -> None:
    lines = [line.split() for line in job.output().splitlines()]
    for each in ("one", "two"):
        numbers = [int(line[1]) for line in lines if line[:1] == [each]]
        assert numbers == list(range(1, len(numbers) + 1)), job.trace()


@pytest.mark.exam
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_one_server_of_three_is_lost(over: Over, lost: int) -> None:
    """For good, with its keeper. The job can be saved as before, from every host, and its end reaches all."""
    job = counting(over, 6)
    assert over.on(HOSTS[1], "checkpoint", job.name).status == 0
    for name in ("keeper", "server"):
        os.kill(server(over, job.name, HOSTS[lost])[name][0], signal.SIGKILL)
    for host in HOSTS:
        said = over.on(host, "checkpoint", job.name)
        assert said.status == 0, (said, job.trace())
    over.bench.tell()
    over.ended(job, 6)
    all_counted(job)


@pytest.mark.exam
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_each_server_is_killed_while_the_job_is_saved(over: Over, delay: float) -> None:
    """In turn, so the one that leads too. What is being saved comes about, or is refused with a reason; the next
    checkpoint is whole, and the server is there again."""
    job = counting(over, 0)
    for host in HOSTS:
        at, pid = host, server(over, job.name, host)["server"][0]
        kill = threading.Timer(delay, os.kill, (pid, signal.SIGKILL))
        kill.start()
        said = over.on(HOSTS[2], "checkpoint", job.name)
        kill.join()
        assert said.status == 0 or said.err.count("\n") == 1, said
        harness.until(lambda: server(over, job.name, at)["server"][0] != pid, "it is started again")  # noqa: B023
        said = over.on(host, "checkpoint", job.name)
        assert said.status == 0, (said, job.trace())
    over.bench.tell()
    over.ended(job, 0)
    all_counted(job)


def begin(over: Over, host: str, name: str, *program: str, out: str, join: bool = False) -> harness.Running:
    """A program on a host, as a launcher that is not torpor's starts it: each with the same file."""
    bench, file = over.bench, f"{over.bench.folder}/job"
    words = ["--join", file] if join else ["--name", name, "--store", bench.store, "--job-file", file]
    with open(out, "ab") as f, open(out + ".err", "ab") as e:
        command = [*bench.account.torpor, "run", *words, "--hosts", host, "--", *program]
        process = bench.popen(command, stdout=f, stderr=e, env={**bench.env, **over.env(host)}, start_new_session=True)
    return harness.Running(bench, process, out, name, "run")


@pytest.mark.diagonal
def test_programs_join_from_other_hosts(over: Over) -> None:
    """Each is counted in the next checkpoint, from which all come back; the job ends with the last of them, and each
    command has the status of its own program."""
    bench = over.bench
    count = f"n=0; while ! [ -e {bench.go} ]; do n=$((n+1)); echo $n; sleep 0.02; done"
    end = f"until [ -e {bench.go}.$0 ]; do sleep 0.02; done; exit $0"
    outs = [bench.output_file() for _ in HOSTS]
    jobs: list[harness.Running] = []
    for n, host in enumerate(HOSTS):
        jobs.append(begin(over, host, "sim", "sh", "-c", f"{count}; {end}", str(n), out=outs[n], join=n == 2))
        jobs[0].wait_for("^3$")  # it is the first one
    for job in jobs[1:]:
        job.wait_for("^3$")
    assert os.stat(f"{bench.folder}/job").st_mode & 0o777 == 0o600
    said = over.on(HOSTS[1], "checkpoint", "sim")
    assert said.status == 0 and f"saved on 3 hosts: {', '.join(HOSTS)}" in said.err, (said, jobs[0].trace())
    bench.tell()
    for n, job in enumerate(jobs):
        assert job.popen is not None and job.popen.poll() is None
        open(f"{bench.go}.{n}", "w").close()
        if n:
            assert job.finish() == n, job.trace()
        else:
            waits = "waiting for what has joined it (127.0.0.3, 127.0.0.4)\n"
            harness.until(lambda: waits in harness.text(outs[0] + ".err"), "it waits")  # noqa: B023
    assert jobs[0].finish() == 0, jobs[0].trace()
    assert not os.path.exists(f"{bench.folder}/job")
    bench.gone("after the job has ended")
    for out in outs:
        numbers = harness.text(out).split()
        assert numbers == [str(n + 1) for n in range(len(numbers))]


@pytest.mark.exam
def test_what_has_joined_is_restarted_and_waited_for(over: Over) -> None:
    bench = over.bench
    count = f"n=0; while ! [ -e {bench.go} ]; do n=$((n+1)); echo $n; sleep 0.02; done"
    end = f"until [ -e {bench.go}.$0 ]; do sleep 0.02; done; exit $0"
    outs = [bench.output_file() for _ in HOSTS[:2]]
    jobs = []
    for n, host in enumerate(HOSTS[:2]):
        program = ["sh", "-c", f"{count} >> $1; {end}", str(n), f"{outs[n]}.own"]
        jobs.append(begin(over, host, "sim", *program, out=outs[n]))
        harness.until(lambda n=n: "3\n" in harness.text(f"{outs[n]}.own"), "it counts")  # type: ignore[misc]
    for job in [*jobs]:
        assert over.on(HOSTS[1], "checkpoint", "sim", "--stop").status == 0 if job is jobs[0] else True
        assert job.finish() == 75, job.trace()
    job = bench.restart("sim", "--hosts", ",".join(HOSTS[:2]))
    harness.until(lambda: over.on(HOSTS[1], "jobs", "--json").out != "[]\n", "it is there")
    bench.tell()
    open(f"{bench.go}.0", "w").close()
    harness.until(lambda: "waiting for what has joined it (127.0.0.3)\n" in harness.text(job.out + ".err"), "it waits")
    assert job.popen is not None and job.popen.poll() is None
    open(f"{bench.go}.1", "w").close()
    assert job.finish() == 0, job.trace()
    bench.gone("after the job has ended")


@pytest.mark.exam
def test_a_joined_host_is_lost(over: Over) -> None:
    """The job does not wait for it for ever; and its file is nothing to a stranger."""
    bench = over.bench
    count = f"n=0; while ! [ -e {bench.go} ]; do n=$((n+1)); echo $n; sleep 0.02; done"
    outs = [bench.output_file() for _ in range(3)]
    first = begin(over, HOSTS[0], "sim", "sh", "-c", count, out=outs[0])
    first.wait_for("^3$")
    other = begin(over, HOSTS[1], "sim", "sh", "-c", "echo READY; sleep 1000", out=outs[1], join=True)
    other.ready()
    os.chmod(f"{bench.folder}/job", 0o644)
    third = begin(over, HOSTS[2], "sim", "true", out=outs[2], join=True)
    assert third.finish() == 1 and "open to others" in harness.text(outs[2] + ".err")
    for pid in harness.tagged(bench.tag):
        words = harness.text_of_proc(f"/proc/{pid}/environ")
        if f"run-{HOSTS[1]}" in words:
            os.kill(pid, signal.SIGKILL)
    bench.tell()
    assert first.finish() == 0
    bench.gone("after the job has ended")


@pytest.mark.exam
@pytest.mark.parametrize("ended", [0, 1, 2])
def test_a_job_without_a_supervisor_comes_to_its_end_everywhere(over: Over, ended: int) -> None:
    """On any host: the end of the program reaches all, and nothing is left, no server either."""
    job = counting(over, 6)
    entry = over.on(HOSTS[ended], "jobs", "--json").json()[0]
    os.kill(entry["supervisor"], signal.SIGKILL)
    harness.until(lambda: "unsupervised" in over.on(HOSTS[ended], "jobs").out, "it has no supervisor")
    said = over.on(HOSTS[(ended + 1) % 3], "checkpoint", job.name)
    assert said.status == 1 and f"not saved: {HOSTS[ended]}" in said.err, said
    over.bench.tell()
    assert job.finish() == (6 if ended else -signal.SIGKILL)
    harness.until(lambda: all(over.on(host, "jobs").out == "no job is running\n" for host in HOSTS), "it ends", 30)
    over.bench.gone("after the job has ended")
    all_counted(job)


@pytest.mark.exam
def test_detached_resumed_copied_and_renamed(over: Over) -> None:
    bench = over.bench
    out = bench.output_file()
    count = f"n=0; while ! [ -e {bench.go} ]; do n=$((n+1)); echo $n; sleep 0.02; done"
    script = f"{over.rsh} {HOSTS[1]} '{count}' > {out}; echo done; exit 5"
    words = ["run", "--name", "sim", "--store", bench.store, "--hosts", ",".join(HOSTS[:2]), "--detach",
             "--resume-or-start", "--every", "1h", "--", "sh", "-c", script]  # fmt: skip
    said = bench.must(*words)
    assert said.out.startswith("started sim, pid "), said
    harness.until(lambda: "3\n" in harness.text(out), "it counts")
    assert bench.torpor(*words).status == 2  # it runs
    bench.must("checkpoint", "sim", "--stop")
    harness.until(lambda: over.on(HOSTS[0], "jobs").out == "no job is running\n", "it has ended")
    said = bench.must(*words)
    assert said.out.startswith("restarted sim, pid "), said
    assert "--every=3600s" in str(bench.must("jobs", "--json").json()[0]["upkeep"])
    before = len(harness.text(out))
    harness.until(lambda: len(harness.text(out)) > before, "it goes on")
    bench.must("checkpoint", "sim")
    again = ["restart", "sim", "--store", bench.store, "--hosts", ",".join(HOSTS[:2]), "--detach"]
    assert "--clone" in bench.torpor(*again).err
    bench.must("stop", "sim")
    harness.until(lambda: over.on(HOSTS[0], "jobs").out == "no job is running\n", "it has ended")
    said = bench.must(*again, "--name", "other", "--every", "2h")
    assert said.out.startswith("restarted other in "), said
    assert "--every=7200s" in str(bench.must("jobs", "--json").json()[0]["upkeep"])
    assert bench.must("checkpoint", "other").out.startswith("saved other@")
    bench.tell()
    assert bench.torpor("wait", "other").status == 5
    assert bench.must("logs", "other").out.endswith("done\n")
    bench.gone("after the job has ended")
