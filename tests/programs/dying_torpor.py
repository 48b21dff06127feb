"""torpor, dying by SIGKILL when the N-th process is told of a message in secret (posix/mqueue_notify.py): when others
are `held` for it, when its calls have `started`, MICROSECONDS after they were given our word, or when they are `done`.

dying_torpor.py N held|started|MICROSECONDS|done WORD...
"""

from __future__ import annotations

import os
import sys
import time

from torpor.cli.main import main
from torpor.posix import mqueue_notify

left, moment = int(sys.argv[1]), sys.argv[2]


def die():
    os.kill(os.getpid(), 9)


class Dying(mqueue_notify.Run):
    def hold(self, gates):
        global left
        left -= 1
        super().hold(gates)
        if not left and moment == "held":
            die()

    def start(self, actor, script):
        link = super().start(actor, script)
        if not left and moment == "started":
            die()
        return link

    def commit(self, fds):
        super().commit(fds)
        if not left and moment.isdecimal():
            end = time.perf_counter() + int(moment) / 1e6
            while time.perf_counter() < end:
                pass
            die()

    def finish(self):
        answers = super().finish()
        if not left and moment == "done":
            die()
        return answers


mqueue_notify.Run = Dying
sys.exit(main(sys.argv[3:]))
