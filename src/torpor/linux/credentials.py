"""The effective user of this thread, apart from what files allow it.

seteuid(2) takes the file-system user along; setfsuid(2) gives it back, and with it the capabilities that concern files
(capabilities(7), "Effect of user ID changes on capabilities").
"""

from __future__ import annotations

import os

from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall


def become(user: int, group: int) -> None:
    """Take another effective user and group, with root's rights to files. For a thread whose real user is root.

    Raises OSError.
    """
    os.setegid(group)
    os.seteuid(user)
    syscall(NR.setfsuid, 0)
    syscall(NR.setfsgid, 0)


def back(group: int) -> None:
    """Root again. Raises OSError."""
    os.seteuid(0)
    os.setegid(group)
