"""torpor, with something odd about the copies of processes that it makes (tracee/snapshot.py).

odd_snapshot.py unmarked|killed|late|refused WORD...

unmarked: the marks of memory (MADV_DONTFORK, ...) are set only after torpor has looked for them. killed: copies are
killed before they are read, as where memory is short. late: they do not wait for us. refused: no copy can be made.
"""

from __future__ import annotations

import importlib
import os
import sys

import torpor
from torpor.cli.main import main
from torpor.linux.arch import x86_64_code
from torpor.linux.arch.x86_64 import NR
from torpor.posix.memory.capture import Marks
from torpor.tracee import snapshot
from torpor.tracee.call import call

function = torpor.checkpoint
beforehand = importlib.import_module("torpor.checkpoint.beforehand")
torpor.checkpoint = function  # the folder of that name has just taken its place
how = sys.argv[1]
if how == "unmarked":
    look = beforehand.flags
    beforehand.flags = lambda pids, known: {
        pid: {area: Marks(marks.flags - {"dc", "wf"}, marks.page) for area, marks in areas.items()}
        for pid, areas in look(pids, known).items()
    }
elif how == "killed":
    clean = snapshot.Snapshot.clean

    def killed(self):
        clean(self)
        for copy in self.copies.values():
            os.kill(copy.pid, 9)

    snapshot.Snapshot.clean = killed
elif how == "late":
    x86_64_code.PATIENCE = 0
else:
    snapshot._APART[-1] = call(NR.close_range, 1, 0, 0)  # EINVAL
sys.exit(main(sys.argv[2:]))
