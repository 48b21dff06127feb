"""The same round with CRIU, if PEER_CRIU names one (4.x, as root)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

from measure import look
from measure.cases import Case
from measure.ours import Figures


class Peer:
    """A CRIU at `path`; images below `folder`."""

    def __init__(self, path: str, folder: str) -> None:
        self.path, self.folder = path, folder
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        lines = done.stdout.split("\n")
        self.version = lines[0].partition(":")[2].strip() or lines[0]

    def _run(self, *words: str) -> float:
        """A command, and how long it took. Raises RuntimeError."""
        began = time.perf_counter()
        done = subprocess.run(
            [self.path, *words, "--shell-job"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=look.PATIENCE,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{os.path.basename(self.path)} {words[0]}: {(done.stderr or done.stdout)[-400:]}")
        return time.perf_counter() - began

    def round(self, case: Case, program: list[str]) -> Figures:
        """Save a case twice and restart it once: its file of output may not grow between save and restart, so the
        save that is measured lets the program run on, and the one that is restarted ends it."""
        images, output = f"{self.folder}/peer", f"{self.folder}/peer-output"
        shutil.rmtree(images, ignore_errors=True)
        for name in ("first", "second"):
            os.makedirs(f"{images}/{name}")
        out = look.empty_file(output)
        job = subprocess.Popen(
            [*program, *case.words()],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
        )  # fmt: skip
        os.close(out)
        restored = False
        try:
            figures = {"fork": look.fork_seconds(output)}
            time.sleep(0.2)
            began = time.time_ns()
            figures["save"] = self._run("dump", "-t", str(job.pid), "-D", f"{images}/first", "--leave-running")
            ended = time.time_ns()
            figures["pause"] = look.pause(output, began, ended)
            figures["image"] = float(sum(entry.stat().st_blocks * 512 for entry in os.scandir(f"{images}/first")))
            # It does not wait until its image is on the disk; torpor does.
            began = time.time_ns()
            os.sync()
            figures["save_and_sync"] = figures["save"] + (time.time_ns() - began) / 1e9
            self._run("dump", "-t", str(job.pid), "-D", f"{images}/second")
            job.wait()
            time.sleep(0.2)
            began = time.time_ns()
            self._run("restore", "-D", f"{images}/second", "--restore-detached")
            restored = True
            figures["restart"] = (look.first_instruction(output, began) - began) / 1e9
            return figures
        finally:
            if restored or job.poll() is None:
                try:
                    os.killpg(job.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            job.wait()
            shutil.rmtree(images, ignore_errors=True)
