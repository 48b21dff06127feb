"""What is done with torpor in a round: start, save, kill, restart."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from measure import look
from measure.cases import Case

Figures = dict[str, float]


class Torpor:
    """The command, with a runtime folder, state and store of its own below `folder`."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.name = f"bench-{os.getpid()}"
        self.env = {
            **os.environ,
            "XDG_RUNTIME_DIR": f"{folder}/run",
            "XDG_STATE_HOME": f"{folder}/state",
            "TORPOR_STORE": f"{folder}/store",
        }
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        os.makedirs(f"{folder}/run", 0o700, exist_ok=True)
        script = os.path.join(os.path.dirname(sys.executable), "torpor")
        self.words = [script] if os.path.exists(script) else [sys.executable, "-m", "torpor"]

    def __call__(self, *words: str) -> Any:
        """A command with --json: what it says. Raises RuntimeError."""
        done = subprocess.run(
            [*self.words, *words], env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=look.PATIENCE, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"torpor {words[0]}: {done.stderr.strip()[-400:]}")
        return json.loads(done.stdout)

    def kill(self) -> None:
        """SIGKILL to all processes of our jobs and to their supervisors, as a power cut would."""
        pids = []
        for job in self("jobs", "--json"):
            if job["store"] == f"{self.folder}/store":  # jobs of other runtime folders are shown too: not ours
                pids += [job["supervisor"], *(member["pid"] for member in job["processes"])]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        deadline = time.monotonic() + 20
        while any(map(_runs, pids)) and time.monotonic() < deadline:
            time.sleep(0.01)

    def forget(self) -> None:
        """Begin with an empty store."""
        shutil.rmtree(f"{self.folder}/store", ignore_errors=True)

    def start(self, name: str, words: list[str], *flags: str) -> Any:
        """`torpor run` of a program that says when it is ready: what that said (`pid`, `log`). Raises RuntimeError,
        TimeoutError."""
        started = self("run", "--detach", "--json", "--name", name, *flags, "--", *words)
        look.ready(started["log"])
        return started

    @contextlib.contextmanager
    def restarted(self, *words: str) -> Iterator[float]:
        """`torpor restart` of a hold: seconds until its first instruction. All of our jobs are killed in the end.
        Raises RuntimeError."""
        output = f"{self.folder}/restarted"
        out, errors = look.empty_file(output), look.empty_file(f"{output}-errors")
        began = time.time_ns()
        command = subprocess.Popen(
            [*self.words, "restart", *words],
            env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True,
        )  # fmt: skip
        os.close(out)
        os.close(errors)
        try:
            try:
                ran = look.first_instruction(output, began, command)
            except TimeoutError as error:
                with open(f"{output}-errors", encoding="utf-8", errors="replace") as file:
                    raise RuntimeError(f"torpor restart: {error}; {file.read()[-400:]}") from error
            yield (ran - began) / 1e9
        finally:
            self.kill()
            command.kill()
            command.wait()

    def round(self, case: Case, program: list[str]) -> Figures:
        """Save and restart a case once, in a new store. Figures in seconds and bytes. Raises RuntimeError,
        TimeoutError."""
        self.forget()
        try:
            log = self.start(self.name, [*program, *case.words()])["log"]
            figures = {"fork": look.fork_seconds(log)}
            time.sleep(0.2)
            began = time.time_ns()
            saved = self("checkpoint", self.name, "--json")
            ended = time.time_ns()
            figures["save"] = (ended - began) / 1e9
            figures["save_inside"] = saved["seconds"]
            figures["pause"] = look.pause(log, began, ended)
            figures["pause_said"] = saved["pause_seconds"]
            figures["image"] = float(saved["bytes_new"])
            figures["memory"] = float(saved["bytes_total"])
            self.kill()
            with self.restarted(self.name) as figures["restart"]:
                pass
            return figures
        finally:
            self.kill()
            self.forget()


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
