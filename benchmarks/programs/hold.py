"""hold.c again, for machines without a compiler; see there. python3 hold.py MIB THREADS PROCESSES"""

import os
import sys
import threading
import time


def idle() -> None:
    while True:
        time.sleep(0.05)


def main() -> None:
    size, threads, processes = (int(word) for word in sys.argv[1:4])
    memory = []
    for _ in range(size // 16):
        memory.append(os.urandom(16 << 20))
    for _ in range(processes - 1):
        if os.fork() == 0:
            idle()
    took = []
    for _ in range(5):
        began = time.time_ns()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        took.append(time.time_ns() - began)
        os.waitpid(pid, 0)
    for _ in range(threads - 1):
        threading.Thread(target=idle, daemon=True).start()
    os.write(1, b"fork %d\nready\n" % sorted(took)[2])
    before = time.time_ns()
    while True:
        time.sleep(0.00015)
        after = time.time_ns()
        if after - before > 1_000_000:
            os.write(1, b"gap %d %d\n" % (before, after))
        before = after


main()
