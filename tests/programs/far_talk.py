"""Two processes that talk over TCP in every state that matters, to be saved by two hosts at once.

    far_talk.py server ADDRESS FILE    writes its port into FILE
    far_talk.py client ADDRESS FILE

Some connections are busy all the time; the others are brought into a state and left there until SIGUSR1 comes. Then
everything is read to the end and checked; the last line of the output is OK, or what went wrong.
"""

import hashlib
import os
import select
import signal
import socket
import struct
import sys
import time

LIVE, CONNECTIONS = 3, 9
FULL_UP, FULL_DOWN, HALF, CLOSED, IDLE, SHUT = range(LIVE, CONNECTIONS)
MESSAGE = struct.Struct(">QI16s")


def pattern(seed: int, size: int) -> bytes:
    block = b"".join(hashlib.blake2b(struct.pack(">QQ", seed, n)).digest() for n in range(1024))
    return (block * (size // len(block) + 1))[:size]


def message(number: int, seed: int) -> bytes:
    body = pattern(seed + number, 16)
    return MESSAGE.pack(number, seed, body)


def fill(sock: socket.socket, seed: int) -> int:
    """Send until nothing more is taken."""
    sock.setblocking(False)
    data, sent, quiet = pattern(seed, 32 << 20), 0, 0
    while quiet < 20 and sent < len(data):
        try:
            sent += sock.send(data[sent : sent + 65536])
            quiet = 0
        except BlockingIOError:
            quiet += 1
            time.sleep(0.01)
    sock.setblocking(True)
    return sent


def drained(sock: socket.socket) -> bytes:
    out = bytearray()
    while data := sock.recv(1 << 20):
        out += data
    return bytes(out)


def expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        print(f"WRONG {what}: {str(found)[:80]} is not {str(wanted)[:80]}", flush=True)
        os._exit(1)


class Live:
    """A connection on which numbered messages go to and fro as fast as they can."""

    def __init__(self, sock: socket.socket, seed: int, asks: bool) -> None:
        self.sock, self.seed, self.asks, self.number = sock, seed, asks, 0
        self.buffer = b""

    def exact(self) -> bytes:
        while len(self.buffer) < MESSAGE.size:
            data = self.sock.recv(MESSAGE.size - len(self.buffer))
            if not data:
                return b""
            self.buffer += data
        found, self.buffer = self.buffer, b""
        return found

    def turn(self) -> bool:
        if self.asks:
            self.sock.sendall(message(self.number, self.seed))
            expect(f"answer on {self.seed}", self.exact(), message(self.number, self.seed + 100))
        else:
            found = self.exact()
            if not found:
                return False
            expect(f"question on {self.seed}", found, message(self.number, self.seed))
            self.sock.sendall(message(self.number, self.seed + 100))
        self.number += 1
        return True


told = False


def on_signal(*_: object) -> None:
    global told
    told = True


def server(address: str, file: str) -> None:
    listener = socket.create_server((address, 0))
    with open(file + ".new", "w") as out:
        out.write(str(listener.getsockname()[1]))
    os.rename(file + ".new", file)
    connections: dict[int, socket.socket] = {}
    while len(connections) < CONNECTIONS:
        sock, _ = listener.accept()
        connections[sock.recv(1)[0]] = sock
    connections[FULL_DOWN].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    down = fill(connections[FULL_DOWN], 7)
    connections[IDLE].sendall(b"from server")
    connections[SHUT].shutdown(socket.SHUT_WR)
    print("READY", flush=True)
    live = [Live(connections[n], n, asks=False) for n in range(LIVE)]
    poll = select.poll()
    for one in live:
        poll.register(one.sock, select.POLLIN)
    by_fd = {one.sock.fileno(): one for one in live}
    while by_fd:
        for fd, _ in poll.poll():
            if not by_fd[fd].turn():
                poll.unregister(fd)
                del by_fd[fd]
    # The client has been told, and reads now.
    while not told:
        time.sleep(0.01)
    connections[FULL_DOWN].shutdown(socket.SHUT_WR)
    up = drained(connections[FULL_UP])
    expect("what the client had sent", up == pattern(5, len(up)) and len(up) > 0, True)
    connections[FULL_UP].sendall(struct.pack(">Q", len(up)))
    expect("half closed", drained(connections[HALF]), pattern(9, 100_000))
    connections[HALF].sendall(b"thank you")
    connections[HALF].close()
    expect("closed", drained(connections[CLOSED]), pattern(11, 50_000))
    late, _ = listener.accept()  # has waited for that all the time
    expect("accepted late", drained(late), b"at last")
    expect("idle", connections[IDLE].recv(100), b"from client")
    expect("the other way", drained(connections[SHUT]), b"still open")
    connections[IDLE].sendall(struct.pack(">Q", down))
    connections[IDLE].close()
    print(f"OK {sum(one.number for one in live)}", flush=True)


def client(address: str, file: str) -> None:
    while not os.path.exists(file):
        time.sleep(0.01)
    port = int(open(file).read())
    connections = {}
    for number in range(CONNECTIONS):
        connections[number] = socket.create_connection((address, port))
        connections[number].sendall(bytes((number,)))
    up = fill(connections[FULL_UP], 5)
    connections[HALF].sendall(pattern(9, 100_000))
    connections[HALF].shutdown(socket.SHUT_WR)
    connections[CLOSED].sendall(pattern(11, 50_000))
    connections[CLOSED].close()
    connections[IDLE].sendall(b"from client")
    waiting = socket.create_connection((address, port))
    print("READY", flush=True)
    live = [Live(connections[n], n, asks=True) for n in range(LIVE)]
    while not told:
        for one in live:
            one.turn()
    for one in live:
        one.sock.close()
    down = drained(connections[FULL_DOWN])
    expect("what the server had sent", down == pattern(7, len(down)) and len(down) > 0, True)
    connections[FULL_UP].shutdown(socket.SHUT_WR)
    expect("taken by the server", struct.unpack(">Q", connections[FULL_UP].recv(8))[0], up)
    expect("half closed", drained(connections[HALF]), b"thank you")
    expect("shut by the server", drained(connections[SHUT]), b"")
    connections[SHUT].sendall(b"still open")
    connections[SHUT].close()
    waiting.sendall(b"at last")
    waiting.close()
    idle = drained(connections[IDLE])
    expect("idle", idle[:11], b"from server")
    expect("all of it", struct.unpack(">Q", idle[11:])[0], len(down))
    print(f"OK {sum(one.number for one in live)}", flush=True)


signal.signal(signal.SIGUSR1, on_signal)
{"server": server, "client": client}[sys.argv[1]](*sys.argv[2:4])
