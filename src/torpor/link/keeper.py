"""The parent of a job's NATS server (server.py starts it: FOLDER PROGRAM PORT).

A process of its own, because the server is the job's and not one supervisor's. It sleeps nearly always. It starts the
server again if that dies, and ends it on SIGTERM, or when for IDLE seconds no client has been connected: then every
supervisor of the job is dead, and nobody else would. At its end the folder is removed.

A server that has never answered is not started again: there is something wrong that will not go by itself, and the last
line in its log says what.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time

IDLE = 600.0
"""Seconds without any client after which the server is ended."""
LOOK = 5.0
"""Seconds between two looks for clients."""
TRIES, SPAN = 5, 60.0
"""A server that has died so often within so many seconds is left alone."""
WAIT = 5.0
"""Seconds that a server has for ending."""
ESTABLISHED = "01"
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


def main(folder: str, program: str, port: int) -> int:
    """Keep the server until it is time to end it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    deaths: list[float] = []
    server = _spawn(folder, program)
    started = False
    busy = time.monotonic()
    try:
        while True:
            told = signal.sigtimedwait(_SIGNALS, LOOK if started else 0.02)
            if told is not None and told.si_signo == signal.SIGTERM:
                return 0
            if _gone(server):
                if not started:
                    server = 0
                    return 1  # the folder stays: its log says why
                now = time.monotonic()
                deaths = [death for death in deaths if death > now - SPAN] + [now]
                server = 0
                if len(deaths) >= TRIES:
                    return 1
                time.sleep(0.1 * len(deaths))
                server = _spawn(folder, program)
            elif not started:
                if os.path.exists(ready(folder, program, server)):
                    started = True
                    with open(os.path.join(folder, "started"), "x"):
                        pass
            elif sockets(server, port, ESTABLISHED):
                busy = time.monotonic()
            elif time.monotonic() - busy > IDLE:
                return 0
    finally:
        if server:
            _end(server)
        if started:
            shutil.rmtree(folder, ignore_errors=True)


def _spawn(folder: str, program: str) -> int:
    """Start the server; who runs is written down."""
    pid = os.posix_spawn(
        program, [program, "-c", os.path.join(folder, "server.conf")], dict(os.environ), setsigmask=[], setsigdef=[]
    )
    pids = {"keeper": (os.getpid(), _start_time(os.getpid())), "server": (pid, _start_time(pid))}
    temporary = os.path.join(folder, "keeper.json.new")
    with open(temporary, "w", encoding="ascii") as file:
        json.dump(pids, file)
    os.rename(temporary, os.path.join(folder, "keeper.json"))
    return pid


def _start_time(pid: int) -> int:
    """/proc/PID/stat, field 22."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def _gone(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGCONT)
    until = time.monotonic() + WAIT
    while not _gone(pid):
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        signal.sigtimedwait({signal.SIGCHLD}, 0.1)


def ready(folder: str, program: str, pid: int) -> str:
    """The file that a server makes once it listens (its option `ports_file_dir`)."""
    return os.path.join(folder, f"{os.path.basename(program)}_{pid}.ports")


def sockets(pid: int, port: int, state: str) -> int:
    """How many TCP sockets at `port` in this process' network are in a state: /proc/PID/net/tcp (proc(5)) has the local
    address in the second column and the state in the fourth."""
    found = 0
    wanted = f":{port:04X}"
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{name}", encoding="ascii") as file:
                for line in file:
                    fields = line.split(None, 4)
                    found += fields[1].endswith(wanted) and fields[3] == state
        except OSError:
            continue
    return found


def run() -> None:
    """The process."""
    raise SystemExit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
