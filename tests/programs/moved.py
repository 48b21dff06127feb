"""Talks to servers at fixed addresses, after GO once more: they say where they are.

    moved.py GO HOST PORT OWN

Every way to get there: a blocking and a non-blocking connection, a datagram with an address (by sendto, sendmsg and
sendmmsg) and one on a connected socket, a connection from the address OWN, and one to a port that nobody listens on.
"""

import ctypes
import errno
import os
import select
import socket
import struct
import sys
import time

go, host, port, own = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]


def answer(near):
    near.settimeout(20)
    near.sendall(b"where?")
    return near.recv(100).decode()


def blocking(source=None):
    with socket.create_connection((host, port), 20, source and (source, 0)) as near:
        return answer(near)


def plain():
    """Without a time limit, which would make the descriptor a non-blocking one."""
    with socket.socket() as near:
        near.connect((host, port))
        return answer(near)


def later():
    with socket.socket() as near:
        near.setblocking(False)
        got = near.connect_ex((host, port))
        assert got in (0, errno.EINPROGRESS), got
        assert select.select([], [near], [], 20)[1]
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        return answer(near)


def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        near.settimeout(20)
        near.sendto(b"where?", (host, port))
        return near.recv(100).decode()


def message():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        near.settimeout(20)
        assert near.sendmsg([b"whe", b"re?"], [(socket.IPPROTO_IP, socket.IP_TTL, b"\x20\0\0\0")], 0, (host, port)) == 6
        return near.recv(100).decode()


def messages():
    """Two of one sendmmsg."""
    there = ctypes.create_string_buffer(
        struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host), 16
    )
    data = ctypes.create_string_buffer(b"where?")
    piece = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(data), 6), 16)
    one = struct.pack("=QI4xQQQQI4xI4x", ctypes.addressof(there), 16, ctypes.addressof(piece), 1, 0, 0, 0, 0)
    both = ctypes.create_string_buffer(one + one, 128)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        near.settimeout(20)
        assert ctypes.CDLL(None).sendmmsg(near.fileno(), both, 2, 0) == 2
        assert [struct.unpack_from("=I", both, at)[0] for at in (56, 120)] == [6, 6]
        found = {near.recv(100).decode() for _ in range(2)}
        assert len(found) == 1, found
        return found.pop()


def datagrams():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        near.settimeout(20)
        near.connect((host, port))
        return answer(near)


def refused():
    for flags in (0, socket.SOCK_NONBLOCK):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM | flags) as near:
            got = near.connect_ex((host, 1))
            if got == errno.EINPROGRESS:
                assert select.select([], [near], [], 20)[1]
                got = near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            assert got == errno.ECONNREFUSED, got
    return ""


def everything():
    ways = (blocking, plain, lambda: blocking(own), later, datagram, message, messages, datagrams)
    found = {way() for way in ways}
    refused()
    return ",".join(sorted(found))


kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # tells that datagrams may be sent
print("FOUND", everything(), flush=True)
print("READY pid", os.getpid(), flush=True)
while not os.path.exists(go):
    time.sleep(0.005)
print("FOUND", everything(), flush=True)
print("OK", flush=True)
