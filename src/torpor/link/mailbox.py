"""Callbacks on their way from some thread to a loop that waits in poll(2)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable


class Mailbox:
    """What is posted by any thread is called by `deliver`, in the order of posting."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._posts: deque[Callable[[], None]] = deque()

    def post(self, callback: Callable[[], None]) -> None:
        """From any thread. Appending to a deque is atomic; a closed mailbox forgets."""
        self._posts.append(callback)
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def deliver(self, _events: int = 0) -> None:
        """Call what has been posted up to now."""
        if self.fd < 0:
            return
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass
        for _ in range(len(self._posts)):
            if self.fd < 0:  # closed by one of the callbacks
                return
            self._posts.popleft()()
        if self._posts:
            os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """Forget what is there, and whatever comes. The poster must have ended, or hold a lock of its own."""
        fd, self.fd = self.fd, -1
        self._posts.clear()
        if fd >= 0:
            os.close(fd)
