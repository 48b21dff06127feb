"""Frames, errors that cross the socket, the event loop, names, and a supervisor whose pipelines are fakes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import TORPOR, until  # type: ignore[import-not-found]
from torpor.model.errors import Damaged, NotFound, NotNow, Refusal, Refused, TorporError, UsageError
from torpor.supervise import protocol, registry
from torpor.supervise.loop import Loop

Torpor = Callable[..., subprocess.CompletedProcess[str]]
Env = dict[str, str]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
)


@given(st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=4), st.integers(1, 9))
def test_frames_however_they_are_cut(messages: list[dict[str, object]], cut: int) -> None:
    data = b"".join(protocol.encode(message) for message in messages)
    decoder = protocol.Decoder()
    out = [m for at in range(0, len(data), cut) for m in decoder.feed(data[at : at + cut])]
    assert out == messages


def test_what_is_not_a_frame() -> None:
    with pytest.raises(ValueError):
        protocol.Decoder(1000).feed(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ValueError):
        protocol.Decoder().feed(b"\0\0\0\x02[]")


@pytest.mark.parametrize(
    "error",
    [
        Refused([Refusal(7, "cc", "is setuid", "do without"), Refusal(0, "", "x", "")], "cannot save"),
        NotFound("nothing"),
        Damaged("bad"),
        UsageError("what"),
        TorporError("plain"),
    ],
)
def test_errors_cross_the_socket(error: TorporError) -> None:
    back = protocol.raised(json.loads(json.dumps(protocol.error_message(error)))["error"])
    assert type(back) is type(error)
    assert (str(back), back.status) == (str(error), error.status)


def test_what_may_pass_is_a_refusal_to_others() -> None:
    error = NotNow([Refusal(7, "cc", "waits", "try again")])
    back = protocol.raised(json.loads(json.dumps(protocol.error_message(error)))["error"])
    assert (type(back), str(back)) == (Refused, str(error))


def test_a_defect_crosses_the_socket_with_its_kind() -> None:
    back = protocol.raised(protocol.error_message(KeyError("x"))["error"])
    assert (str(back), back.status) == ("KeyError: 'x'", 1)


def test_loop_timers_in_order_and_forgetting() -> None:
    loop = Loop()
    seen: list[str] = []
    reading, writing = os.pipe()
    loop.later(0.06, lambda: (seen.append("late"), loop.stop()))  # type: ignore[arg-type,return-value]
    loop.later(0.02, lambda: seen.append("early"))

    def ready(_events: int) -> None:
        seen.append(os.read(reading, 10).decode())
        loop.forget(reading)

    loop.watch(reading, ready)
    os.write(writing, b"data")
    loop.run()
    assert seen == ["data", "early", "late"]
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("/usr/bin/python3.11", "python3.11"),
        ("a b", "a-b"),
        ("./.hidden", "hidden"),
        ("é", "job"),
        ("", "job"),
    ],
)
def test_fitting_names(program: str, name: str) -> None:
    assert registry.check_name(registry.fit_name(program)) == name


@given(st.text())
def test_fitted_names_are_allowed(program: str) -> None:
    registry.check_name(registry.fit_name(program))


def test_a_damaged_entry_is_no_entry(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"name": 1, "supervisor": 3}'):
        (tmp_path / "info.json").write_text(text)
        assert registry.read(str(tmp_path)) is None


FAKE = """
import sys, time, types, os
seconds = float(os.environ.get('FAKE_SECONDS', '0.2'))
save = types.ModuleType('torpor.checkpoint.save')
class SaveRequest:
    def __init__(self, **fields): self.__dict__.update(fields)
class Report: pass
def run(request):
    from torpor.model.errors import Refused, Refusal
    if request.files == 'save':
        raise Refused([Refusal(1, 'x', 'is in the way', 'remove it')])
    if request.files == 'keep':
        raise ZeroDivisionError('oops')
    with request.guard:
        for n in range(3):
            request.progress('memory', n, 3)
            time.sleep(seconds / 3)
    report = Report()
    report.__dict__.update(job=request.name, number=5, bytes_total=1 << 30, bytes_new=7, bytes_read=9, seconds=0.8,
        pause_seconds=0.012, location='/path', processes=1, threads=2,
        notes=['streams %s' % len(request.streams)])
    if request.stop:
        os.kill(request.tree.root, 9)
    return report
save.SaveRequest, save.save = SaveRequest, run
sys.modules['torpor.checkpoint.save'] = save
from torpor.cli.main import main
sys.exit(main())
"""


@pytest.fixture
def job(env: Env, tmp_path: Path) -> subprocess.Popen[bytes]:
    """`torpor run` of a program that exits after a while, with a pipeline that saves nothing."""
    program = "sleep 6; exit 3"  # long enough for the slowest machine
    process = subprocess.Popen([sys.executable, "-c", FAKE, "run", "--name", "fake", "sh", "-c", program], env=env)
    socket_path = Path(env["TORPOR_RUNTIME"], "fake", "socket")
    until(socket_path.exists, "the job is there")
    return process


def test_checkpoint_through_the_supervisor(job: subprocess.Popen[bytes], torpor: Torpor) -> None:
    done = torpor("checkpoint", "fake")
    assert done.stdout == "saved fake@5, 1.0 GiB in 0.8 s (paused 12 ms), in /path\n"
    assert "streams" in done.stderr
    assert "fake@5" in torpor("jobs").stdout
    assert job.wait() == 3


def test_errors_of_a_checkpoint(job: subprocess.Popen[bytes], torpor: Torpor) -> None:
    refused = torpor("checkpoint", "--files=save")
    assert (refused.returncode, refused.stderr) == (
        1,
        "torpor: cannot save: process 1 (x): is in the way; remove it\n",
    )
    as_json = torpor("checkpoint", "--json", "--files=save")
    assert json.loads(as_json.stdout)["error"]["refusals"] == [[1, "x", "is in the way", "remove it"]]
    defect = torpor("checkpoint", "--files=keep")
    assert defect.returncode == 1
    assert defect.stderr.startswith("torpor: ZeroDivisionError: oops (in ") and "defect" in defect.stderr
    assert defect.stderr.count("\n") == 1
    assert job.wait() == 3


def test_one_checkpoint_at_a_time_and_the_end_waits_for_it(env: Env, tmp_path: Path, torpor: Torpor) -> None:
    words = ["run", "--name", "fake", "sh", "-c", "sleep 1.5; exit 3"]
    process = subprocess.Popen([sys.executable, "-c", FAKE, *words], env=env | {"FAKE_SECONDS": "4"})
    until(Path(env["TORPOR_RUNTIME"], "fake", "socket").exists, "the job is there")
    first = subprocess.Popen([*TORPOR, "checkpoint"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert first.stderr is not None
    said = first.stderr.read1()  # type: ignore[attr-defined]  # it is being made: the first words on its progress
    second = torpor("checkpoint")
    assert (second.returncode, second.stderr) == (1, "torpor: a checkpoint of fake is being made already\n")
    out, err = first.communicate()
    assert first.returncode == 0
    assert out.startswith(b"saved fake@5")
    assert b"torpor: memory 1 B of 3 B" in said + err
    assert process.wait() == 3


def test_stopping_checkpoint(job: subprocess.Popen[bytes], torpor: Torpor) -> None:
    assert torpor("checkpoint", "--stop").returncode == 0
    assert job.wait() == 75


def test_rude_visitors(job: subprocess.Popen[bytes], env: Env, torpor: Torpor) -> None:
    path = str(Path(env["TORPOR_RUNTIME"], "fake", "socket"))

    def say(data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(path)
            visitor.sendall(data)
            visitor.settimeout(5)
            out = b""
            while part := visitor.recv(4096):
                out += part
            return out

    assert b"torpor" in say(b"GET / HTTP/1.1\r\n\r\n" * 10)
    assert b"another version" in say(protocol.encode({"torpor": 99, "do": "status"}))
    assert b"not understood" in say(protocol.encode({"torpor": 1, "do": "dance"}))
    assert b"not understood" in say(protocol.encode({"torpor": 1, "do": 3}))
    assert b"not understood" in say(protocol.encode({"torpor": 1}))
    assert b"running" in say(protocol.encode({"torpor": 1, "do": "status"}))
    silent = [socket.socket(socket.AF_UNIX) for _ in range(50)]
    for visitor in silent:
        visitor.connect(path)
    assert torpor("checkpoint").returncode == 0
    for visitor in silent:
        visitor.close()
    assert job.wait() == 3


def test_many_wait(job: subprocess.Popen[bytes], env: Env) -> None:
    waiting = [subprocess.Popen([*TORPOR, "wait", "fake"], env=env) for _ in range(3)]
    assert [process.wait() for process in waiting] == [3, 3, 3]
    assert job.wait() == 3


def test_following(job: subprocess.Popen[bytes], env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    from torpor.supervise import client
    from torpor.supervise.client import ask

    asked = threading.Event()
    send = client._send

    def sent(*words: Any) -> None:
        send(*words)
        asked.set()

    monkeypatch.setattr(client, "_send", sent)
    monkeypatch.setenv("TORPOR_RUNTIME", env["TORPOR_RUNTIME"])
    entry = registry.find("fake")
    events: list[protocol.Message] = []
    results: list[protocol.Message] = []
    thread = threading.Thread(target=lambda: results.append(ask(entry, {"do": "follow"}, events.append)))
    thread.start()
    assert asked.wait(20)
    ask(entry, {"do": "status"})  # a supervisor that answers this has read what came before it
    os.kill(entry.root.pid, signal.SIGSTOP)
    until(lambda: len(events) == 1, "told of the stop")
    os.kill(entry.root.pid, signal.SIGCONT)
    thread.join(20)
    assert events == [{"event": "stop", "signal": signal.SIGSTOP}, {"event": "continue"}]
    assert results == [{"status": 3 << 8}]
    assert job.wait() == 3
