"""Which NATS a job rides on: its own servers, or a site's.

A site's is named by `--engine URL[,URL...]` or in the configuration file:

    [engine]
    url = "tls://nats1.site:4222,tls://nats2.site:4222"
    credentials = "~/.nats/torpor.creds"    # a user's JWT and seed, as `nsc` writes them
    user = "..."                            # or in the URL: tls://user:password@host
    password = "..."
    ca = "/etc/site/ca.pem"                 # whose certificates are believed; default: the system's
    cert = "~/.nats/cert.pem"               # ours, where the site asks for one
    key = "~/.nats/key.pem"
    replicas = 3                            # how many servers keep the job's state; default: 3 of a cluster

`tls://` insists on TLS: nothing is said to a server that does not begin with it. With `nats://` TLS is used where the
server asks for it. What torpor says is closed with a key of the job's in either case (secret.py).
"""

from __future__ import annotations

import base64
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from torpor.link.server import USER, Node, password
from torpor.model.errors import UsageError
from torpor.named_tuple import NamedTuple

if TYPE_CHECKING:
    import ssl

    from torpor.link.secret import Secret

WORDS = ("url", "credentials", "user", "password", "ca", "cert", "key", "replicas")
"""What `[engine]` may say."""


class Engine(NamedTuple):
    """How to get at the servers."""

    urls: tuple[str, ...]
    """`tls://host:port`, without a password."""
    user: str = ""
    password: str = ""
    credentials: str = ""
    """A file."""
    tls: Callable[[], ssl.SSLContext] | None = None
    tls_name: str = ""
    """What the servers' certificates have to be for; '': their hosts' names."""
    insist: bool = False
    """Say nothing without TLS."""
    tls_first: bool = False
    """The server begins with TLS, before it says anything."""
    replicas: int = 0
    """How many servers keep the state; 0: as many as there are, three at most."""


def own(secret: Secret, host: str, nodes: Sequence[Node]) -> Engine:
    """The job's own servers."""

    @functools.cache
    def tls() -> ssl.SSLContext:
        from torpor.link.certificates import context, identity

        return context(identity(secret, host), server=False)

    return Engine(
        tuple(node.url for node in nodes),
        USER,
        password(secret),
        tls=tls,
        tls_name=f"job-{secret.job}.torpor.internal",
        insist=True,
        tls_first=True,
        replicas=3 if len(nodes) >= 3 else 1,
    )


def site(given: str, settings: Mapping[str, Any] | None = None) -> Engine:
    """A site's servers: `given` as after `--engine` ('' for what the settings say). Raises UsageError."""
    said = dict(settings or {})
    if unknown := sorted(set(said) - set(WORDS)):
        raise UsageError(f"[engine]: {unknown[0]!r} is not a setting ({', '.join(WORDS)})")
    for word, value in said.items():
        if not isinstance(value, int if word == "replicas" else str):
            raise UsageError(f"[engine]: {word} has to be a {'number' if word == 'replicas' else 'string'}")
    text = given or said.get("url", "")
    if not text:
        raise UsageError("which NATS? --engine tls://host:port, or url in [engine]")
    urls: list[str] = []
    user, word = said.get("user", ""), said.get("password", "")
    schemes = set()
    for part in text.split(","):
        try:
            url = urlsplit(part.strip())
            host, port = url.hostname, url.port or 4222
        except ValueError:
            host = None
        if not host or url.scheme not in ("nats", "tls"):
            raise UsageError(f"{part.strip()!r}: an engine is nats://host:port or tls://host:port")
        schemes.add(url.scheme)
        if url.username:
            user, word = unquote(url.username), unquote(url.password or "")
        urls.append(f"{url.scheme}://{f'[{host}]' if ':' in host else host}:{port}")
    if len(schemes) > 1:
        raise UsageError("the servers of an engine are either all nats:// or all tls://")
    files = {name: os.path.expanduser(said[name]) for name in ("credentials", "ca", "cert", "key") if said.get(name)}
    for name, path in files.items():
        if not os.access(path, os.R_OK):
            raise UsageError(f"[engine]: {name}: {path} cannot be read")
    if "key" in files and "cert" not in files:
        raise UsageError("[engine]: a key needs a cert")

    def tls() -> ssl.SSLContext:
        import ssl

        made = ssl.create_default_context(cafile=files.get("ca"))
        if "cert" in files:
            made.load_cert_chain(files["cert"], files.get("key"))
        return made

    return Engine(
        tuple(urls), user, word, files.get("credentials", ""), tls, insist="tls" in schemes,
        replicas=said.get("replicas", 0),
    )  # fmt: skip


class Credentials(NamedTuple):
    """Of a credentials file."""

    jwt: str
    sign: Callable[[str], bytes]
    """The answer to a server's nonce."""


def credentials(text: str) -> Credentials:
    """What a credentials file says, between lines of dashes. Raises UsageError.

    A seed is base32 of two bytes that say what it is for, the 32 bytes of an Ed25519 key, and a CRC-16/XMODEM of all
    that, low byte first (github.com/nats-io/nkeys)."""
    import binascii

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    parts: dict[str, str] = {}
    title = ""
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("---"):
            title = line.strip("- ")
        elif line and title.startswith("BEGIN"):
            parts.setdefault(title.removeprefix("BEGIN "), line)
    jwt, seed = parts.get("NATS USER JWT", ""), parts.get("USER NKEY SEED", "")
    if not jwt or not seed:
        raise UsageError("no NATS credentials: a user's JWT and seed are wanted, as `nsc` writes them")
    try:
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
    except ValueError:
        raw = b""
    if len(raw) != 36 or binascii.crc_hqx(raw[:-2], 0) != int.from_bytes(raw[-2:], "little"):
        raise UsageError("no NATS credentials: the seed is damaged")
    key = Ed25519PrivateKey.from_private_bytes(raw[2:34])
    return Credentials(jwt, lambda nonce: base64.b64encode(key.sign(nonce.encode())))
