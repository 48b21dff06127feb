"""torpor run"""

from __future__ import annotations

import argparse
import os

from torpor.cli import upkeep
from torpor.cli.options import add_json, add_policy, add_store, add_untrusted, policy, store, wait
from torpor.model.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.launch.detach import Started
    from torpor.launch.restart import Wishes

PROGRAM = True
HELP = """Start a program as a job, so that it can be saved.

In the foreground it is as if torpor were not there: terminal, job control, signals and exit status are the
program's own. With --detach it runs without a terminal, its output goes to a log (torpor logs), and the
command returns as soon as the program has really been started.

Exit status: the program's own; 75 (--stopped-status) if it was saved and then ended, on a signal or by
torpor checkpoint --stop: run it again with --resume-or-start, or torpor restart."""
EXAMPLE = """  torpor run --name train -- python3 train.py --epochs 90
  torpor run --detach -- make -j4
  torpor run --name train --every 10m --keep 3 --on-crash restart:3 -- ./train
  torpor run --name "$JOB" --resume-or-start --on-signal TERM=checkpoint-stop --deadline 100s -- ./train"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"""torpor run [--name NAME] [--detach] [--store FOLDER] [--resume-or-start [--untrusted]]
                  [--watch[=WHAT]] [--policy FILE] [--wait TIME] [--inside]
                  [--hosts HOST,... [--engine URL] [--remote-torpor PATH]] [--job-file FILE]
                  {upkeep.USAGE}
                  -- PROGRAM [ARGUMENT ...]
       torpor run --join JOB|FILE [--hosts HOST] -- PROGRAM [ARGUMENT ...]"""
    parser.add_argument("--name", help="name of the job (default: the program's)")
    parser.add_argument("--detach", action="store_true", help="without a terminal; output goes to a log")
    parser.add_argument(
        "--resume-or-start", action="store_true",
        help="restart the newest checkpoint of that name if there is one (one that is damaged is passed over), else "
        "start the program; needs --name",
    )  # fmt: skip
    parser.add_argument(
        "--watch", nargs="?", choices=["names", "connect", "sendmsg", "none"], const="names",
        help="write down which outside addresses the job asks for (torpor inspect --services), and what name servers "
        "called them; =connect: without such names; =sendmsg: also addresses that only sendmsg names, which makes that "
        "call slow. Without root, programs that are set-user-ID lose their privilege (docs/watch.md). A job over hosts "
        "is watched unasked (=connect); =none: it is not",
    )  # fmt: skip
    add_policy(parser, "; seats that it names are acquired first, and the job is watched")
    parser.add_argument(
        "--inside", action="store_true",
        help="let the program speak with torpor: checkpoint itself, hear of restarts, hold checkpoints off "
        "(docs/inside.md)",
    )  # fmt: skip
    parser.add_argument(
        "--hosts", metavar="HOST,...", help="a job over these hosts: the program runs on the first; "
        "torpor rsh brings its processes to the others, which are reached by ssh (docs/hosts.md)",
    )  # fmt: skip
    parser.add_argument(
        "--join", metavar="JOB", help="the program becomes part of a job that runs on this host, or whose job file "
        "this is (docs/hosts.md)",
    )  # fmt: skip
    parser.add_argument(
        "--job-file", metavar="FILE", default="", help="in a folder that all hosts see: whoever finds none begins the "
        "job, whoever comes later with the same file joins it (docs/hosts.md)",
    )  # fmt: skip
    parser.add_argument(
        "--engine", metavar="URL", default="", help="with --hosts: a site's NATS servers, in place of one of the job's"
    )
    parser.add_argument(
        "--remote-torpor", metavar="PATH", default="", help="with --hosts: torpor on the others (default: as here)"
    )
    add_untrusted(parser)
    add_store(parser)
    add_json(parser)
    upkeep.add(parser)


def command(options: argparse.Namespace) -> int:
    if not options.program:
        raise UsageError("run: which program? (torpor run -- PROGRAM ARGUMENTS)")
    if options.resume_or_start and not options.name:
        raise UsageError("run: --resume-or-start needs --name")
    if options.untrusted and not options.resume_or_start:
        raise UsageError("run: --untrusted is for --resume-or-start")
    if options.watch == "none" and not (options.hosts or options.job_file):
        options.watch = None
    if options.join:
        return _join(options)
    if options.hosts or options.job_file:
        return _start_over_hosts(options)
    if options.engine or options.remote_torpor:
        raise UsageError("run: --engine and --remote-torpor are for --hosts")
    names, notes = _saved(options) if options.resume_or_start else ([], [])
    if not options.detach:
        from torpor.supervise.signals import exit_with

        return exit_with(_resume(options, names, notes) if names else _start(options))
    _say_started(_resume_detached(options, names, notes) if names else _start_detached(options), options, bool(names))
    return 0


def _say_started(started: Started, options: argparse.Namespace, again: bool) -> None:
    from torpor.cli.text import complain, say, say_json

    if options.json:
        say_json(started._asdict())
    else:
        for note in started.notes:
            complain(note)
        word = "restarted" if again else "started"
        say(f"{word} {started.name}, pid {started.pid}, log {started.log}")


def _start(options: argparse.Namespace) -> int:
    from torpor.launch import run

    return run.run(
        options.program, options.name, store(options), upkeep.encoded(options), options.watch, options.inside,
        policy(options.policy), wait(options),
    )  # fmt: skip


def _join(options: argparse.Namespace) -> int:
    from torpor.launch import join
    from torpor.supervise.signals import exit_with

    for flag in ("detach", "resume_or_start", "watch", "name", "job_file", "engine", "remote_torpor", "store", "policy",
                 "wait", "inside"):  # fmt: skip
        if getattr(options, flag):
            raise UsageError(f"run: --{flag.replace('_', '-')} does not go with --join: that is the job's affair")
    if upkeep.given(options):
        raise UsageError("run: what is done unasked for a job is said where it is started, not with --join")
    return exit_with(join.join(options.join, options.program, options.hosts or ""))


def _start_over_hosts(options: argparse.Namespace) -> int:
    from torpor.cli.text import complain
    from torpor.launch import hosts, resume
    from torpor.supervise.signals import exit_with

    if options.on_crash and options.job_file:
        raise UsageError(
            "run: --on-crash does not go with --job-file: nobody starts again what other launchers started"
        )
    names = [host.strip() for host in (options.hosts or "").split(",") if host.strip()] or hosts.this()
    if options.job_file:
        from torpor.launch import job_file, join

        options.job_file = os.path.abspath(options.job_file)
        if not job_file.claim(options.job_file):
            # What the job is was said by whoever began it.
            if options.detach:
                raise UsageError("run: --detach: a program that joins a job has its terminal")
            return exit_with(join.join(options.job_file, options.program, options.hosts or ""))
    over = hosts.Over(names, options.engine, options.remote_torpor, options.job_file)
    which, notes = _saved(options) if options.resume_or_start else ([], [])

    def again(which: str, told: tuple[str, ...]) -> hosts.Planned:
        return hosts.saved(which, store(options), _wishes(options, told), over)

    try:
        if which:
            job = resume.first_whole(which, notes, again)
        else:
            watch = "" if options.watch == "none" else options.watch or "connect"
            job = hosts.new(options.program, options.name, store(options), upkeep.encoded(options), over,
                            policy(options.policy), watch, wait(options), options.inside)  # fmt: skip
        if not options.detach:
            return exit_with(hosts.run(job, over))
        started = hosts.run_detached(job, over, complain)
    except BaseException as error:
        if options.job_file:
            job_file.remove(options.job_file)
        if isinstance(error, hosts.Elsewhere):
            from torpor.launch import far

            if not far.led:
                return exit_with(far.lead(error.host, options.remote_torpor))
        raise
    _say_started(started, options, bool(which))
    return 0


def _start_detached(options: argparse.Namespace) -> Started:
    from torpor.cli.text import complain
    from torpor.launch import run

    keep_up = upkeep.encoded(options)
    return run.run_detached(
        options.program, options.name, store(options), keep_up=keep_up, watch=options.watch, inside=options.inside,
        policy=policy(options.policy), wait=wait(options), tell=complain,
    )  # fmt: skip


def _saved(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The checkpoints to resume from, newest first; what is to be said about others."""
    from torpor.launch import resume
    from torpor.supervise.registry import check_name

    return resume.candidates(store(options), check_name(options.name))


def _wishes(options: argparse.Namespace, notes: tuple[str, ...]) -> Wishes:
    from torpor.launch import restart

    return restart.Wishes(untrusted=options.untrusted, upkeep=upkeep.given(options), why="resume", notes=notes,
                           policy=policy(options.policy), wait=wait(options))  # fmt: skip


def _resume(options: argparse.Namespace, names: list[str], notes: list[str]) -> int:
    from torpor.launch import restart, resume

    def attempt(which: str, told: tuple[str, ...]) -> int:
        return restart.restart(which, store(options), _wishes(options, told))

    return resume.first_whole(names, notes, attempt)


def _resume_detached(options: argparse.Namespace, names: list[str], notes: list[str]) -> Started:
    from torpor.launch import detached, resume

    def attempt(which: str, told: tuple[str, ...]) -> Started:
        return detached.restart_detached(which, store(options), _wishes(options, told))

    return resume.first_whole(names, notes, attempt)
