"""One part of a job over hosts, as `torpor member` is: the secret and what the part is come on the standard input, then
its program is supervised to its end."""

import os
import sys

from torpor.launch import program
from torpor.link import secret as secrets
from torpor.model.errors import TorporError
from torpor.supervise import part as parts
from torpor.supervise import registry
from torpor.supervise.membership import Membership
from torpor.supervise.parent import become_subreaper, inherited
from torpor.supervise.registry import Entry, Pid
from torpor.supervise.signals import Signals, exit_with
from torpor.supervise.supervisor import Supervisor
from torpor.supervise.terminal import Terminal


def main() -> int:
    secret = secrets.receive(0)
    part = parts.receive(0)
    given = Entry(name="", store=part.store, argv=tuple(map(os.fsdecode, part.argv)), upkeep=part.upkeep)
    entry = registry.claim(given, iter((part.job,)), lambda _: False)
    assert entry is not None
    become_subreaper()
    streams = inherited()
    signals = Signals()
    membership = Membership(part, secret, entry.folder)
    try:
        membership.join(30.0)
    except TorporError as error:
        print(f"supervised: {error}", file=sys.stderr)
        registry.release(entry)
        return 1
    pid = program.start(entry.argv, signals.before, env={**program.environment(), **_bytes(part.env)})
    entry = registry.update(entry._replace(root=Pid.of(pid), root_vpid=pid))
    status = Supervisor(entry, signals, Terminal(-1, relay=False), streams, membership=membership).run()
    return exit_with(status)


def _bytes(env: dict[str, bytes]) -> dict[bytes, bytes]:
    return {os.fsencode(name): value for name, value in env.items()}


sys.exit(main())
