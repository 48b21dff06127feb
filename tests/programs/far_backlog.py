"""Connections to another host that nobody has accepted yet, with data in them.

    far_backlog.py server ADDRESS PORTFILE GO      far_backlog.py client ADDRESS PORTFILE GO

Nobody is accepted before GO is there. The client's connections, in this order: see KINDS; the server's host has two of
its own in the same line, one before and one behind. After GO the client sends more on those that it has not shut. The
server reads every connection to its end, checks every byte and answers, which the client checks. It prints in which
order it has accepted them, and the client whether they have the addresses they had; OK at the end, or what went
wrong."""

import fcntl
import hashlib
import os
import socket
import struct
import sys
import time

KINDS = ("few", "none", "much", "half", "end", "urgent", "first", "deaf", "shared", "bound", "alone")
"""few bytes; none; more than fits the window; some, and no more to come; none, and no more to come; urgent data in
between; urgent data first; one that reads no more; one that a child has as well; one with a port of its own choice; one
that only a child has."""
if os.getuid() == 0:
    KINDS += ("full",)  # as much as is taken: to send that again takes a larger buffer
NEAR = ("before", "behind")
WHOLE = {*KINDS, *NEAR}
SIZES = {"few": 5, "much": 400_000, "half": 3000, "urgent": 2000, "first": 100, "deaf": 999, "shared": 50_000,
         "bound": 7, "alone": 70_000, "before": 60, "behind": 3000}  # fmt: skip
what, address, portfile, go = sys.argv[1:5]
family = socket.AF_INET6 if ":" in address else socket.AF_INET


def pattern(word, size):
    block = b"".join(hashlib.blake2b(b"%s %d" % (word.encode(), n)).digest() for n in range(64))
    return (block * (size // len(block) + 1))[:size]


def head(kind):
    """What is sent first, if anything is."""
    return kind.ljust(8).encode() + pattern(kind, SIZES[kind])


def tail(kind):
    """What is sent after GO, if the connection is not shut."""
    return pattern(kind + " tail", 100)


def await_file(path):
    while not os.path.exists(path):
        time.sleep(0.01)


def call(kind, place):
    one = socket.socket(family)
    if kind == "bound":
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("", 0))
    one.connect(place)
    if kind == "urgent":
        data = head(kind)
        one.sendall(data[:1000])
        one.send(b"!", socket.MSG_OOB)
        one.sendall(data[1000:])
    elif kind == "first":
        one.send(b"!", socket.MSG_OOB)
        one.sendall(head(kind))
    elif kind == "full":
        one.setblocking(False)
        data, sent, quiet = b"full    " + pattern(kind, 32 << 20), 0, 0
        while quiet < 20 and sent < len(data):
            try:
                sent += one.send(data[sent : sent + 65536])
                quiet = 0
            except BlockingIOError:
                quiet += 1
                time.sleep(0.01)
        one.setblocking(True)
    elif kind not in ("none", "end"):
        one.sendall(head(kind))
    if kind in ("half", "end"):
        one.shutdown(socket.SHUT_WR)
    if kind == "deaf":
        one.shutdown(socket.SHUT_RD)
    return one


def read(one):
    """Everything, and where an urgent byte was (-1: nowhere)."""
    data, urgent = b"", -1
    while True:
        if struct.unpack("i", fcntl.ioctl(one, 0x8905, bytes(4)))[0]:
            try:
                assert one.recv(1, socket.MSG_OOB) == b"!"
                urgent = len(data)
            except OSError:
                pass
        more = one.recv(1 << 20)
        if not more:
            return data, urgent
        data += more


def server():
    listener = socket.socket(family)
    listener.bind((address, 0))
    listener.listen(64)
    place = listener.getsockname()
    near = [call("before", place)]
    with open(portfile + ".new", "w") as file:
        file.write(str(place[1]))
    os.rename(portfile + ".new", portfile)
    await_file(portfile + ".called")
    near.append(call("behind", place))
    ports = [one.getsockname()[:2] for one in near]
    print("READY", flush=True)
    await_file(go)
    order = []
    for one, kind in zip(near, NEAR):
        one.sendall(tail(kind))
        one.shutdown(socket.SHUT_WR)
    listener.settimeout(30)
    accepted = []
    for _ in range(len(WHOLE)):
        far, _ = listener.accept()
        far.settimeout(30)
        accepted.append(far)
    for far in accepted:
        data, urgent = read(far)
        if len(data) == 100:
            kind, left = "none", data
        elif not data:
            kind, left = "end", data
        else:
            kind = data[:8].decode().strip()
            SIZES["full"] = len(data) - 108
            assert data.startswith(head(kind)), f"{kind} is not what was sent"
            left = data[len(head(kind)) :]
        order.append(kind)
        assert left == (b"" if kind in ("half", "end") else tail(kind)), f"{kind}: {len(left)} bytes behind it"
        assert urgent == {"urgent": 1000, "first": 0}.get(kind, -1), f"{kind}: urgent data at {urgent}"
        far.sendall(b"seen " + kind.encode())
        far.close()
    listener.settimeout(0)
    try:
        listener.accept()
        raise AssertionError("one more connection than there were")
    except BlockingIOError:
        pass
    assert set(order) == WHOLE, order
    for one, kind in zip(near, NEAR):
        assert one.recv(100) == b"seen " + kind.encode()
    print("SAME" if ports == [one.getsockname()[:2] for one in near] else "MOVED")
    print("ORDER", *order, flush=True)


def use(calls):
    """After GO."""
    for kind, one in calls.items():
        if kind not in ("half", "end"):
            one.sendall(tail(kind))
            one.shutdown(socket.SHUT_WR)
    for kind, one in calls.items():
        if kind != "deaf":
            one.settimeout(60)
            answer = one.recv(100)
            assert answer == b"seen " + kind.encode(), f"{kind} was answered {answer}"


def client():
    await_file(portfile)
    with open(portfile) as file:
        place = address, int(file.read())
    calls = {kind: call(kind, place) for kind in KINDS}
    names = {kind: one.getsockname() for kind, one in calls.items()}
    child = os.fork()
    if child:
        calls["alone"].close()
        del calls["alone"]
        open(portfile + ".called", "w").close()
        print("READY", flush=True)
        await_file(go)
        use({kind: one for kind, one in calls.items() if kind != "shared"})
        assert os.waitpid(child, 0)[1] == 0, "the child"
        print("SAME" if all(one.getsockname() == names[kind] for kind, one in calls.items()) else "MOVED")
    else:
        await_file(go)
        use({kind: calls[kind] for kind in ("shared", "alone")})
        os._exit(0)


try:
    {"server": server, "client": client}[what]()
except (AssertionError, OSError) as error:
    print("WRONG", repr(error), flush=True)
    os._exit(1)
print("OK", flush=True)
