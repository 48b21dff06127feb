"""torpor inspect"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from torpor.cli.options import add_json, add_store, add_untrusted, store

if TYPE_CHECKING:
    from torpor.launch.checkpoint import Checkpoint, Needs, SavedProcess

HELP = """Show what a checkpoint holds: processes, threads, memory, open files; and what it will ask of the
machine that restarts it.

With --services: the outside addresses that a watched job (torpor run --watch) has asked for; of the running job of
that name, or of a checkpoint."""
EXAMPLE = """  torpor inspect train
  torpor inspect train@3 --json
  torpor inspect train --services"""

WIDTH = 100
_NAMES_SHOWN = 3


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="NAME, NAME@3, NAME@-1")
    parser.add_argument("--part", default="", metavar="PART", help="of a job over hosts: one host's part of it")
    parser.add_argument("--services", action="store_true", help="the outside addresses it has asked for")
    add_untrusted(parser)
    add_store(parser)
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    import torpor
    from torpor.cli.text import say, say_json

    if options.services:
        return _services(options)
    if not options.part and _whole(options):
        return 0
    opened = torpor.open_checkpoint(
        options.checkpoint, store=store(options) or None, untrusted=options.untrusted, part=options.part
    )
    if options.json:
        say_json({
            "name": opened.name,
            "created": opened.manifest.created,
            "torpor": opened.manifest.torpor,
            "bytes_total": opened.info.bytes_total,
            "bytes_new": opened.info.bytes_new,
            "path": opened.info.path,
            "upkeep": _upkeep(opened),
            "forgotten": opened.manifest.forgotten,
            "processes": [
                {**process._asdict(), "descriptors": [d._asdict() for d in process.descriptors]}
                for process in opened.processes()
            ],
            "needs": opened.needs()._asdict(),
        })  # fmt: skip
        return 0
    for line in (*_head(opened), "", *_processes(opened.processes()), "", *_needs(opened.needs())):
        say(line)
    return 0


def _whole(options: argparse.Namespace) -> bool:
    """Show what a checkpoint of a job over hosts consists of; False if it is of one host."""
    from torpor.cli.text import duration, moment, plural, say, say_json, size, table
    from torpor.launch.checkpoint import open_whole

    found = open_whole(options.checkpoint, store(options) or None, options.untrusted)
    if found is None:
        return False
    info, whole = found
    if options.json:
        import msgspec

        say_json(msgspec.to_builtins(whole))
        return True
    hosts = plural(len(whole.parts), "host")
    say(f"{info.job}@{info.number}, saved {moment(whole.created)} on {hosts} by torpor {whole.torpor}")
    rows = [
        [
            record.part.name + (" *" if record.part.name == whole.first else ""), record.host, record.address,
            str(record.processes), str(record.threads), size(record.part.bytes_total), duration(record.pause),
            record.command,
        ]
        for record in whole.parts
    ]  # fmt: skip
    head = ("PART", "HOST", "ADDRESS", "PROCESSES", "THREADS", "SIZE", "PAUSE", "COMMAND")
    say(table(head, rows, right=(3, 4, 5, 6)))
    say("* the job began here; --part PART shows one of them")
    return True


def _services(options: argparse.Namespace) -> int:
    """The ledger of a running job (of one over hosts: of its part here), or of a checkpoint. Raises NotFound where
    there is none."""
    import torpor
    from torpor.cli.text import moment, plural, say, say_json, table
    from torpor.launch.checkpoint import ledgers
    from torpor.model.errors import NotFound

    running = [job for job in torpor.jobs() if options.checkpoint in (None, job.name)]
    if len(running) == 1:
        what, found = running[0].name, [(running[0].entry.part, running[0].ledger())]
    else:
        what, found = ledgers(options.checkpoint, store(options) or None, options.untrusted, options.part)
    watched = [(part, ledger) for part, ledger in found if ledger is not None]
    if not watched:
        raise NotFound(f"{what} is not watched: torpor watch, or torpor run --watch")
    since, late = min(ledger.since for _, ledger in watched), any(ledger.late for _, ledger in watched)
    dropped = sum(ledger.dropped for _, ledger in watched)
    contacts = [(part, contact, names) for part, ledger in watched for contact, names in ledger.named()]
    listeners = dict.fromkeys(program for _, ledger in watched for program in ledger.listeners)
    if options.json:
        say_json({
            "name": what,
            "since": since,
            "with_sendmsg": any(ledger.with_sendmsg for _, ledger in watched),
            "with_answers": any(ledger.with_answers for _, ledger in watched),
            "late": late,
            "listeners": list(listeners),
            "dropped": dropped,
            "services": [
                {
                    **({"part": part} if part else {}),
                    **{field: getattr(each, field) for field in each.__struct_fields__},
                    "name": next(iter(names), ""),
                    "names": names,
                }
                for part, each, names in contacts
            ],
        })  # fmt: skip
        return 0
    before = "; what it asked for before is not known" if late else ""
    say(f"{what}, watched since {moment(since)}{before}")
    if lacking := [part for part, ledger in found if ledger is None]:
        say(f"not watched: {', '.join(lacking)}")
    over_hosts = any(part for part, _ in found)
    rows = [
        [
            *([part] if over_hosts else []),
            contact.protocol,
            contact.where or "not readable",
            ", ".join((*names[:_NAMES_SHOWN], *["..."] * (len(names) > _NAMES_SHOWN))) or "-",
            moment(contact.first),
            moment(contact.last),
            str(contact.calls),
            str(contact.pid),
            contact.program or "?",
        ]
        for part, contact, names in contacts
    ]
    if rows:
        head = ("KIND", "ADDRESS", "NAME", "FIRST", "LAST", "CALLS", "PID", "PROGRAM")
        say(table(("PART", *head), rows, right=(6, 7)) if over_hosts else table(head, rows, right=(5, 6)))
    else:
        say("no outside address was asked for")
    for program in listeners:
        say(f"{program or '?'} wanted to see system calls itself, and could not: the job is watched (docs/watch.md)")
    if dropped:
        say(f"and {plural(dropped, 'call')} to further addresses, for which there was no room")
    return 0


def _head(opened: Checkpoint) -> list[str]:
    import shlex

    from torpor.cli.text import moment, size

    info, manifest = opened.info, opened.manifest
    saved = f"saved {moment(manifest.created)} on {manifest.machine.host} by torpor {manifest.torpor}"
    unasked = _upkeep(opened)
    return [
        f"{opened.name}, {saved}",
        f"{size(info.bytes_total)} in all, of which {size(info.bytes_new)} new; {info.path}",
        *(f"left out: {line}" for line in manifest.forgotten),
        *([f"a restart goes on with {shlex.join(unasked)}"] if unasked else []),
    ]


def _upkeep(opened: Checkpoint) -> list[str]:
    """What is done for the job unasked, as options of `torpor restart`."""
    from torpor.supervise import upkeep

    try:
        return upkeep.options(upkeep.decode(str(opened.info.label.get("upkeep", ""))))
    except ValueError:
        return []  # of a later version


def _processes(found: list[SavedProcess]) -> list[str]:
    """The tree, and under each process its open files."""
    from torpor.cli.text import plural, size

    known = {process.pid for process in found}
    below: dict[int, list[SavedProcess]] = {}
    for process in found:
        below.setdefault(process.parent if process.parent in known else 0, []).append(process)
    lines: list[str] = []

    def show(process: SavedProcess, depth: int) -> None:
        pad = "  " * depth
        words = [plural(process.threads, "thread"), f"{size(process.bytes)} of {size(process.mapped)} mapped"]
        words += [plural(process.areas, "area")]
        words += [process.state] if process.state != "running" else []
        lines.append(f"{pad}{process.pid} {process.comm}: {', '.join(words)}")
        if process.exe:
            lines.append(f"{pad}    runs {process.exe}")
        for number, kind, what in process.descriptors:
            lines.append(f"{pad}    {number:>3} {kind} {what}".rstrip())
        for child in below.get(process.pid, []):
            show(child, depth + 1)

    for process in below.get(0, []):
        show(process, 0)
    return lines


def _needs(needs: Needs) -> list[str]:
    import textwrap

    def several(title: str, words: tuple[str, ...]) -> list[str]:
        if not words:
            return []
        return textwrap.wrap(
            f"{title}: {' '.join(words)}", WIDTH, initial_indent="  ", subsequent_indent="    ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip

    lines = [
        "It asks of the machine that restarts it:",
        f"  {needs.arch}, ran on Linux {needs.kernel}, as uid {needs.uid}, gid {needs.gid}",
        *several("CPU features", needs.cpu),
        *several("services", needs.services),
    ]
    if needs.xsave:
        lines.append(f"  {needs.xsave} bytes of extended CPU state")
    if needs.terminal:
        lines.append("  a terminal (or --detach)")
    titles = (
        ("unchanged files", needs.files),
        ("files unchanged or missing (there are copies)", needs.carried),
        ("files it was writing", needs.written),
    )
    for title, files in titles:
        if files:
            lines.append(f"  {title}:")
            lines += [f"    {path}" for path in files]
    return lines
