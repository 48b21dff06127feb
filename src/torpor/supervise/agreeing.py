"""What a part says and is told while the job is saved or restarted: the seams of the two pipelines
(checkpoint/together.py), on the side of a supervisor that has a member process.

A save runs in the supervisor's worker thread; its `Saving` is told by the loop. A restart runs in a process that has
no loop yet; its `Restarting` listens by itself.
"""

from __future__ import annotations

import queue
import struct
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from torpor.checkpoint.together import GivenUp, Place, Reached
from torpor.coordinate import conversations
from torpor.coordinate.phases import Phase
from torpor.coordinate.words import Finished, Work
from torpor.image.whole import Face, PartRecord
from torpor.link.secret import Secret, code
from torpor.posix.far import End, Told
from torpor.supervise.part import Part
from torpor.supervise.wire import Here, Wire

Post = Callable[[Finished], None]


class Saving:
    """One attempt to save this part; see SavedTogether. stop: it is ended then.  post: from any thread, to the member
    process.  joined: addresses of parts that have joined the job. If nobody speaks to it for longer than the limit of
    its host, it goes its own way."""

    def __init__(
        self, part: Part, secret: Secret, number: int, stop: bool, post: Post, face: Face, joined: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.part, self.address, self.number, self.face = part.part, part.address, number, face
        others = [address for name, address in part.hosts.items() if name != part.part]
        self.others: Collection[bytes] = _packed([*others, *(each for each in joined if each != part.address)])
        self.phase = Phase.SURVEY
        """What was ordered last."""
        self.undo = False
        """Was it ordered to give up?"""
        self.given_up = ""
        """Why there is no point in going on; for whoever works without asking us for a while."""
        self.parts: Sequence[str] = tuple(part.hosts)
        self._exists = False
        self._own = part.own
        self._secret = secret
        self._stop = stop
        self._limit = part.limits.host
        self._post = post
        self._orders: queue.SimpleQueue[Work | None] = queue.SimpleQueue()

    # In the loop.

    def order(self, work: Work) -> None:
        """What the member process says of this attempt, after the order to begin."""
        self.phase = work.phase
        if work.phase is Phase.UNDO:
            self.undo = True
            self.given_up = self.given_up or "it was given up"
        self._orders.put(work)

    def exists(self) -> None:
        """The checkpoint does."""
        self._exists = True
        self._orders.put(None)

    def spoken_to(self) -> None:
        """Somebody is there."""
        self._orders.put(None)

    def give_up(self, why: str) -> None:
        """Nobody will order anything any more."""
        self.given_up = self.given_up or why
        self._orders.put(None)

    # In the thread that saves.

    def surveyed(self) -> None:
        self._turn(Phase.SURVEY, Phase.FREEZE)

    def code(self, words: bytes) -> bytes:
        return code(self._secret.derive("checkpoint"), self.number.to_bytes(8, "big") + words)

    def frozen(self, ends: Sequence[End], addresses: Sequence[bytes], door: int) -> Sequence[Told]:
        part = self._turn(Phase.FREEZE, Phase.SETTLE, conversations.ends(ends, addresses, door))
        try:
            return conversations.told(ends, part) if part else []
        except ValueError as error:
            raise GivenUp(str(error)) from None

    def settled(self) -> None:
        self._turn(Phase.SETTLE, Phase.CAPTURE)

    def captured(self) -> None:
        self._turn(Phase.CAPTURE, Phase.STORE if self._stop else Phase.RESUME)

    def resumed(self) -> None:
        self._turn(Phase.RESUME, Phase.STORE)

    def stored(self, record: PartRecord) -> None:
        part = msgspec.msgpack.encode(msgspec.structs.replace(record, own=self._own))
        if self._stop:
            self._turn(Phase.STORE, Phase.COMMIT, part)
        else:
            self.check()
            self._post(Finished(self.number, Phase.STORE, part))

    def decided(self) -> str:
        while not self._exists and not self.given_up:
            try:
                self._orders.get(timeout=self._limit)
            except queue.Empty:
                self.given_up = self._silent()
        return "" if self._exists else self.given_up

    def check(self) -> None:
        """Raises GivenUp if there is no point in going on."""
        if self.given_up:
            raise GivenUp(self.given_up)

    def _turn(self, done: Phase, following: Phase, part: bytes = b"") -> bytes:
        """Say that a phase is done, and wait for the order of the next one."""
        self.check()
        self._post(Finished(self.number, done, part))
        while True:
            try:
                order = self._orders.get(timeout=self._limit)
            except queue.Empty:
                self.given_up = self._silent()
            else:
                if order is not None and order.phase is following:
                    return order.part
            self.check()

    def _silent(self) -> str:
        return f"nobody spoke to it for {self._limit:.0f} s"


def _packed(addresses: Iterable[str]) -> frozenset[bytes]:
    import socket

    families = {True: socket.AF_INET6, False: socket.AF_INET}
    return frozenset(socket.inet_pton(families[":" in address], address) for address in addresses)


class Restarting:
    """One attempt to restart this part; see RestartedTogether. address: where others reach this host.  hear: called
    with every other word that comes."""

    def __init__(
        self, work: Work, address: str, secret: Secret, wire: Wire, limit: float, hear: Callable[[object], None]
    ) -> None:
        self.number = work.attempt
        self.what = work.what
        """The checkpoint."""
        self.parts: list[str] = msgspec.msgpack.decode(work.part, type=list[str]) if work.part else []
        """Which of its parts come back here."""
        self.phase = Phase.RECREATE
        self.undo = False
        self._address = address
        self._key = secret.derive("restart")
        self._wire = wire
        self._limit = limit
        self._hear = hear

    def code(self, words: bytes) -> bytes:
        return code(self._key, self.number.to_bytes(8, "big") + words)

    def recreated(
        self, ports: tuple[int, int], waits: Sequence[tuple[bytes, int]], calls: Sequence[bytes],
        shift: Mapping[int, int],
    ) -> Reached:  # fmt: skip
        from torpor.checkpoint.reunion import ORIGINAL, SPARE6

        told = conversations.places(f"{self._address} {ports[0]} {ports[1]}", waits, calls, shift)
        part = self._turn(Phase.RECREATE, Phase.CONNECT, told)
        out: dict[bytes, Place] = {}
        shifts: dict[str, dict[int, int]] = {}
        try:
            shifts = conversations.shifted(part) if part else {}
            for met in conversations.met(part) if part else ():
                host, number, number6 = met.address.rsplit(" ", 2)
                there = host, int(number6 if met.where == SPARE6 else number)
                out[met.name] = Place(met.host, None if met.where == ORIGINAL else there)
        except (msgspec.MsgspecError, struct.error, ValueError):
            raise GivenUp("what it was told of its connections is not understood") from None
        return Reached(out, shifts)

    def connected(self) -> None:
        self._turn(Phase.CONNECT, Phase.FILL)

    def filled(self) -> None:
        self._turn(Phase.FILL, Phase.RELEASE)

    def released(self) -> None:
        """It runs here."""
        self._wire.send(Finished(self.number, Phase.RELEASE))

    def _turn(self, done: Phase, following: Phase, part: bytes = b"") -> bytes:
        self._wire.send(Finished(self.number, done, part))
        silent = time.monotonic() + self._limit
        while True:
            left = silent - time.monotonic()
            if left <= 0:
                raise GivenUp(f"nobody spoke to it for {self._limit:.0f} s")
            try:
                word = self._wire.wait(left)
            except EOFError:
                raise GivenUp("its member process has ended") from None
            if word is not None:
                silent = time.monotonic() + self._limit
            if not isinstance(word, Work):
                if not isinstance(word, Here | None):
                    self._hear(word)
            elif word.attempt == self.number:
                self.phase = word.phase
                if word.phase is following:
                    return word.part
                if word.phase is Phase.UNDO:
                    self.undo = True
                    raise GivenUp("it was given up")
