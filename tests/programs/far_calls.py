"""A listener with next to no room, and more calls than it takes.

    far_calls.py server ADDRESS PORTFILE GO      far_calls.py client ADDRESS PORTFILE GO

Nobody is accepted before GO is there: some calls wait in the line, others for room in it. Each says then which one it
is, and is answered; OK at the end, or what went wrong."""

import os
import select
import socket
import sys
import time

CALLS = 6
what, address, portfile, go = sys.argv[1:5]


def await_file(path):
    while not os.path.exists(path):
        time.sleep(0.01)


def server():
    listener = socket.socket()
    listener.bind((address, 0))
    listener.listen(1)
    with open(portfile + ".new", "w") as file:
        file.write(str(listener.getsockname()[1]))
    os.rename(portfile + ".new", portfile)
    print("READY", flush=True)
    await_file(go)
    seen = set()
    for _ in range(CALLS):
        far, _ = listener.accept()
        with far:
            number = far.recv(1)
            seen.add(number)
            far.sendall(b"seen " + number)
    assert len(seen) == CALLS, seen


def client():
    await_file(portfile)
    with open(portfile) as file:
        place = address, int(file.read())
    calls = []
    for _ in range(CALLS):
        near = socket.socket()
        near.setblocking(False)
        near.connect_ex(place)
        calls.append(near)
    time.sleep(0.3)
    _, made, _ = select.select([], calls, [], 0)
    print("READY", len(made), flush=True)
    await_file(go)
    to_say, to_hear = dict(zip(calls, range(CALLS))), {}
    until = time.monotonic() + 60
    while to_say or to_hear:
        assert time.monotonic() < until, f"{len(to_say)} calls are not made, {len(to_hear)} not answered"
        answered, made, _ = select.select(list(to_hear), list(to_say), [], 1)
        for near in made:
            error = near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            assert error == 0, os.strerror(error)
            near.sendall(b"%d" % to_say[near])
            to_hear[near] = to_say.pop(near)
        for near in answered:
            assert near.recv(100) == b"seen %d" % to_hear.pop(near)


try:
    {"server": server, "client": client}[what]()
    print("OK", flush=True)
except (AssertionError, OSError) as error:
    print("WRONG", error, flush=True)
