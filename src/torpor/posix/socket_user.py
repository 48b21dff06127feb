"""Who a UNIX socket says its other end is: SO_PEERCRED, the effective user of whoever called listen, connect or
socketpair. (The pid is lost: sockets are made by the restarting process.)
"""

from __future__ import annotations

import os

from torpor.linux import credentials


class as_user:
    """A context in which sockets are made as another user, where we may; what files allow does not change."""

    def __init__(self, user: int, group: int) -> None:
        self._ids = (user, group) if os.geteuid() == 0 and user > 0 else None

    def __enter__(self) -> None:
        if self._ids is not None:
            self._before = os.getegid()
            credentials.become(*self._ids)

    def __exit__(self, *_: object) -> None:
        if self._ids is not None:
            credentials.back(self._before)
