"""Follows the kernel's log. Usage: follow_kmsg.py GO."""

import os
import sys
import time

log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
os.lseek(log, 0, os.SEEK_END)
print("READY", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.005)
if os.fstat(log).st_rdev != os.makedev(1, 11) or os.get_blocking(log):
    sys.exit("FAIL: another descriptor")
try:
    while os.read(log, 8192):
        pass
except BlockingIOError:
    print("OK")
