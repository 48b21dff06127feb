"""Capturing from another process, which is stopped and must not notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from descriptor_bench import FakeJob, FakeRestart, look

PROGRAM = """
import fcntl, os, select, signal, sys, tempfile
folder = sys.argv[1]
fds = {}
fds['file'] = os.open(folder + '/f', os.O_RDWR | os.O_CREAT)
os.write(fds['file'], b'0123456789')
os.lseek(fds['file'], 3, 0)
fds['gone'] = os.open(folder + '/gone', os.O_RDWR | os.O_CREAT)
os.write(fds['gone'], b'gone')
os.unlink(folder + '/gone')
fds['dir'] = os.open(folder, os.O_RDONLY)
fds['null'] = os.open('/dev/null', os.O_RDWR)
fds['r'], fds['w'] = os.pipe()
os.write(fds['w'], b'in the pipe')
fds['event'] = os.eventfd(5)
fds['memory'] = os.memfd_create('m', os.MFD_ALLOW_SEALING)
os.write(fds['memory'], b'memory')
epoll = select.epoll()
fds['epoll'] = epoll.fileno()
hidden = fcntl.fcntl(fds['r'], fcntl.F_DUPFD, 100)
epoll.register(hidden, select.EPOLLIN)
os.close(hidden)
epoll.register(fds['event'], select.EPOLLIN | select.EPOLLET)
child = os.fork()
if not child:
    signal.pause()
print(child, *fds.values(), flush=True)
sys.stdin.readline()
os.kill(child, 9)
assert os.read(fds['file'], 100) == b'3456789'
assert os.read(fds['r'], 100) == b'in the pipe'
assert os.eventfd_read(fds['event']) == 5
assert os.lseek(fds['memory'], 0, 1) == 6
print('unharmed', flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int, list[int]]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    child, *numbers = map(int, process.stdout.readline().split())
    yield process, child, numbers
    process.kill()
    process.wait()
    process.stdout.close()
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        pass


def test_no_trace(program: tuple[subprocess.Popen[str], int, list[int]]) -> None:
    process, child, numbers = program
    pids = (process.pid, child)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    before = {(pid, n): look(n, pid) for pid in pids for n in numbers}
    job = FakeJob([(pid, n) for pid in pids for n in numbers])
    assert len(job.groups) == len(numbers), "inherited descriptions are recognised"
    saved = job.save()
    assert {(pid, n): look(n, pid) for pid in pids for n in numbers} == before
    made = FakeRestart(job.sink).make(saved)
    kinds = [service.name for service, _ in saved]
    assert kinds == ["file", "file", "directory", "device", "pipe", "pipe", "eventfd", "memfd", "epoll"]
    watches = saved[kinds.index("epoll")][1].watches
    assert {one.target for one in watches} == {kinds.index("pipe"), kinds.index("eventfd")}
    assert os.pread(made[1], 10, 0) == b"gone"
    for fd in made:
        os.close(fd)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    out, _ = process.communicate("go\n", timeout=20)
    assert out == "unharmed\n"
