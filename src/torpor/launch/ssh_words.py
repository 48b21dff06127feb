"""The command line of ssh(1), as far as programs that start others over ssh use it. Pure."""

from __future__ import annotations

import getopt
from collections.abc import Sequence

from torpor.model.errors import UsageError
from torpor.named_tuple import NamedTuple

FLAGS = "46AaCfGgKkMNnqsTtVvXxYy"
VALUES = "BbcDEeFIiJLlmOoPpQRSWw"
"""All options of OpenSSH's ssh, without and with a value."""
REFUSED = {
    "N": "there is no connection without a command", "s": "there are no subsystems",
    "L": "ports are not forwarded", "R": "ports are not forwarded", "D": "ports are not forwarded",
    "W": "ports are not forwarded", "w": "there are no tunnels", "O": "there is no master", "Q": "there is no list",
    "G": "there is no configuration",
}  # fmt: skip
"""Those whose absence a caller would notice. All others are for the encryption, the login or the terminal of ssh."""


class Call(NamedTuple):
    """What is to be run where. command: as the user's shell is to read it."""

    host: str
    command: str
    no_input: bool = False
    background: bool = False


def parse(words: Sequence[str], user: str) -> Call:
    """user: our own name. Raises UsageError for what is not understood or cannot be had."""
    given, rest = _options(words)
    host = rest[0] if rest else ""
    more, command = _options(rest[1:])  # ssh takes options after the host too
    no_input = background = False
    for option, value in (*given, *more):
        letter = option[1]
        if letter in REFUSED:
            raise UsageError(f"rsh: {option}: {REFUSED[letter]}")
        if letter == "l" or (letter == "o" and _setting(value)[0] == "user"):
            _check_user(value if letter == "l" else _setting(value)[1], user)
        no_input |= letter in "nf"
        background |= letter == "f"
    name, _, host = host.removeprefix("ssh://").rpartition("@")
    if name:
        _check_user(name, user)
    if host.startswith("[") and "]" in host:
        host = host[1 : host.index("]")]
    if not host:
        raise UsageError("rsh: on which host? (torpor rsh HOST COMMAND)")
    if not command:
        raise UsageError("rsh: which command? There is no login without one (torpor rsh HOST COMMAND)")
    return Call(host, " ".join(command), no_input, background)


def _options(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    try:
        return getopt.getopt(list(words), FLAGS + "".join(f"{letter}:" for letter in VALUES))
    except getopt.GetoptError as error:
        raise UsageError(f"rsh: {error.msg}") from None


def _setting(value: str) -> tuple[str, str]:
    """`User=me` or `User me`."""
    name, _, rest = value.replace("=", " ", 1).strip().partition(" ")
    return name.lower(), rest.strip()


def _check_user(name: str, user: str) -> None:
    if name != user:
        raise UsageError(f"rsh: a job is one user's ({user}), not {name}'s as well")
