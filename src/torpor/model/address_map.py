"""Where addresses of hosts that a job ran on are now: pure, from `OLD=NEW` to an answer for one address."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from collections.abc import Iterable

from torpor.model.errors import UsageError
from torpor.named_tuple import NamedTuple


class Place(NamedTuple):
    """A numeric address; port 0 for all ports of it."""

    host: str
    port: int = 0


class AddressMap:
    """Old places and the new ones for them. One with a port counts before one without, which keeps the port.

    both: old addresses that are new ones of somebody else, so that a host which had changed places with another might
    be meant, or that other one.
    """

    def __init__(self, moves: dict[Place, Place]) -> None:
        self.moves = moves
        self.both = {old.host for old in moves if not old.port} & {new.host for new in moves.values()}

    def __bool__(self) -> bool:
        return bool(self.moves)

    @classmethod
    def parse(cls, words: Iterable[str]) -> AddressMap:
        """Of `10.0.0.1=10.1.0.1`, `10.0.0.1:80=10.1.0.1:8080`, `[fd00::1]:80=[fd00::2]:80`. Raises UsageError."""
        moves: dict[Place, Place] = {}
        for word in words:
            old, _, new = word.partition("=")
            try:
                pair = place(old), place(new)
            except ValueError as error:
                raise UsageError(f"--map-host {word}: {error}") from None
            if bool(pair[0].port) != bool(pair[1].port):
                raise UsageError(f"--map-host {word}: give a port on both sides, or on none")
            if (":" in pair[0].host) != (":" in pair[1].host):
                raise UsageError(f"--map-host {word}: a socket of one family cannot reach an address of the other")
            if moves.setdefault(pair[0], pair[1]) != pair[1]:
                raise UsageError(f"--map-host {word}: {old} is somewhere else already")
        return cls(moves)

    def find(self, host: str, port: int, answer: bool = False) -> Place | None:
        """Where an address is now; None if it is where it was. answer: it may be that of a sender, who is answered, and
        which the kernel has told just now; so it is, unless the port is known to have been another's."""
        exact = self.moves.get(Place(host, port)) if port else None
        if exact is not None:
            return exact
        if answer and host in self.both:
            return None
        whole = self.moves.get(Place(host))
        return None if whole is None else Place(whole.host, port)

    def then(self, later: AddressMap) -> AddressMap:
        """Of a job that had moved so before, and has now moved from where it was last: both in one step."""
        moves = {old: later.find(*new) or new for old, new in self.moves.items()}
        return AddressMap({**later.moves, **moves})

    def words(self) -> tuple[str, ...]:
        """What `parse` makes this of."""
        return tuple(f"{_word(old)}={_word(new)}" for old, new in self.moves.items())


def _word(place: Place) -> str:
    if not place.port:
        return place.host
    return f"[{place.host}]:{place.port}" if ":" in place.host else f"{place.host}:{place.port}"


def place(word: str) -> Place:
    """Of `10.0.0.1`, `10.0.0.1:80`, `fd00::1`, `[fd00::1]:80`. Raises ValueError."""
    host, colon, port = word, "", ""
    if word.startswith("["):
        host, bracket, rest = word[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or colon not in ("", ":"):
            raise ValueError(f"{word!r} is not an address")
    elif word.count(":") == 1:
        host, colon, port = word.partition(":")
    family = AF_INET6 if ":" in host else AF_INET
    try:
        host = inet_ntop(family, inet_pton(family, host))
    except OSError:
        raise ValueError(f"{host!r} is not a numeric address") from None
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is not a port")
    return Place(host, int(port or 0))
