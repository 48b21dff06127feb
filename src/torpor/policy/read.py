"""A policy file: from its text to a `Layer`, or to one line that says where it is wrong and what was expected there.

docs/policy.md explains the file.
"""

from __future__ import annotations

import re
from _socket import AF_INET, AF_INET6, inet_pton
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torpor.model import duration
from torpor.model.errors import UsageError
from torpor.model.terms import Layer, Rule, SeatTerms

ACTIONS = ("reset", "reconnect", "refuse", "seat")
PROVIDERS = {"command": ("command", "status"), "http": ("url", "token_file", "ca_file"), "pool": ("pool", "store")}
"""The providers that torpor brings along, and what they have to be told; others are packages' own."""
_SERVICE = ("action", "address", "name", "port", "program", "seat", "to", "wait", "otherwise")
_SEAT = ("provider", "wait", "on_loss", "grace", "at_start")
_LONGEST = 1e9
"""Seconds."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

T = TypeVar("T")


def parse(text: str, source: str) -> Layer:
    """Of the text of a file; source: its path. Raises UsageError."""
    import tomllib

    try:
        plain = tomllib.loads(text)
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from None
    except RecursionError:
        raise UsageError(f"{source}: too many brackets in each other") from None
    for key in plain:
        if key not in ("service", "seats"):
            raise UsageError(f"{source}: {key!r} is nothing that a policy has ([[service]], [seats.NAME])")
    rules, seats = plain.get("service", []), plain.get("seats", {})
    if not isinstance(rules, list) or not all(isinstance(each, dict) for each in rules):
        raise UsageError(f"{source}: services are tables: [[service]]")
    if not isinstance(seats, dict) or not all(isinstance(each, dict) for each in seats.values()):
        raise UsageError(f"{source}: seats are tables: [seats.NAME]")
    lines = [n for n, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*service\s*\]\]", line)]
    made = []
    for number, each in enumerate(rules):
        at = f"line {lines[number]}, " if number < len(lines) else ""
        made.append(_rule(_Table(each, f"{source}: {at}service {number + 1}", _SERVICE)))
    return Layer(source, tuple(made), tuple(_seat(name, each, source) for name, each in seats.items()))


class _Table:
    """A table of the file, whose values are taken one by one."""

    def __init__(self, plain: dict[str, Any], where: str, known: Sequence[str] = ()) -> None:
        self.where = where
        self._plain = plain
        for key in plain:
            if known and key not in known:
                raise UsageError(f"{where}: {key!r} is not known there ({', '.join(known)})")

    def wrong(self, key: str, why: str) -> UsageError:
        return UsageError(f"{self.where}: {key} = {self._plain.get(key)!r}: {why}")

    def word(self, key: str, choices: Sequence[str] = (), default: str = "") -> str:
        """A string."""
        value = self._plain.get(key, default)
        if not isinstance(value, str) or (choices and value not in choices):
            raise self.wrong(key, f"one of {', '.join(choices)}" if choices else "a string")
        return value

    def words(self, key: str, one: Callable[[str], T]) -> tuple[T, ...]:
        """A string or a number, or a list of such; each as `one` makes it, which may raise ValueError."""
        value = self._plain.get(key, [])
        out = []
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, str | int) or isinstance(each, bool) or each == "":
                raise self.wrong(key, "a string or a number, or a list of such")
            try:
                out.append(one(str(each)))
            except ValueError as error:
                raise self.wrong(key, str(error)) from None
        if key in self._plain and not out:
            raise self.wrong(key, "an empty list matches nothing")
        return tuple(out)

    def seconds(self, key: str, default: float) -> float:
        """A length of time."""
        value = self._plain.get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LONGEST:
            return float(value)
        try:
            return duration.parse(value if isinstance(value, str) else "")
        except UsageError:
            raise self.wrong(key, 'a length of time: "90s", "10m", "1h30m"') from None

    def truth(self, key: str, default: bool) -> bool:
        value = self._plain.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def has(self, key: str) -> bool:
        return key in self._plain


def _rule(table: _Table) -> Rule:
    if not table.has("action"):
        raise UsageError(f"{table.where}: what is to be done? action is one of {', '.join(ACTIONS)}")
    action = table.word("action", ACTIONS)
    if table.has("seat") != (action == "seat"):
        raise UsageError(f'{table.where}: action = "seat" and seat = "NAME" go together')
    for key in ("to", "wait", "otherwise"):
        if table.has(key) and action != "reconnect":
            raise UsageError(f'{table.where}: {key} is for action = "reconnect"')
    to = table.words("to", _target)
    if len(to) > 1:
        raise table.wrong("to", "one address")
    return Rule(
        action=action,
        seat=_named(table, "seat"),
        addresses=table.words("address", _network),
        ports=table.words("port", _ports),
        names=table.words("name", str),
        programs=table.words("program", str),
        to=to[0] if to else "",
        wait=table.seconds("wait", 0.0),
        otherwise=table.word("otherwise", ("reset", "refuse"), "reset"),
    )


def _seat(name: str, plain: dict[str, Any], source: str) -> SeatTerms:
    table = _Table(plain, f"{source}: seats.{name}")
    if not _NAME.fullmatch(name):
        raise UsageError(f"{source}: a seat cannot be named {name!r}: use letters, digits, '.', '_' and '-'")
    provider = table.word("provider")
    if not provider:
        raise UsageError(f"{table.where}: who gives it? provider is one of {', '.join(PROVIDERS)}")
    options = {key: value for key, value in plain.items() if key not in _SEAT}
    if provider in PROVIDERS:
        _options(table, provider, options)
    return SeatTerms(
        name=name,
        provider=provider,
        options=options,
        wait=table.seconds("wait", 0.0),
        on_loss=table.word("on_loss", ("pause", "warn"), "pause"),
        grace=table.seconds("grace", 300.0),
        at_start=table.truth("at_start", True),
    )


def _options(table: _Table, provider: str, options: dict[str, Any]) -> None:
    """Are they such as a provider of ours understands? Raises UsageError."""
    known = PROVIDERS[provider]
    for key in options:
        if key not in known:
            raise UsageError(f"{table.where}: {key!r} is not known there ({', '.join((*_SEAT, *known))})")
    if not table.has(known[0]):
        raise UsageError(f"{table.where}: provider = {provider!r} needs {known[0]}")
    for key in known:
        if provider == "command" and table.has(key):
            words = options[key]
            if not (isinstance(words, list) and words and all(isinstance(each, str) for each in words) and words[0]):
                raise table.wrong(key, 'the program and its arguments: ["PROGRAM", "ARGUMENT"]')
        elif table.has(key) and not table.word(key):
            raise table.wrong(key, "a string that is not empty")
    if provider == "pool" and not _NAME.fullmatch(options["pool"]):
        raise table.wrong("pool", "the name of a pool (torpor seats create)")
    if provider == "http" and not options["url"].startswith(("http://", "https://")):
        raise table.wrong("url", "http:// or https://")


def _named(table: _Table, key: str) -> str:
    name = table.word(key)
    if table.has(key) and not _NAME.fullmatch(name):
        raise table.wrong(key, "the name of a seat")
    return name


def network(text: str) -> tuple[bytes, int]:
    """The address and the number of its bits that count, of `10.1.2.3`, `10.0.0.0/8`, `fd00::/16`. Raises
    ValueError."""
    host, slash, bits = text.partition("/")
    try:
        ip = inet_pton(AF_INET6 if ":" in host else AF_INET, host)
    except (OSError, ValueError):
        raise ValueError(f"{host!r} is not a numeric address") from None
    if slash and not (bits.isascii() and bits.isdigit() and int(bits) <= 8 * len(ip)):
        raise ValueError(f"/{bits} is not a number of bits")
    count = int(bits) if slash else 8 * len(ip)
    if int.from_bytes(ip, "big") & ((1 << (8 * len(ip) - count)) - 1):
        raise ValueError(f"{text} has bits behind its first {count}")
    return ip, count


def _network(text: str) -> str:
    network(text)
    return text


def _ports(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not all(part.isascii() and part.isdigit() for part in (first, last if dash else first)):
        raise ValueError('a port, or "FIRST-LAST"')
    span = int(first), int(last if dash else first)
    if not 0 < span[0] <= span[1] < 65536:
        raise ValueError("ports are 1 to 65535")
    return span


def target(text: str) -> tuple[str, int]:
    """Host and port of `10.1.2.3`, `10.1.2.3:80`, `[fd00::1]:80`; port 0 where there is none. Raises ValueError."""
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not an address")
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    network(host)
    return host, _ports(port)[0] if port else 0


def _target(text: str) -> str:
    target(text)
    return text
