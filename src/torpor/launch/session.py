"""What the door forks for one connection: it runs one command for somebody on another host of the job."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from torpor.launch.frames import COMMAND, PROTOCOL, SIGNAL, STARTED, STATUS, Frame, Gone, Wire
from torpor.launch.relay import Relay
from torpor.launch.travel import arrived

if TYPE_CHECKING:
    import ssl

LIMIT = 30.0
"""Seconds for whoever has a certificate to say what is to be run."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What reaches the command when it is sent to `torpor rsh`."""
SHELL = "/bin/sh"
ALIVE_AFTER = 60
"""Seconds without a word after which TCP asks whether the other host is still there (tcp(7), TCP_KEEPIDLE)."""


def shell_of(uid: int) -> str:
    """The user's shell; where they may not log in, or nobody knows them, /bin/sh."""
    import pwd

    try:
        shell = pwd.getpwuid(uid).pw_shell
    except KeyError:
        return SHELL
    return shell if os.access(shell, os.X_OK) and os.path.basename(shell) not in ("nologin", "false") else SHELL


def keep_alive(sock: socket.socket) -> None:
    """What both sides set: nothing waits to be sent, and a host that has vanished is noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, ALIVE_AFTER)


class Session:
    """known: called once the other side has shown that it is of this job."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, shell: str, known: Callable[[], None]) -> None:
        """Raises OSError for a stranger."""
        keep_alive(plain)
        plain.setblocking(True)
        self._wire = Wire(context.wrap_socket(plain, server_side=True))
        known()
        self._shell = shell

    def run(self) -> None:
        """Until the command has ended and the other side has all of it, or until the other side has gone."""
        try:
            try:
                self._run(_read(self._wire.exchange(time.monotonic() + LIMIT)))
            except _Refused as refused:
                self._wire.send(STARTED, data=json.dumps({"error": str(refused)}).encode())
            self._see_out()
        except (Gone, TimeoutError):
            pass
        finally:
            self._wire.close()

    def _run(self, said: dict[str, Any]) -> None:
        woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        child, ours = _start(self._shell, said)
        try:
            self._wire.send(STARTED, data=b"{}")
            relay = Relay(self._wire, {1: ours[1], 2: ours[2]}, {0: ours[0]}, woken, own=True)
            # Not reaped before its output has ended: its number, and so its group's, is not given to others till then.
            while relay.reading or not _ended(child):
                for frame in relay.turn():
                    if frame.kind == SIGNAL and frame.number in PASSED_ON:
                        _signal(child, frame.number)
        except Gone:
            _signal(child, signal.SIGHUP)
            _signal(child, signal.SIGCONT)  # as the kernel does for a group that nobody controls any more
            raise
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self._wire.send_number(STATUS, 0, code if code >= 0 else 128 - code)

    def _see_out(self) -> None:
        """Until the other side ends the connection: it has all then. If we ended it, the last words could be lost.
        Raises Gone."""
        poll = select.poll()
        while True:
            self._wire.flush()
            poll.register(self._wire.fileno(), self._wire.events)
            poll.poll()
            self._wire.receive()


class _Refused(Exception):
    """The command cannot be run; the text says why."""


def _read(frame: Frame) -> dict[str, Any]:
    """What is to be run. Raises Gone for nonsense, _Refused for another version's."""
    try:
        said: dict[str, Any] = json.loads(frame.data)
        if frame.kind != COMMAND:
            raise ValueError
        if said["protocol"] != PROTOCOL:
            from torpor import __version__

            raise _Refused(f"torpor {said['torpor']} calls torpor {__version__}: install the same on all hosts")
        if not isinstance(said["command"], str) or not isinstance(said["folder"], str):
            raise TypeError
        said["env"] = {raw(name): raw(value) for name, value in said["env"].items()}
        return said
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Gone("the other side does not keep to the protocol") from None


def text(data: bytes) -> str:
    """Any bytes, for JSON."""
    return data.decode("latin-1")


def raw(said: str) -> bytes:
    """What `text` made a string of."""
    return said.encode("latin-1")


def _start(shell: str, said: dict[str, Any]) -> tuple[int, list[int]]:
    """Start the command; its number, and our ends of its three streams. Raises _Refused."""
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    its = [pipes[0][0], pipes[1][1], pipes[2][1]]
    ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.fork()
    except OSError as error:
        raise _Refused(f"cannot fork: {error.strerror}") from None
    if child == 0:
        _become(shell, said, its, writing)
    for fd in (*its, writing):
        os.close(fd)
    trouble = os.read(reading, 4096)  # empty once it has been executed
    os.close(reading)
    if trouble:
        os.waitpid(child, 0)
        raise _Refused(trouble.decode(errors="replace"))
    for fd in ours:
        os.set_blocking(fd, False)  # of our ends only: the other end of a pipe is another open file
    return child, ours


def _become(shell: str, said: dict[str, Any], streams: list[int], trouble: int) -> NoReturn:
    """In the new process."""
    try:
        os.setsid()
        for ours in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(ours, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        env = arrived(said["env"], os.environb)
        for folder in (raw(said["folder"]), env.get(b"HOME", b""), b"/"):
            try:
                os.chdir(folder)
            except (OSError, ValueError):
                continue
            break
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        os.execve(shell, [os.fsencode(shell), b"-c", raw(said["command"])], env)
    except (OSError, ValueError) as error:
        os.write(trouble, f"{shell}: {getattr(error, 'strerror', None) or error}".encode())
    finally:
        os._exit(127)


def _ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except OSError:
        pass
