"""Whether somebody was born, or has gone, on the whole machine."""

from __future__ import annotations

import os
import threading

from torpor.linux import proc


def test_a_birth_is_counted_of_a_process_and_of_a_thread() -> None:
    first = proc.population()
    assert first is not None
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    second = proc.population()
    assert second is not None and second.born > first.born
    os.waitpid(pid, 0)
    go_on = threading.Event()
    threads = [threading.Thread(target=go_on.wait) for _ in range(50)]
    for thread in threads:
        thread.start()
    third = proc.population()
    go_on.set()
    for thread in threads:
        thread.join()
    assert third is not None and third.born >= second.born + 50
    assert third.alive > second.alive + 25  # others may end meanwhile
