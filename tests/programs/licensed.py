"""Asks a licence server once at the start, and never again.  licensed.py GO PORT"""

import os
import socket
import sys
import time

with socket.create_connection(("127.0.0.1", int(sys.argv[2]))) as one:
    one.sendall(b"ASK licensed\n")
    assert one.recv(64) == b"OK\n"
print("READY", flush=True)
done = []
while not os.path.exists(sys.argv[1]):
    done.append(len(done) ** 2)
    time.sleep(0.01)
assert done == [n**2 for n in range(len(done))]
print("OK", flush=True)
