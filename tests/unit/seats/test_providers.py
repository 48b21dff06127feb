"""Who gives seats: a pool, a program, a server. What each says about a seat that is not to be had."""

from __future__ import annotations

import http.server
import json
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest

from torpor.model.errors import UsageError
from torpor.seats import kinds, pool
from torpor.seats.provider import Lost, NoneFree, NotEntitled, Provider, Request, Status, Unreachable
from torpor.store.folder import Folder


def asking(identity: str) -> Request:
    return Request("sim", identity, f"job-{identity}", "h", "u")


# -- a pool


@pytest.fixture
def folder(tmp_path: Any) -> Folder:
    return Folder(str(tmp_path / "st"))


def of_pool(place: Folder, identity: str) -> Provider:
    return kinds.make("pool", {"pool": "p", "store": place.place}, asking(identity))


def test_a_pool(folder: Folder) -> None:
    pool.create(folder, "p", pool.About(2))
    with pytest.raises(UsageError, match="there is a pool p already"):
        pool.create(folder, "p", pool.About(3))
    one, two, three = (of_pool(folder, identity) for identity in "abc")
    one.acquire()
    two.acquire()
    with pytest.raises(NoneFree, match=r"all 2 seats of p are taken: job-a on h \(u\), job-b on h \(u\)"):
        three.acquire()
    assert three.status().total == 2 and len(three.status().holders) == 2
    with pytest.raises(UsageError, match="2 of the seats of p are taken"):
        pool.remove(folder, "p")
    of_pool(folder, "a").acquire()  # once more for the same job: the seat that it has
    assert len(three.status().holders) == 2
    one.release()
    three.acquire()
    three.renew()
    with pytest.raises(Lost):
        one.renew()
    assert pool.names(folder) == ["p"]
    two.release()
    three.release()
    pool.remove(folder, "p")
    assert pool.names(folder) == []
    with pytest.raises(NotEntitled, match="no pool of seats p"):
        one.acquire()


def test_a_pool_whose_licence_expires(folder: Folder) -> None:
    pool.create(folder, "p", pool.About(1, until=time.time() + 0.3))
    one = of_pool(folder, "a")
    one.acquire()
    one.renew()
    time.sleep(0.4)
    with pytest.raises(NotEntitled, match="the licence of p has expired"):
        one.renew()
    with pytest.raises(NotEntitled, match="the licence of p has expired"):
        of_pool(folder, "b").acquire()


def test_a_holder_who_dies_loses_his_seat(folder: Folder) -> None:
    pool.create(folder, "p", pool.About(1, ttl=1.0))
    one, two = of_pool(folder, "a"), of_pool(folder, "b")
    one.acquire()
    assert one.every <= 0.5
    with pytest.raises(NoneFree):
        two.acquire()
    time.sleep(1.1)
    two.acquire()
    with pytest.raises(Lost, match="somebody else has it"):
        one.renew()


# -- a program


def of_program(script: str, **more: Any) -> Provider:
    return kinds.make("command", {"command": [sys.executable, "-c", script], **more}, asking("a"))


HOLDS = """
import os, sys
print("for", os.environ["TORPOR_SEAT"], os.environ["TORPOR_JOB"])
print("OK", flush=True)
sys.stdin.read()
"""


def test_a_program() -> None:
    one = of_program(HOLDS, status=[sys.executable, "-c", "print('x'); print('y')"])
    one.acquire()
    one.acquire()
    one.renew()
    assert one.status() == Status(0, ("x", "y"))
    assert not select.select([one.fileno()], [], [], 0)[0]
    one.release()
    with pytest.raises(Lost):
        one.renew()


@pytest.mark.parametrize(
    ("status", "kind"), [(75, NoneFree), (77, NotEntitled), (1, Unreachable), (0, Unreachable)]
)  # fmt: skip
def test_a_program_that_has_no_seat(status: int, kind: type[Exception]) -> None:
    one = of_program(f"import sys; print('looking'); print('all taken by x'); sys.exit({status})")
    with pytest.raises(kind, match=r"^all taken by x$"):
        one.acquire()


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(NotEntitled, match="/no/such/thing: No such file"):
        kinds.make("command", {"command": ["/no/such/thing"]}, asking("a")).acquire()


def test_a_program_that_ends_or_is_killed_has_lost_it(tmp_path: Any) -> None:
    mark = tmp_path / "end"
    one = of_program(
        f"import os, time, sys\nprint('OK', flush=True)\n"
        f"while not os.path.exists({str(mark)!r}): time.sleep(0.01)\nprint('the daemon went down'); sys.exit(3)"
    )
    one.acquire()
    mark.touch()
    assert select.select([one.fileno()], [], [], 10)[0]
    with pytest.raises(Lost, match="ended with status 3: the daemon went down"):
        one.renew()
    mark.unlink()
    one.acquire()
    one.renew()
    one.release()


def test_a_program_that_says_much_is_read() -> None:
    one = of_program("import sys, time\nprint('OK', flush=True)\nwhile True: print('x' * 9000, flush=True)")
    one.acquire()
    for _ in range(50):
        one.renew()
    one.release()


# -- a server


class Server:
    """Two seats; `answers` are given instead, if there are any."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[tuple[str, Any, str]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self._say(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def do_GET(self) -> None:
                self._say({})

            def _say(self, body: dict[str, Any]) -> None:
                outer.asked.append((self.path, body, self.headers.get("Authorization", "")))
                status, told = outer.answers.pop(0) if outer.answers else outer.answer(self.path, body)
                data = told if isinstance(told, bytes) else json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/seats"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path.endswith("/acquire"):
            if body["identity"] not in self.held and len(self.held) >= 2:
                return 409, {"reason": "full", "holders": sorted(self.held.values())}
            self.held[body["identity"]] = body["job"]
            return 200, {"lease": body["identity"], "renew": 0.5}
        if path.endswith("/status"):
            return 200, {"total": 2, "holders": sorted(self.held.values())}
        if path.endswith("/release"):
            self.held.pop(body["lease"], None)
            return 200, {}
        return (200, {}) if body["lease"] in self.held else (410, {"reason": "gone"})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    made = Server()
    yield made
    made.close()


def of_server(server: Server, identity: str, **more: Any) -> Provider:
    return kinds.make("http", {"url": server.url, **more}, asking(identity))


def test_a_server(server: Server, tmp_path: Any) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    one, two, three = (of_server(server, identity, token_file=str(token)) for identity in "abc")
    one.acquire()
    assert one.every == 0.5
    assert server.asked[0] == (
        "/seats/acquire",
        {"version": 1, "seat": "sim", "identity": "a", "job": "job-a", "host": "h", "user": "u"},
        "Bearer secret",
    )
    two.acquire()
    with pytest.raises(NoneFree, match="full: job-a; job-b"):
        three.acquire()
    assert three.status() == Status(2, ("job-a", "job-b"))
    one.renew()
    one.release()
    three.acquire()
    server.held.clear()
    with pytest.raises(Lost, match="gone"):
        three.renew()


@pytest.mark.parametrize(
    ("status", "told", "kind", "says"),
    [
        (403, {"reason": "expired"}, NotEntitled, "expired"),
        (500, b"<html>", Unreachable, "answers with status 500"),
        (200, {}, Unreachable, "gives no lease"),
        (200, b"[]", Unreachable, "gives no lease"),
        (200, {"lease": 5}, Unreachable, "gives no lease"),
        (302, {}, Unreachable, "302"),
    ],
)
def test_a_server_that_answers_otherwise(
    server: Server, status: int, told: Any, kind: type[Exception], says: str
) -> None:
    server.answers = [(status, told)]
    with pytest.raises(kind, match=says):
        of_server(server, "a").acquire()


def test_a_server_that_says_much_about_time(server: Server) -> None:
    """No wait is longer than what select(2) takes."""
    server.answers = [(200, {"lease": "a", "renew": 1e300}), (200, {"lease": "a", "renew": "soon"})]
    one = of_server(server, "a")
    one.acquire()
    assert one.every == 86400
    one.acquire()
    assert one.every == 20


def test_whom_to_trust_cannot_be_read(server: Server) -> None:
    with pytest.raises(NotEntitled, match="/no/such cannot be read: No such file"):
        of_server(server, "a", ca_file="/no/such").acquire()


def test_a_server_that_is_not_there(server: Server) -> None:
    one = of_server(server, "a")
    one.acquire()
    server.close()
    with pytest.raises(Unreachable, match="does not answer"):
        one.renew()
    with pytest.raises(Unreachable, match="does not answer"):
        one.release()


# -- others


def test_a_provider_of_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine:
        every = 1.0

        def __init__(self, options: Any, request: Request) -> None:
            if "bad" in options:
                raise ValueError("bad")

    class Entry:
        name = "mine"

        def load(self) -> Any:
            return Mine

    monkeypatch.setattr(metadata, "entry_points", lambda group, name: [Entry()] if name == "mine" else [])
    assert isinstance(kinds.make("mine", {}, asking("a")), Mine)
    with pytest.raises(NotEntitled, match="provider 'mine': ValueError: bad"):
        kinds.make("mine", {"bad": 1}, asking("a"))
    with pytest.raises(NotEntitled, match="there is no provider 'other'"):
        kinds.make("other", {}, asking("a"))
