"""nginx under the load of wrk and of clients that check every body.

Usage: nginx_load.py GO FOLDER [close]. Two workers serve files from nothing to 3 MB by sendfile(2), over TCP and a UNIX
socket, and pass some requests on to themselves. With `close`, wrk makes a new connection for every request. When GO
appears: wrk has seen no socket error, no timeout and no status but 200, and every body was right.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading

import serving
from serving import fail

GO, FOLDER = sys.argv[1:3]
CLOSE = sys.argv[3:] == ["close"]
SIZES = (0, 1, 700, 12_345, 300_000, 3_000_000)
CONF = """
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{ worker_connections 512; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 100000000;
    keepalive_timeout 3600s;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    upstream itself {{ server unix:{folder}/nginx.sock; keepalive 8; }}
    server {{
        listen 127.0.0.1:{port};
        listen unix:{folder}/nginx.sock;
        root {folder}/www;
        location /passed/ {{ proxy_pass http://itself/; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
}}
"""


def body(size: int) -> bytes:
    return random.Random(size).randbytes(size)


class UnixConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = serving.connected(os.path.join(FOLDER, "nginx.sock"))


class Client(threading.Thread):
    """One connection that is kept alive; every body is compared."""

    def __init__(self, number: int, port: int) -> None:
        super().__init__()
        self.number = number
        self.connection = UnixConnection("localhost") if number % 2 else http.client.HTTPConnection("127.0.0.1", port)
        self.connection.connect()
        self.socket: socket.socket = self.connection.sock
        self.done = 0

    def run(self) -> None:
        chance = random.Random(self.number)
        while not serving.told(GO) or self.done < 30:
            size = chance.choice(SIZES)
            path = f"{chance.choice(('', '/passed'))}/{size}"
            try:
                self.connection.request("GET", path)
                answer = self.connection.getresponse()
                got = answer.read()
            except (OSError, http.client.HTTPException) as error:
                fail(f"client {self.number}, request {self.done} of {path}: {error!r}")
            if answer.status != 200 or got != body(size):
                fail(f"client {self.number}, request {self.done} of {path}: {answer.status}, {len(got)} bytes, wrong")
            if self.connection.sock is not self.socket:
                fail(f"client {self.number} has lost its connection before request {self.done}")
            self.done += 1


def main() -> None:
    port = serving.free_port()
    os.makedirs(f"{FOLDER}/www")
    for size in SIZES:
        with open(f"{FOLDER}/www/{size}", "wb") as f:
            f.write(body(size))
    with open(f"{FOLDER}/nginx.conf", "w") as f:
        f.write(CONF.format(folder=FOLDER, port=port))
    log = f"{FOLDER}/error.log"
    server = serving.start("nginx", "-p", FOLDER, "-c", f"{FOLDER}/nginx.conf", "-e", log, "-g", "daemon off;")
    serving.connected(("127.0.0.1", port)).close()
    load = serving.start(
        "wrk", "-t", "2", "-c", "40", "-d", "3600s", "--timeout", "60s",
        "-H", "Connection: close" if CLOSE else "Connection: keep-alive", f"http://127.0.0.1:{port}/12345",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    clients = [Client(number, port) for number in range(6)]
    for client in clients:
        client.start()
    serving.until(lambda: all(client.done > 10 for client in clients), "requests")
    serving.say("READY")
    for client in clients:
        client.join()
    load.send_signal(signal.SIGINT)
    said = load.communicate()[0].decode()
    found = re.search(r"(\d+) requests in", said)
    if load.returncode or not found or int(found.group(1)) < 500 or "Socket errors" in said or "Non-2xx" in said:
        fail(f"wrk: {load.returncode}\n{said}")
    serving.well(server)
    if serving.end(server, signal.SIGQUIT):
        fail(f"nginx ends with {server.returncode}")
    with open(log) as f:
        if complaints := f.read():
            fail(f"nginx has complained: {complaints[:3000]}")
    serving.say(f"TOTAL {found.group(1)} and {sum(client.done for client in clients)}")
    serving.ok()


main()
