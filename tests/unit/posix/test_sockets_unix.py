"""UNIX sockets: saved, closed, made again in one process."""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from socket_bench import again, capture, recreate

from torpor.model.errors import Refused
from torpor.posix.backlog import Backlogs
from torpor.posix.socket_queue import Peeked

STREAM, DGRAM, SEQ = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET


def drain(one: socket.socket) -> bytes:
    one.setblocking(False)
    out = b""
    try:
        while part := one.recv(1 << 16):
            out += part
    except BlockingIOError:
        pass
    return out


def fds(one: socket.socket, size: int = 100) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = one.recvmsg(size, 1024)
    found = array.array("i")
    for _, kind, value in ancillary:
        if kind == socket.SCM_RIGHTS:
            found.frombytes(value)
    return data, list(found)


def test_a_pair_with_data_in_both_directions() -> None:
    a, b = socket.socketpair()
    a.send(b"to b")
    b.send(b"to a" * 1000)
    a.setblocking(False)
    capture(a, b)
    assert a.recv(1 << 16) == b"to a" * 1000  # nothing was taken
    b.send(b"to a" * 1000)
    a, b = again(a, b)
    assert not a.getblocking()
    b.settimeout(None)
    assert drain(a) == b"to a" * 1000
    assert drain(b) == b"to b"
    b.send(b"x")
    assert a.recv(9) == b"x"


def test_a_full_stream() -> None:
    a, b = socket.socketpair()
    a.setblocking(False)
    total = 0
    with pytest.raises(BlockingIOError):
        while True:
            total += a.send(b"0123456789" * 1000)
    a, b = again(a, b)
    with pytest.raises(BlockingIOError):
        a.send(b"x" * 10000)
    assert drain(b) == (b"0123456789" * 1000 * (total // 10000 + 1))[:total]


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
@pytest.mark.parametrize("kind", [STREAM, SEQ])
def test_shut_down(how: int, kind: int) -> None:
    a, b = socket.socketpair(type=kind)
    a.send(b"ab")
    b.send(b"ba")
    a.shutdown(how)

    def state(x: socket.socket, y: socket.socket) -> object:
        poll = select.poll()
        for one in (x, y):
            poll.register(one, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
        events = [dict(poll.poll(0)).get(one.fileno()) for one in (x, y)]
        out: list[object] = list(events)
        for one in (x, y):
            one.setblocking(False)
            try:
                out += [one.recv(10), one.recv(10)]
            except OSError as error:
                out.append(error.errno)
        for one in (x, y):
            try:
                out.append(one.send(b"z"))
            except OSError as error:
                out.append(error.errno)
        return out

    c, d = again(a, b)
    a, b = socket.socketpair(type=kind)
    a.send(b"ab")
    b.send(b"ba")
    a.shutdown(how)
    assert state(c, d) == state(a, b)


@pytest.mark.parametrize("kind", [STREAM, SEQ, DGRAM])
def test_a_closed_peer(kind: int) -> None:
    a, b = socket.socketpair(type=kind)
    b.send(b"last words")
    b.close()
    (a,) = again(a)
    assert a.recv(100) == b"last words"
    if kind != DGRAM:
        assert a.recv(100) == b""
    with pytest.raises(ConnectionRefusedError if kind == DGRAM else BrokenPipeError):
        a.send(b"x")


def test_a_peer_that_was_closed_with_unread_data() -> None:
    a, b = socket.socketpair()
    b.send(b"last words")
    a.send(b"unread")
    b.close()
    (a,) = again(a)
    assert a.recv(100) == b"last words"
    with pytest.raises(ConnectionResetError):
        a.recv(100)


def test_packets_keep_their_boundaries() -> None:
    for kind in (SEQ, DGRAM):
        a, b = socket.socketpair(type=kind)
        parts = [b"one", b"", b"three" * 5000, b"4"]
        for part in parts:
            a.send(part)
        assert a.getsockopt(1, 42) == -1
        a, b = again(a, b)
        assert b.getsockopt(1, 42) == -1
        assert [b.recv(1 << 17) for _ in parts] == parts
        b.setblocking(False)
        with pytest.raises(BlockingIOError):
            b.recv(1)


def test_descriptors_in_flight() -> None:
    a, b = socket.socketpair()
    r, w = os.pipe()
    os.write(w, b"in the pipe")
    a.send(b"before")
    socket.send_fds(a, [b"with"], [r])
    a.send(b"after")
    socket.send_fds(a, [b"self"], [b.fileno(), w])  # a socket in its own queue
    os.close(r)
    out, _ = recreate(a, b, w)
    a, b = out[:2]
    assert fds(b, 6) == (b"before", [])
    data, found = fds(b)
    assert data == b"with" and len(found) == 1
    assert os.read(found[0], 100) == b"in the pipe"
    data, more = fds(b)
    assert data == b"afterself" and len(more) == 2
    assert os.path.samestat(os.fstat(more[0]), os.fstat(b.fileno()))
    os.write(more[1], b"!")
    assert os.read(found[0], 9) == b"!"


def test_a_chain_of_descriptors_in_flight_that_nobody_holds() -> None:
    for kind in (STREAM, DGRAM, SEQ):
        a, b = socket.socketpair(type=kind)
        c, d = socket.socketpair()
        r, w = os.pipe()
        os.write(w, b"deep")
        socket.send_fds(c, [b"2"], [r, w])
        socket.send_fds(a, [b"1"], [d.fileno(), c.fileno()])
        for one in (c, d):
            one.close()
        os.close(r)
        os.close(w)
        a, b = again(a, b)[:2]
        data, found = fds(b)
        assert data == b"1"
        data, deeper = fds(socket.socket(fileno=found[0]))
        assert data == b"2" and os.read(deeper[0], 99) == b"deep"


@pytest.mark.parametrize("abstract", [False, True])
@pytest.mark.parametrize("kind", [STREAM, SEQ])
def test_listener_and_accepted(kind: int, abstract: bool, tmp_path: Path) -> None:
    name = f"\0torpor-{os.getpid()}" if abstract else str(tmp_path / "s")
    server = socket.socket(socket.AF_UNIX, kind)
    server.bind(name)
    if not abstract:
        os.chmod(name, 0o640)
    server.listen(7)
    one = socket.socket(socket.AF_UNIX, kind)
    one.bind(name + ".client")
    one.connect(name)
    accepted, _ = server.accept()
    waiting = [socket.socket(socket.AF_UNIX, kind) for _ in range(3)]
    for i, w in enumerate(waiting):
        w.bind(f"{name}.w{i}")
        w.connect(name)
    accepted.send(b"hello")
    one.send(b"request")
    before = [x.getsockname() for x in (server, one, accepted)], [x.getpeername() for x in (one, accepted)]
    # Another order than that of their making.
    made = again(waiting[2], accepted, waiting[0], one, server, waiting[1])
    w2, accepted, w0, one, server, w1 = made
    assert before == (
        [x.getsockname() for x in (server, one, accepted)],
        [x.getpeername() for x in (one, accepted)],
    )
    assert one.recv(9) == b"hello" and accepted.recv(9) == b"request"
    server.settimeout(2)
    for i, w in enumerate((w0, w1, w2)):
        got, address = server.accept()
        expected = f"{name}.w{i}"
        assert address == (expected.encode() if abstract else expected)
        w.send(b"x")
        assert got.recv(3) == b"x"
    if not abstract:
        assert os.stat(name).st_mode & 0o777 == 0o640
    late = socket.socket(socket.AF_UNIX, kind)
    late.connect(name)
    server.accept()


def test_an_accepted_end_whose_listener_is_gone(tmp_path: Path) -> None:
    for keep in (False, True):
        name = str(tmp_path / f"s{keep}")
        server = socket.socket(socket.AF_UNIX)
        server.bind(name)
        server.listen(7)
        one = socket.socket(socket.AF_UNIX)
        one.connect(name)
        accepted, _ = server.accept()
        server.close()
        if not keep:
            os.unlink(name)
        one, accepted = again(one, accepted)
        assert accepted.getsockname() == one.getpeername() == name
        assert os.path.exists(name) == keep
        assert os.listdir(tmp_path) == ([f"s{keep}"] if keep else [])
        one.send(b"1")
        assert accepted.recv(2) == b"1"


def test_a_relative_name_and_a_deleted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")
    server, hidden = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, DGRAM)
    server.bind("../sock")
    server.listen(1)
    hidden.bind("hidden")
    os.unlink("hidden")
    server, hidden = again(server, hidden)
    assert server.getsockname() == "../sock" and hidden.getsockname() == "hidden"
    assert os.listdir(".") == [] and sorted(os.listdir("..")) == ["d", "sock"]
    one = socket.socket(socket.AF_UNIX)
    one.connect(str(tmp_path / "sock"))


def test_waiting_with_data_is_refused_and_closed_ones_wait_again(tmp_path: Path) -> None:
    name = str(tmp_path / "s")
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen(7)
    one = socket.socket(socket.AF_UNIX)
    one.connect(name)
    one.send(b"early")
    with pytest.raises(Refused, match="waits to be accepted"):
        capture(server, one)
    server.accept()
    for _ in range(2):
        socket.socket(socket.AF_UNIX).connect(name)
    with pytest.raises(Refused, match="waits to be accepted whose other end is closed"):
        capture(server)
    known = Backlogs()
    for data in ([], [Peeked(b"left", [], None, None)]):
        known.tell_unix(os.fstat(server.fileno()).st_ino, data)
    (server,) = again(server, gone=[one], backlogs=known)
    server.settimeout(2)
    for data in (b"", b"left"):
        got, _ = server.accept()
        assert got.recv(9) == data and got.recv(1) == b""


def test_datagrams_with_senders(tmp_path: Path) -> None:
    def sock(name: str) -> socket.socket:
        one = socket.socket(socket.AF_UNIX, DGRAM)
        if name:
            one.bind(name)
        return one

    to, here, gone = sock(str(tmp_path / "to")), sock(f"\0here-{os.getpid()}"), sock(str(tmp_path / "gone"))
    nameless = sock("")
    for i, sender in enumerate((here, gone, nameless, here, gone)):
        sender.sendto(b"m%d" % i, str(tmp_path / "to"))
    senders = [f"\0here-{os.getpid()}".encode(), str(tmp_path / "gone"), None]
    gone.close()
    here.connect(str(tmp_path / "to"))
    to, here, nameless = again(to, here, nameless)
    assert [to.recvfrom(9) for _ in range(5)] == [
        (b"m0", senders[0]), (b"m1", senders[1]), (b"m2", senders[2]), (b"m3", senders[0]), (b"m4", senders[1]),
    ]  # fmt: skip
    assert here.getpeername() == str(tmp_path / "to")
    here.send(b"more")
    assert to.recv(9) == b"more"
    assert sorted(os.listdir(tmp_path)) == ["gone", "to"]


def test_two_datagram_sockets_connected_to_each_other_with_a_long_queue(tmp_path: Path) -> None:
    a, b = socket.socket(socket.AF_UNIX, DGRAM), socket.socket(socket.AF_UNIX, DGRAM)
    a.bind(f"\0a-{os.getpid()}")
    b.bind(f"\0b-{os.getpid()}")
    a.connect(b.getsockname())
    b.connect(a.getsockname())
    for i in range(100):
        a.send(b"%d" % i)
    a, b = again(a, b)
    assert [b.recv(9) for _ in range(100)] == [b"%d" % i for i in range(100)]
    b.send(b"x")
    assert a.recvfrom(9) == (b"x", b.getsockname())


def test_a_peer_outside_is_closed() -> None:
    a, b = socket.socketpair()
    b.send(b"was here")
    out, restart = recreate(a)
    (a,) = out
    assert a.recv(99) == b"was here" and a.recv(99) == b""
    assert "outside" in restart.said[0]


def test_options() -> None:
    a, b = socket.socketpair()
    a.setsockopt(1, socket.SO_SNDBUF, 50000)
    b.setsockopt(1, socket.SO_PASSCRED, 1)
    b.setsockopt(1, socket.SO_RCVTIMEO, struct.pack("qq", 3, 500000))
    b.setsockopt(1, 42, 5)
    values = [(one.getsockopt(1, o, 16)) for one in (a, b) for o in (7, 8, 16, 20, 21, 42, 72)]
    a, b = again(a, b)
    assert values == [(one.getsockopt(1, o, 16)) for one in (a, b) for o in (7, 8, 16, 20, 21, 42, 72)]
    credentials = struct.unpack("iii", a.getsockopt(1, 17, 12))
    assert credentials[1:] == (os.getuid(), os.getgid())


def test_a_filter_is_refused() -> None:
    a, b = socket.socketpair(type=DGRAM)
    accept_all = struct.pack("HBBI", 6, 0, 0, 0xFFFF)
    import ctypes

    room = ctypes.create_string_buffer(accept_all)
    a.setsockopt(1, 26, struct.pack("HxxxxxxP", 1, ctypes.addressof(room)))
    with pytest.raises(Refused, match="filter"):
        capture(a, b)


def test_a_connection_comes_through_the_listener_of_its_path(tmp_path: Path) -> None:
    """The kernel tells the name of a path with a zero behind it (sock_diag): it is the listener's all the same."""
    path = str(tmp_path / "name")
    listener = socket.socket(socket.AF_UNIX, STREAM)
    listener.bind(path)
    listener.listen()
    client = socket.socket(socket.AF_UNIX, STREAM)
    client.connect(path)
    server, _ = listener.accept()
    _, saved = capture(listener, client, server)
    record = saved[2][1]
    assert record.name.raw == os.fsencode(path)
    assert (record.accepted, record.listener, record.after) == (True, 0, (0,))
    for one in (listener, client, server):
        one.close()
