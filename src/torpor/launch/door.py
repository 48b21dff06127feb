"""The door of a host: what lets other hosts' processes of the same job start commands here, as an sshd does.

`python -P -m torpor.launch.door`, a process *of the job*: it is saved and comes back like any other, and so are the
commands that came in through it, and their connections. No supervisor has a part in what it does.

It listens in two places:

- TCP, at the host's address: for `torpor rsh` on other hosts. TLS 1.3, certificates of the job's own authority on both
  sides (link/certificates.py); for each connection it forks a process (session.py), so nobody waits for anybody.
  Strangers are out after HANDSHAKE seconds; more than STRANGERS at a time are not let in at all.
- an abstract UNIX socket, named in $TORPOR_DOOR: for `torpor rsh` on this host, which asks where another host's door
  is. Only our own user is answered, because the answer holds the key to the other doors.

How it is begun (`start`): the job's secret and a line of JSON on its standard input; a line of JSON on its standard
output, with the port; then a line with all hosts' doors on its input. After that both are /dev/null, since a job that
is saved has no pipe to whoever started it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torpor.launch.frames import PROTOCOL
from torpor.launch.travel import DOOR
from torpor.link import lines
from torpor.link.link import LinkDown
from torpor.model.errors import TorporError
from torpor.named_tuple import NamedTuple
from torpor.supervise.protocol import peer_uid

if TYPE_CHECKING:
    import ssl

    from torpor.link.certificates import Identity
    from torpor.link.secret import Secret
    from torpor.watch.wrapper import Wrapper

HANDSHAKE = 10.0
"""Seconds for a connection, until the other side is known."""
STRANGERS = 64
"""How many connections may be in that state."""
ASKING = 64
"""How many may be asking at the UNIX socket; each for HANDSHAKE seconds at most."""

Address = tuple[str, int]


class Started(NamedTuple):
    """A door that was started, and waits to be told of the others (`introduce`)."""

    pid: int
    port: int
    socket: str
    """For $TORPOR_DOOR."""
    input: int
    """A descriptor: its standard input."""


def start(
    secret: Secret, host: str, address: str, env: Mapping[bytes, bytes], limit: float = 30.0,
    wrapper: Wrapper | None = None,
) -> Started:  # fmt: skip
    """Start the door of this host, as our child in a session of its own. env: its environment.  wrapper: what is to be
    put around it.

    Raises TorporError where it does not come up: the address is not ours.
    """
    from torpor.launch import program

    reading, its_output = os.pipe()
    its_input, writing = os.pipe()

    def prepare() -> None:
        os.dup2(its_input, 0)
        os.dup2(its_output, 1)

    command = [sys.executable, "-P", "-m", "torpor.launch.door"]
    try:
        pid = program.start(command, (), new_session=True, env=env, wrapper=wrapper, prepare=prepare)
    except BaseException:
        os.close(reading)
        os.close(writing)
        raise
    finally:
        os.close(its_input)
        os.close(its_output)
    try:
        os.write(writing, secret.line() + json.dumps({"host": host, "address": address}).encode() + b"\n")
        said = json.loads(line(reading, limit) or b'{"error": "it ended without a word"}')
        if "error" in said:
            raise TorporError(f"no door on {host}: {said['error']}")
        return Started(pid, said["port"], said["socket"], writing)
    except BaseException as error:
        os.close(writing)  # it ends by that
        os.waitpid(pid, 0)
        if isinstance(error, OSError):
            raise TorporError(f"no door on {host}: {error.strerror}") from None
        raise
    finally:
        os.close(reading)


def introduce(door: Started, hosts: Mapping[str, Address]) -> None:
    """Tell a door of all doors: its last preparation."""
    try:
        data = json.dumps(hosts).encode() + b"\n"
        while data:
            data = data[os.write(door.input, data) :]
    except OSError as error:
        raise TorporError(f"the door has ended: {error.strerror}") from None
    finally:
        os.close(door.input)


def line(fd: int, limit: float) -> bytes:
    """One line from a pipe, and not a byte more; b'' at its end. Raises LinkDown."""
    try:
        return lines.line(fd, limit)
    except TimeoutError:
        raise LinkDown(f"no word within {limit:.0f} seconds") from None
    except EOFError:
        return b""


def main() -> int:
    """Be the door, until somebody ends us."""
    from torpor.link import secret

    try:
        key = secret.receive(0)
        said = json.loads(line(0, 30.0))
        door = Door(key, said["host"], said["address"])
    except (OSError, TorporError) as error:
        _answer({"error": str(getattr(error, "strerror", None) or error)})
        return 1
    del key
    _answer({"port": door.port, "socket": door.name})
    table = line(0, float(1 << 20))
    if not table:
        return 1  # whoever started us has given up
    door.hosts.update({name: (address, port) for name, (address, port) in json.loads(table).items()})
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    door.run()
    return 0


def _answer(said: dict[str, Any]) -> None:
    os.write(1, json.dumps(said).encode() + b"\n")


class Door:
    """hosts: where all doors are, {name: (address, port)}."""

    def __init__(self, secret: Secret, host: str, address: str) -> None:
        """Raises OSError where `address` is not ours."""
        from torpor.launch.session import shell_of
        from torpor.link.certificates import context, identity

        self.hosts: dict[str, Address] = {}
        self._host = host
        self._identity: Identity = identity(secret, host, [address])
        self._context: ssl.SSLContext = context(self._identity, server=True)
        self._shell = shell_of(os.getuid())
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.name = f"torpor-door-{os.urandom(8).hex()}"
        self._near = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._near.bind(f"\0{self.name}")
        self._near.listen(128)
        self._listener.setblocking(False)
        self._near.setblocking(False)
        os.environ[DOOR] = self.name
        self._asking: dict[int, tuple[socket.socket, float]] = {}
        self._strangers: set[int] = set()
        """Processes of ours whose other side is not known yet."""
        self._known, self._make_known = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """They write their number here once it is."""
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """For ever."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        while True:
            self._turn()

    def _turn(self) -> None:
        poll = select.poll()
        for fd in (self._listener.fileno(), self._near.fileno(), self._known, self._woken, *self._asking):
            poll.register(fd, select.POLLIN)
        first = min((until for _, until in self._asking.values()), default=0.0)
        wait = max(0.0, first - time.monotonic()) * 1000 + 1 if self._asking else None
        for fd, _ in poll.poll(wait):
            if fd == self._listener.fileno():
                self._accept()
            elif fd == self._near.fileno():
                self._accept_near()
            elif fd == self._known:
                data = os.read(fd, 4096)
                self._strangers.difference_update(each[0] for each in struct.iter_unpack("i", data))
            elif fd == self._woken:
                os.read(fd, 4096)
                self._reap()
            elif fd in self._asking:
                self._tell(fd)
        now = time.monotonic()
        for fd in [fd for fd, (_, until) in self._asking.items() if until <= now]:
            self._asking.pop(fd)[0].close()

    def _reap(self) -> None:
        try:
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._strangers.discard(pid)
        except ChildProcessError:
            pass

    def _accept(self) -> None:
        try:
            plain, _ = self._listener.accept()
        except OSError:
            return
        try:
            if len(self._strangers) < STRANGERS and (pid := os.fork()):
                self._strangers.add(pid)
                return
            if len(self._strangers) < STRANGERS:
                self._be_a_session(plain)
        except OSError:
            pass  # no more processes: whoever calls is told by the end of the connection
        finally:
            plain.close()

    def _be_a_session(self, plain: socket.socket) -> None:
        """In the new process; does not return."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # Whatever happens, nobody holds on to us for longer without a certificate of the job.
            signal.setitimer(signal.ITIMER_REAL, HANDSHAKE)
            for each in (self._listener, self._near, *(asking for asking, _ in self._asking.values())):
                each.close()
            for fd in (self._known, self._woken, self._wake):
                os.close(fd)
            from torpor.launch.session import Session

            def known() -> None:
                signal.setitimer(signal.ITIMER_REAL, 0)
                os.write(self._make_known, struct.pack("i", os.getpid()))
                os.close(self._make_known)

            Session(plain, self._context, self._shell, known).run()
            status = 0
        except OSError:
            pass  # a stranger
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)

    def _accept_near(self) -> None:
        try:
            near, _ = self._near.accept()
            uid = peer_uid(near)
        except OSError:
            return
        if uid != os.getuid() or len(self._asking) >= ASKING:
            near.close()
            return
        near.settimeout(1.0)  # for the answer, which is small; we are told when there is something to read
        self._asking[near.fileno()] = near, time.monotonic() + HANDSHAKE

    def _tell(self, fd: int) -> None:
        near, _ = self._asking.pop(fd)
        try:
            asked = json.loads(near.recv(4096))
            near.sendall(json.dumps(self._where(str(asked["host"]))).encode() + b"\n")
        except (OSError, ValueError, KeyError, TypeError):
            pass
        finally:
            near.close()

    def _where(self, host: str) -> dict[str, Any]:
        name = find(host, self._host, self.hosts)
        if not name:
            return {"error": f"{host} is no host of this job ({', '.join(self.hosts)})"}
        address, port = self.hosts[name]
        return {
            "host": name, "address": address, "port": port, "protocol": PROTOCOL,
            "identity": [part.decode() if isinstance(part, bytes) else part for part in self._identity],
        }  # fmt: skip


def find(asked: str, here: str, hosts: Mapping[str, Address]) -> str:
    """The host that is meant, '' for none: by its name, its address, or the first part of either's name where only one
    host has that. Pure."""
    if asked in hosts:
        return asked
    if asked in ("localhost", "127.0.0.1", "::1"):
        return here
    lower = asked.lower()
    for fits in (
        [name for name in hosts if name.lower() == lower],
        [name for name, (address, _) in hosts.items() if address == asked],
        [name for name in hosts if _first(name) == _first(lower)],
    ):
        if len(fits) == 1:
            return fits[0]
    return ""


def _first(name: str) -> str:
    """`node7` of `node7.site.org`; an address as it is."""
    return name if name.replace(".", "").isdigit() or ":" in name else name.lower().partition(".")[0]


if __name__ == "__main__":
    sys.exit(main())
