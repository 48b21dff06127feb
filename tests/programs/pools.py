"""Pools of processes and threads, and an asyncio server with its clients: results are those of doing it one by one.

Usage: pools.py GO FOLDER KIND. KIND: multiprocessing, processes, threads (concurrent.futures), asyncio. Work is handed
out in rounds until GO appears; every result of every round is compared with what a plain loop gives.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import multiprocessing
import os
import random
import sys
import threading
from collections.abc import Iterable

import serving
from serving import fail

GO, FOLDER, KIND = sys.argv[1:4]
ENOUGH = 4
ROUND = 400


def work(n: int) -> bytes:
    """A task of some hundred microseconds to some milliseconds, with a result of any size."""
    digest = hashlib.sha256(b"%d" % n).digest()
    for _ in range(50 + n * 7919 % 400):
        digest = hashlib.sha256(digest).digest()
    return digest * (1 + n * 104729 % 200)


def once(n: int) -> bytes:
    """As `work`, and counted across processes."""
    if counter is not None:
        with counter.get_lock():
            counter.value += 1
    return work(n)


counter: multiprocessing.sharedctypes.Synchronized[int] | None = None


def adopt(shared: multiprocessing.sharedctypes.Synchronized[int]) -> None:
    global counter
    counter = shared


def compare(round_: int, results: Iterable[tuple[int, bytes]]) -> None:
    seen = set()
    for n, got in results:
        if got != work(n):
            fail(f"round {round_}: the result of {n} is not what it is")
        if n in seen:
            fail(f"round {round_}: two results of {n}")
        seen.add(n)
    if seen != set(numbers(round_)):
        fail(f"round {round_}: {ROUND - len(seen)} results are missing")


def numbers(round_: int) -> range:
    return range(round_ * ROUND, (round_ + 1) * ROUND)


def over(round_: int) -> bool:
    """Called between rounds."""
    if round_ == 1:
        serving.say("READY")
    return round_ >= ENOUGH and serving.told(GO)


def pool_of_processes() -> int:
    """multiprocessing: pipes, semaphores, shared memory, a pool whose workers are replaced now and then."""
    shared = multiprocessing.Value("q", 0)
    total = 0
    with multiprocessing.Pool(4, initializer=adopt, initargs=(shared,), maxtasksperchild=300) as pool:
        while not over(total):
            if total % 2:
                found = list(zip(numbers(total), pool.imap(once, numbers(total), chunksize=7)))
            else:
                waiting = [(n, pool.apply_async(once, (n,))) for n in numbers(total)]
                found = [(n, one.get(serving.PATIENCE)) for n, one in waiting]
            compare(total, found)
            total += 1
            if shared.value != total * ROUND:
                fail(f"{shared.value} tasks were done, not {total * ROUND}")
        pool.close()
        pool.join()
    return total


def futures(pool: concurrent.futures.Executor) -> int:
    total = 0
    with pool:
        while not over(total):
            waiting = {pool.submit(work, n): n for n in numbers(total)}
            done = concurrent.futures.as_completed(waiting, timeout=serving.PATIENCE)
            compare(total, ((waiting[one], one.result()) for one in done))
            total += 1
    return total


class Server:
    """Answers every line `n` with the result of `n`, over TCP and a UNIX socket."""

    def __init__(self) -> None:
        self.answered = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                n = int(await reader.readuntil(b"\n"))
                result = work(n)
                writer.write(len(result).to_bytes(4, "big") + result)
                await writer.drain()
                self.answered += 1
        writer.close()


async def client(number: int, address: object, left: asyncio.Queue[int], found: list[tuple[int, bytes]]) -> None:
    if isinstance(address, str):
        reader, writer = await asyncio.open_unix_connection(address)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", address)
    chance = random.Random(number)
    while True:
        n = await left.get()
        writer.write(b"%d\n" % n)
        if chance.random() < 0.05:
            await asyncio.sleep(0.003)
        size = int.from_bytes(await reader.readexactly(4), "big")
        found.append((n, await reader.readexactly(size)))
        left.task_done()


async def conversation() -> int:
    server = Server()
    path = os.path.join(FOLDER, "socket")
    tcp = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    unix = await asyncio.start_unix_server(server.serve, path)
    left: asyncio.Queue[int] = asyncio.Queue()
    found: list[tuple[int, bytes]] = []
    port = tcp.sockets[0].getsockname()[1]
    tasks = [asyncio.create_task(client(n, path if n % 2 else port, left, found)) for n in range(20)]
    # Another thread and a child wake the loop as well.
    loop = asyncio.get_running_loop()
    total = 0
    while not over(total):
        found.clear()
        for n in numbers(total):
            left.put_nowait(n)
        child = await asyncio.create_subprocess_exec("sh", "-c", "read x; echo $x", stdin=-1, stdout=-1)
        in_thread = loop.run_in_executor(None, work, total)
        joined = asyncio.create_task(left.join())
        await asyncio.wait([joined, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                fail(f"a client has ended: {task.exception()!r}")
        compare(total, found)
        if await in_thread != work(total):
            fail("the thread's result is wrong")
        out, _ = await child.communicate(b"%d\n" % total)
        if out != b"%d\n" % total or child.returncode:
            fail(f"the child has said {out!r}")
        total += 1
    if server.answered != total * ROUND:
        fail(f"the server has answered {server.answered} times, not {total * ROUND}")
    for task in tasks:
        task.cancel()
    tcp.close()
    unix.close()
    return total


def main() -> None:
    threading.current_thread().name = "main"
    if KIND == "multiprocessing":
        total = pool_of_processes()
    elif KIND == "processes":
        total = futures(concurrent.futures.ProcessPoolExecutor(4))
    elif KIND == "threads":
        total = futures(concurrent.futures.ThreadPoolExecutor(16))
    else:
        total = asyncio.run(conversation())
    serving.say(f"TOTAL {total * ROUND}")
    serving.ok()


if __name__ == "__main__":
    main()
