"""What goes with `torpor run` on one host goes with a job over hosts: hooks, what is left out, what is watched."""

from __future__ import annotations

import itertools
import os
import shlex

import harness
import pytest
from loopback import HOSTS, Over
from test_moved import serve

pytest.importorskip("nats")
TWO = HOSTS[:2]
ASK = """import os, socket, sys, time
host, port, go = sys.argv[1:4]
with socket.create_connection((host, int(port))) as far:
    far.sendall(b"?")
    print("GOT", far.recv(100).decode(), os.environ.get("HOSTNAME"), flush=True)
n = 0
while not os.path.exists(go):
    n += 1
    print("N", n, flush=True)
    time.sleep(0.02)
"""


@pytest.fixture
def over(bench: harness.Bench) -> Over:
    return Over(bench)


def note(bench: harness.Bench, event: str) -> list[str]:
    """A hook that writes down what it was told."""
    words = "$TORPOR_EVENT,$TORPOR_JOB,$TORPOR_CHECKPOINT,$TORPOR_OUTCOME,$TORPOR_PART,$TORPOR_PARTS"
    return ["--on", event, f'echo "{words}" >> {bench.folder}/told']


def told(bench: harness.Bench, count: int) -> list[str]:
    """The next so many lines that hooks have written."""
    path = f"{bench.folder}/told"
    lines = harness.until(lambda: (seen := harness.text(path)).count("\n") == count and seen, "hooks").splitlines()
    os.unlink(path)
    return [str(line) for line in lines]


def newest(bench: harness.Bench, name: str) -> int:
    """The number of the newest checkpoint."""
    return int(bench.must("list", name, "--json", "--store", bench.store).json()[-1]["number"])


def nothing_left(bench: harness.Bench) -> None:
    """But for the servers of the test."""

    def left() -> list[int]:
        return [
            pid for pid in harness.tagged(bench.tag) if "where.py" not in harness.text_of_proc(f"/proc/{pid}/cmdline")
        ]

    harness.until(lambda: not left(), "nothing is left")


def counting(over: Over, *flags: str) -> harness.Running:
    """A program on the first host and one on the second that count until they are told to end."""
    loop = f"n=0; while ! [ -e {over.bench.go} ]; do n=$((n+1)); echo $1 $n; sleep 0.02; done"
    words = ["sh", "-c", f"{over.rsh} {TWO[1]} 'set two; {loop}' & set one; {loop}; wait; exit 6"]
    job = over.bench.run(words, flags=["--hosts", ",".join(TWO), *flags])
    for each in ("one", "two"):
        job.wait_for(f"^{each} 5$")
    return job


@pytest.mark.exam
@pytest.mark.diagonal
def test_hooks_run_where_the_job_began(over: Over) -> None:
    """Once for all hosts, whoever asks; one that fails stops the checkpoint, and the job runs on."""
    bench, parts = over.bench, " ".join(TWO)
    events = ("pre-checkpoint", "post-checkpoint", "pre-restart", "post-restart")
    job = counting(over, *(word for event in events for word in note(bench, event)))
    name = job.name
    assert over.on(TWO[1], "checkpoint", name).status == 0, job.trace()
    assert told(bench, 2) == [
        f"pre-checkpoint,{name},,,{TWO[0]},{parts}",
        f"post-checkpoint,{name},{name}@1,done,{TWO[0]},{parts}",
    ]
    said = over.on(TWO[1], "checkpoint", name, "--on", "pre-checkpoint", "exit 3")
    assert said.status == 1 and "ended with status 3" in said.err and said.err.count("\n") == 1, said
    lines = told(bench, 2)
    assert [line.partition(",")[0] for line in lines] == ["pre-checkpoint", "post-checkpoint"], lines
    assert lines[1].split(",")[3] == "failed", lines
    assert over.on(TWO[0], "checkpoint", name, "--stop").status == 0
    assert job.finish() == 75, job.trace()
    told(bench, 2)
    again = bench.restart(name, "--hosts", ",".join(TWO))
    number = newest(bench, name)
    assert told(bench, 2) == [
        f"pre-restart,{name},{name}@{number},,{TWO[0]},{parts}",
        f"post-restart,{name},{name}@{number},,{TWO[0]},{parts}",
    ]
    assert over.on(TWO[0], "checkpoint", name).status == 0, again.trace()
    told(bench, 2)
    bench.tell()
    assert again.finish() == 6, again.trace()
    bench.gone("after the job has ended")


@pytest.mark.exam
@pytest.mark.diagonal
def test_what_is_forgotten_is_so_on_every_host(over: Over) -> None:
    """What was said at the start, and what whoever asks for one checkpoint says."""
    bench = over.bench
    bench.env |= {"FIRST_SECRET": "q8Zr1xW7", "OTHER_SECRET": "k3Vt9bL2"}
    job = counting(over, "--forget", "FIRST_SECRET")
    assert over.on(TWO[1], "checkpoint", job.name, "--forget", "OTHER_SECRET").status == 0, job.trace()
    assert over.on(TWO[1], "checkpoint", job.name).status == 0, job.trace()
    for number, count in ((1, 2), (2, 1)):
        for part in TWO:
            words = ["inspect", f"{job.name}@{number}", "--part", part, "--json", "--store", bench.store]
            left_out = " ".join(bench.must(*words).json()["forgotten"])
            assert ("FIRST_SECRET" in left_out) + ("OTHER_SECRET" in left_out) == count, (part, left_out)
    bench.tell()
    assert job.finish() == 6, job.trace()


@pytest.mark.exam
@pytest.mark.diagonal
def test_what_another_host_asked_for_is_in_the_ledger(over: Over) -> None:
    """Unasked: every job over hosts is watched. A restart stops until a policy says what the service is, before
    anything of the job runs on any host; and the ledger goes on."""
    bench = over.bench
    port = serve(bench, "127.7.0.2", "licences", 20017)
    script = f"{bench.folder}/ask.py"
    with open(script, "w") as file:
        file.write(ASK)
    words = shlex.join([over.python, "-u", script, "127.7.0.2", str(port), bench.go])
    service = ["--service", f"licence=127.7.0.2:{port}"]
    job = bench.run(["sh", "-c", f"{over.rsh} {TWO[1]} {shlex.quote(words)}; exit 5"],
                    flags=["--hosts", ",".join(TWO), *service])  # fmt: skip
    job.wait_for(f"^GOT licences {TWO[1]}$")
    job.wait_for("^N 3$")
    assert over.on(TWO[0], "checkpoint", job.name, "--stop").status == 0, job.trace()
    assert job.finish() == 75

    def asked() -> list[tuple[str, str, int, str]]:
        what = f"{job.name}@{newest(bench, job.name)}"  # without a number it would be the running job's part here
        said = bench.must("inspect", what, "--services", "--json", "--store", bench.store).json()
        return [(each["part"], each["host"], each["port"], each["name"]) for each in said["services"]]

    assert (TWO[1], "127.7.0.2", port, "licence") in asked()
    words_again = ["restart", job.name, "--store", bench.store, "--hosts", ",".join(TWO)]
    said = bench.torpor(*words_again)
    assert said.status == 1 and f"127.7.0.2:{port} (licence)" in said.err and "no policy says" in said.err, said
    for host in TWO:
        assert over.on(host, "jobs").out == "no job is running\n"
    nothing_left(bench)
    bench.policy()
    again = bench.restart(job.name, "--hosts", ",".join(TWO))
    harness.until(lambda: over.on(TWO[1], "jobs").out != "no job is running\n", "it is there")
    bench.must("checkpoint", job.name)
    assert (TWO[1], "127.7.0.2", port, "licence") in asked()
    bench.tell()
    assert again.finish() == 5, again.trace()
    nothing_left(bench)


@pytest.mark.exam
@pytest.mark.diagonal
def test_programs_of_any_host_speak_with_torpor(over: Over) -> None:
    """One on the first host holds, and so nothing is saved on any; one on the second saves the whole job, and hears of
    each restart."""
    bench = over.bench
    bench.env["TORPOR_HOLD_LIMIT"] = "2s"
    insider, held = harness.script("insider.py"), f"{bench.go}.held"
    holds = shlex.join([over.python, insider, held, "hold"])
    saves = shlex.join([over.python, insider, bench.go, "twice"])
    script = (
        f"{holds} & until [ -e {held} ]; do sleep 0.02; done; {over.rsh} {TWO[1]} {shlex.quote(saves)}; wait; exit 5"
    )
    job = bench.run(["sh", "-c", script], flags=["--hosts", ",".join(TWO), "--inside"])
    job.ready()
    said = over.on(TWO[1], "checkpoint", job.name)
    assert said.status == 1 and "has asked" in said.err and "not to be interrupted" in said.err, said
    open(held, "w").close()
    job.wait_for("^RELEASED$")
    job.wait_for("^SAVED 3 told 0$")
    for generation in (1, 2):
        bench.kill()  # not by a signal that the next checkpoint would have
        job = bench.restart(job.name, "--hosts", ",".join(TWO))
        job.wait_for(rf"^RESTARTED \d+ told {generation}$")
        job.wait_for(rf"^SAVED \d+ told {generation}$")
    open(f"{held}2", "w").close()
    bench.tell()
    assert job.finish() == 5 and job.output().count("OK\n") == 2, job.trace()
    bench.gone("after the job has ended")


@pytest.mark.exam
@pytest.mark.diagonal
def test_a_crash_on_another_host_restarts_the_job_on_all(over: Over) -> None:
    """From its newest checkpoint, as often as was said; whoever waits for the job goes on waiting. Ended on purpose, on
    any host, it stays ended."""
    bench = over.bench
    crash, limit = f"{bench.folder}/crash", 2 if bench.account.uid else 3
    falls = f"[ ! -e {crash} ] || {{ rm {crash}; exit 9; }}"
    loop = f"n=0; while ! [ -e {bench.go} ]; do n=$((n+1)); echo $n; {falls}; sleep 0.02; done"
    job = bench.run(["sh", "-c", f"{over.rsh} {TWO[1]} {shlex.quote(loop)}; exit $?"],
                    flags=["--hosts", ",".join(TWO), "--on-crash", f"restart:{limit}"])  # fmt: skip
    job.wait_for("^5$")
    waiting = bench.popen([*bench.account.torpor, "wait", job.name])
    for number in (1, 2):
        bench.must("checkpoint", job.name)
        seen = job.output().count("\n")
        open(crash, "w").close()
        said = f"has crashed (status 9); restart {number} of {limit}, from {job.name}@{newest(bench, job.name)}"
        harness.until(lambda: said in harness.text(job.out + ".err"), "it is restarted")  # noqa: B023
        harness.until(lambda: job.output().count("\n") > seen + 5, "it goes on")  # noqa: B023
        assert waiting.poll() is None
    if bench.account.uid:
        open(crash, "w").close()
        assert job.finish() == 9 and waiting.wait(60) == 9, job.trace()
    else:
        assert over.on(TWO[1], "stop", job.name).status == 0
        assert job.finish() != 0 and waiting.wait(60) != 0, job.trace()
    assert harness.text(job.out + ".err").count("has crashed") == 2, job.trace()
    numbers = [int(word) for word in job.output().split()]
    assert all(after - before == 1 or after < before for before, after in itertools.pairwise(numbers)), numbers
    bench.gone("after the job has ended")
