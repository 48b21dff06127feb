"""Pi by throwing darts: the computation that `make demo` saves, kills and starts again.

    python3 examples/darts.py [STEPS]

A collector (the first process) and WORKERS worker processes, connected by pipes. In each worker THREADS threads throw
darts, a step at a time, and hand the hits to the worker's main thread, which writes them to its pipe. In the collector
one thread per pipe reads them. Every thread goes on with its own random numbers from where its last step ended, so a
step that was lost, done twice or begun with other memory changes the checksum, which the last line shows.

Uses numpy if it is there, else plain Python. Runs with the same STEPS and the same choice print the same
result.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import queue
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]

WORKERS = 4
THREADS = 3
MASK = (1 << 64) - 1
FACTOR = 0x2545F4914F6CDD1D
"""xorshift64*: three shifts and this factor; whole numbers only, so that the result is the same to the last bit."""
RADIUS = 1 << 62
"""The square of the quarter circle's radius: darts are pairs of 31-bit numbers."""


def throw_with_numpy(seed: int, lanes: int = 1 << 15, rounds: int = 8) -> Callable[[], tuple[int, int, int]]:
    """A thread's darts: every call throws `lanes * rounds` of them, from where the last call ended; how many, how many
    hits, and a number that stands for the state of the generator."""
    u = numpy.uint64
    state = (numpy.arange(1, lanes + 1, dtype=u) * u(FACTOR)) ^ u(seed * 0x9E3779B97F4A7C15 & MASK)

    def step() -> tuple[int, int, int]:
        nonlocal state
        hits = 0
        for _ in range(rounds):
            state ^= state >> u(12)
            state ^= state << u(25)
            state ^= state >> u(27)
            dart = state * u(FACTOR)
            x, y = dart >> u(33), dart & u((1 << 31) - 1)
            hits += int(numpy.count_nonzero(x * x + y * y < u(RADIUS)))
        return lanes * rounds, hits, int(numpy.bitwise_xor.reduce(state))

    return step


def throw_without(seed: int, darts: int = 4000) -> Callable[[], tuple[int, int, int]]:
    """The same for Python alone, with fewer darts."""
    state = seed * 0x9E3779B97F4A7C15 & MASK or 1

    def step() -> tuple[int, int, int]:
        nonlocal state
        hits = 0
        for _ in range(darts):
            state ^= state >> 12
            state = (state ^ state << 25) & MASK
            state ^= state >> 27
            dart = state * FACTOR & MASK
            x, y = dart >> 33, dart & 0x7FFFFFFF
            hits += x * x + y * y < RADIUS
        return darts, hits, state

    return step


def work(number: int, steps: int, pipe: Connection) -> None:
    """A worker process."""
    results: queue.Queue[tuple[int, int, int, int, int]] = queue.Queue(maxsize=4)

    def throw(thread: int) -> None:
        step = (throw_with_numpy if numpy else throw_without)(1 + number * THREADS + thread)
        for at in range(steps):
            results.put((thread, at, *step()))

    threads = [threading.Thread(target=throw, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for _ in range(steps * THREADS):
        pipe.send(results.get())
    for thread in threads:
        thread.join()
    pipe.close()


def main(steps: int) -> int:
    """The collector."""
    processes = multiprocessing.get_context("fork")
    workers = []
    pipes = []
    for number in range(WORKERS):
        reading, writing = processes.Pipe(duplex=False)
        worker = processes.Process(target=work, args=(number, steps, writing))
        worker.start()
        writing.close()
        workers.append(worker)
        pipes.append(reading)

    total = steps * WORKERS * THREADS
    found: dict[tuple[int, int, int], tuple[int, int, int]] = {}
    lock = threading.Lock()

    def collect(number: int) -> None:
        for _ in range(steps * THREADS):
            thread, at, *values = pipes[number].recv()
            with lock:
                found[number, thread, at] = (values[0], values[1], values[2])
                if len(found) % 12 == 0:
                    print(f"step {len(found)} of {total}", flush=True)

    collectors = [threading.Thread(target=collect, args=(number,)) for number in range(WORKERS)]
    for collector in collectors:
        collector.start()
    for collector in collectors:
        collector.join()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers) or len(found) != total:
        print("a worker has failed", flush=True)
        return 1
    darts, hits = sum(v[0] for v in found.values()), sum(v[1] for v in found.values())
    checksum = hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]
    print(f"result: pi = {4 * hits / darts:.6f} from {darts} darts, checksum {checksum}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 60))
