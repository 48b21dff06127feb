"""Test hosts on one machine: each with its own network, mount, PID, IPC and UTS namespace, host name, address, /tmp,
/dev/shm, /run and /scratch, and its own sshd. In common are the programs of the system and the folders that are named.

Needs root. The hosts are joined by a bridge in a network namespace of its own: nothing reaches the machine's network,
nothing of the machine's is reached.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

NEEDED = [
    pytest.mark.skipif(os.getuid() != 0, reason="needs root"),
    pytest.mark.skipif(not all(map(shutil.which, ("ip", "unshare", "nsenter", "ssh", "/usr/sbin/sshd"))),
                       reason="needs ip, unshare, nsenter and sshd"),
]  # fmt: skip
"""For `pytestmark`: what a bed needs of a machine."""
HERE = os.path.dirname(os.path.abspath(__file__))
NETWORK = "10.77.0"


class Host:
    """One of them. pid: its PID 1, as the machine sees it."""

    def __init__(self, name: str, address: str, process: subprocess.Popen[bytes], pid: int) -> None:
        self.name, self.address, self.pid = name, address, pid
        self._process = process

    def command(self, words: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
        """What has to be run here for `words` to be run there."""
        inside = {"HOME": "/run/home", "USER": "root", "LANG": "C.UTF-8", "PATH": os.environ["PATH"]}
        inside.update({"TORPOR_LEASE": "4s", **(env or {})})
        enter = ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "-i", "-u"]
        return [*enter, "env", "-C", "/scratch", "-i", *(f"{key}={value}" for key, value in inside.items()), *words]

    def popen(
        self, words: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a program there."""
        return subprocess.Popen(self.command(words, env), **options)

    def run(self, words: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 60) -> str:
        """Run a program there; its output. Raises AssertionError if it fails."""
        done = subprocess.run(
            self.command(words, env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f"{self.name}: {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def network(self, *words: str) -> str:
        """`ip WORDS` in its network namespace."""
        return _ip(self.pid, *words)

    def crash(self) -> None:
        """The host is gone, with everything that ran there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait()


class Bed:
    """Hosts h1, h2, ... in one network."""

    def __init__(self, folder: str, shared: Sequence[str]) -> None:
        """folder: for what the hosts have for themselves. shared: folders that all of them see."""
        self.folder, self.shared = folder, [*shared, folder]
        self.hosts: dict[str, Host] = {}
        self._addresses: dict[str, str] = {}
        self.keys = f"{folder}/keys"
        os.makedirs(self.keys, mode=0o700)
        for name in ("id", "host"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{self.keys}/{name}"], check=True,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._fabric = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo READY; exec sleep infinity"],
                                        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)  # fmt: skip
        _await_ready(self._fabric, "the network")
        _ip(self._fabric.pid, "link", "add", "bridge", "type", "bridge")
        _ip(self._fabric.pid, "link", "set", "bridge", "up")

    def start(self, names: Sequence[str]) -> list[Host]:
        """Start hosts of these names; those that are there already do not learn the new ones' names."""
        for name in names:
            self._addresses[name] = f"{NETWORK}.{len(self._addresses) + 1}"
        return [self._start(name) for name in names]

    def _start(self, name: str) -> Host:
        own = f"{self.folder}/{name}"
        os.makedirs(own)
        spec = {"name": name, "folder": own, "shared": self.shared, "hosts": self._addresses, "keys": self.keys}
        words = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc",
                 sys.executable, f"{HERE}/host_init.py", json.dumps(spec)]  # fmt: skip
        with open(f"{own}/log", "wb") as log:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        _await_ready(process, name, f"{own}/log")
        with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
            pid = int(file.read().split()[0])
        address = self._addresses[name]
        fabric = self._fabric.pid
        _ip(fabric, "link", "add", f"v-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _ip(fabric, "link", "set", f"v-{name}", "master", "bridge", "up")
        _ip(pid, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip(pid, "link", "set", "eth0", "up")
        host = self.hosts[name] = Host(name, address, process, pid)
        return host

    def cut(self, name: str, on: bool = True) -> None:
        """Pull a host's cable out, or plug it in again."""
        _ip(self._fabric.pid, "link", "set", f"v-{name}", "down" if on else "up")

    def close(self) -> None:
        """End all hosts and the network."""
        for host in self.hosts.values():
            host.crash()
        self._fabric.kill()
        self._fabric.wait()


@contextlib.contextmanager
def bed(names: Sequence[str], shared: Sequence[str] = ()) -> Iterator[Bed]:
    """A bed of hosts for one test; nothing of it is left."""
    folder = tempfile.mkdtemp(prefix="torpor-hosts-", dir="/var/tmp")
    made = Bed(folder, shared)
    try:
        made.start(names)
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def _ip(pid: int, *words: str) -> str:
    done = subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


def _await_ready(process: subprocess.Popen[bytes], what: str, log: str = "") -> None:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 30)
    if not ready or process.stdout.readline() != b"READY\n":
        process.kill()
        text = ""
        if log:
            with open(log, errors="replace") as file:
                text = file.read()
        raise AssertionError(f"{what} does not start: {text}")
