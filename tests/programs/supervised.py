"""One part of a job over hosts, as `torpor member` is: the secret and what the part is come on the standard input, then
its program is started, or its part of a checkpoint restarted, and supervised to its end."""

import os
import sys

from torpor.launch import program
from torpor.link import secret as secrets
from torpor.model.errors import TorporError
from torpor.supervise import part as parts
from torpor.supervise import registry
from torpor.supervise.membership import Membership
from torpor.supervise.parent import become_subreaper, inherited
from torpor.supervise.part import Part
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
    membership = Membership(part, secret, entry.folder)
    try:
        if part.checkpoint:
            return restarted(part, membership, entry, streams)
        membership.join(30.0)
    except TorporError as error:
        print(f"supervised: {error}", file=sys.stderr)
        registry.release(entry)
        return 1
    signals = Signals()
    pid = program.start(entry.argv, signals.before)
    entry = registry.update(entry._replace(root=Pid.of(pid), root_vpid=pid))
    return exit_with(Supervisor(entry, signals, Terminal(-1, relay=False), streams, membership=membership).run())


def restarted(part: Part, membership: Membership, entry: Entry, streams: dict[int, int]) -> int:
    from torpor.checkpoint.restart import Restarted, RestartRequest
    from torpor.checkpoint.restart import restart as run
    from torpor.image.seal import Opening
    from torpor.store import open_store

    def register(job: Restarted) -> None:
        nonlocal entry
        entry = registry.update(
            entry._replace(
                root=Pid.of(job.root), root_vpid=job.root_vpid,
                reaper=Pid.of(job.reaper) if job.reaper else registry.NOBODY, helpers=tuple(job.helpers),
                anchor=job.tree.anchor, include_anchor=job.tree.include_anchor, skip=tuple(job.tree.skip),
                parent_is_reaper=job.parent_is_reaper,
            )
        )  # fmt: skip

    together = membership.recreate(60.0)
    opened = open_store(part.store, apart=True)
    whole = opened.resolve(together.what)
    mine = next(each for each in whole.parts if each.name == part.part)
    load = opened.load(whole.job, whole.number, Opening(False), mine)
    if os.environ.get("TORPOR_TEST_BREAKS") == part.part:
        membership.give_up("the test wants it so")
        raise TorporError("the test wants it so")
    try:
        job = run(RestartRequest(load=load, standard=(0, 1, 2), together=together, before_release=register))
    except TorporError as error:
        raise TorporError(membership.give_up(str(error))) from None
    together.released()
    terminal = Terminal(-1, relay=False)
    return exit_with(Supervisor(entry, Signals(), terminal, streams, job.events, membership=membership).run())


sys.exit(main())
