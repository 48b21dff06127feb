"""Much memory, of which little is written: far_memory.py GO. Says at the end whether all of it is as it was left."""

import hashlib
import os
import sys
import time

memory = bytearray(os.urandom(64 << 20))
view = memoryview(memory)
digest = hashlib.sha256(view[4096:]).digest()
print("READY", flush=True)
turns = 0
while not os.path.exists(sys.argv[1]):
    turns += 1
    view[:8] = turns.to_bytes(8, "big")
    time.sleep(0.01)
print(int.from_bytes(view[:8], "big") == turns and hashlib.sha256(view[4096:]).digest() == digest)
