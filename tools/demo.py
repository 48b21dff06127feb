"""`make demo`: save a running computation, kill it, start it again, and see that it comes to the same result.

The computation is examples/darts.py: five processes connected by pipes, some twenty threads. It is run once
undisturbed; then again under `torpor run`, saved while it runs, killed with SIGKILL together with its supervisor,
restarted, and left to finish. Everything is kept in a temporary folder, which is deleted at the end. Exit status 0 if
both runs print the same result, 1 if not.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = os.path.join(os.path.dirname(HERE), "examples", "darts.py")
SECONDS = 5.0
"""How long the undisturbed computation is to take, so that there is time to save it in the middle."""
TORPOR = [sys.executable, "-m", "torpor"]
PATIENCE = 60.0
"""Seconds that any one step may take. All of it takes about 15 s."""


class Failed(Exception):
    """The demonstration cannot go on; the text says why."""


class TooSoon(Failed):
    """The computation had ended before it could be saved or killed."""


class Show:
    """The demonstration, with its own folder, job name and notion of the time."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.name = f"darts-{os.getpid()}"
        # Jobs, logs and checkpoints of this user's own are not to be touched, nor to be seen.
        self.env = {
            **os.environ,
            "TORPOR_STORE": f"{folder}/store",
            "XDG_STATE_HOME": f"{folder}/state",
            "XDG_RUNTIME_DIR": f"{folder}/run",
        }
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        os.mkdir(f"{folder}/run", 0o700)
        self.log = ""

    def torpor(self, *words: str, quiet: bool = False) -> tuple[str, float]:
        """A command: its output, and how long it took. Raises Failed, with what it said."""
        if not quiet:
            print(f"$ torpor {' '.join(word.replace(self.folder, '$TMP') for word in words)}", flush=True)
        began = time.monotonic()
        try:
            done = subprocess.run(
                [*TORPOR, *words], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, timeout=PATIENCE,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failed(f"`torpor {words[0]}` has not come to an end within {PATIENCE:.0f} s") from error
        took = time.monotonic() - began
        if not quiet:
            for line in done.stdout.splitlines():
                print(f"  {line.replace(self.folder, '$TMP')}", flush=True)
        if done.returncode:
            raise Failed(f"`torpor {words[0]}` ended with status {done.returncode}\n{done.stdout if quiet else ''}")
        return done.stdout, took

    def job(self) -> dict[str, Any] | None:
        """What `torpor jobs` knows of the job; None if it does not run."""
        jobs = json.loads(self.torpor("jobs", "--json", quiet=True)[0])
        # Jobs of other runtime folders are shown too: those are not ours.
        return next((job for job in jobs if job["store"] == self.env["TORPOR_STORE"]), None)

    def steps(self) -> int:
        """How many steps the job's log tells of."""
        lines = [line for line in self.output() if line.startswith("step ")]
        return int(lines[-1].split()[1]) if lines else 0

    def output(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError), open(self.log, encoding="utf-8") as file:
            return file.read().splitlines()
        return []

    def until(self, what: str, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            if time.monotonic() > deadline:
                raise Failed(f"{what}: not within {PATIENCE:.0f} s")
            time.sleep(0.02)

    def kill(self) -> tuple[int, int]:
        """SIGKILL to every process of the job and to its supervisor; the number of the job's, and of their threads."""
        job = self.job()
        if job is None:
            return 0, 0
        members = [member["pid"] for member in job["processes"]]
        everything = [job["supervisor"], *members]
        for pid in everything:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.until("the killed processes are gone", lambda: not any(map(runs, everything)))
        return len(members), sum(member["threads"] for member in job["processes"])


def runs(pid: int) -> bool:
    """Is there such a process, other than as a zombie?"""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def result(lines: Sequence[str]) -> str:
    """The result that a run has printed, '' if none."""
    return next((line for line in lines if line.startswith("result: ")), "")


def compute(show: Show, steps: int) -> tuple[list[str], float]:
    """Run the computation undisturbed: what it printed, and how long it took. Raises Failed."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, PROGRAM, str(steps)],
        env=show.env, capture_output=True, text=True, timeout=2 * PATIENCE, check=False,
    )  # fmt: skip
    took = time.monotonic() - began
    lines = done.stdout.splitlines()
    if done.returncode or not result(lines):
        raise Failed(f"the computation itself does not work here:\n{done.stdout[-500:]}{done.stderr[-2000:]}")
    return lines, took


def introduce(show: Show) -> None:
    """What is shown, and on what."""
    numpy = subprocess.run([sys.executable, "-c", "import numpy"], capture_output=True, check=False).returncode == 0
    user = pwd.getpwuid(os.geteuid()).pw_name if os.geteuid() else "root"
    version = show.torpor("--version", quiet=True)[0].strip()
    print(f"{version}, Python {sys.version.split()[0]}, Linux {os.uname().release}, as {user}")
    print(
        f"The computation: examples/darts.py, 5 processes connected by pipes, {'numpy' if numpy else 'plain Python'}\n"
    )


def how_many(show: Show) -> int:
    """Steps that take about SECONDS here."""
    start, some = compute(show, 1)[1], compute(show, 41)[1]
    one_step = max(0.002, (some - start) / 40, some / 41 / 3)  # the last: where the start was slow by accident
    return max(80, min(5000, round(SECONDS / one_step)))


def demonstrate(show: Show, steps: int) -> bool:
    """All of it; whether the results are equal. Raises Failed, TooSoon."""
    print("1. undisturbed", flush=True)
    plain, undisturbed = compute(show, steps)
    wanted = result(plain)
    total = int(plain[0].split()[3])
    print(f"  {wanted}\n  it took {undisturbed:.1f} s\n")

    print("2. under torpor, saved while it runs", flush=True)
    show.torpor("run", "--detach", "--name", show.name, "--", sys.executable, PROGRAM, str(steps))
    began = time.monotonic()
    job = show.job()
    if job is None:
        raise TooSoon("the computation was over at once")
    show.log = str(job["log"])
    show.until("a third of the computation", lambda: show.steps() >= total // 3)
    saved = show.steps()
    try:
        _, saving = show.torpor("checkpoint", show.name)
    except Failed:
        if show.job() is None:
            raise TooSoon("the computation was over before it was saved") from None
        raise
    show.until("some more of it", lambda: show.steps() >= total // 2)
    print()

    print("3. killed", flush=True)
    before = show.steps()
    processes, threads = show.kill()
    if processes < 5:
        raise TooSoon("the computation was over before it could be killed")
    ran = time.monotonic() - began
    print(f"  {processes} processes ({threads} threads) and the supervisor got SIGKILL at step {before} of {total}\n")

    print("4. restarted", flush=True)
    restarted = time.monotonic()
    _, restarting = show.torpor("restart", show.name, "--detach")
    print(f"  saved at step {saved} or soon after, killed at {before}; when this command returned: {show.steps()}")
    show.torpor("wait", show.name)
    rest = time.monotonic() - restarted
    found = result(show.output())
    print(f"  {found or 'no result'}\n")

    print("the run without disturbance            ", f"{undisturbed:6.2f} s")
    print("until it was killed                    ", f"{ran:6.2f} s")
    print("torpor checkpoint (the whole command)  ", f"{saving:6.2f} s")
    print("torpor restart (the whole command)     ", f"{restarting:6.2f} s")
    print("from the restart to the end            ", f"{rest:6.2f} s")
    if found != wanted:
        print(f"\nNOT EQUAL: undisturbed {wanted!r}, restarted {found!r}")
        print("\n".join(f"  log: {line}" for line in show.output()[-20:]))
        return False
    print("\nThe result is the same. To do this with a program of yours (README.md):")
    print("  .venv/bin/torpor run --name mine -- PROGRAM\n  .venv/bin/torpor checkpoint mine --stop")
    print("  .venv/bin/torpor restart mine")
    return True


def main() -> int:
    if not sys.platform.startswith("linux"):
        print("demo: torpor runs on Linux", file=sys.stderr)
        return 1
    folder = tempfile.mkdtemp(prefix="torpor-demo-")
    if len(folder) > 60:  # a UNIX socket has to fit below it
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="torpor-demo-", dir="/tmp")
    show = Show(folder)
    try:
        introduce(show)
        steps = how_many(show)
        for more in (4, 4, 0):
            try:
                return 0 if demonstrate(show, steps) else 1
            except TooSoon as error:  # the machine was busier when the steps were counted than it is now
                if not more:
                    raise
                print(f"\n{error}: again, with {more} times as many steps\n", flush=True)
                steps *= more
        return 1
    except Failed as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        print("demo: `.venv/bin/torpor doctor` says what this machine allows", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        with contextlib.suppress(Failed, OSError, ValueError):
            show.kill()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
