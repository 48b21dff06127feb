"""A few threads share work. Processes are forked before and after, so none of them may stay."""

from __future__ import annotations

import os
from _thread import allocate_lock
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

WORKERS = 2


def share(work: Iterable[T], do: Callable[[T], object], alone: bool) -> None:
    """Call `do` for each thing, in two threads, unless `alone`. After the first failure nothing more is begun; it is
    raised when both are done."""
    turn = allocate_lock()
    queue = iter(work)
    failures: list[BaseException] = []

    def drain() -> None:
        try:
            while not failures:
                with turn:
                    thing = next(queue, None)
                if thing is None:
                    return
                do(thing)
        except BaseException as error:
            failures.append(error)

    helpers = []
    if not alone:
        from threading import Thread  # a small job does not wait for it

        helpers = [Thread(target=drain) for _ in range(WORKERS - 1)]
        for helper in helpers:
            helper.start()
    drain()
    for helper in helpers:
        helper.join()
    if failures:
        raise failures[0]


def gone() -> None:
    """Wait until the kernel, too, knows of no other thread of ours: one that was waited for may still be on its way
    out, on a stack of its own. Raises OSError where /proc does not show us."""
    while len(os.listdir("/proc/self/task")) > 1:
        os.sched_yield()
