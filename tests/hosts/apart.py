"""Parts of a job over hosts that are all on this machine, each at an address of the loopback network and with a runtime
and state folder of its own: started as `torpor run --hosts` would start them, through `torpor member`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from torpor.link import secret as secrets
from torpor.link import server
from torpor.supervise import part as parts
from torpor.supervise.part import Part

FIRST = "h1"


class Apart:
    """A job of the parts `names`. folder: for all that they have."""

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names
        self.store = f"{folder}/store"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, name: str) -> dict[str, str]:
        found = {**os.environ, "TORPOR_RUNTIME": f"{self.folder}/{name}/run", "XDG_STATE_HOME": f"{self.folder}/{name}"}
        os.makedirs(found["TORPOR_RUNTIME"], mode=0o700, exist_ok=True)
        return found

    def begin(self, argv: Sequence[str], at: int = 2) -> subprocess.Popen[bytes]:
        """Begin the job; its first part. at: the last number of the first one's address."""
        return self._start(at, {"argv": tuple(map(os.fsencode, argv))})

    def restart(self, checkpoint: str, at: int = 2) -> subprocess.Popen[bytes]:
        """Bring it back."""
        return self._start(at, {"checkpoint": checkpoint})

    def _start(self, at: int, more: Mapping[str, object]) -> subprocess.Popen[bytes]:
        hosts = {name: f"127.0.0.{at + n}" for n, name in enumerate(self.names)}
        node = server.Node(FIRST, hosts[FIRST], *server.free_ports(hosts[FIRST], 2))
        key = secrets.fresh()
        for name in self.names:
            first = name == FIRST
            said = {key: value for key, value in more.items() if first or key != "argv"}
            part = Part(
                job="far", part=name, first=first, address=hosts[name], hosts=hosts, nodes=(node,), store=self.store,
                old=name, **said,  # type: ignore[arg-type]
            )  # fmt: skip
            words = [sys.executable, "-m", "torpor", "member", *([] if first else ["--detach"])]
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment(name), start_new_session=True
            )
            self._running[name] = process
            self._tell(name, key.line() + parts.line(part))
        if "checkpoint" not in more:
            doors = {name: (hosts[name], self._said(name)["door"]) for name in self.names}
            for name in self.names:
                self._tell(name, json.dumps({"doors": doors}).encode() + b"\n")
        for name in self.names:
            if name != FIRST:
                if "checkpoint" in more:
                    assert self._said(name) == {"ready": True}
                assert self._said(name) == {"started": True}
        return self._running[FIRST]

    def _tell(self, name: str, data: bytes) -> None:
        pipe = self._running[name].stdin
        assert pipe is not None
        pipe.write(data)
        pipe.flush()

    def _said(self, name: str) -> dict[str, object]:
        pipe = self._running[name].stdout
        assert pipe is not None
        line = pipe.readline()
        assert line, f"{name} said nothing"
        found: dict[str, object] = json.loads(line)
        return found

    def torpor(self, name: str, *words: str, status: int = 0) -> str:
        """A command on the host of a part; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "torpor", *words], env=self.environment(name), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == status, f"{name}: {words}: {done}"
        return done.stdout + done.stderr

    def processes(self, name: str) -> list[int]:
        """Host pids of the job's processes there."""
        jobs = json.loads(self.torpor(name, "jobs", "--json"))
        return [process["pid"] for job in jobs for process in job["processes"]]

    def kill(self) -> None:
        """All hosts lose power, as far as that can be had: everything of the job is killed."""
        for name in self.names:
            for entry in _entries(self.environment(name)["TORPOR_RUNTIME"]):
                for key in ("supervisor", "root", "reaper"):
                    pid = entry.get(key, [0])[0]
                    if pid > 0:
                        _kill_tree(pid)

    def close(self) -> None:
        """Nothing is left of it."""
        self.kill()
        for process in self._running.values():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _entries(runtime: str) -> list[dict[str, list[int]]]:
    found = []
    for folder, _, files in os.walk(runtime):
        if "info.json" in files:
            with open(f"{folder}/info.json") as file:
                found.append(json.load(file))
        if "keeper.json" in files:
            with open(f"{folder}/keeper.json") as file:
                found.append({"supervisor": json.load(file)["keeper"], "root": json.load(open(file.name))["server"]})
    return found


def _kill_tree(pid: int) -> None:
    below = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    for child in below:
        _kill_tree(int(child))
