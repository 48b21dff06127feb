"""A world for the two state machines of `torpor.coordinate`: hosts with jobs, a network that delays, reorders, loses
and doubles, a record with compare-and-set, a store, coordinators that die and are replaced. One process, made-up time,
all chance from one seed.

What must never happen is checked as it happens (`Wrong`), and what must hold at the end by `judge`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from torpor.coordinate import conversations, words
from torpor.coordinate.core import Coordinator
from torpor.coordinate.host import Host
from torpor.coordinate.phases import Kind, Limits, Phase
from torpor.coordinate.record import Record
from torpor.posix.far import TCP, End
from torpor.posix.socket_address import Address

RUNNING, FROZEN, NONE, MADE, ENDED, DEAD = "running", "frozen", "none", "made", "ended", "dead"

LIMITS = Limits(host=40.0, silence=30.0, store=120.0, fill=120.0)
LONGEST = 8.0
"""Seconds that a piece of work takes at most, with room."""


class Wrong(AssertionError):
    """What must never happen has happened."""


def address(host: int, port: int) -> Address:
    return Address(bytes((10, 0, 0, host)), 1000 + port)


def pair(one: int, other: int) -> bytes:
    """The name of the connection of two hosts."""
    return bytes((min(one, other), max(one, other))) * 8


class Machine:
    """A host: what of the job is there, and its supervisor, which may be gone (`brain` is None)."""

    def __init__(self, name: str, state: str, number: int) -> None:
        self.name, self.state, self.number = name, state, number
        self.since = self.until = float("inf")
        """When something of the job was there."""
        self.brain: Host | None = None
        self.life = 0
        self.frozen_at = self.captured_at = self.spoken = 0.0
        self.attempt = self.made_for = 0
        self.cut_off = False
        self.slow = 0.0
        """So many seconds it takes, at least, to store its part, or to fill it."""
        self.work = 0
        """Number of the latest piece of work; whatever an earlier one would say is not said."""
        self.wakes = 0
        self.running_at: dict[int, float] = {}
        """By attempt: when the job ran here again after it was frozen for it."""
        self.frozen_for: dict[int, float] = {}
        self.captured_for: dict[int, float] = {}
        self.filled_for: set[int] = set()


class World:
    """hosts: how many there are from the beginning. loss, double: of a message.  delay: seconds a message takes at
    most.  breaks: chance that a piece of work goes wrong.  refuses: chance that the store does not take a root."""

    def __init__(
        self, hosts: int, seed: int, *, loss: float = 0.0, double: float = 0.0, delay: float = 0.01,
        breaks: float = 0.0, refuses: float = 0.0, empty: bool = False, limits: Limits = LIMITS,
    ) -> None:  # fmt: skip
        self.chance = random.Random(seed)
        self.loss, self.double, self.delay, self.breaks, self.refuses = loss, double, delay, breaks, refuses
        self.limits = limits
        self.is_empty = empty
        """Are hosts admitted without a program being started there, as before a restart?"""
        self.now = self.looked = 0.0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.machines: dict[str, Machine] = {}
        self.record: Record | None = None
        self.revision = 0
        self.roots: dict[int, tuple[tuple[str, bytes], ...]] = {}
        self.kinds: dict[int, Kind] = {}
        self.plans: dict[int, tuple[str, ...]] = {}
        self.answers: dict[str, list[words.Answer]] = {}
        self.asks: dict[str, words.AskCheckpoint | words.AskRestart] = {}
        self.coordinators: list[tuple[int, Coordinator]] = []
        self.terms = 0
        self.wakes: dict[int, int] = {}
        self.sent = self.settled = 0
        self.elect()
        for number in range(hosts):
            self.arrive(f"h{number}")

    # Time.

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.heap, (self.now + seconds, self.count, do))

    def run(self, seconds: float) -> None:
        """Let that much time go by."""
        until = self.now + seconds
        while self.heap and self.heap[0][0] <= until:
            self.now, _, do = heapq.heappop(self.heap)
            do()
            if self.now > self.looked + 1:
                self.looked = self.now
                self.check_frozen()
        self.now = until

    # Coordinators.

    def elect(self) -> None:
        """Another coordinator takes over; one that was there does not know it yet."""
        self.terms += 1
        term = self.terms
        one = Coordinator(term, self.record, self.revision, self.limits)
        self.coordinators.append((term, one))
        self.carry_out(term, one, one.start(self.now))

    def bury(self) -> None:
        """All coordinators die."""
        self.coordinators = []

    def alive(self, term: int, one: Coordinator) -> bool:
        return (term, one) in self.coordinators

    def tell(self, term: int, one: Coordinator, event: words.Event) -> None:
        if self.alive(term, one):
            self.carry_out(term, one, one.handle(event, self.now))

    def carry_out(self, term: int, one: Coordinator, instructions: list[words.Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, words.Announce):
                for host in list(self.machines):
                    self.to_host(host, words.encode(instruction.word))
            elif isinstance(instruction, words.Tell):
                self.to_host(instruction.host, words.encode(instruction.word))
            elif isinstance(instruction, words.Save):
                self.after(self.chance.uniform(0, self.delay), lambda i=instruction: self.save(term, one, i))
            elif isinstance(instruction, words.Commit):
                self.after(self.chance.uniform(0, 3), lambda i=instruction: self.commit(term, one, i))
            elif isinstance(instruction, words.Answer):
                self.answered(instruction)
            elif isinstance(instruction, words.Wake):
                self.wakes[term] = mine = self.wakes.get(term, 0) + 1
                self.after(instruction.seconds, lambda mine=mine: self.wake(term, one, mine))
            elif isinstance(instruction, words.Retire):
                self.coordinators.remove((term, one))

    def wake(self, term: int, one: Coordinator, mine: int) -> None:
        if self.wakes[term] == mine:
            self.tell(term, one, words.Tick())

    def save(self, term: int, one: Coordinator, wanted: words.Save) -> None:
        """Written although whoever wanted it has died meanwhile, now and then."""
        if not self.alive(term, one) and self.chance.random() < 0.5:
            return
        if wanted.revision != self.revision:
            self.after(self.chance.uniform(0, self.delay), lambda: self.tell(term, one, words.Outrun()))
            return
        self.revision += 1
        self.record = wanted.record
        if wanted.record.open is not None:
            self.kinds[wanted.record.open.number] = wanted.record.open.kind
            self.plans[wanted.record.open.number] = wanted.record.open.hosts
        if wanted.record.last is not None:
            self.kinds[wanted.record.last.number] = wanted.record.last.kind
        revision = self.revision
        self.after(self.chance.uniform(0, self.delay), lambda: self.tell(term, one, words.Saved(revision)))

    def commit(self, term: int, one: Coordinator, wanted: words.Commit) -> None:
        if not self.alive(term, one) and self.chance.random() < 0.5:
            return
        if wanted.attempt not in self.roots and self.chance.random() < self.refuses:
            self.after(0.1, lambda: self.tell(term, one, words.NotCommitted(wanted.attempt, "no space left")))
            return
        if self.roots.setdefault(wanted.attempt, wanted.parts) != wanted.parts:
            raise Wrong(f"two checkpoints of attempt {wanted.attempt}")
        self.check_cut(wanted.attempt)
        self.after(self.chance.uniform(0, 1), lambda: self.tell(term, one, words.Committed(wanted.attempt)))

    # The network.

    def to_host(self, host: str, data: bytes) -> None:
        for seconds in self.ways():
            self.after(seconds, lambda: self.host_hears(host, data))

    def to_coordinator(self, host: str, data: bytes) -> None:
        for seconds in self.ways():
            self.after(seconds, lambda: self.coordinators_hear(host, data))

    def ways(self) -> list[float]:
        """How long each copy of a message is under way."""
        self.sent += 1
        if self.chance.random() < self.loss:
            return []
        copies = 2 if self.chance.random() < self.double else 1
        late = 10 if self.chance.random() < self.loss else 1
        return [self.chance.uniform(0, self.delay * late) for _ in range(copies)]

    def host_hears(self, host: str, data: bytes) -> None:
        machine = self.machines.get(host)
        if machine is None or machine.brain is None or machine.cut_off:
            return
        word = words.spoken(data)
        brain = machine.brain
        if isinstance(word, words.Order) and word.attempt == brain.attempt:
            machine.spoken = self.now
        was_admitted = brain.admitted
        self.host(machine, word)
        if brain.admitted and not was_admitted and machine.state == NONE and not self.is_empty:
            machine.state, machine.since = RUNNING, self.now

    def coordinators_hear(self, host: str, data: bytes) -> None:
        if not self.machines[host].cut_off:
            for term, one in list(self.coordinators):
                self.tell(term, one, words.report(data))

    # Hosts.

    def arrive(self, name: str) -> None:
        """A host is there, and wants to be in the job."""
        self.machines[name] = Machine(name, NONE, len(self.machines))
        self.revive(name)

    def revive(self, name: str) -> None:
        machine = self.machines[name]
        if machine.state == DEAD or machine.brain is not None:
            return
        machine.life += 1
        machine.brain = Host(name, machine.life, self.limits)
        self.host_does(machine, machine.brain.start(self.now, machine.state == ENDED))

    def kill(self, name: str) -> None:
        """The supervisor dies: the job runs on; what was made for a restart and does not run dies with it."""
        machine = self.machines[name]
        if machine.brain is None:
            return
        machine.brain = None
        machine.work += 1
        if machine.state == FROZEN:
            self.thaw(machine)
        elif machine.state == MADE:
            machine.state = NONE

    def destroy(self, name: str) -> None:
        """The machine is gone for good, and with it all that was there."""
        self.kill(name)
        self.machines[name].state = DEAD

    def lost(self, name: str) -> None:
        """The link finds that it cannot reach a host, or thinks so."""
        for term, one in list(self.coordinators):
            self.tell(term, one, words.Lost(name))

    def empty(self, name: str) -> None:
        """The last process of the job on a host ends."""
        machine = self.machines[name]
        if machine.state == RUNNING and machine.brain is not None and machine.brain.admitted:
            machine.state, machine.until = ENDED, self.now
            self.host(machine, words.Emptied())

    def host(self, machine: Machine, event: words.HostEvent) -> None:
        brain = machine.brain
        assert brain is not None
        self.host_does(machine, brain.handle(event, self.now))

    def host_does(self, machine: Machine, instructions: list[words.HostInstruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, words.Say):
                self.to_coordinator(machine.name, words.encode(instruction.word))
            elif isinstance(instruction, words.Wake):
                machine.wakes += 1
                self.after(
                    instruction.seconds, lambda life=machine.life, w=machine.wakes: self.host_wakes(machine, life, w)
                )
            elif isinstance(instruction, words.Work):
                self.work(machine, instruction)

    def host_wakes(self, machine: Machine, life: int, wakes: int) -> None:
        if machine.brain is not None and machine.life == life and machine.wakes == wakes:
            self.host(machine, words.Tick())

    # Work.

    def work(self, machine: Machine, work: words.Work) -> None:
        machine.work += 1
        number = machine.work
        seconds = self.chance.uniform(0.01, 0.5)
        if work.phase in (Phase.STORE, Phase.FILL):
            seconds = max(machine.slow, self.chance.uniform(0.5, LONGEST - 1))
        if work.phase is Phase.FREEZE and machine.state == RUNNING:
            # From now on it may be stopped.
            machine.state, machine.frozen_at, machine.spoken, machine.attempt = FROZEN, self.now, self.now, work.attempt
        if work.phase is Phase.RECREATE:
            machine.spoken = self.now
        if work.phase is Phase.RESUME or (work.phase is Phase.UNDO and machine.state == FROZEN):
            self.thaw(machine)
        self.after(seconds, lambda: self.worked(machine, work, number))

    def worked(self, machine: Machine, work: words.Work, number: int) -> None:
        if machine.work != number or machine.brain is None:
            return
        if self.chance.random() < self.breaks:
            self.host(machine, words.Broke(work.attempt, work.phase, f"{work.phase} is broken here"))
            return
        part = self.done(machine, work)
        self.host(machine, words.Finished(work.attempt, work.phase, part))

    def done(self, machine: Machine, work: words.Work) -> bytes:
        """What a piece of work has come to."""
        phase, number = work.phase, work.attempt
        if phase is Phase.FREEZE:
            machine.frozen_for[number] = self.now
            return conversations.ends(self.ends(machine), [address(machine.number, 0).ip])
        if phase is Phase.SETTLE:
            self.check_settled(machine, work.part)
        if phase is Phase.CAPTURE:
            if machine.state != FROZEN:
                raise Wrong(f"{machine.name} captures what is {machine.state}")
            machine.captured_for[number] = self.now
        elif phase is Phase.STORE:
            return f"{machine.name} {number}".encode()
        elif phase is Phase.COMMIT:
            if machine.state in (RUNNING, FROZEN):
                machine.state, machine.until = ENDED, self.now
            if number not in self.roots:
                raise Wrong(f"{machine.name} ended the job without a checkpoint")
        elif phase is Phase.RECREATE:
            if machine.state not in (NONE, MADE):
                raise Wrong(f"{machine.name} makes a job where one is {machine.state}")
            machine.state, machine.made_for = MADE, number
            return self.places(machine, self.plans[number])
        elif phase is Phase.CONNECT:
            self.check_connected(machine, self.plans[number], work.part)
        elif phase is Phase.FILL:
            machine.filled_for.add(number)
        elif phase is Phase.RELEASE:
            for host in self.plans[number]:
                if number not in self.machines[host].filled_for:
                    raise Wrong(f"{machine.name} is released before {host} is ready")
            machine.state, machine.since = RUNNING, self.now
        elif phase is Phase.UNDO and work.kind is Kind.RESTART and machine.made_for <= number:
            machine.state = NONE if machine.state in (MADE, RUNNING) else machine.state
        return b""

    # Conversations: every host speaks with every other, and with somebody outside.

    def ends(self, machine: Machine) -> list[End]:
        mine = machine.number
        out = [End(1, TCP, address(mine, 7), Address(bytes((9, 9, 9, 9)), 80))]
        for other in self.machines.values():
            if other is not machine:
                out.append(End(100 + other.number, TCP, address(mine, other.number), address(other.number, mine), mine))
        return out

    def check_settled(self, machine: Machine, part: bytes) -> None:
        heard = conversations.told(self.ends(machine), part)
        for one in heard:
            other = self.machines[one.host].number
            if (one.key, one.arrives) != (100 + other, other):
                raise Wrong(f"{machine.name} is told {one}")
        if machine.name in {one.host for one in heard} or len({one.host for one in heard}) < len(heard):
            raise Wrong(f"{machine.name} is told {heard}")
        self.settled += len(heard)

    def places(self, machine: Machine, hosts: tuple[str, ...]) -> bytes:
        mine = machine.number
        names = {other: pair(mine, self.machines[other].number) for other in hosts if other != machine.name}
        waits = [(name, False) for other, name in names.items() if self.machines[other].number > mine]
        calls = [name for other, name in names.items() if self.machines[other].number < mine]
        return conversations.places(f"at {machine.name}", waits, calls)

    def check_connected(self, machine: Machine, hosts: tuple[str, ...], part: bytes) -> None:
        found = list(conversations.met(part)) if part else []
        wanted = {(pair(machine.number, self.machines[host].number), host) for host in hosts if host != machine.name}
        if {(one.name, one.host) for one in found} != wanted or any(one.address != f"at {one.host}" for one in found):
            raise Wrong(f"{machine.name} meets {found}")

    def thaw(self, machine: Machine) -> None:
        if machine.state == FROZEN:
            machine.state = RUNNING
            machine.running_at.setdefault(machine.attempt, self.now)

    # Those who ask.

    def checkpoint(self, ask: str, stop: bool = False) -> None:
        self.ask(words.AskCheckpoint(ask, stop))

    def ask(self, ask: words.AskCheckpoint | words.AskRestart) -> None:
        """Ask, and ask again until there is an answer."""
        self.asks[ask.ask] = ask

        def again() -> None:
            if ask.ask not in self.answers:
                for term, one in list(self.coordinators):
                    self.tell(term, one, words.report(words.encode(ask)))
                self.after(5.0, again)

        again()

    def answered(self, answer: words.Answer) -> None:
        self.answers.setdefault(answer.ask, []).append(answer)
        if answer.ok and self.kinds.get(answer.attempt) is not Kind.RESTART and answer.attempt not in self.roots:
            raise Wrong(f"{answer.ask}: told that it is saved, and it is not")

    # What must hold.

    def check_cut(self, number: int) -> None:
        """A checkpoint is of one moment, and of all that there was at that moment."""
        inside = dict(self.roots[number])
        machines = [self.machines[host] for host in inside]
        for machine in machines:
            if number not in machine.captured_for or inside[machine.name] != f"{machine.name} {number}".encode():
                raise Wrong(f"{machine.name} has no copy in checkpoint {number}")
        frozen = max(machine.frozen_for[number] for machine in machines)
        first = min(machine.captured_for[number] for machine in machines)
        last = max(machine.captured_for[number] for machine in machines)
        if frozen > first:
            raise Wrong(f"checkpoint {number}: copied before all were frozen")
        for machine in machines:
            if machine.running_at.get(number, last) < last:
                raise Wrong(f"checkpoint {number}: {machine.name} ran on before all were copied")
        for machine in self.machines.values():
            if machine.name not in inside and machine.since <= last < machine.until:
                raise Wrong(f"checkpoint {number} misses {machine.name}")

    def check_frozen(self) -> None:
        """Nobody is stopped for longer than the limit without being spoken to."""
        for machine in self.machines.values():
            alone = self.now - machine.spoken
            if machine.state == FROZEN and machine.brain is not None and alone > self.limits.host + LONGEST:
                raise Wrong(f"{machine.name} is left frozen")

    def state(self) -> dict[str, str]:
        return {name: machine.state for name, machine in self.machines.items()}

    # What must hold at the end.

    def calm(self, seconds: float = 400.0) -> None:
        """Everything works again, and whatever can come to an end does."""
        self.loss = self.double = self.breaks = self.refuses = 0.0
        self.delay = 0.01
        for machine in self.machines.values():
            machine.cut_off = False
            self.revive(machine.name)
            for term, one in list(self.coordinators):
                self.tell(term, one, words.Found(machine.name))
        if not self.coordinators:
            self.elect()
        self.run(seconds)

    def judge(self) -> None:
        """After `calm`."""
        for machine in self.machines.values():
            if machine.state in (FROZEN, MADE):
                raise Wrong(f"{machine.name} is {machine.state} at the end")
        for ask in self.asks:
            if ask not in self.answers:
                raise Wrong(f"{ask} was never answered")
        for ask, answers in self.answers.items():
            attempts = {answer.attempt: answer.ok for answer in answers if answer.attempt}
            for answer in answers:
                if answer.attempt and answer.ok != attempts[answer.attempt]:
                    raise Wrong(f"{ask}: {answers}")
            if len(attempts) > 1:
                raise Wrong(f"{ask} was attempted twice: {answers}")
            for attempt, ok in attempts.items():
                if self.kinds[attempt] is not Kind.RESTART and ok != (attempt in self.roots):
                    raise Wrong(f"{ask}: told {ok}, and there is {'a' if attempt in self.roots else 'no'} checkpoint")
        stopped = [number for number in self.roots if self.kinds[number] is Kind.STOP]
        if stopped:
            for machine in self.machines.values():
                if machine.state == RUNNING:
                    raise Wrong(f"{machine.name} runs on although the job was saved and ended")
