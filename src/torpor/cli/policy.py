"""torpor policy"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from torpor.cli.options import add_json, add_store, add_untrusted, store
from torpor.model.errors import UsageError

if TYPE_CHECKING:
    from torpor.model.terms import Layer

HELP = """What a restarted job may do about services outside of it: licence servers, databases, whatever it had a
connection to. Policies are files: /etc/torpor/policy.toml, ~/.config/torpor/policy.toml, and what --policy of
torpor run and restart names. docs/policy.md explains them.

  check [FILE]         is a policy right? Without FILE: those of the system and of the user
  explain CHECKPOINT   the services that a saved job has used, and what a restart would do about each; exit status 1
                       if it would be refused (whether seats are free is not asked)"""
EXAMPLE = """  torpor policy check licences.toml
  torpor policy explain train --policy licences.toml"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("check", "explain"), metavar="check|explain")
    parser.add_argument("what", nargs="?", metavar="FILE|CHECKPOINT", help="check: a file; explain: a checkpoint")
    parser.add_argument("--policy", metavar="FILE", default="", help="explain: as for torpor restart")
    parser.add_argument("--part", default="", metavar="PART", help="explain: of a job over hosts, one host's part")
    add_untrusted(parser)
    add_store(parser)
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    return _explain(options) if options.action == "explain" else _check(options)


def _explain(options: argparse.Namespace) -> int:
    import torpor
    from torpor.cli.text import say, say_json, table
    from torpor.policy import files
    from torpor.policy.decide import decide, merged
    from torpor.policy.outside import services

    opened = torpor.open_checkpoint(
        options.what, store=store(options) or None, untrusted=options.untrusted, part=options.part
    )
    hosts: set[str] = set()
    if options.part:
        from torpor.launch.checkpoint import open_whole

        found_whole = open_whole(options.what, store(options) or None, options.untrusted)
        for record in found_whole[1].parts if found_whole is not None else ():
            hosts.update((record.address, record.face.address, *record.also))
    sealed = opened.manifest.terms
    given = (files.given(options.policy),) if options.policy else ()
    layers = merged(sealed.layers if sealed is not None else (), given, files.standing())
    outcome = decide(services(opened.manifest, hosts), layers, sealed.held if sealed is not None else ())
    refused = dict(outcome.refusals)
    found: list[dict[str, Any]] = [
        {
            "service": str(service), "programs": list(service.programs), "connected": bool(service.open),
            "licence": service.licence, "action": "ask" if decision is None and str(service) in refused
            else decision.action if decision is not None else "reset",
            "seats": list(decision.seats) if decision is not None else [], "refused": refused.get(str(service), ""),
        }
        for service, decision in outcome.decisions
    ]  # fmt: skip
    if options.json:
        say_json({
            "name": opened.name, "services": found, "seats": [seat.name for seat in outcome.seats],
            "policies": [layer.source for layer in layers],
            "refused": [f"{what}: {why}" for what, why in outcome.refusals],
        })  # fmt: skip
        return 1 if refused else 0
    said = ", ".join(layer.source for layer in layers) or "no policy"
    say(f"{opened.name}: {said}")
    rows: list[list[str]] = [
        [each["service"], "yes" if each["connected"] else "no", " ".join([each["action"], *each["seats"]]),
         ", ".join(each["programs"]) or "-"]
        for each in found
    ]  # fmt: skip
    say(table(("SERVICE", "CONNECTED", "ACTION", "PROGRAM"), rows) if rows else "it has used nothing outside")
    if outcome.seats:
        say(f"seats: {', '.join(f'{seat.name} ({seat.provider})' for seat in outcome.seats)}")
    for what, why in outcome.refusals:
        say(f"refused: {what}: {why}")
    return 1 if refused else 0


def _check(options: argparse.Namespace) -> int:
    from torpor.cli.text import say, say_json
    from torpor.policy import files

    if options.policy or options.part:
        raise UsageError("policy check: --policy and --part are for explain")
    standing = list(files.standing())
    layers = [files.given(options.what)] if options.what else standing
    for layer in layers:
        _complete(layer, [*layers, *standing])
    if options.json:
        import msgspec

        say_json([msgspec.to_builtins(layer) for layer in layers])
        return 0
    if not layers:
        say(f"no policy: there is neither {files.SYSTEM} nor {files.user()}")
    for layer in layers:
        from torpor.cli.text import plural

        say(f"{layer.source}: {plural(len(layer.rules), 'service')}, {plural(len(layer.seats), 'seat')}")
    return 0


def _complete(layer: Layer, layers: list[Layer]) -> None:
    """Raises UsageError where a rule names a seat of which nothing is said."""
    from torpor.policy.decide import seats

    known = seats(layers)
    for number, rule in enumerate(layer.rules, 1):
        if rule.seat and rule.seat not in known:
            raise UsageError(f"{layer.source}: service {number}: there is no [seats.{rule.seat}]")
