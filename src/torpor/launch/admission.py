"""Whether a job may begin to run, here and now: what has to be true first, and is made so.

A restart asks while nothing of the job was made yet (`Admission`), `torpor run` before it starts the program
(`start`). What is held then (`Standing`: leases and seats) is the supervisor's from the moment on at which the job
runs; if it does not come to that, everything is given back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from torpor.model.errors import Refusal, Refused, UsageError
from torpor.store.holds import shared
from torpor.supervise import lease, registry, terms
from torpor.supervise.registry import Entry, Pid
from torpor.supervise.say import say
from torpor.supervise.standing import Standing
from torpor.watch.ledger import CONNECT, NAMES

if TYPE_CHECKING:
    from torpor.image.manifest import Manifest
    from torpor.model.terms import Layer, SeatTerms
    from torpor.policy.decide import Decision, Service
    from torpor.store import RootInfo, Store

Tell = Callable[[str], None]
"""Is called with what is waited for, and while that goes on every second or two with '': what it raises ends it."""

_DOCS = "say so in a policy (--policy FILE, docs/policy.md)"


class Admission:
    """Of one restart. name: the job's now.  policy: what was given for it, as `terms.encode` writes it; anew: in place
    of the sealed one.  hosts: addresses of the job's own hosts.  held: of a part of a job over hosts, the seats that
    are held for the whole job already.  wait: seconds to wait for seats, None for what the policy says.  tell: what it
    waits for."""

    def __init__(
        self, standing: Standing, name: str, checkpoint: str, store: str, policy: str = "", anew: bool = False,
        hosts: Collection[str] = (), held: Collection[str] | None = None, wait: float | None = None, tell: Tell = say,
    ) -> None:  # fmt: skip
        self.standing = standing
        self.policy = policy
        """The job's own from now on."""
        self._name, self._checkpoint, self._store, self._anew = name, checkpoint, store, anew
        self._hosts, self._held, self._wait, self._tell = hosts, held, wait, tell

    def __call__(self, manifest: Manifest, note: Tell) -> dict[int, int]:
        """See `RestartRequest.admit`."""
        sealed = manifest.terms
        nothing = sealed is None and manifest.ledger is None and not self.policy and not terms.standing()
        if nothing and not any(record.service == "tcp" for record in manifest.objects):
            return {}
        from torpor.policy import files
        from torpor.policy.decide import decide, merged
        from torpor.policy.outside import services

        kept = () if sealed is None or self._anew else sealed.layers
        own = merged(kept, terms.decode(self.policy))
        self.policy = terms.encode(own)
        held = () if sealed is None or self._anew else sealed.held
        outcome = decide(services(manifest, self._hosts), merged(own, files.standing()), held)
        for service, decision in outcome.decisions:
            self._record(service, decision, str(service) in dict(outcome.refusals))
        if outcome.refusals:
            raise Refused(
                [
                    Refusal(0, "", f"{what}: {why}", _DOCS if "no policy" in why else "")
                    for what, why in outcome.refusals
                ],
                f"cannot restart {self._checkpoint}",
                "torpor policy explain",
            )
        if self._held is not None:
            lacking = [
                Refusal(0, "", f"a policy of this host wants a seat {seat.name}", "have the first part's host want it")
                for seat in outcome.seats
                if seat.name not in self._held
            ]
            if lacking:
                raise Refused(lacking, f"cannot restart {self._checkpoint}", "torpor policy explain")
        elif outcome.seats:
            acquire(self.standing, outcome.seats, self._wait, self._tell, f"cannot restart {self._checkpoint}")
        if not any(decision and decision.action == "reconnect" for _, decision in outcome.decisions):
            return {}
        from torpor.launch.reconnect import reconnect

        return reconnect(manifest, outcome.decisions, note)

    def watches(self, manifest: Manifest) -> str:
        """See `watched`."""
        if manifest.terms is None and not self.policy and not terms.standing():
            return ""
        from torpor.policy import files

        sealed = () if manifest.terms is None or self._anew else manifest.terms.layers
        return watched((*sealed, *terms.decode(self.policy), *files.standing()))

    def _record(self, service: Service, decision: Decision | None, refused: bool) -> None:
        from torpor.supervise import audit

        if decision is None and not refused:
            return  # a connection that drops, as always
        error = Refused([Refusal(0, "", str(service), "")], "refused") if refused else None
        audit.record(
            "policy", error, job=self._name, checkpoint=self._checkpoint, store=self._store, service=str(service),
            do=decision.action if decision is not None else "ask",
        )  # fmt: skip


def acquire(standing: Standing, seats: Sequence[SeatTerms], wait: float | None, tell: Tell, what: str) -> None:
    """Have all of these seats. what: see `SeatWatch.acquire`. Raises Refused."""
    from torpor.supervise.seat_watch import SeatWatch

    if standing.kept is not None:
        names, fd, pid = standing.kept
        found = SeatWatch.taken_over(seats, standing.identity, standing.job, fd, pid)
        if found.names == names:
            standing.seats = found
            return
        found.close()
    standing.seats = SeatWatch(seats, standing.identity, standing.job)
    standing.seats.acquire(wait, tell, what)


def names_seat(layers: Iterable[Layer]) -> bool:
    """Is there a service that needs a seat?"""
    return any(rule.action == "seat" for layer in layers for rule in layer.rules)


def watched(layers: Sequence[Layer]) -> str:
    """What is to be written down of a job because a policy names a seat (watch/ledger.py); '' for nothing. Names are
    looked for where a rule asks for any."""
    if not names_seat(layers):
        return ""
    return NAMES if any(rule.names for layer in layers for rule in layer.rules) else CONNECT


def start(entry: Entry, policy: str, wait: float | None, tell: Tell) -> tuple[Entry, Standing | None, str]:
    """What a new job needs before it starts: acquire its seats. policy: what is given for it, as `terms.encode` writes
    it. Returns its entry with what it has now, what it holds, and what of it is to be watched (`watched`). Raises
    Refused, UsageError."""
    if not policy and not terms.standing():
        return entry, None, ""
    from torpor.launch.program import found
    from torpor.policy import files
    from torpor.policy.decide import for_start

    given, standing_ones = terms.decode(policy), files.standing()
    entry = entry._replace(policy=policy)
    seats = for_start(os.path.realpath(found(entry.argv[0])), given, standing_ones)
    how = watched((*given, *standing_ones))
    if not seats:
        return entry, None, how
    standing = Standing(entry.identity, entry.name or registry.fit_name(entry.argv[0]))
    try:
        acquire(standing, seats, wait, tell, "cannot start")
    except BaseException:
        standing.close()
        raise
    assert standing.seats is not None
    return entry._replace(seats=standing.seats.names, keeper=Pid.of(standing.seats.pid)), standing, how


def sole(standing: Standing, store: Store, wait: float | None, unattended: bool, tell: Tell) -> None:
    """See to it that the job does not run elsewhere, and let others know that it is about to run here. wait: seconds
    for which to wait for that, None for not at all.  unattended: or for as long as a host that has died may seem to
    have it. Raises Refused."""
    if wait is None:
        wait = 2 * lease.ttl() + shared(store.backend).lag() if unattended else 0.0
    me = lease.myself(standing.identity, standing.job)
    try:
        standing.add(lease.take(store.location, store.backend, me, wait, tell))
        lease.elsewhere(me, store.backend, tell)
    except Refused as error:
        from torpor.supervise import audit

        audit.record("lease", error, do="take", job=standing.job, identity=standing.identity, store=store.location)
        raise


def refuse_foreign_seal(info: RootInfo) -> None:
    """Only who holds the key that has sealed a policy may put another one in its place. Raises UsageError."""
    from torpor.image import keys

    mine = keys.own()
    if mine is None or mine.public.signer.hex() != info.signer:
        raise UsageError(f"--new-policy: {info.job}@{info.number} is sealed with a key that you do not hold")
