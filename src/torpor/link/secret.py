"""The secret of a job over several hosts, and what is made of it.

Whoever knows it is of the job. It is 32 random bytes that the first supervisor makes. Others get it over the standard
input of the ssh that starts them, as one line, and keep it in a file of mode 0600 in the job's runtime folder. It is
never on a command line and never in an environment.

Keys are derived from it by HKDF (RFC 5869) with SHA-256, one for each purpose, so that none tells of another:

    job             the name that subjects and buckets of this job have
    certificates    the key of the job's own authority (certificates.py)
    engine          the password at the job's own NATS servers
    seal            messages and values, which a site's NATS must neither read nor make (Seal)
    restart         codes between hosts that connect a job's connections again (checkpoint/reunion.py)
    checkpoint      codes between hosts that look into connections together (checkpoint/turns.py)
    hello           the code that stands under what both sides say first (hello.py)
"""

from __future__ import annotations

import hmac
import os
from typing import Any

from torpor.link.lines import line
from torpor.link.link import LinkDown, Stranger
from torpor.model.errors import TorporError

SIZE = 32
FILE = "secret"
_LINE = b"torpor-secret-1 "
_LONGEST = len(_LINE) + 2 * SIZE + 1


class Secret:
    """Does not show itself, whoever prints it."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != SIZE:
            raise ValueError(f"a job's secret has {SIZE} bytes, not {len(raw)}")
        self._raw = raw

    def derive(self, purpose: str, size: int = 32) -> bytes:
        """The key for a purpose."""
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return HKDF(SHA256(), size, b"torpor 2026 job secret", purpose.encode()).derive(self._raw)

    @property
    def job(self) -> str:
        """16 letters and digits that name the job among all jobs of a site, and tell nothing."""
        return self.derive("job", 8).hex()

    def line(self) -> bytes:
        """What a joining supervisor is to read from its standard input."""
        return _LINE + self._raw.hex().encode() + b"\n"

    def keep(self, folder: str) -> None:
        """Write it into a folder of ours. Raises OSError."""
        temporary = os.path.join(folder, FILE + ".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(fd, 0o600)
            os.write(fd, self.line())
        finally:
            os.close(fd)
        os.rename(temporary, os.path.join(folder, FILE))


def fresh() -> Secret:
    """A new one."""
    return Secret(os.urandom(SIZE))


def kept(folder: str) -> Secret:
    """The one that `keep` wrote. Raises TorporError if it is not there, or open to others."""
    path = os.path.join(folder, FILE)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise TorporError(f"{path}: {error.strerror}") from None
    try:
        seen = os.fstat(fd)
        if seen.st_uid != os.geteuid() or seen.st_mode & 0o077:
            raise TorporError(f"{path} is open to others: it is to be ours, with mode 0600")
        return parse(os.read(fd, _LONGEST), path)
    finally:
        os.close(fd)


def receive(fd: int, limit: float = 30.0) -> Secret:
    """Read the line from a pipe or socket, and not one byte beyond it: what follows is the program's standard input.
    Raises LinkDown if it does not come within `limit` seconds, Stranger if it is something else."""
    try:
        data = line(fd, limit, _LONGEST)
    except TimeoutError:
        raise LinkDown(f"no job secret on the standard input within {limit:.0f} seconds") from None
    except EOFError:
        raise LinkDown("no job secret on the standard input: it has ended") from None
    return parse(data, "the standard input")


def parse(data: bytes, where: str = "") -> Secret:
    """What `Secret.line` wrote. where: for the error. Raises Stranger."""
    body = data.removeprefix(_LINE).strip()
    try:
        if not data.startswith(_LINE):
            raise ValueError
        return Secret(bytes.fromhex(body.decode()))
    except ValueError:
        raise Stranger(f"{where}: not a job's secret") from None


def code(key: bytes, message: bytes) -> bytes:
    """The code (HMAC-SHA256) that only who knows the key can put under a message."""
    return hmac.digest(key, message, "sha256")


class Seal:
    """Closes what goes over somebody else's server, and opens only what somebody of the job has closed.

    AES-256-GCM with random nonces: good for 2**32 pieces. `place` (a topic, a key) is bound in: a piece cannot be
    moved to another place.
    """

    __slots__ = ("_aes", "_invalid")
    NONCE = 12

    def __init__(self, secret: Secret) -> None:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._aes: Any = AESGCM(secret.derive("seal"))
        self._invalid = InvalidTag

    def close(self, data: bytes, place: str) -> bytes:
        nonce = os.urandom(self.NONCE)
        return nonce + bytes(self._aes.encrypt(nonce, data, place.encode()))

    def open(self, sealed: bytes, place: str) -> bytes | None:
        """None: it was not made with this secret for this place."""
        try:
            return bytes(self._aes.decrypt(sealed[: self.NONCE], sealed[self.NONCE :], place.encode()))
        except (self._invalid, ValueError):
            return None
