"""What a restart would find on this host: addresses, locks, room, memory."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import pytest

from torpor.checkpoint import addresses, room
from torpor.linux import capability, proc
from torpor.posix import inet_record
from torpor.posix.inet_datagram import UdpSocket
from torpor.posix.inet_record import TcpSocket
from torpor.posix.locks import FLOCK, OFD, POSIX, Lock, in_the_way
from torpor.posix.socket_address import AF_INET, Address, inet
from torpor.posix.unix_name import Name
from torpor.posix.unix_record import LISTENING, UnixSocket

LOCAL = b"\x7f\0\0\1"
TABLE = """1: OFDLCK ADVISORY  WRITE -1 fe:00:77 10 14
2: FLOCK  ADVISORY  READ 300 fe:00:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 301 fe:00:77 0 EOF
3: POSIX  ADVISORY  READ 302 fe:00:78 0 99
"""


@pytest.mark.parametrize(
    ("wanted", "ino", "who"),
    [
        (Lock(POSIX, True, 14, 1), 77, 0),
        (Lock(OFD, False, 0, 0), 77, 0),
        (Lock(POSIX, True, 15, 0), 77, None),
        (Lock(POSIX, True, 0, 10), 77, None),
        (Lock(FLOCK, True), 77, 300),
        (Lock(FLOCK, False), 77, None),
        (Lock(FLOCK, True), 78, None),
        (Lock(POSIX, False, 0, 0), 78, None),
        (Lock(POSIX, True, 99, 0), 78, 302),
        (Lock(POSIX, True, 100, 0), 78, None),
        (Lock(POSIX, True, 0, 0), 79, None),
    ],
)
def test_locks_in_the_way(wanted: Lock, ino: int, who: int | None) -> None:
    assert in_the_way(wanted, os.makedev(0xFE, 0), ino, TABLE) == who


def test_a_real_lock_in_the_way(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:
        st = os.fstat(file.fileno())
        assert in_the_way(Lock(FLOCK, True), st.st_dev, st.st_ino, proc.text("/proc/locks")) is None
        fcntl.flock(file, fcntl.LOCK_EX)
        assert in_the_way(Lock(FLOCK, True), st.st_dev, st.st_ino, proc.text("/proc/locks")) == os.getpid()


def tcp(address: Address, state: str = inet_record.LISTENING) -> tuple[str, TcpSocket]:
    return "tcp", TcpSocket(ino=1, family=AF_INET, flags=0, state=state, local=address)


def look(*records: tuple[str, object], mine: bool = False) -> tuple[list[str], list[str]]:
    found = addresses.look(records, lambda pid: mine)
    return [refusal.thing for refusal in found.refusals], list(found.own)


def test_an_address_of_another_host() -> None:
    there = Address(b"\xc0\0\2\1", 8080)  # 192.0.2.1, for documents (RFC 5737)
    assert look(tcp(there)) == (["the job's TCP address 192.0.2.1:8080 is not one of this host"], [])
    udp = UdpSocket(family=AF_INET, flags=0, local=there)
    assert look(("udp", udp))[0] == ["the job's UDP address 192.0.2.1:8080 is not one of this host"]
    # Connections within the job have others then.
    assert look(tcp(there, inet_record.CONNECTED)) == ([], [])


def test_a_port_that_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = inet(server.getsockname())
        who = f"process {os.getpid()} ({proc.comm(os.getpid())})"
        assert look(tcp(address)) == ([f"the job's TCP address {address} is in use by {who}"], [])
        assert len(look(tcp(Address(bytes(4), address.port)))[0]) == 1
        assert look(tcp(Address(b"\x7f\0\0\2", address.port))) == ([], [])
        assert look(tcp(address), mine=True) == ([], [f"TCP address {address}"])
    assert look(tcp(address)) == ([], [])


def test_a_udp_port_that_is_in_use() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        address = inet(other.getsockname())
        udp = UdpSocket(family=AF_INET, flags=0, local=address)
        assert len(look(("udp", udp))[0]) == 1
        assert look(("udp", udp), mine=True)[0] == []


def test_a_port_without_the_right_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "have", lambda number: False)
    monkeypatch.setattr(proc, "sysctl", lambda name: "1024")
    assert look(tcp(Address(LOCAL, 1023))) == (
        ["the job's TCP address 127.0.0.1:1023 needs the right to low ports"],
        [],
    )


def test_names_of_sockets(tmp_path: Path) -> None:
    def unix(path: str, mode: int = 0o600) -> tuple[str, UnixSocket]:
        return "unix", UnixSocket(ino=1, type=1, flags=0, state=LISTENING, name=Name(os.fsencode(path), "", mode))

    path = str(tmp_path / "name")
    assert look(unix(path)) == ([], [])
    assert "is gone" in look(unix(f"{path}/not/there"))[0][0]
    assert look(unix(f"{path}/not/there", 0)) == ([], [])  # it had been deleted
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        assert look(unix(path)) == ([], [])  # nobody listens: as good as dead
        server.listen()
        assert "is in use by" in look(unix(path))[0][0]
        assert look(unix(path), mine=True)[0] == []
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()  # nobody has knocked
    assert look(unix(path)) == ([], [])
    os.unlink(path)
    Path(path).touch()
    assert "is something else now" in look(unix(path))[0][0]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0torpor-test")
        server.listen()
        assert "@torpor-test is in use by" in look(unix("\0torpor-test"))[0][0]


def test_memory() -> None:
    assert 1 << 20 < room.memory_free() < 1 << 50
    assert room.swap_free() >= 0
