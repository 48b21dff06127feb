"""hold.c again, for machines without a compiler; see there. python3 hold.py MIB THREADS PROCESSES [huge]"""

import mmap
import os
import sys
import threading
import time

PIECE = 16 << 20


def idle() -> None:
    while True:
        time.sleep(0.05)


def filled(size: int, huge: bool) -> mmap.mmap | None:
    if not size:
        return None
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    for at in range(0, size, PIECE):
        memory.write(os.urandom(min(PIECE, size - at)))
    return memory


def fork_time() -> int:
    took = []
    for _ in range(5):
        began = time.time_ns()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        took.append(time.time_ns() - began)
        os.waitpid(pid, 0)
    return sorted(took)[2]


def main() -> None:
    size, threads, processes = int(sys.argv[1]) << 20, int(sys.argv[2]), int(sys.argv[3])
    huge = len(sys.argv) > 4
    turn, answer = os.pipe(), os.pipe()
    for _ in range(processes - 1):
        if os.fork() == 0:
            memory = filled(size, huge)
            os.write(answer[1], bytes(8))
            os.read(turn[0], 1)
            os.write(answer[1], fork_time().to_bytes(8, "little"))
            for fd in (*turn, *answer):
                os.close(fd)
            idle()
    memory = filled(size, huge)  # noqa: F841 - it is held
    for _ in range(processes - 1):
        os.read(answer[0], 8)
    costs = 0
    for _ in range(processes - 1):
        os.write(turn[1], b".")
        costs += int.from_bytes(os.read(answer[0], 8), "little")
    for fd in (*turn, *answer):
        os.close(fd)
    costs += fork_time()
    for _ in range(threads - 1):
        threading.Thread(target=idle, daemon=True).start()
    os.write(1, b"fork %d\nready\n" % costs)
    before = time.time_ns()
    while True:
        time.sleep(0.00015)
        after = time.time_ns()
        if after - before > 1_000_000:
            os.write(1, b"gap %d %d\n" % (before, after))
        before = after


main()
