"""torpor, dying by SIGKILL before it does the N-th thing to a task once processes make copies of themselves
(tracee/snapshot.py).

dying_snapshot.py N WORD...
"""

from __future__ import annotations

import os
import sys

from torpor.checkpoint import practice
from torpor.cli.main import main
from torpor.linux.arch import x86_64_code
from torpor.tracee import process, snapshot, task

left = int(sys.argv[1])
counting = False


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
            left -= counting
            if not left:
                os.kill(os.getpid(), 9)
            return thing(*args)

        return counted


begin = snapshot.Snapshot.begin


def begins(*args):
    global counting
    counting = True
    begin(*args)


practice._practised = True
x86_64_code.PATIENCE = 1
snapshot.Snapshot.begin = begins
for module in (snapshot, process, task):
    module.ptrace = Counted(module.ptrace)
sys.exit(main(sys.argv[2:]))
