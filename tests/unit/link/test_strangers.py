"""Who does not know the job's secret gets nowhere; who has another version is told so."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import nats
import pytest
import worlds

from torpor.link import certificates, engine, hello, secret, server, stream
from torpor.link.link import LinkDown, Mismatch, Stranger
from torpor.link.nats import NatsLink
from torpor.model.errors import TorporError, UsageError


@pytest.fixture
def servers(cluster: Callable[[int], worlds.Servers]) -> worlds.Servers:
    return cluster(1)


SLACK = 20.0
"""Seconds by which a busy machine may be late."""


def status_of(world: worlds.Nats, wanted: engine.Engine, ours: secret.Secret, protocol: int = 1) -> str:
    """Why a link does not come up."""
    link = NatsLink(wanted, ours, "stranger", protocol=protocol)
    host = worlds.Host(link, world.driver)
    try:
        world.driver.until(lambda: len(host.statuses) > 1, "a status")
        assert not any(status.up for status in host.statuses)
        started = time.monotonic()
        with pytest.raises(TorporError) as caught:
            host.get("x", limit=2.0)
        assert time.monotonic() - started < 2.0 + SLACK
        return f"{host.statuses[-1].why} | {caught.value}"
    finally:
        host.close()


@pytest.fixture
def world(servers: worlds.Servers) -> Iterator[worlds.Nats]:
    made = worlds.Nats(servers)
    try:
        yield made
    finally:
        made.close()


def test_wrong_password(world: worlds.Nats) -> None:
    why = status_of(world, world.engine._replace(password="wrong"), world.secret)
    assert "does not let us in" in why


def test_another_authority(world: worlds.Nats) -> None:
    """A certificate of another job, for the right name, with the right password; then one that trusts the server all
    the same."""
    other = secret.fresh()
    assert "certificate" in status_of(world, engine.own(other, "x", world.servers.nodes), world.secret).lower()

    def trusting() -> ssl.SSLContext:
        made = certificates.context(certificates.identity(other, "x"), server=False)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
        return made

    status_of(world, world.engine._replace(tls=trusting), world.secret)


def test_no_certificate(world: worlds.Nats) -> None:
    def anonymous() -> ssl.SSLContext:
        made = ssl.create_default_context()
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
        return made

    status_of(world, world.engine._replace(tls=anonymous), world.secret)


def test_plain_text(world: worlds.Nats) -> None:
    """The server says nothing to whoever does not begin with TLS; and the password is not said to a server without."""
    node = world.servers.nodes[0]
    with socket.create_connection((node.address, node.port)) as plain:
        plain.settimeout(20.0)
        plain.sendall(b'CONNECT {"user":"torpor","pass":"x","verbose":false}\r\nPING\r\n')
        try:
            said = plain.recv(1000)
        except ConnectionResetError:
            said = b""
    assert b"INFO" not in said and b"PONG" not in said


def test_no_password_for_a_server_without_tls(world: worlds.Nats) -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as false:

        def serve() -> None:
            while True:
                try:
                    client, _ = false.accept()
                except OSError:
                    return
                with client:
                    client.settimeout(5.0)
                    try:
                        client.sendall(b'INFO {"version":"2.14.0","headers":true,"auth_required":true}\r\n')
                        heard.append(client.recv(10000))
                    except OSError:
                        pass

        threading.Thread(target=serve, daemon=True).start()
        url = f"tls://127.0.0.1:{false.getsockname()[1]}"
        site = engine.site(url, {"user": "me", "password": "hidden"})
        why = status_of(world, site, world.secret)
        assert "TLS" in why
        false.shutdown(socket.SHUT_RDWR)
    assert not any(b"hidden" in each for each in heard)


def test_another_version_is_named_with_both_hosts(world: worlds.Nats) -> None:
    world.host("first")
    why = status_of(world, world.engine, world.secret, protocol=2)
    for word in ("host stranger", "(protocol 2)", "host first", "(protocol 1)", "install the same torpor"):
        assert word in why


class Disguised(secret.Secret):
    """Another secret that says it is of a job."""

    def __init__(self, name: str) -> None:
        super().__init__(os.urandom(secret.SIZE))
        self.name = name

    @property
    def job(self) -> str:
        return self.name


def test_a_job_of_somebody_else_with_our_name(world: worlds.Nats) -> None:
    """As at a site, where others may use the same servers: they get no further than to see that we are here."""
    world.host("first")
    assert "does not know this job's secret" in status_of(world, world.engine, Disguised(world.secret.job))


def test_messages_of_others_are_not_heard(world: worlds.Nats) -> None:
    """Neither what they say nor what they say after us; nor what they write."""
    a, b = world.host("a"), world.host("b")
    a.hear("all")
    a.watch("x")
    a.put("x", b"ours")
    world.driver.until(lambda: a.told, "our value")
    subject = f"torpor.{world.secret.job}.all"

    async def meddle() -> None:
        engine_ = world.engine
        assert engine_.tls is not None
        client = await nats.connect(
            list(engine_.urls), user=engine_.user, password=engine_.password, tls=engine_.tls(),
            tls_hostname=engine_.tls_name, tls_handshake_first=True,
        )  # fmt: skip
        heard = await client.subscribe(subject)
        await client.flush()
        b.link.publish("all", b"true")
        said = await heard.next_msg(30.0)
        await client.publish(subject, b"false")
        await client.publish(subject, said.data)
        await client.publish(subject, secret.Seal(secret.fresh()).close(said.data, "topic all"))
        await client.jetstream().publish(f"$KV.torpor-{world.secret.job}.x", b"false")
        await client.close()

    asyncio.run(meddle())
    with pytest.raises(Stranger, match="does not know the job's secret"):
        a.get("x")
    b.link.publish("all", b"also true")
    world.driver.until(lambda: len(a.messages) >= 2, "the second message")
    assert a.payloads() == [b"true", b"also true"] and len(a.told) == 1


def test_files_are_closed_to_others_and_nothing_is_on_a_command_line(servers: worlds.Servers) -> None:
    running = servers.running[0]
    assert stat.S_IMODE(os.stat(running.folder).st_mode) == 0o700
    for name in ("server.conf", "key.pem", "certificate.pem", "authority.pem"):
        assert stat.S_IMODE(os.stat(os.path.join(running.folder, name)).st_mode) == 0o600
    word = server.password(servers.secret).encode()
    raw = servers.secret.line().split()[1]
    for pid, _ in running.pids.values():
        for file in ("cmdline", "environ"):
            with open(f"/proc/{pid}/{file}", "rb") as f:
                data = f.read()
            assert word not in data and raw not in data


def test_the_secret() -> None:
    one = secret.fresh()
    assert one.derive("a") != one.derive("b") and one.derive("a") == one.derive("a")
    assert one.line().split()[1].decode() not in repr(one)
    r, w = os.pipe()
    os.write(w, one.line() + b"the program's input")
    assert secret.receive(r).job == one.job
    assert os.read(r, 100) == b"the program's input"
    os.write(w, b"x" * 200)
    with pytest.raises(Stranger):
        secret.receive(r)
    with pytest.raises(LinkDown, match="within"):
        r2, w2 = os.pipe()
        secret.receive(r2, 0.1)
    os.close(w2)
    with pytest.raises(LinkDown, match="ended"):
        secret.receive(r2, 1.0)


def test_the_kept_secret(folder: str) -> None:
    one = secret.fresh()
    one.keep(folder)
    assert secret.kept(folder).job == one.job
    os.chmod(os.path.join(folder, "secret"), 0o644)
    with pytest.raises(TorporError, match="open to others"):
        secret.kept(folder)


def test_a_seal_is_for_one_place() -> None:
    seal = secret.Seal(secret.fresh())
    closed = seal.close(b"data", "here")
    assert seal.open(closed, "here") == b"data"
    assert seal.open(closed, "there") is None
    assert seal.open(closed[:-1], "here") is None
    assert seal.open(b"", "here") is None
    assert secret.Seal(secret.fresh()).open(closed, "here") is None


def test_hello() -> None:
    one = secret.fresh()
    mine, theirs = hello.ours(one, "a", "why"), hello.ours(one, "b")
    assert hello.decode(hello.encode(mine, one, "listens"), one, "listens") == mine
    for wrong in (hello.encode(mine, one, "connects"), hello.encode(mine, secret.fresh(), "listens"), b"", bytes(40)):
        with pytest.raises(Stranger):
            hello.decode(wrong, one, "listens")
    hello.check(mine, theirs)
    with pytest.raises(Mismatch, match=r"host a has torpor .* \(protocol 1\), host b has torpor 9.9 \(protocol 7\)"):
        hello.check(mine, theirs._replace(protocol=7, torpor="9.9"))
    with pytest.raises(Stranger, match="another job"):
        hello.check(mine, hello.ours(secret.fresh(), "b"))


def test_engines_of_a_site(folder: str) -> None:
    one = engine.site("tls://me:p%40ss@h1:4333,tls://h2")
    assert one.urls == ("tls://h1:4333", "tls://h2:4222") and (one.user, one.password) == ("me", "p@ss") and one.insist
    two = engine.site("", {"url": "nats://[::1]", "replicas": 3})
    assert two.urls == ("nats://[::1]:4222",) and not two.insist and two.replicas == 3
    for given, settings in (
        ("", {}), ("http://x", {}), ("nats://x,tls://y", {}), ("tls://x:port", {}), ("tls://x", {"what": "?"}),
        ("tls://x", {"ca": "/nowhere"}), ("tls://x", {"replicas": "3"}), ("tls://x", {"key": __file__}),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            engine.site(given, settings)
    with pytest.raises(UsageError, match="credentials"):
        engine.credentials("nothing")


class Pair:
    """A listener, and what came to it."""

    def __init__(self, **more: Any) -> None:
        self.secret = secret.fresh()
        self.driver = worlds.Driver()
        self.streams: list[stream.Stream] = []
        self.refused: list[TorporError] = []
        self.listener = stream.Listener(
            self.secret, "here", "127.0.0.1", self.streams.append, lambda _, error: self.refused.append(error), **more
        )
        self.driver.loop.watch(self.listener.fd, self.listener.deliver)

    def connect(self, **more: Any) -> stream.Stream:
        args = {"secret": self.secret, "host": "there", "address": "127.0.0.1", "port": self.listener.port, **more}
        return stream.connect(**args)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair(limit=2.0)
    yield made
    made.driver.loop.forget(made.listener.fd)
    made.listener.close()
    for each in made.streams:
        each.close()


def test_a_stream_carries_much_both_ways(pair: Pair) -> None:
    ours = pair.connect(purpose="bulk 7")
    pair.driver.until(lambda: pair.streams, "a stream")
    theirs = pair.streams[0]
    assert (theirs.peer.host, theirs.peer.purpose, ours.peer.host) == ("there", "bulk 7", "here")
    data = os.urandom(8 << 20)
    sender = threading.Thread(target=ours.send, args=(data,))
    sender.start()
    assert theirs.receive_all(len(data)) == data
    sender.join()
    theirs.send(b"done")
    assert ours.receive_all(4) == b"done"
    started = time.monotonic()
    with pytest.raises(LinkDown, match="does not answer"):
        ours.receive(1, limit=0.3)
    with pytest.raises(LinkDown):  # nobody takes it
        ours.send(bytes(64 << 20), limit=0.5)
    assert time.monotonic() - started < 10.0
    theirs.close()
    with pytest.raises(LinkDown):
        while True:
            ours.receive(1, limit=5.0)
    ours.close()


def test_a_stream_of_strangers_is_refused(pair: Pair) -> None:
    with pytest.raises(Stranger):
        pair.connect(secret=secret.fresh())
    pair.driver.until(lambda: len(pair.refused) == 1, "refused")
    with socket.create_connection(("127.0.0.1", pair.listener.port)) as plain:
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        pair.driver.until(lambda: len(pair.refused) == 2, "refused")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", pair.listener.port)) as plain, context.wrap_socket(plain) as over:
        over.settimeout(5.0)
        try:
            over.sendall(b"hello")
            assert over.recv(100) == b""
        except OSError:
            pass  # the same, said in another way
    pair.driver.until(lambda: len(pair.refused) == 3, "refused")
    with socket.create_connection(("127.0.0.1", pair.listener.port)) as silent:
        pair.driver.until(lambda: len(pair.refused) == 4, "the silent one is refused, too", limit=15.0)
        silent.settimeout(5.0)
        assert silent.recv(100) == b""
    assert pair.streams == [] and all(isinstance(error, Stranger) for error in pair.refused)
    pair.connect().close()


def test_streams_of_other_versions_are_refused_on_both_sides(pair: Pair) -> None:
    with pytest.raises(Mismatch, match=r"host there .*protocol 2.*host here .*protocol 1"):
        pair.connect(protocol=2)
    pair.driver.until(lambda: pair.refused, "refused")
    assert isinstance(pair.refused[0], Mismatch) and "host there" in str(pair.refused[0])


def test_who_does_not_answer_costs_no_more_than_the_limit(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(LinkDown):
            pair.connect(port=silent.getsockname()[1], limit=0.5)
        assert time.monotonic() - started < 0.5 + SLACK
    with pytest.raises(LinkDown, match="refused"):
        pair.connect(port=silent_port())
    with socket.create_server(("127.0.0.1", 0)) as other:  # somebody else's service, without TLS
        threading.Thread(target=lambda: other.accept()[0].sendall(b"SSH-2.0-x\r\n" * 10), daemon=True).start()
        with pytest.raises(Stranger):
            pair.connect(port=other.getsockname()[1])


def silent_port() -> int:
    return server.free_ports("127.0.0.1", 1)[0]
