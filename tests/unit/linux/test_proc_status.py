"""/proc/PID/status of processes with odd names."""

from __future__ import annotations

import os
import signal

import pytest

from torpor.linux import proc


@pytest.mark.parametrize("name", [b"a\x0bb\x1cc\x85", b"x:\ty: z", b"two\nlines", "é\u2028".encode()])
def test_a_name_does_not_break_the_lines(name: bytes) -> None:
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with open("/proc/self/comm", "wb") as file:
            file.write(name)
        os.write(told, b"x")
        signal.pause()
    try:
        os.read(ready, 1)
        fields = proc.status(pid)
        assert fields["Name"].encode(errors="surrogateescape") == name.replace(b"\n", b"\\n")
        assert int(fields["PPid"]) == os.getpid()
        assert fields["Uid"].split()[0] == str(os.getuid())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)
