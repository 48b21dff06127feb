"""`torpor member`, which stops in a phase: while the file HOLD.PHASE is there ($TORPOR_TEST_HOLD is HOLD) it waits in
that phase's end, before it says that the phase is done, and says so by making HOLD.reached."""

import os
import sys
import time

from torpor.cli.main import main
from torpor.supervise import agreeing

hold = os.environ["TORPOR_TEST_HOLD"]
LIMIT = 120.0
"""Seconds: a test that has failed is not waited for for ever."""


def held(phase: str) -> None:
    until = time.monotonic() + LIMIT
    while os.path.exists(f"{hold}.{phase}") and time.monotonic() < until:
        with open(f"{hold}.reached", "w"):
            pass
        time.sleep(0.005)


def before(kind: type, name: str, phase: str) -> None:
    """Have a method of one of the seams wait first."""
    was = getattr(kind, name)

    def method(self: object, *arguments: object) -> object:
        held(phase)
        return was(self, *arguments)

    setattr(kind, name, method)


for name, phase in {"surveyed": "survey", "frozen": "freeze", "settled": "settle", "captured": "capture",
                    "resumed": "resume", "stored": "store"}.items():  # fmt: skip
    before(agreeing.Saving, name, phase)
for name, phase in {"recreated": "recreate", "connected": "connect", "filled": "fill", "released": "release"}.items():
    before(agreeing.Restarting, name, phase)
sys.exit(main())
