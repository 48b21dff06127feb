"""A licence server for tests: so many seats, each held as long as a connection is open, or a licence that has expired.

    licence_server.py FOLDER SEATS

Prints `PORT n`. One line comes over a connection: `ASK NAME` (may I run? answered and forgotten) or `CHECKOUT NAME` (a
seat, held until the connection ends). The answer: OK, FULL and who has the seats, or EXPIRED, while there is a file
FOLDER/expired. Everything that happens is a line in FOLDER/server.log.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys


def anywhere() -> socket.socket:
    """A listener at a port that the kernel hands out to nobody."""
    for port in range(21000 + os.getpid() % 5000, 32000):
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            continue
    raise SystemExit("no port is free")


def main() -> None:
    folder, seats = sys.argv[1], int(sys.argv[2])
    holders: dict[socket.socket, str] = {}
    listener = anywhere()
    print(f"PORT {listener.getsockname()[1]}", flush=True)
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)

    def log(line: str) -> None:
        with open(f"{folder}/server.log", "a") as file:
            file.write(line + "\n")

    def answer(one: socket.socket, what: str, name: str) -> None:
        if os.path.exists(f"{folder}/expired"):
            said = "EXPIRED the licence has expired"
        elif what == "ASK":
            said = "OK"
        elif len(holders) >= seats:
            said = f"FULL all {seats} seats are taken: {', '.join(sorted(holders.values()))}"
        else:
            holders[one] = name
            said = "OK"
        log(f"{what} {name} {said}")
        one.sendall(said.encode() + b"\n")

    while True:
        for key, _ in waiting.select():
            one = key.fileobj
            assert isinstance(one, socket.socket)
            if one is listener:
                waiting.register(listener.accept()[0], selectors.EVENT_READ)
                continue
            try:
                data = one.recv(4096)
            except OSError:
                data = b""
            if data:
                what, _, name = data.decode().strip().partition(" ")
                answer(one, what, name)
            else:
                if one in holders:
                    log(f"BACK {holders.pop(one)}")
                waiting.unregister(one)
                one.close()


if __name__ == "__main__":
    main()
