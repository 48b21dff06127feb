"""Restart where there are no namespaces, where /proc may not be mounted, and on a kernel with another vDSO."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time

import accounts
import catalogue
import harness
import pytest

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="needs root, to take things away from an ordinary user"),
    pytest.mark.usefixtures("one_walk"),
]

CONFINE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "confine.py")
PATIENT = ("--pid-budget", "300")
"""Other tests keep the machine busy; how long the walk takes there says nothing."""
SOME = [
    program
    for program in catalogue.STATE
    if program.label in ("threads", "leader_exited", "tree", "family", "memory", "shared", "signals", "events")
]
"""Not among them: timers, which compares POSIX timers with a clock that goes on while they stand still."""
FEW = [
    pytest.param(each, id=each.label, marks=[] if each.label in ("signals", "memory") else [pytest.mark.exam])
    for each in SOME
]
"""All of them in make exam: the more numbers a job needs, the more likely it is that a test beside it has one."""


class Confined(accounts.Account):
    """An account whose commands are started by root, who takes things away before becoming the user."""

    def popen_options(self) -> dict[str, object]:
        return {}


def confined(bench: harness.Bench, way: str) -> harness.Bench:
    """The same bench, whose commands run with less."""
    who = bench.account
    words = (sys.executable, CONFINE, way, str(who.uid), str(who.gid), *who.torpor)
    bench.account = Confined(*who._replace(torpor=words))
    return bench


def notes(bench: harness.Bench) -> str:
    """What the detached restarts said."""
    return "\n".join(line for line in bench.history if "torpor restart" in line)


@pytest.mark.parametrize("program", [each for each in FEW if each.id != "family"])
def test_user_without_namespaces(program: catalogue.Program, user_bench: harness.Bench) -> None:
    """user.max_user_namespaces is 0: found out by itself; pids are walked to, programs executed again.

    Not `family`: it has groups whose leaders are gone, and their numbers come back only if they happen to be free."""
    bench = confined(user_bench, "no-namespaces")
    bench.cycle(program.command(bench.go), "run", again=PATIENT, rewind=program.rewind)
    assert "restarted in place: user.max_user_namespaces is 0" in notes(bench)


@pytest.mark.parametrize("program", FEW)
def test_root_without_admin(program: catalogue.Program, root_bench: harness.Bench) -> None:
    """The same for root in a container: found out by itself."""
    bench = confined(root_bench, "no-admin")
    bench.cycle(program.command(bench.go), "run", again=PATIENT, rewind=program.rewind)
    assert "restarted in place: namespaces need CAP_SYS_ADMIN" in notes(bench)


@pytest.mark.parametrize("order", [("--in-place", ""), ("", "--in-place")])
def test_back_and_forth(order: tuple[str, str], root_bench: harness.Bench) -> None:
    """A job that came back in place comes back in a namespace, and the other way round."""
    bench = root_bench
    program = next(p for p in SOME if p.label == "shared")
    job = bench.run(program.command(bench.go))
    job.ready()
    saved = bench.checkpoint(job, "--stop")
    job.finish()
    for option in order:
        job = bench.restart(f"{job.name}@{saved['number']}", *filter(None, [option]), detach=True)
        if option is not order[-1]:
            saved = bench.checkpoint(job, "--stop")
    job.verified()


def test_who_made_sockets(root_bench: harness.Bench) -> None:
    """SO_PEERCRED tells the old numbers in place, too, where numbers may be chosen."""
    program = next(p for p in catalogue.STATE if p.label == "credentials")
    root_bench.cycle(program.command(root_bench.go), "run", again=("--in-place",))


def test_who_made_sockets_is_not_known(root_bench: harness.Bench) -> None:
    """Where they may not, that is said, and the job comes back all the same."""
    bench = root_bench
    bench.env["TORPOR_WITHOUT"] = "set_tid"
    job = bench.run(next(p for p in catalogue.STATE if p.label == "credentials").command(bench.go))
    job.ready()
    bench.checkpoint(job, "--stop")
    job.finish()
    job = bench.restart(job.name, "--in-place", *PATIENT, detach=True)
    assert "tell another process number (SO_PEERCRED)" in notes(bench)
    bench.tell()
    harness.until(lambda: "FAIL" in job.output() and "a pair of" in job.output(), "the program notices")


def test_the_program_is_its_own(user_bench: harness.Bench) -> None:
    """Pids, exe and names in /proc are what they were, without any privilege."""
    bench = confined(user_bench, "no-namespaces")
    job = bench.run(next(p for p in SOME if p.label == "threads").command(bench.go))
    job.ready()
    (pid,) = [p for p in harness.tagged(bench.tag) if "threads" in os.readlink(f"/proc/{p}/exe")]
    before = os.readlink(f"/proc/{pid}/exe"), sorted(os.listdir(f"/proc/{pid}/task")), _cmdline(pid)
    bench.checkpoint(job, "--stop")
    job.finish()
    job = bench.restart(job.name, *PATIENT, detach=True)
    assert (os.readlink(f"/proc/{pid}/exe"), sorted(os.listdir(f"/proc/{pid}/task")), _cmdline(pid)) == before
    job.verified()


def _cmdline(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as f:
        return f.read()


def test_a_number_in_use_is_refused(bench: harness.Bench) -> None:
    """Before anything is done, and naming who has it: here the job itself."""
    job = bench.run(SOME[0].command(bench.go))
    job.ready()
    bench.checkpoint(job)
    before = sorted(harness.tagged(bench.tag))
    said = bench.torpor("restart", job.name, "--clone", "--in-place", "--store", bench.store, "--detach")
    assert said.status == 1
    assert re.search(r"process \d+ \(\S+\): has the number \d+, which \S+ needs", said.err), said.err
    assert sorted(harness.tagged(bench.tag)) == before
    job.verified()


def test_a_long_walk_is_refused(bench: harness.Bench) -> None:
    """More than --pid-budget: refused with an estimate."""
    bench.env["TORPOR_WITHOUT"] = "set_tid"
    job = bench.run(SOME[0].command(bench.go))
    job.ready()
    bench.checkpoint(job, "--stop")
    job.finish()
    words = ("restart", job.name, "--store", bench.store, "--detach", "--in-place", "--pid-budget", "0.001")
    said = bench.torpor(*words)
    assert said.status == 1
    assert re.search(r"steps away, which takes about [\d.]+ s; say --pid-budget=\d+", said.err), said.err
    bench.gone("after a refused restart")


@pytest.mark.parametrize("walking", [False, True])
def test_a_killed_restart_leaves_nothing(walking: bool, bench: harness.Bench) -> None:
    """SIGKILL at some moment: either the job runs, or nothing of it does."""
    if walking:
        bench.env["TORPOR_WITHOUT"] = "set_tid"
    job = bench.run(next(p for p in SOME if p.label == "family").command(bench.go))
    job.ready()
    bench.checkpoint(job, "--stop")
    job.finish()
    bench.gone("after the checkpoint")
    dice = random.Random(walking)
    for _ in range(12):
        words = ("restart", job.name, "--store", bench.store, "--in-place", *PATIENT)
        process = bench.popen([*bench.account.torpor, *words])
        time.sleep(dice.random() * (1.5 if walking else 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()

        def runs() -> bool:
            return any(entry["name"] == job.name for entry in bench.torpor("jobs", "--json").json())

        # What was forked for it may take a moment to end.
        harness.until(lambda: not harness.tagged(bench.tag) or runs(), "it runs, or nothing of it is left", 20)
        bench.kill()


def test_overmounted_proc(user_bench: harness.Bench) -> None:
    """A PID namespace, but no /proc of its own: the job works, and a note says so."""
    bench = confined(user_bench, "overmounted")
    bench.cycle(next(p for p in SOME if p.label == "memory").command(bench.go), "run")
    assert "/proc still shows the host's processes" in notes(bench)


@pytest.mark.parametrize(
    "program", catalogue.parameters([p for p in catalogue.STATE if p.label in ("clocks", "threads", "timers")])
)
def test_another_vdso(program: catalogue.Program, bench: harness.Bench) -> None:
    """As after a restart on another kernel: the old code comes back as ordinary memory that jumps to the new one."""
    bench.env["TORPOR_WITHOUT"] = "same_vdso"
    bench.cycle(program.command(bench.go), "run", rewind=program.rewind)
