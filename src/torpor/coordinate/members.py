"""Who is in a job: hosts and the incarnations of their supervisors; who waits at the door, who has left, who cannot be
reached. What of it is written down changes all at once, since a burst of hosts that come must not be written one by
one."""

from __future__ import annotations

from typing import Any

from torpor.coordinate.record import Record

REMEMBERED = 1000
"""So many hosts that have left are remembered: more than leave while a message is under way."""


class Members:
    """present: in the job.  door: not yet.  gone: have left.  All three with incarnations.  lost: in the job, and not
    to be reached."""

    def __init__(self, record: Record) -> None:
        self.present = dict(record.members)
        self.gone = dict(record.gone)
        self.door: dict[str, int] = {}
        self.lost: set[str] = set()
        self._changed = False

    def late(self, host: str, incarnation: int) -> bool:
        """Is that a late word of a supervisor that has left, or that another has replaced?"""
        now = self.present.get(host, self.door.get(host, 0))
        return incarnation <= self.gone.get(host, -1) or incarnation < now

    def admit(self, hosts: dict[str, int]) -> None:
        """They are in the job."""
        self.present.update(hosts)
        self._changed = True

    def forget(self, host: str, incarnation: int) -> None:
        """That one has left for good."""
        self.present.pop(host, None)
        self.lost.discard(host)
        self.gone.pop(host, None)
        self.gone[host] = incarnation
        self._changed = True

    def news(self) -> dict[str, Any]:
        """The fields of the record that have changed since this was asked last."""
        if not self._changed:
            return {}
        self._changed = False
        return {"members": tuple(self.present.items()), "gone": tuple(self.gone.items())[-REMEMBERED:]}
