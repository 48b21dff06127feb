"""torpor, dying by SIGKILL before it does the N-th thing to a task while copies of processes are made
(tracee/snapshot.py).

dying_snapshot.py N WORD...
"""

from __future__ import annotations

import os
import sys

from torpor.cli.main import main
from torpor.tracee import snapshot

left = int(sys.argv[1])


class Counted:
    """linux.ptrace, but for the N-th call."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        thing = getattr(self._module, name)
        if not callable(thing):
            return thing

        def counted(*args):
            global left
            left -= 1
            if not left:
                os.kill(os.getpid(), 9)
            return thing(*args)

        return counted


snapshot.ptrace = Counted(snapshot.ptrace)
sys.exit(main(sys.argv[2:]))
