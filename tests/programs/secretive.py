"""Has secrets of many kinds in memory, made here so that none stands in this file: keys of which some lie across two
chunks, one in memory that is shared, one in a pipe. Prints a digest of them, never themselves."""

import hashlib
import mmap
import os
import sys
import time

go = sys.argv[1]
part = "A1b2C3d4E5f6G7h8I9j0"
kept = [
    "-----BEGIN RSA " + "PRIVATE KEY-----\n" + "MIIE" + part * 3 + "\n-----END RSA " + "PRIVATE KEY-----\n",
    "gh" + "p_" + part + "K1L2M3N4O5P6Q7R8",
    "xo" + "xb-" + "123456789012-" + part,
    "AK" + "IA" + "QWERTYUIOPASDFGH",
    "postgres" + "://bench:" + "hunter22secret" + "@db.example/x",
]
# Pages of our own, with a key over the end of a window of 64 pages, wherever that is.
area = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
key = ("glpat-" + part).encode()
text = (key + b"\n").ljust(64, b"-")
for at in range(0, len(area) - 64, 64):
    area[at + 37 - 64 if at else 0 : (at + 37 - 64 if at else 0) + 64] = text
shared = mmap.mmap(-1, 1 << 16)
shared[5000 : 5000 + 44] = ("npm" + "_" + part + "K1L2M3N4O5P6Q7R8    ").encode()
reading, writing = os.pipe()
os.write(writing, ("AGE-SECRET-KEY-1" + "Q" * 58).encode())
print("PID", os.getpid(), "KEYS", area[:].count(key), flush=True)
print("READY", hashlib.sha256("".join(kept).encode()).hexdigest()[:8], flush=True)
while not os.path.exists(go):
    time.sleep(0.01)
print("OK", flush=True)
