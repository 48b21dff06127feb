"""Threads that compute, sleep, wake each other, talk to a child and wait in epoll until GO appears; then all is
verified."""

import hashlib
import os
import queue
import select
import signal
import sys
import threading
import time

GO = sys.argv[1]
finish = threading.Event()
rounds = [0] * 5
failed: list[str] = []


def guarded(function):
    def run():
        try:
            function()
        except BaseException as error:
            failed.append(f"{function.__name__}: {error!r}")
            finish.set()

    return run


@guarded
def compute():
    digest = b"start"
    while not finish.is_set():
        start = again = digest
        for _ in range(100):
            digest = hashlib.sha256(digest).digest()
        for _ in range(100):
            again = hashlib.sha256(again).digest()
        assert again == digest != start, "a computation went wrong"
        rounds[0] += 1
        time.sleep(0.0003)  # whoever watches needs a processor as well


@guarded
def sleeps():
    while not finish.is_set():
        start = time.monotonic()
        time.sleep(0.003)
        assert time.monotonic() - start >= 0.00299, "a shortened sleep"
        rounds[1] += 1


ping: "queue.Queue[int]" = queue.Queue()
pong: "queue.Queue[int]" = queue.Queue()


@guarded
def asks():
    n = 0
    while not finish.is_set():
        ping.put(n)
        assert pong.get(timeout=60) == n + 1
        n += 1
        rounds[2] += 1
        if n % 20 == 0:
            time.sleep(0.0003)
    ping.put(-1)


@guarded
def answers():
    while (n := ping.get(timeout=60)) >= 0:
        pong.put(n + 1)


to_child, from_child = os.pipe(), os.pipe()
signal.signal(signal.SIGUSR2, lambda *_: None)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
os.kill(os.getpid(), signal.SIGUSR1)
child = os.fork()
if child == 0:
    os.close(to_child[1])
    while line := os.read(to_child[0], 8):
        os.write(from_child[1], line[::-1])
    os._exit(7)
os.close(to_child[0])
os.close(from_child[1])


@guarded
def talks():
    n = 0
    poll = select.epoll()
    poll.register(from_child[0], select.EPOLLIN)
    while not finish.is_set():
        text = b"%08d" % n
        os.write(to_child[1], text)
        assert poll.poll() == [(from_child[0], select.EPOLLIN)]
        assert os.read(from_child[0], 8) == text[::-1]
        n += 1
        rounds[3] += 1
        if n % 20 == 0:
            time.sleep(0.0003)


threads = [threading.Thread(target=f) for f in (compute, sleeps, asks, answers, talks)]
for t in threads:
    t.start()
while not failed and not all(rounds[:4]):
    time.sleep(0.002)
os.write(1, b"READY\n")
while not failed and not os.path.exists(GO):
    time.sleep(0.003)
before, end = rounds[:], time.monotonic() + 20
while not failed and not all(now > was + 2 for now, was in zip(rounds[:4], before)):
    if time.monotonic() > end:
        failed.append(f"threads do not go on: {before} {rounds}")
    time.sleep(0.002)
finish.set()
for t in threads:
    t.join()
os.close(to_child[1])
if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 7:
    failed.append("child")
if signal.SIGUSR1 not in signal.sigpending():
    failed.append("pending signal")
if failed:
    print("FAIL:", failed)
    sys.exit(1)
print("OK")
