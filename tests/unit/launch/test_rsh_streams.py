"""`torpor rsh` through the doors of two hosts, which are two addresses of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from torpor.launch import door
from torpor.launch.travel import DOOR
from torpor.link import secret
from torpor.link.certificates import context, identity

KEY = secret.fresh()
ADDRESSES = {"h1": "127.0.0.2", "h2": "127.0.0.3"}


@pytest.fixture(scope="module")
def doors() -> Iterator[dict[str, door.Started]]:
    started = {name: door.start(KEY, name, address, {**os.environb, b"HOSTNAME": name.encode()})
               for name, address in ADDRESSES.items()}  # fmt: skip
    for each in started.values():
        door.introduce(each, {name: (ADDRESSES[name], started[name].port) for name in ADDRESSES})
    yield started
    for each in started.values():
        os.kill(each.pid, signal.SIGTERM)
        os.waitpid(each.pid, 0)


@pytest.fixture
def rsh(doors: dict[str, door.Started]) -> Callable[..., subprocess.Popen[bytes]]:
    def run(*words: str, **options: Any) -> subprocess.Popen[bytes]:
        env = {**os.environ, DOOR: doors["h1"].socket, **options.pop("env", {})}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen([sys.executable, "-m", "torpor", "rsh", *words], env=env, **{**streams, **options})

    return run


def ended(process: subprocess.Popen[bytes], data: bytes = b"") -> tuple[int, bytes, bytes]:
    out, err = process.communicate(data, timeout=60)
    return process.returncode, out, err


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


Rsh = Callable[..., "subprocess.Popen[bytes]"]


def test_streams_status_folder_and_environment(rsh: Rsh, tmp_path: Path) -> None:
    command = "cat; echo $WORD $HOSTNAME; pwd; echo trouble >&2; exit 7"
    done = ended(rsh("h2", command, cwd=tmp_path, env={"WORD": "a\nb", "HOSTNAME": "h1"}), b"in\n")
    assert done == (7, f"in\na b h2\n{tmp_path}\n".encode(), b"trouble\n")


def test_a_signal_ends_the_command_there(rsh: Rsh) -> None:
    assert ended(rsh("h2", "kill -9 $$"))[0] == 137
    assert ended(rsh("-n", "h2", "cat"), b"")[:2] == (0, b"")


def test_a_host_that_is_not_of_the_job(rsh: Rsh) -> None:
    assert ended(rsh("h3", "true")) == (255, b"", b"torpor: rsh: h3 is no host of this job (h1, h2)\n")
    assert ended(rsh("h2"))[0] == 255
    assert b"the door of this host is gone" in ended(rsh("h2", "true", env={DOOR: "nobody"}))[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(rsh: Rsh, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    before = signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may have it ignored: it stays so
    try:
        process = rsh("h2", f"trap 'echo {name}; exit 3' {name}; echo up; while :; do sleep 0.05; done")
    finally:
        signal.signal(number, before)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    process.send_signal(number)
    assert ended(process)[:2] == (3, f"{name}\n".encode())


def test_the_command_is_hung_up_on_when_the_caller_dies(rsh: Rsh, tmp_path: Path) -> None:
    process = rsh(
        "h2", f"exec 2>/dev/null; trap 'echo > {tmp_path}/hup; exit' HUP; echo up; while :; do sleep 0.05; done"
    )
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    process.kill()
    process.communicate()
    until(lambda: (tmp_path / "hup").exists())


def test_nobody_reads_any_more(rsh: Rsh) -> None:
    process = rsh("h2", "trap '' PIPE; while echo x; do :; done 2>/dev/null; echo over >&2; exit 9")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"over\n"
    assert process.wait() == 9


def test_a_stream_that_nobody_takes_holds_up_nothing_else(rsh: Rsh, tmp_path: Path) -> None:
    """Standard output is full; standard error and signals go on, memory does not grow, and nothing is lost."""
    size = 48 << 20
    (tmp_path / "make").write_text(
        f"trap 'echo told >&2' HUP; (trap '' HUP; exec head -c {size} /dev/zero) & echo up >&2; wait; wait; exit 4"
    )
    process = rsh("h2", f"exec sh {tmp_path}/make")  # the shell around it would end of SIGHUP
    assert process.stdout is not None and process.stderr is not None
    assert process.stderr.readline() == b"up\n"
    time.sleep(0.5)  # most of it would have flowed by now
    process.send_signal(signal.SIGHUP)
    assert process.stderr.readline() == b"told\n"
    with open(f"/proc/{process.pid}/statm", encoding="ascii") as file:
        assert int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") < 45 << 20
    assert len(process.stdout.read()) == size
    assert process.wait() == 4


def test_strangers_are_refused(doors: dict[str, door.Started]) -> None:
    there = ADDRESSES["h2"], doors["h2"].port
    other = identity(secret.fresh(), "h1")
    with pytest.raises(OSError), socket.create_connection(there, 10) as plain:  # another job's secret
        context(other, server=False).wrap_socket(plain, server_hostname=other.name).recv(1)
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(OSError), socket.create_connection(there, 10) as plain:  # no certificate
        nobody.wrap_socket(plain).recv(1)
    with socket.create_connection(there, 10) as plain:  # no TLS
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while plain.recv(100):
                pass


@pytest.mark.exam
def test_who_says_nothing_is_out(doors: dict[str, door.Started]) -> None:
    with socket.create_connection((ADDRESSES["h2"], doors["h2"].port), door.HANDSHAKE + 10) as silent:
        assert silent.recv(1) == b""
