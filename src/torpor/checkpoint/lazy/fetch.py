"""Chunks from the store, fetched by a few threads: what somebody waits for first. Nothing is handed on that was not
verified; what cannot be had is reported, and asked for again by whoever wants it."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from torpor.model.data import Buffer, Ref
from torpor.model.errors import TorporError

TOGETHER = 8
"""Neighbours that are asked for at once."""


class Chunks(Protocol):
    """What is fetched from; see store/load.py."""

    def fetch(self, refs: Sequence[Ref]) -> list[Buffer]: ...


class Fetcher:
    """opened: gives the checkpoint; called in the first thread that needs it, again if it raises. Results come as
    (ref, contents or why there are none) through `take`, which is worth calling whenever `ready` can be read from."""

    def __init__(self, opened: Callable[[], Chunks], threads: int) -> None:
        self._opened = opened
        self._chunks: Chunks | None = None
        self._opening = threading.Lock()
        self._some = threading.Condition()
        self._urgent: deque[Ref] = deque()
        self._later: deque[list[Ref]] = deque()
        self._results: deque[tuple[Ref, Buffer | str]] = deque()
        self.ready, self._told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in range(threads):
            # One is always there for those who wait.
            threading.Thread(target=self._work, args=(number == 0,), daemon=True).start()

    def ask(self, refs: list[Ref], urgent: bool) -> None:
        with self._some:
            if urgent:
                self._urgent += refs
            else:
                self._later.append(refs)
            self._some.notify_all()

    def take(self) -> list[tuple[Ref, Buffer | str]]:
        try:
            os.read(self.ready, 4096)
        except BlockingIOError:
            pass
        out = []
        while self._results:
            out.append(self._results.popleft())
        return out

    def _next(self, urgent_only: bool) -> list[Ref]:
        with self._some:
            while True:
                if self._urgent:
                    return [self._urgent.popleft()]
                while self._later and not urgent_only:
                    refs = self._later.popleft()
                    if refs:
                        return refs
                self._some.wait()

    def _work(self, urgent_only: bool) -> None:
        while True:
            refs = self._next(urgent_only)
            found: Sequence[Buffer | str]
            try:
                found = self._source().fetch(refs)
            except (TorporError, OSError) as error:
                found = [str(error)] * len(refs)
            except Exception as error:
                found = [f"{type(error).__name__}: {error}"] * len(refs)
            self._results.extend(zip(refs, found))
            try:
                os.write(self._told, b"!")
            except BlockingIOError:
                pass  # it is ready already

    def _source(self) -> Chunks:
        with self._opening:
            if self._chunks is None:
                self._chunks = self._opened()
            return self._chunks
