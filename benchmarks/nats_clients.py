"""Many hosts on one NATS server: `python benchmarks/nats_clients.py --clients 1000`.

Starts the server that a job would have, with TLS and all, and as many hosts as asked for; each has a connection of its
own and runs the code that a supervisor's link runs (link/session.py). They share processes, since only a supervisor's
link is wanted here and not the supervisor. Then a coordinator sends one message to all and waits for all to answer, as
it does in each phase of a checkpoint.

Everything is on this machine: server, hosts and coordinator share its processors, and the network is loopback. So the
latencies are what the processors need for it and not what a network would add.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from torpor.link import engine, hello, secret, server
from torpor.link.link import ABSENT, ALL, COORDINATOR, Message, Status, quote

PAYLOAD = b"x" * 200
"""What a host answers: about what it says of a phase."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2, help="that the hosts share (default: 2)")
    parser.add_argument("--phases", type=int, default=20)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for each step")
    parser.add_argument("--worker", nargs=3, metavar=("NODE", "FIRST", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.worker:
        return work(server.Node(*json.loads(options.worker[0])), int(options.worker[1]), int(options.worker[2]))
    if hard != resource.RLIM_INFINITY and hard < options.clients + 100:
        print(f"{hard} open files are too few for {options.clients} clients", file=sys.stderr)
        return 2
    print(json.dumps(measure(options.clients, options.processes, options.phases, options.limit), indent=2))
    return 0


def measure(clients: int, processes: int, phases: int, limit: float) -> dict[str, Any]:
    """All of it; figures by name. Raises TimeoutError."""
    folder = tempfile.mkdtemp(prefix="torpor-bench-", dir="/var/tmp")
    job = secret.fresh()
    running: server.Server | None = None
    workers: list[subprocess.Popen[bytes]] = []
    try:
        node = server.Node("n", "127.0.0.1", *server.free_ports("127.0.0.1"))
        running = server.start(os.path.join(folder, "engine"), job, node)
        coordinator = Coordinator(node, job)
        coordinator.until(lambda: coordinator.up, limit, "the coordinator's link")
        began = time.monotonic()
        share = -(-clients // processes)
        for first in range(0, clients, share):
            here = [
                sys.executable,
                __file__,
                "--worker",
                json.dumps(node),
                str(first),
                str(min(share, clients - first)),
            ]
            workers.append(subprocess.Popen(here, stdin=subprocess.PIPE))
            pipe = workers[-1].stdin
            assert pipe is not None
            pipe.write(job.line())
            pipe.flush()
        coordinator.until(lambda: len(coordinator.heard) == clients, limit, "all to have joined")
        joined = time.monotonic() - began
        pids = {
            "server": [running.pids["server"][0]],
            "coordinator": [os.getpid()],
            "clients": [w.pid for w in workers],
        }
        before = {who: sum(map(processor, each)) for who, each in pids.items()}
        latencies = []
        for _ in range(phases):
            coordinator.heard.clear()
            start = time.monotonic()
            coordinator.link.publish(ALL, PAYLOAD)
            coordinator.until(lambda: len(coordinator.heard) == clients, limit, "all to have answered")
            latencies.append(time.monotonic() - start)
        used = {f"{who}_cpu_seconds_per_phase": round((sum(map(processor, each)) - before[who]) / phases, 3)
                for who, each in pids.items()}  # fmt: skip
        coordinator.link.close()
        return {
            "clients": clients,
            "processes": processes,
            "joined_seconds": round(joined, 2),
            "phases": phases,
            "phase_seconds_median": round(statistics.median(latencies), 4),
            "phase_seconds_longest": round(max(latencies), 4),
            # Each phase: one message to the server, one to each client, and two for each answer.
            "messages_per_second": round((1 + 3 * clients) * phases / sum(latencies)),
            **used,
            "server_mib": memory(running.pids["server"][0]),
            "coordinator_mib": memory(os.getpid()),
            "client_kib": round(sum(memory(each.pid) for each in workers) * 1024 / clients),
            "cpus": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
        }
    finally:
        for each in workers:
            each.terminate()
            each.wait()
        if running is not None:
            running.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Coordinator:
    """Says something, and counts who answers."""

    def __init__(self, node: server.Node, job: secret.Secret) -> None:
        import select

        from torpor.link.nats import NatsLink

        self.link = NatsLink(engine.own(job, "coordinator", [node]), job, "coordinator")
        self.heard: set[str] = set()
        self.up = False
        self._poll = select.poll()
        self._poll.register(self.link.fd, select.POLLIN)
        self.link.on_status(self._turned)
        self.link.subscribe(COORDINATOR, lambda message: self.heard.add(message.sender))

    def _turned(self, status: Status) -> None:
        self.up = status.up

    def until(self, condition: Callable[[], bool], limit: float, what: str) -> None:
        end = time.monotonic() + limit
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {limit:.0f} s for {what}: {len(self.heard)} were heard")
            self._poll.poll(100)
            self.link.deliver()


def work(node: server.Node, first: int, count: int) -> int:
    """A process with many hosts."""
    import asyncio

    from torpor.link.connection import Job, Loop
    from torpor.link.session import Out, Session

    job = secret.receive(0)
    own = engine.own(job, "worker", [node])
    loop = Loop()
    asyncio.set_event_loop(loop)

    def host(name: str) -> Session:
        def answer(_message: Message | None = None) -> None:
            session.begin(lambda: session.send(name, COORDINATOR, PAYLOAD))

        def turned(status: Status) -> None:
            if status.up:
                key = session.write(f"member.{quote(name)}", PAYLOAD, ABSENT)
                session.begin(lambda: session.persist(key, lambda _result, _error: answer(), time.monotonic() + 60.0))

        out = Out(turned, answer, lambda pattern, key, entry: None, lambda done, result, error: done(result, error))
        session = Session(own, Job(job, hello.ours(job, name), job.job), loop, out)
        session.begin(lambda: session.subscribe(ALL))
        return session

    async def live() -> None:
        tasks = []
        for n in range(first, first + count):
            tasks.append(asyncio.ensure_future(host(f"h{n}").live()))
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)

    loop.run_until_complete(live())
    return 0


def processor(pid: int) -> float:
    """Seconds of processor time used up to now (proc(5), /proc/PID/stat, fields 14 and 15)."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Resident, in MiB."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return round(int(file.read().split()[1]) * resource.getpagesize() / (1 << 20), 1)


if __name__ == "__main__":
    raise SystemExit(main())
