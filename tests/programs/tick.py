"""tick.py FILE: writes one number after the other into a file, a line each, until SIGUSR1 comes; then OK, exit 7."""

import signal
import sys
import time

going = True


def stop(_signal: int, _frame: object) -> None:
    global going
    going = False


signal.signal(signal.SIGUSR1, stop)
number = 0
with open(sys.argv[1], "a", buffering=1) as file:
    print("READY", file=file)
    while going:
        number += 1
        print(number, file=file)
        time.sleep(0.01)
    print("OK", file=file)
sys.exit(7)
