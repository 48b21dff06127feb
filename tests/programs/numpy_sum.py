"""Threads and numpy: a result that depends on every step, from several threads and from random numbers of a seed.

Usage: numpy_sum.py GO. Prints READY when under way and a digest at the end. It does not end before GO is there; the
result does not depend on when that is.
"""

import hashlib
import os
import sys
import threading
import time

import numpy

ROUNDS = 45
SIZE = 160
results: list[str] = [""] * 4
barrier = threading.Barrier(4)
shared = numpy.zeros((4, SIZE, SIZE))


def work(k: int) -> None:
    rng = numpy.random.default_rng(k)
    a = rng.standard_normal((SIZE, SIZE))
    digest = hashlib.sha256()
    for turn in range(ROUNDS):
        while turn == ROUNDS * 3 // 4 and not os.path.exists(sys.argv[1]):
            time.sleep(0.002)
        a = a @ rng.standard_normal((SIZE, SIZE))
        a /= numpy.abs(a).max()
        shared[k] = a
        barrier.wait()
        a = a + shared[(k + 1) % 4] * 0.5
        barrier.wait()
        if k == 0 and turn == 5:
            sys.stdout.write("READY\n")
            sys.stdout.flush()
        digest.update(numpy.round(a, 6).tobytes())
        digest.update(str(sum(i * i % 7 for i in range(20000))).encode())
    results[k] = digest.hexdigest()


threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
for t in threads:
    t.start()
for t in threads:
    t.join()
print("RESULT", hashlib.sha256("".join(results).encode()).hexdigest())
print("OK")
