"""Is connected to an echo server outside of the job, and says what becomes of that.

    outward.py GO PORT

Prints `SAME` whenever an echo comes back over the first connection, `RESET` once that has dropped.
"""

import os
import select
import socket
import sys
import time

one = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
number = one.fileno()
said = 0


def echo() -> bool:
    global said
    said += 1
    word = b"%d\n" % said
    try:
        one.sendall(word)
        return one.recv(64) == word
    except ConnectionError:
        return False


assert echo()
print("READY", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
poll = select.poll()
poll.register(number, select.POLLIN)
gone = bool(poll.poll(0))
print("RESET" if gone or not echo() else "SAME", flush=True)
print("OK", flush=True)
