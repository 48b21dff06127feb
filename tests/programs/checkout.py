"""Holds a seat of licence_server.py for as long as it lives, as a policy's provider `command` wants it.

checkout.py PORT
"""

from __future__ import annotations

import os
import socket
import sys


def main() -> int:
    one = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    one.sendall(f"CHECKOUT {os.environ['TORPOR_JOB']}\n".encode())
    said = one.recv(4096).decode().strip()
    if said != "OK":
        print(said.partition(" ")[2], flush=True)
        return 75 if said.startswith("FULL") else 77
    print("OK", flush=True)
    while os.read(0, 4096):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
