"""One checkpoint or restart under way: which host is how far. Counting only; what follows from it is decided in
`core.py`. Every word of a host costs the same, however many hosts there are."""

from __future__ import annotations

from collections.abc import Iterable

from torpor.coordinate.conversations import Exchange, Meeting, Settling
from torpor.coordinate.phases import EXCHANGED, PLANS, Limits, Phase
from torpor.coordinate.record import Open, Over


class Attempt:
    """at: index of the phase that is ordered.  done: how many phases each host has done.  since: when the phase was
    ordered.  said: when its order was said last, None before the first.  written: the record has it, so that its
    number will not be used again.  decided: and says that it is to be committed or released."""

    def __init__(self, open_: Open, now: float, phase: Phase | None = None) -> None:
        self.open = open_
        self.number, self.kind = open_.number, open_.kind
        self.plan = PLANS[open_.kind]
        self.at = 0 if phase is None else self.plan.index(phase)
        self.done = dict.fromkeys(open_.hosts, self.at)
        self._through = [0] * len(self.plan)
        """How many hosts have done the phase of that index."""
        self._through[: self.at] = [len(self.done)] * self.at
        self.heard: dict[str, float] = {}
        self.stored: dict[str, bytes] = {}
        self.exchange: Exchange = Settling() if Phase.FREEZE in self.plan else Meeting()
        self.handed: dict[str, bytes] = {}
        """What each host is handed in this phase; the others are told by the announcement."""
        self.since = now
        self.said: float | None = None
        self.seconds: list[tuple[str, float]] = []
        self.decided = self.written = False

    @property
    def phase(self) -> Phase:
        """The one that is ordered."""
        return self.plan[self.at]

    @property
    def complete(self) -> bool:
        """Have all hosts done it?"""
        return self._through[self.at] == len(self.done)

    def has_done(self, host: str, phase: Phase) -> bool:
        """Is a host that has part in this through with that phase?"""
        return self.done[host] > self.plan.index(phase)

    def did(self, host: str, phase: Phase, part: bytes, now: float) -> None:
        """A host has done a phase, and so those before it. Raises ValueError for a part that nobody understands."""
        self.heard[host] = now
        if phase not in self.plan:
            return
        through = self.plan.index(phase) + 1
        before = self.done[host]
        if through <= before:
            return
        if phase in EXCHANGED.values():
            self.exchange.add(host, part)
        elif phase is Phase.STORE:
            self.stored[host] = part
        for index in range(before, through):
            self._through[index] += 1
        self.done[host] = through

    def drop(self, host: str) -> None:
        """A host has no part in this any more. It must not have given anything to the exchange."""
        for index in range(self.done.pop(host)):
            self._through[index] -= 1
        self.heard.pop(host, None)

    def missing(self) -> list[str]:
        """Hosts that have not done the phase yet."""
        return [host for host, through in self.done.items() if through <= self.at]

    def silent(self, now: float, limit: float) -> list[str]:
        """Those of them of which nothing was heard for that long."""
        return [host for host in self.missing() if now - max(self.heard.get(host, 0.0), self.since) > limit]

    def quiet(self, now: float, limits: Limits) -> list[str]:
        """Those that will be silent for too long if nothing more is heard of them."""
        return self.silent(now, limits.silence / 2)

    def pace(self, now: float, limits: Limits) -> float:
        """After how long (seconds) the order is said again. Where hosts are busy for long they are asked rarely, but
        not those that are quiet: that two words of theirs were lost is not to be the end of it."""
        return limits.repeat if self.quiet(now, limits) else limits.pace(self.kind, self.phase)

    def advance(self, now: float) -> None:
        """On to the next phase."""
        self.seconds.append((self.phase.value, now - self.since))
        self.at += 1
        self.since, self.said = now, None
        self.handed = self.exchange.result() if self.phase in EXCHANGED else {}


class Ending:
    """An attempt of which it is decided how it ends, until all hosts have said that it has.

    awaited: those who have not.  said: when they were told last.  told: the record says it, so that it
    may be told to everybody.  trouble: what hosts could not do.
    """

    def __init__(self, over: Over, hosts: Iterable[str], now: float, limits: Limits) -> None:
        self.over = over
        self.awaited = dict.fromkeys(hosts)
        self.until = now + limits.ending
        self.said: float | None = None
        self.told = False
        self.trouble: list[str] = []
        self.seconds: tuple[tuple[str, float], ...] = ()

    def text(self) -> str:
        """What whoever asked is to know."""
        parts = [self.over.reason] if self.over.reason else []
        parts += self.trouble
        if self.awaited:
            parts.append(f"{names(list(self.awaited))} did not answer ({self.over.ending})")
        return "; ".join(parts)


def names(hosts: list[str]) -> str:
    """A few hosts by name, and how many more."""
    return ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")
