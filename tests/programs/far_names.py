"""One of several hosts of a job that look each other up, call each other, and say who answered.

    far_names.py NAME GO OUT PORT HOST=ADDRESS...

It answers at PORT of all its addresses with NAME, over TCP and UDP. For each file GO.1, GO.2, ... it writes a line:
what its host is called, where the names lead, and who answers at each name and each address. Before every second line
it gives PORT up and takes it again."""

import os
import select
import socket
import sys
import time

name, go, out, port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
hosts = dict(word.split("=") for word in sys.argv[5:])


def listening():
    stream = socket.create_server(("0.0.0.0", port))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("0.0.0.0", port))
    return stream, datagrams


def answer(stream, datagrams):
    for ready in select.select([stream, datagrams], [], [], 0.02)[0]:
        if ready is stream:
            far, _ = stream.accept()
            with far:
                far.sendall(name.encode())
        else:
            datagrams.sendto(name.encode(), datagrams.recvfrom(100)[1])


def over_tcp(host):
    with socket.create_connection((host, port), 20) as near:
        return near.recv(100).decode()


def over_udp(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        near.settimeout(20)
        near.sendto(b"who?", (host, port))
        return near.recv(100).decode()


def asked():
    found = [os.uname().nodename]
    for host, address in hosts.items():
        found.append(f"{host}={socket.gethostbyname(host)}")
        for place in (host, address):
            found += [f"{over_tcp(place)}", f"{over_udp(place)}"]
    found += ["localhost", over_tcp("127.0.0.1"), over_udp("127.0.0.1")]
    return " ".join(found)


def say(line):
    with open(out, "a") as file:
        file.write(line + "\n")


sockets = listening()
say("READY")
number = 1
while not os.path.exists(f"{go}.end"):
    answer(*sockets)
    if os.path.exists(f"{go}.{number}"):
        if number % 2 == 0:
            for one in sockets:
                one.close()
            sockets = listening()
            say("AGAIN")
            until = time.monotonic() + 2
            while time.monotonic() < until:
                answer(*sockets)
        number += 1
        child = os.fork()
        if child == 0:
            try:
                say(asked())
            except OSError as error:
                say(f"WRONG {error}")
            os._exit(0)
    else:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
