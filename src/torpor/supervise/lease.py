"""The word in a store that a saved job runs, and where, so that nobody restarts it a second time by accident.

A job that was never saved needs none: it takes one with its first checkpoint, in every store in which it is saved, and
a restarted job has one from before its first instruction on. It is renewed as long as the job is supervised. What it is
made of, and the rules about clocks: store/holds.py.

A job is known by its *identity*, a random word that all its checkpoints and copies of them have, under whatever name.
`torpor copy` leaves word in both stores where else the job is (`kin`).

A store that cannot be written to keeps nobody from a restart: that is said, and the restart goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from torpor.linux import proc
from torpor.model import duration
from torpor.model.errors import Refusal, Refused, TorporError, UsageError
from torpor.named_tuple import NamedTuple
from torpor.store.holds import TTL, Hold, Holder, Holds, shared
from torpor.supervise import registry
from torpor.supervise.registry import Pid

if TYPE_CHECKING:
    from torpor.store.backend import Backend
    from torpor.store.root import RootInfo

VARIABLE = "TORPOR_LEASE"
"""Names another length of time than TTL, for leases that are taken with it in the environment."""
_LOOK = 2.0
"""Seconds between two looks of somebody who waits."""


class Lease(NamedTuple):
    """A lease that is ours. location: of the store."""

    location: str
    hold: Hold

    def holds(self, backend: Backend) -> Holds:
        """Where it is, in a store that was opened."""
        return Holds(shared(backend), self.hold.folder)


def of_checkpoint(info: RootInfo) -> str:
    """The identity of a saved job; of one that was saved before there were any, one that is made of its name."""
    return info.identity or _derived("job", info.job)


def of_process(pid: int) -> str:
    """The identity of a job that nobody has started under torpor: the same for each of its checkpoints."""
    return _derived("process", proc.boot_id(), *Pid.of(pid))


def _derived(*words: object) -> str:
    from blake3 import blake3

    return blake3("\0".join(map(str, ("torpor", *words))).encode()).hexdigest()[:32]


def myself(identity: str, job: str) -> Holder:
    """This process as a holder."""
    me = Pid.of(os.getpid())
    return Holder(
        identity=identity, job=job, host=os.uname().nodename, user=user(), pid=me.pid, start=me.start,
        boot=proc.boot_id(), pid_namespace=registry.pid_namespace(), since=time.time(), ttl=ttl(),
    )  # fmt: skip


def ttl() -> float:
    """Seconds for which a lease that we take holds after it was renewed last; renewed three times meanwhile."""
    try:
        return max(1.0, duration.parse(os.environ[VARIABLE]))
    except (KeyError, UsageError):
        return TTL


def user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except (KeyError, OSError):
        return str(os.geteuid())


def runs(holder: Holder, me: Holder) -> bool:
    """May what that holder stands for still run? Here we know; of another host we have to believe it."""
    return holder.place != me.place or Pid(holder.pid, holder.start).alive


def take(location: str, backend: Backend, me: Holder, wait: float, say: Callable[[str], None]) -> Lease | None:
    """Take the lease of a job in a store, whatever its number; None where that cannot be done, which is said.

    wait: seconds for which to wait for whoever has it.  say: see `admission.Tell`. Raises Refused if it runs elsewhere.
    """
    end = time.monotonic() + wait
    told = False
    holds = Holds(shared(backend), folder(me.identity))
    try:
        while True:
            seen = holds.look(1)
            other = seen.holder
            if other is not None and other.process == me.process:
                return Lease(location, Hold(folder(me.identity), 1, seen.number))
            if other is None or not runs(other, me):
                hold = holds.take(1, seen, me)
                if hold is not None:
                    return Lease(location, hold)
                continue
            if time.monotonic() >= end:
                raise _running(other, seen.age, me)
            if not told:
                say(f"waiting for the end of {other}")
                told = True
            say("")
            time.sleep(_LOOK)
    except OSError as error:
        why = error.strerror or error
        say(f"whether {me.job} runs on another host is not known: {location} cannot be written to ({why})")
        return None


def elsewhere(me: Holder, backend: Backend, say: Callable[[str], None]) -> None:
    """Look into the other stores that checkpoints of this job were copied from or to. Raises Refused if it runs."""
    for location in kin(backend, me.identity):
        try:
            from torpor.store.locations import open_backend

            other = open_backend(location, apart=True)
            try:
                seen = Holds(shared(other), folder(me.identity)).look(1)
            finally:
                other.close()
        except (OSError, TorporError) as error:
            say(f"whether it runs as a copy of {location} is not known: {error}")
            continue
        if seen.holder is not None and runs(seen.holder, me) and seen.holder.process != me.process:
            raise _running(seen.holder, seen.age, me)


def _running(other: Holder, age: float, me: Holder) -> Refused:
    there = "" if other.place == me.place else f", seen {age:.0f} s ago"
    way_out = "stop it, or restart a copy with --clone"
    if there:
        way_out += (
            f"; if that host is dead, its lease ends {other.ttl:.0f} s after it was seen last (--wait waits for that)"
        )
    return Refused([Refusal(0, "", f"the job is running already: {other}{there}", way_out)], "cannot restart")


def folder(identity: str) -> str:
    """Where leases of a job are in a store."""
    return f"holds/{identity}"


def kin(backend: Backend, identity: str) -> list[str]:
    """The other stores that know of a job. What cannot be read is none."""
    where = f"{folder(identity)}/kin"
    try:
        return [shared(backend).get(f"{where}/{name}").decode() for name in shared(backend).list(where)]
    except (OSError, ValueError):
        return []


def relate(identity: str, one: Backend, other: Backend, one_location: str, other_location: str) -> None:
    """A checkpoint of a job was copied: leave word in both stores. Where that cannot be written there is none."""
    for backend, location in ((one, other_location), (other, one_location)):
        name = f"{folder(identity)}/kin/{_derived('store', location)}"
        try:
            shared(backend).put(name, [location.encode()], durable=False)
        except OSError:
            continue
