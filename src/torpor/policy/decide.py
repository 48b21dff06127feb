"""What has to happen before a job may go on that has used services outside of it: pure.

A policy is a list of layers, one for each file, those that are sealed into the checkpoint among them. In each layer the
first rule that matches a service counts; of several layers the strictest. So nobody can take back, by a file of his
own, what another one asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torpor.model.terms import Layer, Rule, SeatTerms
from torpor.named_tuple import NamedTuple
from torpor.policy.read import network

STRICTNESS = ("reconnect", "reset", "seat", "refuse")
"""A program whose connection comes back never asks again; one that sees it drop does."""


class Service(NamedTuple):
    """Something outside the job that it has used, or may have.

    host: a numeric address, '' if that is not known.  port: 0 if that is not known.  names: what it is called.
    programs: who has used it.  open: numbers of the job's connections to it (inode numbers).  used: it was asked for,
    as the ledger says.  licence: why it is taken for a licence server, '' if it is not.  passing: on the same host, at
    a port that the kernel hands out: most likely the job itself has listened there for a while.
    """

    host: str
    port: int
    names: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    open: tuple[int, ...] = ()
    used: bool = False
    licence: str = ""
    passing: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = f"{host}:{self.port}" if host and self.port else host
        names = ", ".join(self.names)
        return f"{where} ({names})" if where and names else where or names or "an address that could not be read"


class Decision(NamedTuple):
    """What is done about a service. action: one of STRICTNESS.  seats: that have to be had.  to, wait, otherwise: see
    Rule."""

    action: str
    seats: tuple[str, ...] = ()
    to: str = ""
    wait: float = 0.0
    otherwise: str = "reset"


class Outcome(NamedTuple):
    """What a policy comes to. refusals: (service, why): the job may not go on.  seats: to be acquired.  decisions: all,
    None where no policy knows the service."""

    refusals: tuple[tuple[str, str], ...]
    seats: tuple[SeatTerms, ...]
    decisions: tuple[tuple[Service, Decision | None], ...]


def matches(rule: Rule, service: Service) -> bool:
    """Is the rule about that service?"""
    if rule.addresses and not any(_inside(service.host, each) for each in rule.addresses):
        return False
    if rule.ports and not any(first <= service.port <= last for first, last in rule.ports):
        return False
    if rule.names and not _any(rule.names, service.names):
        return False
    return not rule.programs or _any(rule.programs, service.programs)


def _any(patterns: Iterable[str], words: Sequence[str]) -> bool:
    return any(fnmatchcase(word, pattern) for pattern in patterns for word in words)


def _inside(host: str, text: str) -> bool:
    if not host:
        return False
    try:
        (ip, _), (base, bits) = network(host), network(text)
    except ValueError:
        return False
    shift = 8 * len(base) - bits
    return len(ip) == len(base) and int.from_bytes(ip, "big") >> shift == int.from_bytes(base, "big") >> shift


def of_rule(rule: Rule) -> Decision:
    """What a rule says."""
    if rule.action == "reconnect":
        return Decision("reconnect", (), rule.to, rule.wait, rule.otherwise)
    return Decision(rule.action, (rule.seat,) if rule.seat else ())


def stricter(one: Decision, other: Decision) -> Decision:
    """The decision that demands what both demand. Two that would connect to different places: neither."""
    if one.action == other.action == "reconnect":
        if one.to != other.to:
            return Decision("reset")
        refuse = "refuse" in (one.otherwise, other.otherwise)
        return Decision("reconnect", (), one.to, min(one.wait, other.wait), "refuse" if refuse else "reset")
    action = max(one.action, other.action, key=STRICTNESS.index)
    return Decision(action, tuple(sorted({*one.seats, *other.seats})))


def judge(service: Service, layers: Iterable[Layer]) -> Decision | None:
    """What these layers say about a service, None if none says anything."""
    found: Decision | None = None
    for layer in layers:
        rule = next((rule for rule in layer.rules if matches(rule, service)), None)
        if rule is not None:
            found = of_rule(rule) if found is None else stricter(found, of_rule(rule))
    return found


def decide(services: Iterable[Service], layers: Sequence[Layer], held: Iterable[str] = ()) -> Outcome:
    """What has to happen for a job with these services. layers: the sealed ones first, whose seats count before others
    of the same name.  held: seats that the job held when it was saved."""
    refusals: list[tuple[str, str]] = []
    decisions: list[tuple[Service, Decision | None]] = []
    wanted = dict.fromkeys(held)
    for service in services:
        decision = judge(service, layers)
        decisions.append((service, decision))
        if decision is None:
            if why := _unknown(service):
                refusals.append((str(service), f"{why}, and no policy says what it is"))
            continue
        if decision.action == "refuse":
            refusals.append((str(service), "the policy refuses a restart of a job that has used it"))
        wanted.update(dict.fromkeys(decision.seats))
    known = seats(layers)
    refusals += [(f"seat {name}", "no policy says where it comes from") for name in wanted if name not in known]
    return Outcome(tuple(refusals), tuple(known[name] for name in wanted if name in known), tuple(decisions))


def _unknown(service: Service) -> str:
    """Why somebody has to say what a service is; '' for one whose connection simply drops."""
    if service.licence:
        return f"it looks like licences ({service.licence})"
    if service.used and not service.open and not service.passing:
        return "the job has used it and is not connected to it any more"
    return ""


def seats(layers: Iterable[Layer]) -> dict[str, SeatTerms]:
    """The seats of some layers by name; of two with one name the first."""
    found: dict[str, SeatTerms] = {}
    for layer in layers:
        for seat in layer.seats:
            found.setdefault(seat.name, seat)
    return found


def merged(*sets: Iterable[Layer]) -> tuple[Layer, ...]:
    """All layers, each once; two that say the same count as one wherever they are from."""
    found: dict[tuple[tuple[Rule, ...], tuple[str, ...]], Layer] = {}
    for layers in sets:
        for layer in layers:
            found.setdefault((layer.rules, tuple(map(repr, layer.seats))), layer)
    return tuple(found.values())


def for_start(program: str, given: Sequence[Layer], standing: Sequence[Layer]) -> tuple[SeatTerms, ...]:
    """The seats that `torpor run` of a program acquires: those named by rules for this program, and by all rules of a
    policy that is given for this job."""
    names: dict[str, None] = {}
    for layers, all_of_them in ((given, True), (standing, False)):
        for layer in layers:
            for rule in layer.rules:
                about = _any(rule.programs, (program,)) if rule.programs else all_of_them
                if rule.action == "seat" and about:
                    names[rule.seat] = None
    known = seats((*given, *standing))
    return tuple(known[name] for name in names if name in known and known[name].at_start)
