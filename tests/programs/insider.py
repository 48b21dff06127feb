"""Speaks with torpor: holds, saves itself again and again, and hears of restarts. As inside.c; with `hold` as its
second word it holds until it is told."""

import os
import sys
import time

from torpor import inside

go, mode = sys.argv[1], sys.argv[2]
restarts = []
assert inside.present() and inside.job()
inside.on_restart(lambda: restarts.append(time.monotonic()))
with inside.hold(), inside.hold():
    try:
        inside.checkpoint()
        sys.exit("a checkpoint within hold()")
    except RuntimeError:
        pass
    if mode == "hold":
        print("READY", flush=True)
        while not os.path.exists(go):
            time.sleep(0.01)
print("READY" if mode != "hold" else "RELEASED", flush=True)
number = 0
while not os.path.exists(go):
    number += 1
    what = inside.checkpoint()
    print(f"{what.upper()} {number} told {len(restarts)}", flush=True)
    time.sleep(0.02)
if mode == "twice":
    assert len(restarts) == 2, restarts
while mode == "hold" and not os.path.exists(go + "2"):
    time.sleep(0.01)
print("OK", flush=True)
