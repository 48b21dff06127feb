"""Life with a batch system: checkpoints by the clock and on signals, resuming, crashes. The verdict is the result of a
computation in steps, which has to be that of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from typing import Any

import harness
from harness import Bench, Running, until
from test_robustness import files_below, flip

STEPS = 40


def program(bench: Bench, steps: int = STEPS, pause: int = 5) -> list[str]:
    return [harness.build("steps.c"), bench.go, str(steps), str(pause)]


def expected(bench: Bench) -> str:
    """The last lines of an undisturbed run."""
    go = bench.go + ".undisturbed"
    with open(go, "w"):
        pass
    done = subprocess.run([harness.build("steps.c"), go, str(STEPS), "0"], capture_output=True, text=True)
    return "\n".join(done.stdout.splitlines()[-2:])


def start(bench: Bench, name: str, *options: str, steps: int = STEPS) -> Running:
    """`torpor run` with options."""
    out = bench.output_file()
    words = [*bench.account.torpor, "run", "--name", name, "--store", bench.store, *options, "--"]
    return _popen(bench, [*words, *program(bench, steps)], out, name)


def again(bench: Bench, name: str, *options: str) -> Running:
    """`torpor restart` with options."""
    out = bench.output_file()
    return _popen(bench, [*bench.account.torpor, "restart", name, "--store", bench.store, *options], out, name)


def _popen(bench: Bench, words: list[str], out: str, name: str) -> Running:
    with open(out, "ab") as f, open(out + ".err", "ab") as e:
        process = bench.popen(words, stdout=f, stderr=e, start_new_session=True)
    bench.history.append(f"started {' '.join(words)} as {process.pid}")
    return Running(bench, process, out, name, "run")


def running(bench: Bench, name: str) -> bool:
    """Does the supervisor answer, and the job run? (Before that a signal ends the command, not the job.)"""
    jobs = bench.torpor("jobs", "--json").json()
    return any(job["name"] == name and job["state"] == "running" and job["pid"] for job in jobs)


def numbers(bench: Bench, name: str) -> list[int]:
    said = bench.torpor("list", name, "--store", bench.store, "--json")
    return [info["number"] for info in said.json()] if said.status == 0 else []


def errors(job: Running) -> str:
    return harness.text(job.out + ".err")


def log(bench: Bench) -> list[dict[str, Any]]:
    """Without the lines about leases, which come and go with the supervisors."""
    path = os.path.join(bench.home, ".local", "state", "torpor", "log.jsonl")
    return [line for line in map(json.loads, harness.text(path).splitlines()) if line["event"] != "lease"]


def drop(bench: Bench, word: str) -> None:
    """Have the program crash or exit."""
    path = f"{bench.go}.{word}"
    with open(path + ".new", "w"):
        pass
    os.chown(path + ".new", bench.account.uid, bench.account.gid)
    os.rename(path + ".new", path)


def finished(bench: Bench, job: Running) -> None:
    bench.tell()
    assert job.finish() == 0, job.trace()
    assert "\n".join(job.output().splitlines()[-2:]) == expected(bench), job.trace()


def test_a_signal_saves_and_stops(bench: Bench) -> None:
    """Three lives: run, restart, run --resume-or-start; what was asked for at the first holds for all."""
    name = bench.new_name()
    job = start(
        bench, name, "--on-signal", "TERM=checkpoint-stop", "--on-signal", "USR1=checkpoint", "--deadline", "5m"
    )
    job.ready()
    assert job.popen is not None
    job.popen.send_signal(signal.SIGUSR1)
    until(lambda: numbers(bench, name) == [1], "a checkpoint on USR1")
    job.popen.terminate()
    assert job.finish() == 75, job.trace()
    assert f"torpor: saved as {name}@2 and stopped" in errors(job)
    assert "TERM: saving, about" in errors(job)
    job = again(bench, name)
    until(lambda: running(bench, name), "the job runs again")
    assert job.popen is not None
    job.popen.terminate()
    assert job.finish() == 75, job.trace()
    assert "TERM: saving, about" in errors(job)  # by what the checkpoint says of itself
    assert numbers(bench, name) == [1, 2, 3]
    shown = "--on-signal=USR1=checkpoint --on-signal=TERM=checkpoint-stop --deadline=300s"
    assert f"a restart goes on with {shown}\n" in bench.must("inspect", name, "--store", bench.store).out
    job = start(bench, name, "--resume-or-start", "--stopped-status", "99")
    until(lambda: running(bench, name), "the job runs a third time")
    assert job.popen is not None
    job.popen.terminate()
    assert job.finish() == 99, job.trace()
    job = start(bench, name, "--resume-or-start", "--on-signal", "TERM=pass")
    finished(bench, job)
    bench.gone("after the end")
    done = [(line["event"], line.get("why"), line["checkpoint"]) for line in log(bench)]
    assert done == [
        ("checkpoint", "signal USR1", f"{name}@1"), ("checkpoint", "signal TERM", f"{name}@2"),
        ("restart", "command", f"{name}@2"), ("checkpoint", "signal TERM", f"{name}@3"),
        ("restart", "resume", f"{name}@3"), ("checkpoint", "signal TERM", f"{name}@4"),
        ("restart", "resume", f"{name}@4"),
    ]  # fmt: skip
    assert all(line["outcome"] == "done" and line["seconds"] > 0 and line["bytes_total"] > 0 for line in log(bench))


def test_by_the_clock_and_only_the_newest(bench: Bench) -> None:
    name = bench.new_name()
    job = start(bench, name, "--every", "0.2s", "--keep", "2")
    until(lambda: max(numbers(bench, name), default=0) >= 4, "four checkpoints")
    assert len(numbers(bench, name)) <= 3  # the third is removed right after the newest is there
    bench.kill()
    left = numbers(bench, name)
    assert left == list(range(max(left) - len(left) + 1, max(left) + 1))
    job = again(bench, name)  # it goes on being saved
    until(lambda: max(numbers(bench, name), default=0) >= max(left) + 2, "two more checkpoints")
    bench.kill()
    job = again(bench, name, "--every", "0")
    finished(bench, job)
    # Packs are deleted now and then, not with every checkpoint: the next one may need them.
    assert {line["event"] for line in log(bench)} - {"prune"} == {"checkpoint", "restart", "remove"}
    assert {line["why"] for line in log(bench) if line["event"] == "checkpoint"} == {"every"}


def test_what_holds_for_every_checkpoint(bench: Bench) -> None:
    """--with-files and --compress: by the clock, on a signal, after a restart, until it is taken back."""
    name = bench.new_name()

    def carried() -> int:
        """How many files the newest checkpoint carries."""
        return len(bench.must("inspect", name, "--store", bench.store, "--json").json()["needs"]["carried"])

    job = start(bench, name, "--every", "0.3s", "--with-files", "--compress", "zstd", "--on-signal", "USR1=checkpoint")
    until(lambda: numbers(bench, name), "a checkpoint by the clock")
    assert carried() >= 2  # the program and its libraries
    bench.kill()
    job = again(bench, name, "--every", "0")
    until(lambda: running(bench, name), "the job runs again")
    before = numbers(bench, name)[-1]
    assert job.popen is not None
    job.popen.send_signal(signal.SIGUSR1)
    until(lambda: numbers(bench, name)[-1] > before, "a checkpoint on a signal")
    assert carried() >= 2
    shown = bench.must("inspect", name, "--store", bench.store).out
    assert "--with-files --compress=zstd" in shown
    bench.must("checkpoint", name, "--stop")
    assert job.finish() == 75, job.trace()
    assert carried() >= 2
    job = start(bench, name, "--resume-or-start", "--no-with-files", "--compress", "auto")
    until(lambda: running(bench, name), "the job runs a third time")
    bench.must("checkpoint", name)
    assert carried() == 0
    finished(bench, job)


def test_resuming_what_somebody_else_has_saved(user_bench: Bench) -> None:
    bench = user_bench
    name = bench.new_name()
    job = start(bench, name)
    job.ready()
    bench.must("checkpoint", name, "--stop")
    assert job.finish() == 75, job.trace()
    bench.env["XDG_CONFIG_HOME"] = f"{bench.home}/other"  # and with it another key
    job = start(bench, name, "--resume-or-start")
    assert job.finish() == 1, job.trace()
    assert "whom you do not trust" in errors(job)
    finished(bench, start(bench, name, "--resume-or-start", "--untrusted"))


def test_no_time_to_save(bench: Bench) -> None:
    """Nothing half is left; the program is told, and its own end counts unless there is something to go on from."""
    name = bench.new_name()
    stop = ("--on-signal", "TERM=checkpoint-stop", "--deadline", "0.001s")
    job = start(bench, name, *stop)
    job.ready()
    assert job.popen is not None
    job.popen.terminate()  # how long it takes is not known: it is tried, and given up
    assert job.finish() == -signal.SIGTERM, job.trace()
    assert "TERM: saving, no telling how long" in errors(job)
    assert "not saved" in errors(job) and "there is no checkpoint yet; TERM is passed on to the job" in errors(job)
    assert numbers(bench, name) == []
    job = start(bench, name, *stop)
    job.ready()
    bench.must("checkpoint", name)
    assert job.popen is not None
    job.popen.terminate()
    assert job.finish() == 75, job.trace()
    assert "no time to save: it takes about" in errors(job) and f"{name}@1 stays the newest" in errors(job)
    assert numbers(bench, name) == [1]
    finished(bench, again(bench, name))
    assert [line["outcome"] for line in log(bench) if line["event"] == "checkpoint"] == ["failed", "done"]


def test_who_does_not_mind_the_signal_goes_on_unharmed(bench: Bench) -> None:
    """A checkpoint that was given up half-way leaves no trace in the job, nor in the store."""
    name, out = bench.new_name(), bench.output_file()
    words = [
        *bench.account.torpor,
        "run",
        "--name",
        name,
        "--store",
        bench.store,
        "--on-signal",
        "TERM=checkpoint-stop",
    ]
    deaf = ["sh", "-c", 'trap "" TERM; exec "$@"', "sh", *program(bench, pause=20)]
    job = _popen(bench, [*words, "--deadline", "0.001s", "--", *deaf], out, name)
    job.ready()
    assert job.popen is not None
    for number in (1, 2, 3):
        job.popen.terminate()
        until(lambda number=number: errors(job).count("TERM is passed on to the job") == number, "given up")  # type: ignore[misc]
    assert numbers(bench, name) == []
    bench.must("checkpoint", name)
    finished(bench, job)
    bench.untell()
    finished(bench, again(bench, name))


def test_a_crash_is_restarted(bench: Bench) -> None:
    name = bench.new_name()
    job = start(bench, name, "--on-crash", "restart:3")
    job.ready()
    bench.must("checkpoint", name)
    waiting = bench.popen([*bench.account.torpor, "wait", name])
    for number, word in enumerate(("crash", "exit"), 1):
        drop(bench, word)
        until(lambda number=number: f"restart {number} of 3" in errors(job), f"restart {number}")  # type: ignore[misc]
        until(lambda: running(bench, name), "the job runs again")
        ended = {"crash": "signal ABRT", "exit": "status 7"}[word]
        assert f"{name} has crashed ({ended}); restart {number} of 3, from {name}@1" in errors(job)
    finished(bench, job)
    assert waiting.wait(harness.PATIENCE) == 0
    bench.gone("after the end")
    assert [line["event"] for line in log(bench)] == ["checkpoint", "crash", "restart", "crash", "restart"]


def test_what_a_crash_leaves_behind_does_not_meet_the_restarted_job(bench: Bench) -> None:
    name, out = bench.new_name(), bench.output_file()
    family = ["sh", "-c", 'sleep 1000 & exec "$@"', "sh", *program(bench)]
    words = [*bench.account.torpor, "run", "--name", name, "--store", bench.store, "--on-crash", "restart:3", "--"]
    job = _popen(bench, [*words, *family], out, name)
    job.ready()
    bench.must("checkpoint", name)
    for number in (1, 2):  # the second crash is one of a restarted job
        (before,) = _sleepers(bench)
        drop(bench, "crash")
        until(lambda number=number: f"restart {number} of 3" in errors(job), f"restart {number}")  # type: ignore[misc]
        (after,) = _sleepers(bench)
        assert after != before
    finished(bench, job)


def _sleepers(bench: Bench) -> list[int]:
    return [pid for pid in harness.tagged(bench.tag) if harness.text_of_proc(f"/proc/{pid}/comm") == "sleep\n"]


def test_crashes_have_an_end(user_bench: Bench) -> None:
    """Detached, with somebody who waits: told of the last crash, and of no other."""
    bench, name = user_bench, user_bench.new_name()
    words = ["run", "--detach", "--name", name, "--store", bench.store, "--on-crash", "restart:1", "--"]
    bench.must(*words, *program(bench))
    until(lambda: "READY" in bench.must("logs", name).out, "READY")
    bench.must("checkpoint", name)
    waiting = bench.popen([*bench.account.torpor, "wait", name])
    for _ in range(2):
        until(lambda: running(bench, name), "the job runs")
        assert waiting.poll() is None
        drop(bench, "exit")
        until(lambda: not os.path.exists(bench.go + ".exit"), "the program has seen it")
    assert waiting.wait(harness.PATIENCE) == 7
    assert "restart 1 of 1" in bench.must("logs", name).out
    bench.gone("after the end")


def test_detached(user_bench: Bench) -> None:
    """The same without a terminal; what `wait` says is what a foreground job would have ended with."""
    bench, name = user_bench, user_bench.new_name()
    words = ["run", "--detach", "--name", name, "--store", bench.store, "--resume-or-start"]
    words += ["--on-signal", "USR2=checkpoint-stop", "--stopped-status", "42", "--", *program(bench)]
    for life in range(3):
        said = bench.must(*words).out
        assert said.startswith("restarted " if life else "started ")
        until(lambda: "READY" in bench.must("logs", name).out, "READY")
        waiting = bench.popen([*bench.account.torpor, "wait", name])
        if life < 2:
            (job,) = [job for job in bench.must("jobs", "--json").json() if job["name"] == name]
            os.kill(job["supervisor"], signal.SIGUSR2)
            assert waiting.wait(harness.PATIENCE) == 42
    bench.tell()
    assert waiting.wait(harness.PATIENCE) == 0
    assert bench.must("logs", name).out.endswith(expected(bench) + "\n")
    assert numbers(bench, name) == [1, 2]


PYTHON = """
import os, signal, sys, time, torpor
name, store, command = sys.argv[1], sys.argv[2], sys.argv[3:]
def start():
    return torpor.run(command, name=name, store=store, resume_or_start=True, on_signal={'TERM': 'checkpoint-stop'},
                      deadline='5m', every='1h', keep=2, on_crash='restart:1', stopped_status=33)
job = start()
while 'READY' not in open(job.log).read():
    time.sleep(0.01)
for again in (start, lambda: torpor.restart(name, store=store, stopped_status=34)):
    os.kill(job.entry.supervisor.pid, signal.SIGTERM)
    print(job.wait())
    job = again()
os.kill(job.entry.supervisor.pid, signal.SIGTERM)
print(job.wait())
print([info.number for info in torpor.list_checkpoints(name, store=store)])
"""


def test_from_python(user_bench: Bench) -> None:
    bench, name = user_bench, user_bench.new_name()
    process = bench.popen(
        [bench.account.python, "-c", PYTHON, name, bench.store, *program(bench)], env=bench.env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(timeout=harness.PATIENCE)
    assert out.decode().splitlines() == ["33", "33", "34", "[2, 3]"], err.decode()


def test_asleep_between_events(user_bench: Bench) -> None:
    """Whatever is to be done later costs nothing now."""
    bench, name = user_bench, user_bench.new_name()
    job = start(bench, name, "--every", "1h", "--on-signal", "TERM=checkpoint-stop", "--deadline", "1h")
    job.ready()
    bench.must("checkpoint", name)
    assert job.popen is not None
    path = f"/proc/{job.popen.pid}/status"

    def woken() -> int:
        return int(harness.text(path).partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    until(lambda: not os.listdir(f"/proc/{job.popen.pid}/task")[1:], "its worker has ended")  # type: ignore[union-attr]
    before = woken()
    time.sleep(1.5)
    assert woken() - before <= 2
    finished(bench, job)


def test_an_end_that_was_asked_for_is_no_crash(user_bench: Bench) -> None:
    bench = user_bench
    for how in ("stop", "signal"):
        name = bench.new_name()
        job = start(bench, name, "--on-crash", "restart:3")
        job.ready()
        bench.must("checkpoint", name)
        assert job.popen is not None
        if how == "stop":
            bench.must("stop", name)
        else:
            job.popen.terminate()
        assert job.finish() == -signal.SIGTERM, job.trace()
        assert errors(job) == ""


def test_damaged_checkpoints_are_passed_over(user_bench: Bench) -> None:
    bench, name = user_bench, user_bench.new_name()
    job = start(bench, name, "--resume-or-start")
    job.ready()
    for _ in range(3):
        bench.must("checkpoint", name)
    bench.kill()
    roots = [path for path in files_below(bench.store) if f"/roots/{name}/" in path]
    assert len(roots) == 3
    os.truncate(roots[2], os.path.getsize(roots[2]) - 10)  # seen in the listing
    flip(roots[1])  # seen when it is read
    job = start(bench, name, "--resume-or-start")
    finished(bench, job)
    lines = errors(job).splitlines()
    assert lines[0].startswith("torpor: ") and f"{name}@3" in lines[0] and f"taking {name}@2 instead" in lines[0]
    assert f"taking {name}@1 instead" in lines[1]
    os.truncate(roots[1], 100)
    os.truncate(roots[0], 100)
    job = start(bench, name, "--resume-or-start")
    assert job.finish() == 1, job.trace()
    assert "to start from the beginning, remove them: torpor rm --all" in errors(job)
    assert job.output() == ""
    bench.must("rm", "--all", name, "--store", bench.store)
    bench.untell()
    job = start(bench, name, "--resume-or-start")
    job.ready()
    finished(bench, job)


def test_a_signal_at_any_moment_of_a_restart(user_bench: Bench) -> None:
    """Either the restart is given up, or the job is saved and stopped: both are worth another attempt. Only before
    torpor has understood what is wanted does the signal end it as any other program."""
    bench, name = user_bench, user_bench.new_name()
    job = start(bench, name, "--on-signal", "TERM=checkpoint-stop")
    job.ready()
    assert job.popen is not None
    job.popen.terminate()
    assert job.finish() == 75, job.trace()
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    for _ in range(6):
        job = again(bench, name)
        assert job.popen is not None
        time.sleep(moments.uniform(0.05, 0.5))
        job.popen.terminate()
        assert job.finish() in (75, -signal.SIGTERM), f"seed {seed}\n{job.trace()}"
        bench.gone(f"after a signal (seed {seed})")
    finished(bench, again(bench, name))


def test_the_log_is_never_in_the_way(user_bench: Bench) -> None:
    bench, name = user_bench, user_bench.new_name()
    job = start(bench, name)
    job.ready()
    said = bench.torpor("checkpoint", name, "--store", "/proc/nowhere")
    assert said.status == 1
    last = log(bench)[-1]
    assert (last["event"], last["outcome"], last["job"]) == ("checkpoint", "failed", name)
    assert last["reason"] in said.err
    bench.must("checkpoint", name)
    bench.kill()
    bench.env["TORPOR_LOG"] = "/proc/nowhere"
    job = again(bench, name)
    until(lambda: running(bench, name), "the job runs again")
    said = bench.must("rm", f"{name}@1", "--store", bench.store)
    assert said.err.count("torpor: the log /proc/nowhere cannot be written") == 1
    finished(bench, job)


def test_requests_that_make_no_sense(user_bench: Bench) -> None:
    for words, reason in (
        (("--every", "soon"), "not a length of time"),
        (("--on-signal", "KILL=checkpoint"), "KILL cannot be answered"),
        (("--on-signal", "TERM=dance"), "say SIGNAL=ACTION"),
        (("--on-crash", "again"), "say restart:N"),
        (("--keep", "-1"), "from 0"),
        (("--stopped-status", "256"), "from 0 to 255"),
        (("--resume-or-start",), "needs --name"),
        (("--untrusted",), "--untrusted is for --resume-or-start"),
        (("--compress", "lots"), "--compress is one of auto, none, fast, zstd, not 'lots'"),
    ):
        said = user_bench.torpor("run", *words, "--", "true")
        assert said.status == 2 and reason in said.err, said
        assert len(said.err.splitlines()) == 1
