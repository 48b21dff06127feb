"""redis-server with clients in the middle of pipelines: thousands of numbered commands in flight.

Usage: redis_pipeline.py GO FOLDER. Two connections, TCP and UNIX; each has a thread that sends and one that checks
every reply against what the commands so far must give. The server writes an append-only file and forks to save a
snapshot now and then. When GO appears: all replies are in, the data set is what it must be, also after the server was
started anew from its append-only file.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

import serving
from serving import fail

GO, FOLDER = sys.argv[1:3]
WINDOW = 3000
"""Commands in flight on each connection."""


def encoded(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words)


def padding(n: int) -> str:
    return f"{n:08d}" * (n * 7919 % 40)


class Client:
    """Numbered commands of six kinds in turn, and the reply that each must get."""

    def __init__(self, name: str, address: object) -> None:
        self.name = name
        self.socket = serving.connected(address)
        self.sent = self.answered = 0
        self.last = -1
        """The number of the last command, once that is known."""
        self.room = threading.Semaphore(WINDOW)
        self.threads = [threading.Thread(target=work) for work in (self.send, self.check)]
        for thread in self.threads:
            thread.start()

    def command(self, n: int) -> tuple[bytes, bytes]:
        me, k, kind = self.name, n // 6, n % 6
        if kind == 0:
            return encoded("INCR", f"{me}:count"), b":%d" % (k + 1)
        if kind == 1:
            return encoded("SET", f"{me}:key:{k % 500}", f"{k}:{padding(k)}"), b"+OK"
        if kind == 2:
            return encoded("GET", f"{me}:key:{k % 500}"), f"{k}:{padding(k)}".encode()
        if kind == 3:
            return encoded("RPUSH", f"{me}:list", str(k)), b":%d" % (k + 1)
        if kind == 4:
            return encoded("ECHO", f"{me} {n}"), f"{me} {n}".encode()
        return encoded("LINDEX", f"{me}:list", "-1"), str(k).encode()

    def send(self) -> None:
        n = 0
        while self.last < 0:
            parts = []
            for _ in range(50):
                self.room.acquire()
                parts.append(self.command(n)[0])
                n += 1
            self.sent = n
            if n % 600 == 0 and serving.told(GO):
                self.last = n  # known before its reply can be there
            try:
                self.socket.sendall(b"".join(parts))
            except OSError as error:
                fail(f"{self.name}: sending command {n}: {error}")

    def check(self) -> None:
        reader = self.socket.makefile("rb")
        while self.answered != self.last:
            try:
                line = reader.readline().removesuffix(b"\r\n")
                if line.startswith(b"$"):
                    line = reader.read(int(line[1:]) + 2).removesuffix(b"\r\n")
            except OSError as error:
                fail(f"{self.name}: reply {self.answered}: {error}")
            want = self.command(self.answered)[1]
            if line != want:
                fail(f"{self.name}: reply {self.answered} of {self.sent} is {line[:80]!r}, not {want[:80]!r}")
            self.answered += 1
            self.room.release()

    def ask(self, *words: str) -> bytes:
        """One command at a time, when the pipeline is over."""
        self.socket.sendall(encoded(*words))
        line = self.reader.readline().removesuffix(b"\r\n")
        if line.startswith(b"$") and line != b"$-1":
            return self.reader.read(int(line[1:]) + 2).removesuffix(b"\r\n")
        if line.startswith(b"*"):
            return b" ".join(self.reader.read(int(self.reader.readline()[1:]) + 2)[:-2] for _ in range(int(line[1:])))
        return line

    def data_is_right(self, when: str) -> None:
        self.reader = self.socket.makefile("rb")
        rounds = self.last // 6
        if self.ask("GET", f"{self.name}:count") != str(rounds).encode():
            fail(f"{when}: {self.name} has counted to {self.ask('GET', f'{self.name}:count')!r}, not {rounds}")
        if self.ask("LRANGE", f"{self.name}:list", "0", "-1") != b" ".join(b"%d" % k for k in range(rounds)):
            fail(f"{when}: the list of {self.name} has lost or doubled something")
        for slot in range(min(500, rounds)):
            k = (rounds - 1 - slot) // 500 * 500 + slot
            if self.ask("GET", f"{self.name}:key:{slot}") != f"{k}:{padding(k)}".encode():
                fail(f"{when}: {self.name}:key:{slot} is not {k}")


def main() -> None:
    port, path = serving.free_port(), os.path.join(FOLDER, "redis.sock")
    command = [
        "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", path, "--dir", FOLDER,
        "--appendonly", "yes", "--appendfsync", "everysec", "--save", "1 1000", "--daemonize", "no",
        "--logfile", os.path.join(FOLDER, "redis.log"),
    ]  # fmt: skip
    server = serving.start(*command)
    clients = [Client("tcp", ("127.0.0.1", port)), Client("unix", path)]
    serving.until(lambda: all(c.sent > 4 * WINDOW for c in clients), "commands under way")
    serving.say("READY")
    for client in clients:
        for thread in client.threads:
            thread.join()
        client.data_is_right("at the end")
        client.socket.close()
    serving.well(server)
    serving.end(server)
    server = serving.start(*command)
    for client in clients:
        client.socket = serving.connected(path)
        serving.until(lambda client=client: loaded(client.socket), "the append-only file")
        client.data_is_right("read from its file")
    serving.end(server)
    serving.say(f"TOTAL {sum(client.last for client in clients)}")
    serving.ok()


def loaded(one: socket.socket) -> bool:
    one.sendall(encoded("PING"))
    return one.recv(100).startswith(b"+PONG")


main()
