"""A checkpoint of a job on many hosts, with the real coordinator and the real state machine of every host, and a
network that is only figures. Time is made up, but for one thing: what the coordinator does takes as long as it really
took (processor time), one event after the other, decoding and encoding included."""

from __future__ import annotations

import gc
import hashlib
import heapq
import itertools
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from torpor.coordinate import record, words
from torpor.coordinate.core import Coordinator
from torpor.coordinate.host import Host
from torpor.coordinate.phases import Kind, Limits, Phase

WIRE = 0.0002
"""Seconds a message is under way."""
FAN_OUT = 3e-6
"""Seconds between two hosts that get the same announcement."""
WRITE = 0.005
"""Seconds a write of the record takes, and as much for each MB of it."""
PROCESSES = 16
"""On each host; each speaks with one on every host that this host speaks with."""
ROOT = 0.02
"""Seconds until the store has the job's root."""


class Figures(NamedTuple):
    """phases: seconds from each order to the last word, hosts needing no time but for STORE.  cpu: of the coordinator,
    seconds, in all and by phase.  received, delivered: messages to and from the coordinator; announced: how many of
    those were sent as one.  bytes_in, bytes_out: of them (announcements counted once).  record: bytes, the largest.
    host_cpu: of one host, seconds."""

    hosts: int
    ends: int
    phases: dict[str, float]
    cpu: float
    cpu_by_phase: dict[str, float]
    received: int
    delivered: int
    announced: int
    bytes_in: int
    bytes_out: int
    record: int
    host_cpu: float

    @property
    def pause(self) -> float:
        """What coordination adds to the time in which a job stands still."""
        return sum(self.phases[phase] for phase in ("freeze", "settle", "capture", "resume"))


def conversations(hosts: int, ends: int) -> list[bytes]:
    """What each host tells when it is frozen: `ends` ends, each of a connection with another host. As
    `coordinate.conversations.ends` makes it, without making two million addresses first."""
    told: list[dict[bytes, bytearray]] = [{} for _ in range(hosts)]
    pack = struct.Struct("<16sBQ").pack
    address = [b"\x0a" + host.to_bytes(3, "big") for host in range(hosts)]
    for host in range(hosts if hosts > 1 else 0):
        for number in range(ends // 2):
            other = (host + 1 + number // PROCESSES * 7 % (hosts - 1)) % hosts
            name = hashlib.blake2b(b"%d %d" % (host, number), digest_size=16).digest()
            told[host].setdefault(address[other], bytearray()).extend(pack(name, 0, 5000))
            told[other].setdefault(address[host], bytearray()).extend(pack(name, 1, 4000))
    return [
        msgspec.msgpack.encode([[address[host]], {ip: bytes(part) for ip, part in told[host].items()}])
        for host in range(hosts)
    ]


class _Simulation:
    def __init__(self, hosts: int, ends: int, store: float, limits: Limits) -> None:
        self.now = 0.0
        self.inbox: deque[Callable[[], list[words.Instruction]]] = deque()
        self.busy = False
        self.store = store
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.count = itertools.count()
        self.parts = conversations(hosts, ends)
        self.names = [f"node{number:05d}.cluster" for number in range(hosts)]
        self.number = {name: number for number, name in enumerate(self.names)}
        self.one = Coordinator(1, limits=limits)
        self.hosts = [Host(name, 1, limits) for name in self.names]
        self.wakes = [0] * hosts
        self.wake = 0
        self.cpu, self.host_cpu = 0.0, 0.0
        self.cpu_by_phase: dict[str, float] = {}
        self.received = self.delivered = self.announced = self.bytes_in = self.bytes_out = self.record = 0
        self.revision = 0
        self.answer: words.Answer | None = None
        self.after(0.0, lambda: self.coordinator(lambda: self.one.start(self.now)))
        for number, host in enumerate(self.hosts):
            self.after(0.0, lambda host=host, number=number: self.does(number, host.start(self.now)))

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.heap, (self.now + seconds, next(self.count), do))

    def run(self, done: Callable[[], bool]) -> None:
        while not done():
            self.now, _, do = heapq.heappop(self.heap)
            do()

    def reset(self) -> None:
        """Count from here."""
        self.cpu = self.host_cpu = 0.0
        self.cpu_by_phase = {}
        self.received = self.delivered = self.announced = self.bytes_in = self.bytes_out = self.record = 0

    # The coordinator, one event at a time.

    def coordinator(self, handle: Callable[[], list[words.Instruction]]) -> None:
        """Let it do something, when it is through with what came before."""
        self.inbox.append(handle)
        if not self.busy:
            self.serve()

    def serve(self) -> None:
        """The next of what waits."""
        self.busy = bool(self.inbox)
        if not self.busy:
            return
        handle = self.inbox.popleft()
        phase = self.one.attempt.phase.value if self.one.attempt is not None else ""
        began = time.thread_time()
        out = handle()
        sent = [(one, self.encoded(one)) for one in out]
        spent = time.thread_time() - began
        self.cpu += spent
        self.cpu_by_phase[phase] = self.cpu_by_phase.get(phase, 0.0) + spent
        self.after(spent, self.serve)
        for instruction, data in sent:
            self.carry_out(instruction, data, spent)

    def encoded(self, instruction: words.Instruction) -> bytes:
        if isinstance(instruction, words.Announce | words.Tell):
            return words.encode(instruction.word)
        return record.encode(instruction.record) if isinstance(instruction, words.Save) else b""

    def carry_out(self, instruction: words.Instruction, data: bytes, spent: float) -> None:
        if isinstance(instruction, words.Announce):
            self.announced += 1
            self.bytes_out += len(data)
            for number in range(len(self.hosts)):
                self.delivered += 1
                self.after(spent + WIRE + number * FAN_OUT, lambda n=number: self.hears(n, data))
        elif isinstance(instruction, words.Tell):
            self.delivered += 1
            self.bytes_out += len(data)
            self.after(spent + WIRE, lambda: self.hears(self.number[instruction.host], data))
        elif isinstance(instruction, words.Save):
            self.record = max(self.record, len(data))
            self.after(spent + WRITE + len(data) * WRITE / 1e6, self.saved)
        elif isinstance(instruction, words.Commit):
            event = words.Committed(instruction.attempt)
            self.after(spent + ROOT, lambda: self.coordinator(lambda: self.one.handle(event, self.now)))
        elif isinstance(instruction, words.Answer):
            self.answer = instruction
        elif isinstance(instruction, words.Wake):
            self.wake += 1
            self.after(instruction.seconds, lambda wake=self.wake: self.tick(wake))

    def saved(self) -> None:
        self.revision += 1
        event = words.Saved(self.revision)
        self.coordinator(lambda: self.one.handle(event, self.now))

    def tick(self, wake: int) -> None:
        if wake == self.wake:
            self.coordinator(lambda: self.one.handle(words.Tick(), self.now))

    # The hosts, all at once.

    def hears(self, number: int, data: bytes) -> None:
        self.host(number, words.spoken(data))

    def host(self, number: int, event: words.HostEvent) -> None:
        began = time.thread_time()
        out = self.hosts[number].handle(event, self.now)
        self.host_cpu += time.thread_time() - began
        self.does(number, out)

    def does(self, number: int, instructions: list[words.HostInstruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, words.Say):
                data = words.encode(instruction.word)
                self.after(WIRE, lambda data=data: self.report(data))
            elif isinstance(instruction, words.Work):
                seconds = self.store if instruction.phase is Phase.STORE else 0.0
                part = self.parts[number] if instruction.phase is Phase.FREEZE else b""
                if instruction.phase is Phase.STORE:
                    part = hashlib.blake2b(b"%d" % number, digest_size=32).digest()
                event = words.Finished(instruction.attempt, instruction.phase, part)
                self.after(seconds, lambda event=event: self.host(number, event))
            elif isinstance(instruction, words.Wake):
                self.wakes[number] += 1
                self.after(instruction.seconds, lambda wake=self.wakes[number]: self.host_tick(number, wake))

    def host_tick(self, number: int, wake: int) -> None:
        if self.wakes[number] == wake:
            self.host(number, words.Tick())

    def report(self, data: bytes) -> None:
        self.received += 1
        self.bytes_in += len(data)
        self.coordinator(lambda: self.one.handle(words.report(data), self.now))


def checkpoint(hosts: int, ends: int, store: float = 0.0, kind: Kind = Kind.CHECKPOINT) -> Figures:
    """Save a job on so many hosts, each with so many ends of connections to others, that needs `store` seconds to be
    stored."""
    one = _Simulation(hosts, ends, store, Limits())
    one.run(lambda: not one.heap)
    assert all(host.admitted for host in one.hosts)
    one.reset()
    # The hosts would not be in the coordinator's memory, and its garbage collector would not look at them.
    gc.freeze()
    ask = words.AskCheckpoint("one", kind is Kind.STOP)
    one.coordinator(lambda: one.one.handle(ask, one.now))
    one.run(lambda: one.answer is not None)
    gc.unfreeze()
    answer = one.answer
    assert answer is not None and answer.ok, answer
    phases = dict(answer.seconds)
    # A host begins to store as soon as its job runs again.
    phases["store"] = max(0.0, phases["store"] - store)
    return Figures(
        hosts, ends, phases, one.cpu, one.cpu_by_phase, one.received, one.delivered, one.announced, one.bytes_in,
        one.bytes_out, one.record, one.host_cpu / hosts,
    )  # fmt: skip
