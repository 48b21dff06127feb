"""torpor, with somebody who takes memory of a control group once the copies of processes are being read, and keeps it
until the command has ended.

short_of_memory.py GROUP MIB WORD...

Nothing more is read then until the job has been stopped again (checkpoint/shortage.py), and it has to stand still.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
import time

import torpor
from torpor.cli.main import main
from torpor.linux import proc
from torpor.posix.memory import capture

function = torpor.checkpoint
shortage = importlib.import_module("torpor.checkpoint.shortage")
torpor.checkpoint = function  # the folder of that name has just taken its place

GROUP, MIB = sys.argv[1], int(sys.argv[2])
TAKE = f"""
open({GROUP + "/cgroup.procs"!r}, "w").write("0")
taken = b"x" * ({MIB} << 20)
print("taken", flush=True)
input()
"""
takers: list[subprocess.Popen] = []
lock = threading.Lock()
stopped = threading.Event()
read = capture.Reader.read
stop = shortage.Shortage._stop


def short(self, pid, window):
    # The few windows that our code was in are read before, by the thread that looks after the memory.
    if proc.comm(pid) == "torpor-snapshot" and threading.current_thread() is not threading.main_thread():
        with lock:
            if not takers:
                words = [sys.executable, "-c", TAKE]
                takers.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
                assert takers[0].stdout.readline() == b"taken\n"
        assert stopped.wait(20), "the job was not stopped"
    return read(self, pid, window)


def times(self):
    return [sum(map(int, proc.text(f"/proc/{pid}/stat").rpartition(")")[2].split()[11:13])) for pid in self._find()]


def stop_and_look(self):
    stop(self)
    before = times(self)
    time.sleep(0.1)
    assert times(self) == before, "the job runs"
    stopped.set()


capture.Reader.read = short
shortage.Shortage._stop = stop_and_look
sys.exit(main(sys.argv[3:]))
