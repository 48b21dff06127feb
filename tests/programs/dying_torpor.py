"""torpor, dying by SIGKILL the N-th time that a process is told of a message in secret (posix/mqueue_told.py): `before`
the process makes the calls, `within` them, or `after`.

dying_torpor.py N MOMENT WORD...
"""

from __future__ import annotations

import os
import sys

from torpor.cli.main import main
from torpor.linux import ptrace
from torpor.posix import mqueue_told

left, moment = int(sys.argv[1]), sys.argv[2]
request = ptrace.request


def counted(calls):
    def make(*args):
        global left
        left -= 1
        return calls(*args)

    return make


def dying(what, *rest):
    """The first CONT after the calls were laid out lets them be made."""
    global left
    if left > 0 or what != ptrace.CONT:
        return request(what, *rest)
    if left < 0 or moment == "before":
        os.kill(os.getpid(), 9)
    result = request(what, *rest)
    if moment == "within":
        os.kill(os.getpid(), 9)
    left = -1
    return result


mqueue_told.by_signal = counted(mqueue_told.by_signal)
mqueue_told.by_socket = counted(mqueue_told.by_socket)
ptrace.request = dying
sys.exit(main(sys.argv[3:]))
