"""Whether a job can be watched, and what is then put around it (watch/wrapper.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torpor.linux import capability, proc, seccomp_notify

if TYPE_CHECKING:
    from torpor.model.ledger import Ledger
    from torpor.watch.wrapper import Wrapper

CONNECT, SENDMSG = "connect", "sendmsg"
"""What is wrapped: connect(2) and sendto(2) with an address; sendmsg(2) and sendmmsg(2) too."""


def wrapper(before: Ledger | None, say: Callable[[str], None], how: str = CONNECT) -> Wrapper | None:
    """What to put around a job; None where it has to run unwatched, which is said.

    before: the ledger of a saved job to go on with. how: CONNECT or SENDMSG, for a job without one.
    """
    works, why = seccomp_notify.probe()
    if works and not capability.have(capability.SYS_PTRACE) and _scope():
        # Only ancestors may look into a process then, and the holder is none.
        works, why = False, f"kernel.yama.ptrace_scope is {_scope()}; set it to 0, or run torpor as root"
    if not works:
        say(f"the job runs unwatched: {why}")
        return None
    from torpor.watch.wrapper import Wrapper

    return Wrapper(how == SENDMSG, before)


def _scope() -> int:
    try:
        return int(proc.text("/proc/sys/kernel/yama/ptrace_scope"))
    except (OSError, ValueError):
        return 0
