"""PID 1 of a test host: host_init.py SPEC. It makes the host's own places, starts an sshd, says READY, and waits.

SPEC is JSON: name, folder (of this host, where its state is), shared (paths that stay as they are outside), hosts
(all names and addresses).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

OWN = ("/tmp", "/dev/shm", "/run", "/scratch")
"""Folders that every host has for itself."""


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _bind(path: str, text: str, folder: str) -> None:
    """Another text in the place of a file of the system."""
    copy = f"{folder}/{os.path.basename(path)}"
    with open(copy, "w", encoding="utf-8") as file:
        file.write(text)
    _mount("--bind", copy, path)


def main() -> None:
    spec = json.loads(sys.argv[1])
    name, folder = spec["name"], spec["folder"]
    _mount("--make-rprivate", "/")
    subprocess.run(["hostname", name], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    keep = {path: os.open(path, os.O_PATH) for path in spec["shared"]}
    os.makedirs("/scratch", exist_ok=True)
    for path in OWN:
        _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", path)
    for path, fd in keep.items():
        os.makedirs(path, exist_ok=True)
        _mount("--bind", f"/proc/{os.getpid()}/fd/{fd}", path)
    home = "/run/home"
    os.makedirs(f"{home}/.ssh", mode=0o700)
    names = "\n".join(f"{address} {host}" for host, address in spec["hosts"].items())
    _bind("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n{names}\n", folder)
    with open("/etc/passwd", encoding="utf-8") as file:
        users = [line.split(":") for line in file.read().splitlines()]
    for fields in users:
        if fields[0] == "root":
            fields[5] = home
    _bind("/etc/passwd", "".join(":".join(fields) + "\n" for fields in users), folder)
    with open(f"{spec['keys']}/id.pub", encoding="utf-8") as file:
        public = file.read()
    with open(f"{home}/.ssh/authorized_keys", "w", encoding="utf-8") as file:
        file.write(public)
    os.chmod(f"{home}/.ssh/authorized_keys", 0o600)
    with open(f"{home}/.ssh/config", "w", encoding="utf-8") as file:
        file.write(
            f"Host *\n IdentityFile {spec['keys']}/id\n StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n"
            " LogLevel ERROR\n BatchMode yes\n"
        )
    os.makedirs("/run/sshd", mode=0o755)
    with open(f"{folder}/sshd_config", "w", encoding="utf-8") as file:
        file.write(
            f"ListenAddress 0.0.0.0\nHostKey {spec['keys']}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
            "PasswordAuthentication no\nPermitRootLogin yes\nAcceptEnv *\nPermitUserEnvironment yes\n"
            "MaxStartups 100\n"
        )
    sshd = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", f"{folder}/sshd_config"])
    print("READY", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while sshd.poll() is None:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        time.sleep(0.2)


main()
