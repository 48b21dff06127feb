"""The socket of a supervisor."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from torpor.supervise.loop import Loop
from torpor.supervise.server import Server


def test_whoever_finds_the_socket_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "socket"
    there: list[bool] = []

    class Noting(socket.socket):
        def listen(self, backlog: int = 0, /) -> None:
            there.append(path.exists())
            super().listen(backlog)

    monkeypatch.setattr(socket, "socket", Noting)
    server = Server(Loop(), {}, lambda connection, message: None)
    try:
        for _ in range(2):  # the second time in place of the first
            server.listen(str(tmp_path))
            with socket.socket(socket.AF_UNIX) as visitor:
                visitor.connect(str(path))
            assert path.stat().st_mode & 0o777 == 0o600 and os.listdir(tmp_path) == ["socket"]
    finally:
        server.close()
    assert there[0] is False
