"""A client of a redis-server on another host, in the middle of a pipeline: every INCR is answered by the next number.

redis_far.py HOST NAME GO"""

import os
import socket
import sys
import time

WINDOW = 2000


def main() -> None:
    host, name, go = sys.argv[1:4]
    deadline = time.monotonic() + 30
    while True:
        try:
            sock = socket.create_connection((host, 6379))
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    command = b"*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n" % (len(name), name.encode())
    sent = answered = 0
    replies = sock.makefile("rb")
    print("READY", flush=True)
    while not (done := os.path.exists(go)) or answered < sent:
        if not done and sent - answered < WINDOW:
            sock.sendall(command * 100)
            sent += 100
            continue
        reply = replies.readline()
        answered += 1
        assert reply == b":%d\r\n" % answered, (reply, answered)
    print(f"OK {answered}", flush=True)


main()
