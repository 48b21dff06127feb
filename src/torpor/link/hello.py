"""What two sides say first, so that different versions of torpor do not misunderstand each other.

The form of a hello never changes, whatever else does: one JSON object, at most 4 KiB, with at least `protocol` (a
number), `torpor` (the version of the package), `host` and `job`; then the HMAC of these bytes and of who says it. So
both sides of any two versions can say what is wrong, and between which hosts.
"""

from __future__ import annotations

import json

from torpor.link.link import PROTOCOL, Mismatch, Stranger
from torpor.link.secret import Secret, code
from torpor.named_tuple import NamedTuple

LONGEST = 4096
_CODE = 32


class Hello(NamedTuple):
    host: str
    job: str
    protocol: int = PROTOCOL
    torpor: str = ""
    purpose: str = ""
    """What the connection is for; for whoever accepts it."""

    def __str__(self) -> str:
        return f"{self.host}: protocol {self.protocol}, torpor {self.torpor}"


def ours(secret: Secret, host: str, purpose: str = "", protocol: int = PROTOCOL) -> Hello:
    """What we say. Raises ValueError for a purpose or a name that does not fit."""
    from torpor import __version__

    if len(host) + len(purpose) > 1000:
        raise ValueError("a purpose and a host's name have 1000 characters at most")
    return Hello(host, secret.job, protocol, __version__, purpose)


def encode(hello: Hello, secret: Secret, role: str) -> bytes:
    """role: 'listens' or 'connects' ('state' where it lies in the key-value store): nobody can send back what he was
    sent."""
    body = json.dumps(hello._asdict()).encode()
    return body + code(secret.derive("hello"), role.encode() + body)


def decode(data: bytes, secret: Secret, role: str) -> Hello:
    """Raises Stranger for what was not said by somebody of the job in that role."""
    import hmac

    body, under = data[:-_CODE], data[-_CODE:]
    if len(data) <= _CODE or not hmac.compare_digest(under, code(secret.derive("hello"), role.encode() + body)):
        raise Stranger("the other side does not know this job's secret")
    try:
        plain = json.loads(body)
        known = {key: value for key, value in plain.items() if key in Hello._fields}
        hello = Hello(**known)
        if not isinstance(hello.protocol, int) or not isinstance(hello.host, str):
            raise TypeError
    except (ValueError, TypeError, AttributeError):
        raise Stranger("the other side does not say what it is") from None
    return hello


def check(mine: Hello, theirs: Hello) -> None:
    """Raises Mismatch, with a line that names both hosts and versions; Stranger for another job's."""
    if theirs.job != mine.job:
        raise Stranger(f"{theirs.host} is of another job ({theirs.job})")
    if theirs.protocol != mine.protocol:
        raise Mismatch(
            f"host {mine.host} has torpor {mine.torpor} (protocol {mine.protocol}), host {theirs.host} has torpor "
            f"{theirs.torpor} (protocol {theirs.protocol}): install the same torpor on both"
        )
