"""One round of a case with torpor: start, save, kill, restart."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
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

    def round(self, case: Case, program: list[str]) -> Figures:
        """Save and restart a case once, in a new store. Figures in seconds and bytes."""
        shutil.rmtree(f"{self.folder}/store", ignore_errors=True)
        output = f"{self.folder}/restarted"
        restarted = None
        try:
            started = self("run", "--detach", "--json", "--name", self.name, "--", *program, *case.words())
            figures = {"fork": look.fork_seconds(started["log"])}
            time.sleep(0.2)
            began = time.time_ns()
            saved = self("checkpoint", self.name, "--json")
            ended = time.time_ns()
            figures["save"] = (ended - began) / 1e9
            figures["save_inside"] = saved["seconds"]
            figures["pause"] = look.pause(started["log"], began, ended)
            figures["pause_said"] = saved["pause_seconds"]
            figures["image"] = float(saved["bytes_new"])
            figures["memory"] = float(saved["bytes_total"])
            self.kill()
            out = look.empty_file(output)
            began = time.time_ns()
            restarted = subprocess.Popen(
                [*self.words, "restart", self.name],
                env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            os.close(out)
            figures["restart"] = (look.first_instruction(output, began) - began) / 1e9
            return figures
        except TimeoutError as error:
            said = ""
            if restarted is not None and restarted.poll() is not None and restarted.stderr:
                said = restarted.stderr.read().decode(errors="replace")[-400:]
            raise RuntimeError(f"{error}; {said}") from error
        finally:
            self.kill()
            if restarted is not None:
                if restarted.poll() is None:
                    restarted.kill()
                restarted.wait()
                if restarted.stderr:
                    restarted.stderr.close()
            shutil.rmtree(f"{self.folder}/store", ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
