"""Numbers are squared by the workers of a Dask cluster, and summed; then the cluster gets new work.

    dask_work.py SCHEDULER FOLDER

Every run of a task is a line in FOLDER/ran, with the moment at which it ended."""

import os
import sys
import time

from distributed import Client

COUNT = 120


def square(number: int, folder: str) -> int:
    began, state = time.monotonic(), number
    while time.monotonic() - began < 0.4:
        for _ in range(20000):
            state = (state * 1103515245 + 12345) % 2147483648
    with open(f"{folder}/ran", "a") as file:
        file.write(f"{number} {os.uname().nodename} {time.time()}\n")
    return number * number


def next_to(number: int) -> int:
    return number + 1


def main() -> None:
    scheduler, folder = sys.argv[1:3]
    client = Client(scheduler)
    client.wait_for_workers(2)
    squares = client.map(square, range(COUNT), folder=folder)
    print("SUBMITTED", flush=True)
    print("TOTAL", client.submit(sum, squares).result(), flush=True)
    print("NEW", sum(client.gather(client.map(next_to, range(50)))), flush=True)
    client.shutdown()
    print("DONE", flush=True)


if __name__ == "__main__":
    main()
