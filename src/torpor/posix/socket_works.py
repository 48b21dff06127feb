"""What is done to sockets once every object of the job exists: queues are filled, then each is brought into its state.

Sockets depend on each other in circles (two ends of a connection; a descriptor of one in flight in the other), so
`create` makes and connects them, and all that can wait is put off until here. The steps of all sockets of a job
are in step, in the order of `Step`.
"""

from __future__ import annotations

import heapq
import os
import resource
from collections.abc import Callable, Iterable
from enum import IntEnum

from torpor.posix import socket_options, socket_queue
from torpor.posix.service import Restart
from torpor.posix.socket_address import link
from torpor.posix.socket_options import Options
from torpor.posix.socket_queue import Queue
from torpor.posix.socket_send import send_ahead, send_message


class Step(IntEnum):
    """When something is done."""

    FILL = 1
    """What was in the queues is sent again."""
    CONNECT = 2
    """Datagram sockets get their peers: from then on they take nothing from others."""
    SHUT = 3
    """Directions that are over."""
    LEAVE = 4
    """Ends that nobody has any more are closed."""
    NAMES = 5
    """Names that were borrowed are given back."""
    OPTIONS = 6


class Works:
    """The list of what is to be done."""

    def __init__(self) -> None:
        # Each end of a connection is held twice for a while. (Every process gets its own limits back later.)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._todo: list[tuple[Step, int, Callable[[], None]]] = []
        self._count = 0

    def add(self, step: Step, what: Callable[[], None]) -> None:
        heapq.heappush(self._todo, (step, self._count, what))
        self._count += 1

    def run(self) -> None:
        """Do it all. What raises is a failure of the restart."""
        while self._todo:
            _, _, what = heapq.heappop(self._todo)
            what()  # may add more


def works(restart: Restart) -> Works:
    """The list of this restart. It is run when all objects exist."""
    found: Works = restart.shared(("socket works", 0), Works, Works.run)
    return found


def options_later(fd: int, options: Options, restart: Restart) -> None:
    """Set a socket's options once everything else is as it was."""
    kept = os.dup(fd)  # the pipeline moves its own to another number

    def put() -> None:
        socket_options.restore_early(kept, options)
        socket_options.restore(kept, options, restart)
        os.close(kept)

    works(restart).add(Step.OPTIONS, put)


def send_later(fd: int, queue: Queue, packets: bool, restart: Restart) -> None:
    """Send what was sent through a connection that waits to be accepted, once everything exists. Takes `fd` over."""

    def send() -> None:
        if packets:
            for message, data in socket_queue.contents(queue, restart):
                send_message(fd, message, data, None, restart)
        else:
            send_ahead(fd, queue, restart)

    works(restart).add(Step.FILL, send)
    works(restart).add(Step.LEAVE, lambda: os.close(fd))


def listen(fd: int, backlog: int) -> None:
    one = link(fd)
    try:
        one.listen(backlog)
    finally:
        one.detach()


def shut(fd: int, how: int) -> None:
    """shutdown(2): 1 receiving, 2 sending, 3 both."""
    one = link(fd)
    try:
        one.shutdown(how - 1)
    except OSError:
        pass  # not connected any more: over in both directions
    finally:
        one.detach()


def shut_later(fd: int, how: int, restart: Restart) -> None:
    """`shut`, once the queues are filled."""
    kept = os.dup(fd)
    works(restart).add(Step.SHUT, lambda: shut(kept, how))
    works(restart).add(Step.LEAVE, lambda: os.close(kept))


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
