"""What a stopped process was asked becomes records later, whatever has become of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest

from torpor.checkpoint import asking
from torpor.checkpoint.asking import Told
from torpor.linux import ptrace
from torpor.posix.process_services import PROCESS_SERVICES, THREAD_SERVICES
from torpor.tracee.freeze import freeze


def plain(told: Told) -> Any:
    """Records as values that can be compared."""
    services = [told.services, *(thread.services for thread in told.threads)]
    return [{name: bytes(record) for name, record in each.items()} for each in services], told.layout


def program(writing: int) -> None:
    """Two threads, a signal that waits for the process and one for its first thread, a timer, a handler."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2])
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    threading.Thread(target=time.sleep, args=(600,)).start()
    os.write(writing, b"x")
    time.sleep(600)


def forgiving(found: Any) -> Any:
    """Without what runs on between two looks."""
    return [{name: record for name, record in each.items() if name != "itimers"} for each in found[0]], found[1]


def test_records_are_made_of_what_was_there_in_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """And they are the same where a service does not wait."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            program(writing)
        finally:
            os._exit(1)
    os.read(reading, 1)
    with freeze(lambda: [pid]) as frozen:
        asked = asking.ask(frozen.processes[pid])
        stopped = plain(asked.told())
        monkeypatch.setattr(asking, "_waits", lambda service: False)
        assert forgiving(plain(asking.ask(frozen.processes[pid]).told())) == forgiving(stopped)
        monkeypatch.undo()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)
    assert plain(asked.told()) == stopped
    (process, first, second), _ = stopped
    assert process["pending"] and process["itimers"] and process["dispositions"]
    assert first["signals"] != second["signals"]


def test_records_stand_in_the_order_of_the_services() -> None:
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
    with freeze(lambda: [pid]) as frozen:
        told = asking.ask(frozen.processes[pid]).told()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for found, services in ((told.services, PROCESS_SERVICES), (told.threads[0].services, THREAD_SERVICES)):
        names = [service.name for service in services]
        assert list(found) == sorted(found, key=names.index)
        assert any(service.afterwards for service in services) and not all(service.afterwards for service in services)


@pytest.mark.parametrize("waits", [False, True])
def test_queues_are_looked_into_where_something_waits(monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    """For the process as a whole, too, and whoever of its threads has seen it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            threading.Thread(target=time.sleep, args=(600,)).start()
            if waits:
                os.kill(os.getpid(), signal.SIGUSR1)
            os.write(writing, b"x")
            time.sleep(600)
        finally:
            os._exit(1)
    os.read(reading, 1)
    looked: list[bool] = []
    pending = ptrace.pending

    def noted(tid: int, shared: bool) -> list[bytes]:
        looked.append(shared)
        return pending(tid, shared)

    monkeypatch.setattr(ptrace, "pending", noted)
    with freeze(lambda: [pid]) as frozen:
        told = asking.ask(frozen.processes[pid]).told()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)
    assert looked == ([True, False, False] if waits else [])
    assert ("pending" in told.services) == waits
