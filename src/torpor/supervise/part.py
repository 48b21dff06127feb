"""What the supervisor of one part of a job over hosts has to know when it begins: one line of JSON, which follows the
line with the job's secret (link/secret.py) on its standard input. The supervisor hands it on to its member process."""

from __future__ import annotations

import msgspec

from torpor.coordinate.phases import Limits
from torpor.link import lease, lines, members
from torpor.link.link import LinkDown, Mismatch, Stranger
from torpor.link.server import Node

VERSION = 1


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a job.

    job: the job's name.  part: this part's; normally the host's.  first: PROG runs here, and its end is the job's, once
    those programs have ended that were joined.  own: this is such a part, with a program of its own.  job_file:
    through which others join; made by the first part, '' if nobody can.
    address: of this host, numeric, by which the others reach it.  hosts: all parts at the beginning, and where they
    are.
    nodes: the job's own servers; or engine: a site's, as after `--engine`, settings: as in `[engine]`.
    store: location of the store, '' for the default.  key: text of the key that signs, '' for this host's own.  upkeep:
    what is done unasked, as `upkeep.encode` writes it; only the first part does it.
    identity: of the job (lease.py).  policy: given for it, as `terms.encode` writes it.
    watch: what of its calls is written down, as after `--watch`; '' for nothing.  inside: it may speak with torpor.
    argv, env, cwd: what is started here, as bytes; no argv: the door alone.
    checkpoint: what is restarted, `train@3`, '' for a new job; old: the part of it that comes back here; wishes: how.
    ssh, remote: of the first part, how the hosts of all parts are reached, and what `torpor` is there; crashes: how
    often the job has been restarted after one: for the next time.
    limits: of the coordinator and of this host.  lease, silent: seconds after which another may coordinate, and after
    which a host counts as lost.
    """

    version: int = VERSION
    job: str
    part: str
    first: bool
    own: bool = False
    job_file: str = ""
    address: str
    hosts: dict[str, str]
    nodes: tuple[Node, ...] = ()
    engine: str = ""
    settings: dict[str, str | int] = {}
    store: str = ""
    key: str = ""
    upkeep: str = ""
    identity: str = ""
    policy: str = ""
    watch: str = "connect"
    inside: bool = False
    argv: tuple[bytes, ...] = ()
    env: dict[str, bytes] = {}
    cwd: bytes = b""
    checkpoint: str = ""
    old: str = ""
    wishes: dict[str, str | int | float | bool | list[str]] = {}
    ssh: dict[str, str] = {}
    remote: str = ""
    crashes: int = 0
    limits: Limits = Limits()
    lease: float = lease.TTL
    silent: float = members.TTL


def line(part: Part) -> bytes:
    """As it goes over the wire. Bytes are in base64: names of files need not be UTF-8."""
    return msgspec.json.encode(part) + b"\n"


def parse(data: bytes) -> Part:
    """What `line` made. Raises Mismatch for another version's, Stranger for what is not one."""
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version != VERSION:
            from torpor import __version__

            raise Mismatch(f"this is torpor {__version__}, and who starts it is another: install the same on both")
        return msgspec.json.decode(data, type=Part)
    except msgspec.MsgspecError as error:
        raise Stranger(f"not the description of a part of a job: {error}") from None


class _Version(msgspec.Struct):
    version: int


def receive(fd: int, limit: float = 30.0) -> Part:
    """Read the line from a pipe or socket, and not one byte beyond it: what follows is the program's standard input.
    Raises LinkDown if it does not come within `limit` seconds, and as `parse`."""
    try:
        data = lines.line(fd, limit)
        if not data.endswith(b"\n"):
            raise TimeoutError
    except TimeoutError:
        raise LinkDown(f"no description of a part on the standard input within {limit:.0f} seconds") from None
    except EOFError:
        raise LinkDown("no description of a part on the standard input: it has ended") from None
    return parse(data)
