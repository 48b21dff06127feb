"""Licence traffic that is recognised without a policy. What it looks like is data: known.txt."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torpor.linux import proc
from torpor.model.terms import Sign
from torpor.named_tuple import NamedTuple

_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "known.txt")
_LINE_MOST = 4096
"""Bytes of a variable that are kept."""


class Known(NamedTuple):
    """variables: (pattern, what).  ports, plain: (kind, from, to, what)."""

    variables: tuple[tuple[str, str], ...]
    ports: tuple[tuple[str, int, int, str], ...]
    plain: tuple[tuple[str, int, int, str], ...]

    def licence(self, kind: str, port: int) -> str:
        """Whose licences are given out on that port; '' if it is none that is known."""
        return _look(self.ports, kind, port)

    def ordinary(self, kind: str, port: int) -> str:
        """What that port stands for, if it is of a service that nobody has to be asked about; ''."""
        return _look(self.plain, kind, port)

    def variable(self, name: str) -> str:
        """Whose licences a variable of that name tells about; ''."""
        return next((what for pattern, what in self.variables if fnmatchcase(name, pattern)), "")

    def told(self, environment: bytes) -> list[tuple[str, str]]:
        """Name and value of such variables in the text of /proc/PID/environ."""
        pairs = (os.fsdecode(line[:_LINE_MOST]).partition("=") for line in environment.split(b"\0"))
        return [(name, value) for name, _, value in pairs if value and self.variable(name)]


def known() -> Known:
    """What is known."""
    with open(_FILE, encoding="utf-8") as file:
        return parse(file.read())


def parse(text: str) -> Known:
    """Of the lines of known.txt. Raises ValueError."""
    variables: list[tuple[str, str]] = []
    ports: list[tuple[str, int, int, str]] = []
    plain: list[tuple[str, int, int, str]] = []
    for line in text.splitlines():
        words = line.split(None, 3)
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "variable":
            variables.append((words[1], " ".join(words[2:])))
            continue
        kind, span, what = words[1:]
        first, _, last = span.partition("-")
        {"port": ports, "plain": plain}[words[0]].append((kind, int(first), int(last or first), what))
    return Known(tuple(variables), tuple(ports), tuple(plain))


def _look(table: tuple[tuple[str, int, int, str], ...], kind: str, port: int) -> str:
    for wanted, first, last, what in table:
        if first <= port <= last and wanted in (kind, "any"):
            return what
    return ""


def signs(pids: Iterable[int], forget: Sequence[str] = ()) -> tuple[Sign, ...]:
    """What the environments of these processes say about licences: what they were given when they were executed. What
    cannot be read is left out. forget: names and patterns of variables whose values are not to be told."""
    table = known()
    seen: dict[bytes, list[tuple[str, str]]] = {}
    found: dict[tuple[str, str, str], Sign] = {}
    for pid in pids:
        try:
            environment = proc.read(f"/proc/{pid}/environ")
            if environment not in seen:
                seen[environment] = table.told(environment)
            program = os.readlink(f"/proc/{pid}/exe") if seen[environment] else ""
        except OSError:
            continue
        for name, told in seen[environment]:
            value = "" if any(fnmatchcase(name, pattern) for pattern in forget) else told
            found.setdefault((name, value, program), Sign(name, value, program))
    return tuple(found.values())


def servers(value: str) -> list[tuple[str, int]]:
    """The names and ports in a value like `27000@lic1,27000@lic2:/opt/vendor.lic:@lic3`; (path, 0) for a file, (name,
    0) where no port is given."""
    found = []
    for group in value.replace(";", ":").split(":"):
        for one in group.split(","):
            port, at, host = one.strip().partition("@")
            if at and host:
                found.append((host, int(port) if port.isascii() and port.isdigit() else 0))
            elif one.strip():
                found.append((one.strip(), 0))
    return found
