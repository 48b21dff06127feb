"""Parts of a job over hosts that are all on this machine, each at an address of the loopback network and with a runtime
and state folder of its own: started as `torpor run --hosts` would start them, through `torpor member`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from torpor.coordinate.phases import Limits
from torpor.link import secret as secrets
from torpor.link import server
from torpor.supervise import part as parts
from torpor.supervise.part import Part

FIRST = "h1"
HASTY = Limits(repeat=0.3, silence=2.0, host=3.0, ending=5.0, commit=5.0)
"""Of a job whose hosts do not wait long for each other."""


class Apart:
    """A job of the parts `names`. folder: for all that they have.  hasty: nobody waits long for anybody.  program: what
    is run for a part in place of `torpor`."""

    def __init__(self, folder: str, names: Sequence[str], hasty: bool = False, program: Sequence[str] = ()) -> None:
        self.folder, self.names = folder, names
        self.store = f"{folder}/store"
        self._limits: dict[str, object] = {"limits": HASTY, "lease": 2.0, "silent": 3.0} if hasty else {}
        self._program = program or [sys.executable, "-m", "torpor"]
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, name: str) -> dict[str, str]:
        found = {**os.environ, "TORPOR_RUNTIME": f"{self.folder}/{name}/run", "XDG_STATE_HOME": f"{self.folder}/{name}",
                 "TORPOR_TEST_HOLD": f"{self.folder}/{name}/hold"}  # fmt: skip
        os.makedirs(found["TORPOR_RUNTIME"], mode=0o700, exist_ok=True)
        return found

    def begin(self, argv: Sequence[str], at: int = 2) -> subprocess.Popen[bytes]:
        """Begin the job; its first part. at: the last number of the first one's address."""
        return self._start(at, {"argv": tuple(map(os.fsencode, argv))})

    def restart(self, checkpoint: str, at: int = 2, come: bool = True) -> subprocess.Popen[bytes]:
        """Bring it back. come: and wait until it runs."""
        return self._start(at, {"checkpoint": checkpoint}, come)

    def _start(self, at: int, more: Mapping[str, object], come: bool = True) -> subprocess.Popen[bytes]:
        hosts = {name: f"127.0.0.{at + n}" for n, name in enumerate(self.names)}
        node = server.Node(FIRST, hosts[FIRST], 0)
        key = secrets.fresh()
        for name in self.names:
            first = name == FIRST
            said = {key: value for key, value in more.items() if first or key != "argv"}
            part = Part(
                job="far", part=name, first=first, address=hosts[name], hosts=hosts, nodes=(node,), store=self.store,
                old=name, **said, **self._limits,  # type: ignore[arg-type]
            )  # fmt: skip
            words = [*self._program, "member", *([] if first else ["--detach"])]
            env = self.environment(name)
            with open(self.err(name), "ab") as err:
                process = subprocess.Popen(
                    words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, env=env, start_new_session=True
                )
            self._close(name)
            self._running[name] = process
            self._tell(name, key.line() + parts.line(part))
        ports = self._said(FIRST)["ports"]
        assert isinstance(ports, list)
        for name in self.names:
            self._tell(name, json.dumps({"nodes": [[FIRST, hosts[FIRST], *ports]]}).encode() + b"\n")
        if "checkpoint" not in more:
            told = {name: self._said(name) for name in self.names}
            assert all("door" in each for each in told.values()), told
            doors = {name: (hosts[name], told[name]["door"]) for name in self.names}
            for name in self.names:
                self._tell(name, json.dumps({"doors": doors}).encode() + b"\n")
        for name in self.names:
            if name != FIRST and come:
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

    def err(self, name: str) -> str:
        """Where a part complains before it has a log."""
        return f"{self.folder}/{name}/err"

    def said(self) -> str:
        """All that was complained of, for whoever wants to know why."""
        texts = []
        for name in self.names:
            for folder, _, files in os.walk(f"{self.folder}/{name}"):
                for each in files:
                    if each == "err" or each.endswith(".log"):
                        with open(f"{folder}/{each}", errors="replace") as file:
                            texts.append(f"{folder}/{each}: {file.read()[-1000:]}")
        return "\n".join(texts)

    def supervisor(self, name: str) -> int:
        """The pid of a part's supervisor, 0 if it has none."""
        runtime = self.environment(name)["TORPOR_RUNTIME"]
        found = [entry["supervisor"][0] for entry in _entries(runtime) if entry.get("reaper")]
        return found[0] if found else 0

    def member(self, name: str) -> int:
        """The pid of a part's member process, 0 if it has none just now."""
        for pid in _below(self.supervisor(name)):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"supervise.member" in file.read():
                    return pid
        return 0

    def nats(self, keeper: bool = False) -> int:
        """The pid of the job's server, or of its keeper."""
        runtime = self.environment(FIRST)["TORPOR_RUNTIME"]
        found = next(entry for entry in _entries(runtime) if "reaper" not in entry)
        return found["supervisor" if keeper else "root"][0]

    def everything(self, name: str) -> list[int]:
        """All processes of a part, torpor's and the job's."""
        found: list[int] = []
        for entry in _entries(self.environment(name)["TORPOR_RUNTIME"]):
            for key in ("supervisor", "root", "reaper"):
                pid = entry.get(key, [0])[0]
                if pid > 0 and os.path.exists(f"/proc/{pid}"):
                    found += [pid, *_all_below(pid)]
        return list(dict.fromkeys(found))

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
        for name in list(self._running):
            self._close(name)

    def _close(self, name: str) -> None:
        process = self._running.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _entries(runtime: str) -> list[dict[str, list[int]]]:
    found = []
    for folder, _, files in os.walk(runtime):
        if "/.gone-" in folder:
            continue  # of a job that has died
        if "info.json" in files:
            with open(f"{folder}/info.json") as file:
                found.append(json.load(file))
        if "keeper.json" in files:
            with open(f"{folder}/keeper.json") as file:
                found.append({"supervisor": json.load(file)["keeper"], "root": json.load(open(file.name))["server"]})
    return found


def _below(pid: int) -> list[int]:
    """Children."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return list(map(int, found))


def _all_below(pid: int) -> list[int]:
    return [each for child in _below(pid) for each in (child, *_all_below(child))]


def _kill_tree(pid: int) -> None:
    below = _below(pid)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    for child in below:
        _kill_tree(child)
