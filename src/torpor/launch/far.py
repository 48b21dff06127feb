"""The first host of a job is another one than this: the command is carried out there, over ssh.

`torpor member --lead NONCE` on that host reads one line of JSON from its standard input, {"words": the command line,
"cwd": ..., "env": what goes along to another host}, and is then that command; the rest of its input, its output and
errors are the program's. Its exit status comes back, 128+N where a signal N has ended it. Signals that come to us are
sent there by a second ssh (`torpor member --tell NONCE N`). There is no terminal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from torpor.launch import program, starter
from torpor.launch.travel import arrived, travelling
from torpor.link import lines
from torpor.model.errors import TorporError
from torpor.supervise.signals import PASSED_ON

led = False
"""Are we such a process, on the host that was meant?"""


def lead(host: str, remote: str) -> int:
    """Have our own command line carried out on a host; its wait status. remote: as for `starter.command`. Raises
    TorporError."""
    program.hold_standard()
    nonce = os.urandom(8).hex()
    env = {os.fsdecode(name): os.fsdecode(value) for name, value in travelling(program.environment()).items()}
    said = json.dumps({"words": sys.argv[1:], "cwd": os.getcwd(), "env": env}).encode() + b"\n"
    words = [*starter.command(remote), "member"]
    process = starter.ssh(host, [*words, "--lead", nonce], stdout=None, stderr=None, start_new_session=True)

    def pass_on(number: int, _frame: object) -> None:
        starter.ssh(host, [*words, "--tell", nonce, str(number)], stdin=subprocess.DEVNULL, start_new_session=True)

    for number in PASSED_ON:
        if number < signal.SIGRTMIN and signal.getsignal(number) != signal.SIG_IGN and number != signal.SIGWINCH:
            signal.signal(number, pass_on)
    threading.Thread(target=_feed, args=(process, said), daemon=True).start()
    status = process.wait()
    return status << 8 if status >= 0 else -status


def _feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    """Our standard input, after `data`."""
    assert process.stdin is not None
    try:
        while data:
            process.stdin.write(data)
            process.stdin.flush()
            data = os.read(0, 1 << 16)
        process.stdin.close()
    except OSError:
        pass  # nobody reads it any more


def be_led(run: Callable[[list[str]], int]) -> int:
    """Be the command that another host has asked for; the exit status. run: carries out a command line. Raises
    TorporError."""
    global led
    try:
        said: dict[str, Any] = json.loads(lines.line(0, 30.0))
    except (TimeoutError, EOFError, ValueError):
        raise TorporError("whoever wants a command carried out here does not say which") from None
    env = {os.fsencode(name): os.fsencode(value) for name, value in said["env"].items()}
    own = dict(os.environb)
    os.environb.clear()
    os.environb.update({**arrived(env, own), b"PATH": env.get(b"PATH", own.get(b"PATH", b""))})
    if os.path.isdir(said["cwd"]):
        os.chdir(said["cwd"])
    led = True
    child = os.fork()
    if not child:
        status = 1
        try:
            status = run([str(word) for word in said["words"]])
        finally:
            sys.stdout.flush()
            os._exit(status)
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return found if found >= 0 else 128 - found


def tell(nonce: str, number: int) -> None:
    """Send a signal to the command that was begun with that nonce (the process in front of it takes no notice)."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if b"--lead" in words and words[words.index(b"--lead") + 1] == nonce.encode():
                os.kill(int(name), number)
        except (OSError, IndexError):
            continue
