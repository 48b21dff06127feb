"""What names.c does."""

import errno
import os
import socket
import sys
import time


def look_up(name, wanted):
    host = socket.getaddrinfo(name, 7000, type=socket.SOCK_STREAM)[0][4][0]
    assert wanted in ("", host), f"{name} has the address {host}"
    return host


def ask(host):
    with socket.socket() as sock:
        assert sock.connect_ex((host, 7000)) == errno.ECONNREFUSED


def until(path):
    while not os.path.exists(path):
        time.sleep(0.002)


ask("127.53.0.4")
look_up("before.test", "127.53.0.4")
ask(look_up("licence.test", "127.53.0.1"))
look_up("other.test", "127.53.0.1")
ask(look_up("two.test", ""))
later = look_up("later.test", "127.53.0.5")
print("READY", flush=True)
until(sys.argv[1])
ask(later)
ask(look_up("after.test", "127.53.0.6"))
print("DONE", flush=True)
until(sys.argv[2])
print("OK", flush=True)
