"""Calls with mapped addresses that take their time: the program sees what it would see without us."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from torpor.linux import seccomp_notify
from torpor.model.ledger import Ledger
from torpor.watch.wrapper import Wrapper


@pytest.fixture
def slow() -> Iterator[tuple[socket.socket, tuple[str, int]]]:
    """A listener that does not answer until what waits is accepted; the old address of it, where nobody is."""
    server = socket.socket()
    server.bind(("127.8.0.2", 0))
    server.listen(0)
    filler = socket.create_connection(server.getsockname())
    with server, filler:
        yield server, ("127.7.0.2", server.getsockname()[1])


def wrapped(body: Callable[[], None]) -> tuple[int, Wrapper]:
    """A child that runs `body` with 127.7.0.2 at 127.8.0.2."""
    works, why = seccomp_notify.probe()
    if not works:
        pytest.skip(why)
    wrapper = Wrapper(Ledger(since=time.time(), moved=("127.7.0.2=127.8.0.2",)))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            wrapper.inside()
            body()
            status = 0
        finally:
            os._exit(status)
    wrapper.outside(pid)
    return pid, wrapper


def ended(pid: int, wrapper: Wrapper) -> int:
    _, status = os.waitpid(pid, 0)
    wrapper.close()
    os.waitpid(wrapper.holder, 0)
    return os.waitstatus_to_exitcode(status)


def test_a_connection_that_takes_its_time(slow: tuple[socket.socket, tuple[str, int]]) -> None:
    server, old = slow

    def body() -> None:
        with socket.socket() as near:
            near.connect(old)
            assert near.getpeername() == server.getsockname()

    pid, wrapper = wrapped(body)
    time.sleep(0.2)
    server.accept()[0].close()
    assert ended(pid, wrapper) == 0


@pytest.mark.parametrize("restarts", [False, True])
def test_a_signal_while_it_waits(slow: tuple[socket.socket, tuple[str, int]], restarts: bool) -> None:
    server, old = slow

    def body() -> None:
        from torpor.linux.libc import libc

        rang: list[int] = []
        signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
        signal.siginterrupt(signal.SIGALRM, not restarts)
        near = socket.socket()
        address = socket.AF_INET.to_bytes(2, "little") + old[1].to_bytes(2, "big") + socket.inet_aton(old[0]) + bytes(8)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        got = libc.connect(near.fileno(), address, len(address))
        if restarts:
            assert got == 0 and near.getpeername() == server.getsockname()
        else:
            import ctypes

            assert got == -1 and ctypes.get_errno() == errno.EINTR
        assert rang

    pid, wrapper = wrapped(body)
    time.sleep(0.3)
    server.accept()[0].close()
    assert ended(pid, wrapper) == 0


def test_nobody_waits_for_another(slow: tuple[socket.socket, tuple[str, int]]) -> None:
    """While one connection waits, others are made."""
    server, old = slow
    quick = socket.create_server(("127.8.0.2", 0))

    def body() -> None:
        if os.fork() == 0:
            near = socket.socket()
            near.connect(old)
            os._exit(0)
        time.sleep(0.1)
        for _ in range(20):
            near = socket.create_connection(("127.7.0.2", quick.getsockname()[1]))
            near.close()
        os.write(up[1], b"!")
        os.wait()

    up = os.pipe()
    pid, wrapper = wrapped(body)
    began = time.monotonic()
    assert os.read(up[0], 1) == b"!"
    assert time.monotonic() - began < 5
    server.accept()[0].close()
    assert ended(pid, wrapper) == 0
    assert wrapper.holder
