"""kcmp(2), asked about processes of our own."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from torpor.linux import kcmp

NOTHING = "pass"
A_THREAD = "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
ADJUSTED = """
number = libc.semget(0, 1, 0o1600)
assert libc.semop(number, struct.pack("<Hhh", 0, 1, 0x1000), 1) == 0
libc.semctl(number, 0, 0)
"""


@pytest.mark.parametrize("does, has", [(NOTHING, False), (A_THREAD, True), (ADJUSTED, True)])
def test_has_undo_also_where_we_have_threads(does: str, has: bool) -> None:
    thread = threading.Thread(target=print)
    thread.start()
    thread.join()
    code = (
        f"import ctypes, struct, threading, time; libc = ctypes.CDLL(None)\n{does}\nprint('ready', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        try:
            assert kcmp.has_undo(child.pid) is has
        finally:
            child.kill()
