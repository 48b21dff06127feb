"""Asks for addresses from several threads, before and after READY; prints each as `ASK kind address:port`."""

import os
import socket
import sys
import threading
import time

go = sys.argv[1]
lock = threading.Lock()


def say(line):
    with lock:
        print(line, flush=True)


def talk(server):
    with socket.create_connection(server.getsockname(), timeout=10) as near:
        far, _ = server.accept()
        with far:
            near.sendall(b"word")
            assert far.recv(4) == b"word"
            for end in (near, far):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def listener():
    server = socket.create_server(("127.0.0.1", 0))
    say(f"ASK tcp 127.0.0.1:{server.getsockname()[1]}")
    return server


def work():
    with listener() as server:
        for _ in range(20):
            talk(server)


threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
say("ASK udp 127.0.0.1:9")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
    assert datagrams.sendto(b"word", ("127.0.0.1", 9)) == 4
server = listener()
say(f"AGAIN {server.getsockname()[1]}")
talk(server)
say(f"READY pid {os.getpid()}")
while not os.path.exists(go):
    talk(server)
    time.sleep(0.005)
say("OK")
