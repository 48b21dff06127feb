"""torpor policy"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from torpor.cli.options import add_json
from torpor.model.errors import UsageError

if TYPE_CHECKING:
    from torpor.model.terms import Layer

HELP = """What a restarted job may do about services outside of it: licence servers, databases, whatever it had a
connection to. Policies are files: /etc/torpor/policy.toml, ~/.config/torpor/policy.toml, and what --policy of
torpor run and restart names. docs/policy.md explains them.

  check [FILE]    is a policy right? Without FILE: those of the system and of the user"""
EXAMPLE = """  torpor policy check licences.toml"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("check",), metavar="check")
    parser.add_argument("file", nargs="?", metavar="FILE", help="check: the policy file")
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    from torpor.cli.text import say, say_json
    from torpor.policy import files

    layers = [files.given(options.file)] if options.file else list(files.standing())
    for layer in layers:
        _complete(layer, layers)
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
