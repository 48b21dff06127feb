"""Where links are tried: hosts of a job that are all in this process, with real NATS servers or without."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from torpor.link import engine, secret, server
from torpor.link.direct import Hub
from torpor.link.link import ANY, LIMIT, Entry, Link, Message, Status
from torpor.linux import proc
from torpor.supervise.loop import Loop

GENEROUS = 30.0
"""Seconds in which whatever is waited for has to happen on a busy machine."""


class Driver:
    """A loop as a supervisor has it, driven by a test that waits for something."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.said: list[Status] = []
        """By the links that are tried, for whoever wants to know what was wrong."""

    def until(self, condition: Callable[[], Any], what: str, limit: float = GENEROUS) -> Any:
        """Turn the loop until there is an answer."""
        end = time.monotonic() + limit
        while not (answer := condition()):
            left = end - time.monotonic()
            assert left > 0, f"not within {limit} seconds: {what}; {self.said[-3:]}"
            self.loop.turn(min(left, 0.05))
        return answer

    def turn(self, seconds: float) -> None:
        """Let what happens happen."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.loop.turn(left)


class Host:
    """One host's link, with what came over it."""

    def __init__(self, link: Link, driver: Driver) -> None:
        self.link = link
        self.driver = driver
        self.statuses: list[Status] = []
        self.messages: list[Message] = []
        self.told: list[tuple[str, Entry | None]] = []
        driver.loop.watch(link.fd, link.deliver)
        link.on_status(self.statuses.append)
        link.on_status(driver.said.append)

    @property
    def up(self) -> bool:
        return bool(self.statuses) and self.statuses[-1].up

    def hear(self, *topics: str) -> None:
        for topic in topics:
            self.link.subscribe(topic, self.messages.append)

    def watch(self, pattern: str) -> None:
        self.link.watch(pattern, lambda key, entry: self.told.append((key, entry)))

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]

    def ask(self, question: Callable[..., None], *args: Any, limit: float = LIMIT, **more: Any) -> Any:
        """The answer to a question; raises the error."""
        answers: list[tuple[Any, Exception | None]] = []
        question(*args, lambda result, error: answers.append((result, error)), limit=limit, **more)
        self.driver.until(lambda: answers, "an answer", limit + 5.0)
        assert len(answers) == 1
        result, error = answers[0]
        if error is not None:
            raise error
        return result

    def get(self, key: str, limit: float = LIMIT) -> Entry | None:
        entry: Entry | None = self.ask(self.link.get, key, limit=limit)
        return entry

    def put(self, key: str, value: bytes, expect: int = ANY, limit: float = LIMIT) -> int:
        revision: int = self.ask(self.link.put, key, value, expect=expect, limit=limit)
        return revision

    def delete(self, key: str, expect: int = ANY) -> None:
        self.ask(self.link.delete, key, expect=expect)

    def close(self) -> None:
        self.driver.loop.forget(self.link.fd)
        self.link.close()


class World:
    """Several hosts of one job."""

    def __init__(self) -> None:
        self.driver = Driver()
        self.hosts: list[Host] = []

    def make(self, name: str) -> Link:
        raise NotImplementedError

    def host(self, name: str, wait: bool = True) -> Host:
        """One more host; its link is up."""
        host = Host(self.make(name), self.driver)
        self.hosts.append(host)
        if wait:
            self.driver.until(lambda: host.up, f"{name} is up")
        return host

    def leave(self, host: Host) -> None:
        self.hosts.remove(host)
        host.close()

    def close(self) -> None:
        for host in self.hosts:
            host.close()


class Direct(World):
    def __init__(self) -> None:
        super().__init__()
        self.hub = Hub()

    def make(self, name: str) -> Link:
        return self.hub.open(name)


class Servers:
    """NATS servers of a job's own, in a folder that this makes."""

    def __init__(self, folder: str, count: int) -> None:
        os.mkdir(folder, 0o700)
        self.folder = folder
        self.secret = secret.fresh()
        ports = server.free_ports("127.0.0.1", 2 * count)
        self.nodes = [server.Node(f"n{n}", "127.0.0.1", *ports[2 * n : 2 * n + 2]) for n in range(count)]
        self.running: list[server.Server] = []
        try:
            for node in self.nodes:
                self.running.append(self.start(node))
        except BaseException:
            self.close()
            raise
        self.engine = engine.own(self.secret, "test", self.nodes)

    def start(self, node: server.Node) -> server.Server:
        return server.start(os.path.join(self.folder, node.name), self.secret, node, self.nodes)

    def signal(self, number: int, signum: signal.Signals, who: str = "server") -> None:
        """To a server, or to its keeper. Whoever is to stop stands still then, with all threads."""
        pid = self.running[number].pids[who][0]
        os.kill(pid, signum)
        deadline = time.monotonic() + 10
        while signum == signal.SIGSTOP and any(proc.state(pid, tid) != "T" for tid in proc.threads(pid)):
            assert time.monotonic() < deadline, f"{who} {pid} does not stop"
            time.sleep(0.001)

    def lose(self, number: int) -> None:
        """A node is lost: both processes are killed, and nothing starts it again."""
        self.signal(number, signal.SIGKILL, "keeper")
        self.signal(number, signal.SIGKILL)

    def close(self) -> None:
        for each in self.running:
            keeper = each.pids.get("keeper")
            each.stop()
            if keeper:
                os.waitpid(keeper[0], 0)


class Nats(World):
    """Over such servers; the job's secret is another than theirs, so that several jobs can use them."""

    def __init__(self, servers: Servers) -> None:
        super().__init__()
        self.servers = servers
        self.secret = secret.fresh()
        self.engine = servers.engine

    def make(self, name: str) -> Link:
        from torpor.link.nats import NatsLink

        return NatsLink(self.engine, self.secret, name)


class Wire:
    """A TCP proxy that can be cut: what it has taken then goes nowhere, and nobody is told."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.whole = threading.Event()
        self.whole.set()
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.append(ours)
            if not self.whole.is_set():
                continue  # accepted by the kernel of a host that is gone, as it were
            theirs = socket.create_connection(("127.0.0.1", self.target))
            self.sockets.append(theirs)
            for a, b in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._carry, args=(a, b), daemon=True).start()

    def _carry(self, a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(65536):
                if self.whole.is_set():
                    b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def cut(self) -> None:
        self.whole.clear()

    def mend(self) -> None:
        """New connections are carried again; what was cut stays cut."""
        for each in self.sockets:
            each.close()
        self.sockets.clear()
        self.whole.set()

    def close(self) -> None:
        self.listener.close()
        self.mend()


def through(world: Nats, wires: Sequence[Wire]) -> engine.Engine:
    """The engine of a world, by way of wires."""
    return world.engine._replace(urls=tuple(f"tls://127.0.0.1:{wire.port}" for wire in wires))
