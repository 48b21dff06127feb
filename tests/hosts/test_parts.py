"""Two hosts save and restart a conversation at once; here each is a process, and the test is the coordinator."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from torpor.checkpoint import whole
from torpor.coordinate.conversations import Meeting, Settling
from torpor.image import seal
from torpor.image.whole import PartRecord
from torpor.store import open_store

HERE = os.path.dirname(os.path.abspath(__file__))
TALK = os.path.join(os.path.dirname(HERE), "programs", "far_talk.py")


class Part:
    """A host's part of what is going on."""

    def __init__(self, name: str, *words: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, f"{HERE}/part.py", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def did(self, what: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        said: dict[str, Any] = json.loads(line) if line else {"did": "ended"}
        assert said["did"] == what, f"{self.name}: {said}"
        return said

    def go_on(self, part: bytes = b"") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((part.hex() or "-") + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


def saved(store: str, number: int, pids: dict[str, int], stop: bool = False) -> list[float]:
    """Save them as one checkpoint."""
    parts = [
        Part(name, "save", str(pid), store, "talk", name, str(number), *(["stop"] if stop else []))
        for name, pid in pids.items()
    ]
    try:
        for part in parts:
            part.did("survey")
        for part in parts:
            part.go_on()
        settling = Settling()
        for part in parts:
            settling.add(part.name, bytes.fromhex(part.did("freeze")["part"]))
        handed = settling.result()
        for part in parts:
            part.go_on(handed.get(part.name, b""))
        for phase in ("settle", "capture", "resume") if not stop else ("settle", "capture"):
            for part in parts:
                part.did(phase)
            for part in parts:
                part.go_on()
        records = [msgspec.msgpack.decode(bytes.fromhex(part.did("store")["part"]), type=PartRecord) for part in parts]
        opened = open_store(store)
        whole.commit(opened, seal.sealing(None), "talk", number, records, {})
        opened.close()
        for part in parts:
            part.go_on()
            part.did("all")
        return [record.pause for record in records]
    finally:
        for part in parts:
            part.close()


@contextlib.contextmanager
def restarted(store: str, number: int, outputs: dict[str, str]) -> Iterator[dict[str, int]]:
    """Restart them; the host pids of their first processes."""
    parts = [Part(name, "restart", store, "talk", str(number), name, output) for name, output in outputs.items()]
    try:
        meeting = Meeting()
        for part in parts:
            meeting.add(part.name, bytes.fromhex(part.did("recreate")["part"]))
        handed = meeting.result()
        for part in parts:
            part.go_on(handed.get(part.name, b""))
        for phase in ("connect", "fill"):
            for part in parts:
                part.did(phase)
            for part in parts:
                part.go_on()
        yield {part.name: part.did("all")["pid"] for part in parts}
    finally:
        for part in parts:
            part.close()


def torpor(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torpor", *words], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


def await_lines(path: str, count: int, start: str) -> str:
    deadline = time.monotonic() + 60
    while True:
        with open(path) as file:
            lines = file.read().splitlines()
        assert not any(line.startswith(("WRONG", "Trace")) for line in lines), lines
        if sum(line.startswith(start) for line in lines) >= count:
            return lines[-1]
        assert time.monotonic() < deadline, f"{path}: {lines}"
        time.sleep(0.02)


@pytest.mark.parametrize("ending", ["running", "stopped"])
def test_a_conversation_comes_back_twice(ending: str) -> None:
    with tempfile.TemporaryDirectory(prefix="torpor-parts-", dir="/var/tmp") as folder:
        store = f"{folder}/store"
        outputs = {name: f"{folder}/{name}.out" for name in ("server", "client")}
        programs = []
        for name, output in outputs.items():
            with open(output, "w") as out:
                words = [sys.executable, TALK, name, "127.0.0.1", f"{folder}/port"]
                programs.append(
                    subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
                )
        try:
            for output in outputs.values():
                await_lines(output, 1, "READY")
            pids = {name: program.pid for name, program in zip(outputs, programs)}
            assert all(pause < 10 for pause in saved(store, 1, pids, ending == "stopped"))
            if ending == "running":
                saved(store, 2, pids)
                for program in programs:
                    program.send_signal(signal.SIGSTOP)  # none sees the other's end
                for program in programs:
                    program.kill()
            for program in programs:
                assert program.wait(20) == -signal.SIGKILL
        finally:
            for program in programs:
                program.kill()
                program.wait()
        newest = 2 if ending == "running" else 1
        shown = torpor("inspect", "talk", "--store", store)
        assert "on 2 hosts" in shown.stdout and "server" in shown.stdout and "client" in shown.stdout, shown
        shown = torpor("inspect", "talk", "--part", "client", "--store", store)
        assert "far_talk.py" in shown.stdout or "python" in shown.stdout, shown
        assert json.loads(torpor("inspect", "talk", "--json", "--store", store).stdout)["job"] == "talk"
        for words in (("restart", "talk"), ("drill", "talk"), ("inspect", "talk", "--part", "other")):
            refused = torpor(*words, "--store", store)
            assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused
        with restarted(store, newest, outputs) as pids:
            saved(store, newest + 1, pids)
            saved(store, newest + 2, pids, stop=True)
        with restarted(store, newest + 2, outputs) as pids:
            for pid in pids.values():
                os.kill(pid, signal.SIGUSR1)
            counts = {await_lines(output, 1, "OK") for output in outputs.values()}
            assert len(counts) == 1, counts
