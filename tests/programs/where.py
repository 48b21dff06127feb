"""Answers connections and datagrams at HOST PORT with NAME, until it is killed."""

import select
import socket
import sys

host, port, name = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
stream = socket.create_server((host, port))
port = stream.getsockname()[1]
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind((host, port))
print("PORT", port, flush=True)
while True:
    for ready in select.select([stream, datagrams], [], [])[0]:
        if ready is stream:
            far, _ = stream.accept()
            with far:
                far.settimeout(20)
                if far.recv(100):
                    far.sendall(name)
        else:
            datagrams.sendto(name, datagrams.recvfrom(100)[1])
