"""What a checkpoint and a restart take of torpor itself, for one job (programs/grow.c): time, processor time, memory.

Saved by `torpor checkpoint --pid`, so that all of torpor that takes part is that command, and the kernel tells what it
took (wait4(2)). At a restart it is the command, which stays as the job's supervisor, and what it has forked for itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import NamedTuple

from measure import look
from measure.ours import Figures, Torpor

PATIENCE = 300.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Shape(NamedTuple):
    """A job: MiB of memory, mappings, threads and processes in all; and how many checkpoints of it the store has
    already."""

    size: int = 0
    mappings: int = 1
    threads: int = 1
    processes: int = 1
    checkpoints: int = 0


class Grown:
    """Measures one axis after the other. program: the path of programs/grow.c, compiled."""

    def __init__(self, ours: Torpor, program: str) -> None:
        self._ours, self._program = ours, program
        self._output = f"{ours.folder}/grown"

    def measure(self, shape: Shape) -> Figures:
        """Save and restart once. Times in seconds, memory in bytes. Raises RuntimeError, TimeoutError."""
        have = self._checkpoints()
        with self._job(shape) as pid:
            for _ in range(shape.checkpoints - have):
                self._save(pid)
            figures = self._save(pid)
        return {**figures, **self._restart()}

    def forget(self) -> None:
        """Begin with an empty store."""
        shutil.rmtree(f"{self._ours.folder}/store", ignore_errors=True)

    @contextlib.contextmanager
    def _job(self, shape: Shape) -> Iterator[int]:
        words = [self._program, *map(str, shape[:4])]
        out = look.empty_file(self._output)
        job = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, start_new_session=True)
        os.close(out)
        try:
            deadline = time.monotonic() + PATIENCE
            while ["ready"] not in look.lines(self._output):
                if job.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{' '.join(words)} does not become ready")
                time.sleep(0.02)
            yield job.pid
        finally:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()

    def _checkpoints(self) -> int:
        try:
            return len(os.listdir(f"{self._ours.folder}/store/roots/{self._ours.name}"))
        except FileNotFoundError:
            return 0

    def _save(self, pid: int) -> Figures:
        words = ["checkpoint", "--pid", str(pid), "--name", self._ours.name, "--json"]
        began = time.perf_counter()
        status, used, said = self._command(words)
        took = time.perf_counter() - began
        if status:
            raise RuntimeError(f"torpor checkpoint: {said[-400:]}")
        return {
            "save": took,
            "save_cpu": used.ru_utime + used.ru_stime,
            "save_memory": used.ru_maxrss * 1024.0,
            "pause": float(json.loads(said)["pause_seconds"]),
        }

    def _command(self, words: list[str]) -> tuple[int, resource.struct_rusage, str]:
        """Wait status, what it used, and what it said."""
        answer, errors = f"{self._output}-answer", f"{self._output}-errors"
        with open(answer, "w+", encoding="utf-8") as out, open(errors, "w+", encoding="utf-8") as trouble:
            command = subprocess.Popen(
                [*self._ours.words, *words], env=self._ours.env, stdin=subprocess.DEVNULL, stdout=out, stderr=trouble
            )
            _, command.returncode, used = os.wait4(command.pid, 0)
            said = trouble if command.returncode else out
            said.seek(0)
            return command.returncode, used, said.read()

    def _restart(self) -> Figures:
        """Of the newest checkpoint; what was restarted is ended. From the command to the program's first instruction;
        the rest until then, too."""
        out = look.empty_file(self._output)
        errors = look.empty_file(f"{self._output}-errors")
        began = time.time_ns()
        command = subprocess.Popen(
            [*self._ours.words, "restart", self._ours.name],
            env=self._ours.env, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True,
        )  # fmt: skip
        os.close(out)
        os.close(errors)
        try:
            ran = look.first_instruction(self._output, began, command)
            inside, own = _below(command.pid, os.path.realpath(self._program))
            return {
                "restart": (ran - began) / 1e9,
                "restart_cpu": _processor_time(command.pid),
                "restart_memory": _peak(command.pid) + sum(map(_private, own)),
            }
        except TimeoutError as error:
            with open(f"{self._output}-errors", encoding="utf-8", errors="replace") as file:
                raise RuntimeError(f"torpor restart: {error}; {file.read()[-400:]}") from error
        finally:
            inside, own = _below(command.pid, os.path.realpath(self._program))
            for pid in (*inside, *own, command.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            command.wait()


def _below(top: int, program: str) -> tuple[list[int], list[int]]:
    """The processes below `top`: those that run `program`, and the others."""
    inside, others, queue = [], [], [top]
    while queue:
        pid = queue.pop()
        try:
            with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
                children = [int(word) for word in file.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        queue += children
        for child in children:
            try:
                (inside if os.readlink(f"/proc/{child}/exe") == program else others).append(child)
            except OSError:
                continue  # it has just ended
    return inside, others


def _field(path: str, name: str) -> float:
    """Bytes, of a line `Name:  123 kB`."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return sum(int(line.split()[1]) * 1024.0 for line in file if line.startswith(name))


def _peak(pid: int) -> float:
    return _field(f"/proc/{pid}/status", "VmHWM:")


def _private(pid: int) -> float:
    try:
        return _field(f"/proc/{pid}/smaps_rollup", "Private_")
    except OSError:
        return 0.0


def _processor_time(pid: int) -> float:
    """Seconds; of what it has waited for as well."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS
