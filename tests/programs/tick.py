"""tick.py FILE [FILE2]: writes one number after the other into a file, a line each, until SIGUSR1 comes: OK, and 7.

FILE2: a lease on that file is held, which cannot be saved, until the file FILE2.let is there.
"""

import fcntl
import os
import signal
import sys
import time

going = True


def stop(_signal: int, _frame: object) -> None:
    global going
    going = False


signal.signal(signal.SIGUSR1, stop)
lease = -1
if len(sys.argv) > 2:
    with open(sys.argv[2], "w"):
        pass
    lease = os.open(sys.argv[2], os.O_RDONLY)
    fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_RDLCK)
number = 0
with open(sys.argv[1], "a", buffering=1) as file:
    print("READY", file=file)
    while going:
        number += 1
        print(number, file=file)
        time.sleep(0.01)
        if lease >= 0 and os.path.exists(sys.argv[2] + ".let"):
            fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            lease = -1
    print("OK", file=file)
sys.exit(7)
