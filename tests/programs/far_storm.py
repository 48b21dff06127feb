"""Numbered, checksummed messages between two hosts over fifty connections, as fast as they can, which are closed and
opened anew all the time.

    far_storm.py server PORTFILE GO        far_storm.py client HOST PORTFILE GO

The server answers each message with its number and checksum; either side looks at every number. A connection says at
its end how many messages there were. When GO is there both end, with their sums: not one lost, doubled or reordered."""

import hashlib
import os
import random
import selectors
import socket
import struct
import sys
import time

CONNECTIONS = 50
HEAD = struct.Struct(">IIH16s")
"""Number of the connection, of the message, length of the body, checksum of all of it."""
LAST = 0xFFFFFFFF


def pack(connection: int, number: int, body: bytes) -> bytes:
    code = hashlib.blake2b(struct.pack(">II", connection, number) + body, digest_size=16).digest()
    return HEAD.pack(connection, number, len(body), code) + body


class Stream:
    """One end: whole messages, each as it has to be."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.buffer, self.expected = sock, b"", 0

    def messages(self) -> list[tuple[int, int, bytes]] | None:
        """Those that are whole now; None at the end."""
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return []
        if not data:
            assert not self.buffer, "a message was cut"
            return None
        self.buffer += data
        found = []
        while len(self.buffer) >= HEAD.size:
            connection, number, length, code = HEAD.unpack_from(self.buffer)
            if len(self.buffer) < HEAD.size + length:
                break
            body = self.buffer[HEAD.size : HEAD.size + length]
            self.buffer = self.buffer[HEAD.size + length :]
            assert pack(connection, number, body)[: HEAD.size] == HEAD.pack(connection, number, length, code), "damaged"
            if number != LAST:
                assert number == self.expected, f"message {number} of {connection} where {self.expected} was to come"
                self.expected += 1
            found.append((connection, number, body))
        return found


def server(portfile: str, go: str) -> None:
    listener = socket.create_server(("0.0.0.0", 0), backlog=256)
    with open(portfile + ".new", "w") as file:
        file.write(str(listener.getsockname()[1]))
    os.rename(portfile + ".new", portfile)
    chosen = selectors.DefaultSelector()
    chosen.register(listener, selectors.EVENT_READ)
    total = connections = 0
    over = False
    while not over or len(chosen.get_map()) > 1:
        for key, _ in chosen.select(0.2):
            if key.fileobj is listener:
                sock, _ = listener.accept()
                chosen.register(sock, selectors.EVENT_READ, Stream(sock))
                connections += 1
                continue
            stream: Stream = key.data
            found = stream.messages()
            if found is None:
                chosen.unregister(stream.sock)
                stream.sock.close()
                continue
            for connection, number, body in found:
                if number == LAST:
                    assert int(body) == stream.expected, f"{body!r} were sent, {stream.expected} came"
                    over = over or os.path.exists(go)
                else:
                    total += 1
                stream.sock.sendall(pack(connection, number, b"seen"))
    print(f"OK {connections} {total}", flush=True)


def client(host: str, portfile: str, go: str) -> None:
    while not os.path.exists(portfile):
        time.sleep(0.01)
    with open(portfile) as file:
        port = int(file.read())
    random.seed(1)
    serial = total = 0
    streams: list[Stream] = []
    plans: dict[Stream, list[int]] = {}
    print("READY", flush=True)
    while streams or not os.path.exists(go):
        while len(streams) < CONNECTIONS and not os.path.exists(go):
            stream = Stream(socket.create_connection((host, port)))
            plans[stream] = [serial, random.randrange(1, 200), 0]
            streams.append(stream)
            serial += 1
        for stream in list(streams):
            connection, left, sent = plans[stream]
            if left and not os.path.exists(go):
                stream.sock.sendall(pack(connection, sent, os.urandom(random.randrange(2000))))
                plans[stream] = [connection, left - 1, sent + 1]
                total += 1
            else:
                stream.sock.sendall(pack(connection, LAST, b"%d" % sent))
                stream.sock.shutdown(socket.SHUT_WR)
                while (found := stream.messages()) is not None:
                    pass
                assert found is None and stream.expected == sent, f"{sent} sent, {stream.expected} answered"
                stream.sock.close()
                streams.remove(stream)
    print(f"OK {serial} {total}", flush=True)


{"server": server, "client": client}[sys.argv[1]](*sys.argv[2:])
