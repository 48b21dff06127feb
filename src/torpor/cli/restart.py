"""torpor restart"""

from __future__ import annotations

import gc

from torpor import bytecode
from torpor.cli import lean, upkeep
from torpor.cli.options import (
    add_files,
    add_json,
    add_map_path,
    add_policy,
    add_store,
    add_untrusted,
    policy,
    store,
    wait,
)
from torpor.model.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from torpor.cli.progress import Progress
    from torpor.launch.detach import Started
    from torpor.launch.hosts import Elsewhere
    from torpor.launch.restart import Wishes

QUICK = True
NEEDED = (
    "torpor.cli.progress", "torpor.launch.restart", "torpor.launch.admission", "torpor.launch.interrupt",
    "torpor.supervise.terminal", "torpor.store.tier", "torpor.image.libcrypto", "torpor.image.seal",
    "torpor.checkpoint.restart",
)  # fmt: skip
"""What every restart imports until the first process of the job is forked, with all that these import."""
HELP = """Start a saved job again where it was when it was saved.

CHECKPOINT is NAME (its newest), NAME@3 (number 3) or NAME@-1 (the newest but one); it may be left out where
only one job has been saved. The job's standard streams become the command's own, or the files that are
given.

What was done for the job unasked (--every, --on-signal, ...) goes on, but for what is given here: --every 0
ends it. Exit status: as torpor run.

A job over several hosts comes back on those that --hosts names: in the order in which
torpor inspect lists its parts, several on one host if these are fewer. PART=HOST says it for one part."""
EXAMPLE = """  torpor restart train
  torpor restart train --every 30m --on-signal TERM=checkpoint-stop
  torpor restart train@3 --clone --name what-if --detach
  torpor restart train --clone --count 5
  torpor restart train --stopped
  torpor restart train --lazy
  torpor restart --stdout out.txt
  torpor restart sim --hosts node1,node7,node8"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="NAME, NAME@3, NAME@-1")
    parser.add_argument("--detach", action="store_true", help="without a terminal; output goes to the job's log")
    parser.add_argument(
        "--clone",
        action="store_true",
        help="also if the job is still running: a second one, with an identity and seats of its own",
    )
    parser.add_argument(
        "--count", type=int, metavar="N",
        help="with --clone: so many copies, NAME-1, NAME-2 and so on, all or none; detached",
    )  # fmt: skip
    parser.add_argument(
        "--stopped",
        action="store_true",
        help="stop it, as SIGSTOP does, before its first instruction, so that a debugger can be attached; what lets it "
        "go on is said",
    )
    parser.add_argument(
        "--lazy",
        action="store_true",
        help="let it go on before all of its memory is there: the rest arrives while it runs (root; docs/lazy.md)",
    )
    parser.add_argument("--name", help="name of the restarted job (default: the saved one)")
    for stream in ("stdin", "stdout", "stderr"):
        parser.add_argument(f"--{stream}", metavar="FILE", help=f"the job's {stream} (output is appended)")
    add_files(
        parser,
        "auto: files that the job was writing are cut back to their saved length, what was beyond is kept "
        "beside them; keep: files are left as they are",
    )
    parser.add_argument(
        "--changed-files",
        choices=("refuse", "accept"),
        default="refuse",
        help="what to do if a file that was only read (program, library, data) has changed",
    )
    add_map_path(parser)
    parser.add_argument(
        "--map-host",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="connections and datagrams that the job begins from now on to the address OLD go to NEW; numeric, both "
        "with a port or none; may be repeated (docs/watch.md)",
    )
    add_policy(parser, "; the stricter of this and what is sealed into the checkpoint holds")
    parser.add_argument(
        "--new-policy", metavar="FILE", default="",
        help="the same, in place of what is sealed into the checkpoint: for whoever holds the key that signed it",
    )  # fmt: skip
    parser.add_argument("--hosts", metavar="HOST,...", help="of a job over hosts: where it comes back")
    parser.add_argument("--engine", metavar="URL", default="", help="with --hosts: as for torpor run")
    parser.add_argument("--remote-torpor", metavar="PATH", default="", help="with --hosts: as for torpor run")
    add_untrusted(parser)
    parser.add_argument("--in-place", action="store_true", help="without a PID namespace")
    parser.add_argument(
        "--pid-budget",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long finding the old pids may take in place (default: 5)",
    )
    add_store(parser)
    add_json(parser)
    upkeep.add(parser)


def command(options: argparse.Namespace) -> int:
    if options.files not in ("auto", "keep"):
        raise UsageError("restart: --files is auto or keep")
    gc.disable()  # there is nothing to collect yet; launch/restart.py turns it on once the job runs
    lean.bring_msgspec()
    bytecode.bring("restart", NEEDED)
    if options.map_path:
        from torpor.model.path_map import PathMap

        PathMap.parse(options.map_path)  # what makes no sense is said before anything is done
    if options.map_host:
        from torpor.model.address_map import AddressMap

        AddressMap.parse(options.map_host)
    if options.policy and options.new_policy:
        raise UsageError("restart: --policy or --new-policy, not both")
    from torpor.cli.progress import Progress
    from torpor.launch import restart

    progress = Progress()

    def tell(line: str) -> None:
        from torpor.cli.text import complain

        if line:
            progress.clear()
            complain(line)

    wishes = restart.Wishes(
        name=options.name,
        clone=options.clone,
        stdin=options.stdin,
        stdout=options.stdout,
        stderr=options.stderr,
        files=options.files,
        changed_files=options.changed_files,
        untrusted=options.untrusted,
        map_path=tuple(options.map_path),
        map_host=tuple(options.map_host),
        stopped=options.stopped,
        lazy=options.lazy,
        pid_budget=options.pid_budget,
        in_place=True if options.in_place else None,
        progress=progress,
        upkeep=upkeep.given(options),
        policy=policy(options.policy or options.new_policy),
        new_policy=bool(options.new_policy),
        wait=wait(options),
        tell=tell,
    )
    if options.count is not None:
        return _copies(options, wishes, progress)
    if options.hosts:
        return _over_hosts(options, wishes)
    if options.engine or options.remote_torpor:
        raise UsageError("restart: --engine and --remote-torpor are for --hosts")
    if not options.detach:
        try:
            status = restart.restart(options.checkpoint, store(options), wishes, progress.clear)
        finally:
            progress.clear()
        from torpor.supervise.signals import exit_with

        return exit_with(status)
    from torpor.launch import detached

    try:
        started = detached.restart_detached(options.checkpoint, store(options), wishes)
    finally:
        progress.clear()
    _say_started(started, options)
    return 0


def _say_started(started: Started, options: argparse.Namespace) -> None:
    from torpor.cli.text import complain, duration, say, say_json

    if options.json:
        say_json(started._asdict())
        return
    for note in started.notes:
        complain(note)
    say(f"restarted {started.name} in {duration(started.seconds)}, pid {started.pid}, log {started.log}")


def _copies(options: argparse.Namespace, wishes: Wishes, progress: Progress) -> int:
    from torpor.cli.text import say_json
    from torpor.launch import clones

    if options.count < 1 or not options.clone:
        raise UsageError("restart: --count is a number of copies, with --clone")
    for flag in ("hosts", "in_place", "engine", "remote_torpor", "lazy"):
        if getattr(options, flag):
            raise UsageError(f"restart: --count does not go with --{flag.replace('_', '-')}")
    try:
        started = clones.restart_copies(options.checkpoint, store(options), wishes, options.count)
    finally:
        progress.clear()
    if options.json:
        say_json([job._asdict() for job in started])
        return 0
    for job in started:
        _say_started(job, options)
    return 0


def _over_hosts(options: argparse.Namespace, wishes: Wishes) -> int:
    from torpor.cli.text import say
    from torpor.launch import hosts
    from torpor.supervise.signals import exit_with

    for flag in ("in_place", "map_host", "lazy"):
        if getattr(options, flag, None):
            raise UsageError(f"restart: --{flag.replace('_', '-')} is not for a job over hosts")
    names = [host.strip() for host in options.hosts.split(",") if host.strip()]
    over = hosts.Over(names, options.engine, options.remote_torpor)
    try:
        job = hosts.saved(options.checkpoint, store(options), wishes, over)
    except hosts.Elsewhere as error:
        return _elsewhere(error, options.remote_torpor)
    if not options.detach:
        return exit_with(hosts.run(job, over))
    _say_started(hosts.run_detached(job, over, wishes.tell or say), options)
    return 0


def _elsewhere(error: Elsewhere, remote: str) -> int:
    """The first host is another one: this very command is carried out there."""
    from torpor.launch import far
    from torpor.supervise.signals import exit_with

    if far.led:
        raise error
    return exit_with(far.lead(error.host, remote))
