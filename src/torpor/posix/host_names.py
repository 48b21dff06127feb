"""Names of hosts: the file in which programs look them up, hosts(5), and what a host calls itself, uname(2).

What a part of a job over hosts believes of names comes back with it, in mount and UTS namespaces of its own
(mount_namespaces(7), uts_namespaces(7)): a file over /etc/hosts, in which the lines of this host are kept but for the
names that the job knows otherwise. A name is looked up there first by nearly everybody (nsswitch.conf(5)); nscd(8)
answers for the host, not for the job.
"""

from __future__ import annotations

import _socket
import os
from collections.abc import Iterable, Mapping

HOSTS = "/etc/hosts"


def read() -> str:
    """The file, '' if there is none."""
    try:
        with open(HOSTS, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def names_of(text: str, address: str, *more: str) -> tuple[str, ...]:
    """The names of a host: `more` and those that the file has for its address, but for numbers and the names that every
    host has for itself. Pure."""
    found = dict.fromkeys(more)
    for there, names in _lines(text):
        if there == address:
            found.update(dict.fromkeys(names))
    return tuple(name for name in found if name and not _own(name) and not _numeric(name))


def with_names(text: str, names: Mapping[str, str]) -> str:
    """The file with other addresses for these names. Pure."""
    wanted = {name.lower(): name for name in names}
    out = ["# torpor: names of the hosts of this job, as it knows them"]
    by_address: dict[str, list[str]] = {}
    for name, address in names.items():
        by_address.setdefault(address, []).append(name)
    out += [f"{address} {' '.join(some)}" for address, some in by_address.items()]
    for line in text.splitlines():
        bare, mark, comment = line.partition("#")
        words = bare.split()
        kept = [word for word in words[1:] if word.lower() not in wanted]
        if len(kept) == len(words) - 1 or not words:
            out.append(line)
        elif kept:
            out.append(" ".join([words[0], *kept]) + (f" {mark}{comment}" if mark else ""))
    return "\n".join(out) + "\n"


def _lines(text: str) -> Iterable[tuple[str, list[str]]]:
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) > 1:
            yield words[0], words[1:]


def _own(name: str) -> bool:
    return name.lower().startswith(("localhost", "ip6-"))


def _numeric(name: str) -> bool:
    try:
        _socket.inet_pton(_socket.AF_INET6 if ":" in name else _socket.AF_INET, name)
    except OSError:
        return False
    return True


def write(path: str, names: Mapping[str, str]) -> None:
    """Write the file for these names, for everybody to read. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        os.fchmod(fd, 0o644)
        file.write(with_names(read(), names))
