"""Very many connections between two hosts, and datagrams that nobody has read yet.

    far_many.py server ADDRESS PORTFILE COUNT     far_many.py client ADDRESS PORTFILE COUNT

On every connection each side has sent a message that the other has not read, and every tenth is half closed. After
SIGUSR1 all is read, answered and checked; then come OK, or what went wrong."""

import hashlib
import os
import resource
import signal
import socket
import sys
import time

what, address, portfile, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
DATAGRAMS = 20
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 500), hard))


def message(number, side):
    return number.to_bytes(4, "big") + hashlib.sha256(b"%d %d" % (number, side)).digest()


def exact(sock, size):
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, "it has ended"
        data += more
    return data


def await_it(condition):
    while not condition():
        time.sleep(0.01)


def server():
    listener = socket.create_server((address, 0), backlog=4096)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(listener.getsockname())
    with open(portfile + ".new", "w") as file:
        file.write(str(listener.getsockname()[1]))
    os.rename(portfile + ".new", portfile)
    found = {}
    while len(found) < count:
        sock, _ = listener.accept()
        number = int.from_bytes(exact(sock, 4), "big")
        sock.sendall(message(number, 1))
        found[number] = sock
    print("READY", flush=True)
    await_it(lambda: told)
    for number, sock in found.items():
        assert exact(sock, 36) == message(number, 0), number
        if number % 10 == 0:
            assert sock.recv(1) == b"", number
        sock.sendall(b"seen")
    for number in range(DATAGRAMS):
        data, sender = datagrams.recvfrom(100)
        assert data == message(number, 2), number
        datagrams.sendto(data, sender)


def client():
    await_it(lambda: os.path.exists(portfile))
    with open(portfile) as file:
        port = int(file.read())
    socks = [socket.create_connection((address, port)) for _ in range(count)]
    for number, sock in enumerate(socks):
        sock.sendall(number.to_bytes(4, "big") + message(number, 0))
        if number % 10 == 0:
            sock.shutdown(socket.SHUT_WR)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for number in range(DATAGRAMS):
        datagrams.sendto(message(number, 2), (address, port))
    print("READY", flush=True)
    await_it(lambda: told)
    for number, sock in enumerate(socks):
        assert exact(sock, 36) == message(number, 1), number
        assert exact(sock, 4) == b"seen", number
    datagrams.settimeout(30)
    for number in range(DATAGRAMS):
        assert datagrams.recvfrom(100)[0] == message(number, 2), number


try:
    {"server": server, "client": client}[what]()
    print("OK", flush=True)
except (AssertionError, OSError) as error:
    print("WRONG", repr(error), flush=True)
