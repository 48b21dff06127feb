"""torpor key"""

from __future__ import annotations

import argparse

from torpor.cli.options import add_json
from torpor.model.errors import UsageError

HELP = """Keys. Every checkpoint is signed with your key when it is saved, and a restart verifies by whom: it has
to be you, or somebody whose key you trust. Your key is made when it is needed first. What was saved with
torpor checkpoint --encrypt-to KEY can be read by the owner of that key only.

Keys are in ~/.config/torpor/keys ($XDG_CONFIG_HOME): NAME.key secret ones, yours is default.key; NAME.pub those
you trust. TORPOR_KEY_FILE names another file as your secret key; for checkpoints of a supervised job it counts
when the job is started, since its supervisor signs.

  new             make your key now
  list            your key, and those you trust
  trust KEY       from now on, restart what this key has signed. KEY: a file, or a key written out
  export          print your public key, for others to trust or to encrypt to; with --secret the secret one, to be
                  carried to another machine and named there by TORPOR_KEY_FILE"""
EXAMPLE = """  torpor key export > alice.pub
  torpor key trust alice.pub
  (umask 077; torpor key export --secret > /media/key); TORPOR_KEY_FILE=/media/key torpor restart train"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("new", "list", "trust", "export"), metavar="new|list|trust|export")
    parser.add_argument("key", nargs="?", metavar="KEY", help="trust: a file, or a key written out")
    parser.add_argument("--name", help="trust: what to call it (default: the file's name)")
    parser.add_argument("--secret", action="store_true", help="export: the secret key")
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    if (options.key is None) == (options.action == "trust"):
        raise UsageError("key: trust needs a key" if options.key is None else f"key {options.action}: no KEY here")
    if options.secret and options.action != "export":
        raise UsageError("key: --secret goes with export")
    return {"new": _new, "list": _list, "trust": _trust, "export": _export}[options.action](options)


def _new(options: argparse.Namespace) -> int:
    import os

    from torpor.cli.text import say, say_json
    from torpor.image import keys

    path = os.environ.get(keys.FILE) or f"{keys.folder()}/{keys.OWN}.key"
    if not path.startswith("/"):
        raise UsageError(f"{keys.FILE}={path}: the path has to begin with /")
    if os.path.lexists(path):
        raise UsageError(f"there is a key already: {path}")
    made = keys.make_key(path)
    if options.json:
        say_json({"id": made.public.id, "path": path, "public": str(made.public)})
    else:
        say(f"made {made.public.id}, {path}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from torpor.cli.text import say, say_json, table
    from torpor.image import keys

    mine = keys.own()
    found = keys.known()
    if options.json:
        say_json([
            {"id": key.id, "name": name, "own": mine is not None and key == mine.public, "public": str(key)}
            for name, key in found.items()
        ])  # fmt: skip
        return 0
    if not found:
        say("no keys; yours is made by the first checkpoint, or by torpor key new")
        return 0
    rows = [[key.id, name, "yours" if mine and key == mine.public else "trusted"] for name, key in found.items()]
    say(table(("KEY", "NAME", ""), rows))
    return 0


def _trust(options: argparse.Namespace) -> int:
    import os

    from torpor.cli.text import say, say_json
    from torpor.image import keys

    public = keys.parse_public(options.key) or keys.read_public(options.key)
    if public is None:
        raise UsageError(f"{options.key!r} is no key: not a file, nor a key written out")
    for name, known in keys.known().items():
        if known == public:
            say_json({"id": public.id, "name": name}) if options.json else say(
                f"{public.id} is trusted already: {name}"
            )
            return 0
    stem = os.path.basename(options.key).rpartition(".")[0] if os.path.exists(options.key) else ""
    name = options.name or stem or public.id
    if not keys.good_name(name):
        raise UsageError(f"{name!r} cannot be the name of a key; use letters, digits, '.', '_' and '-' (--name)")
    if not keys.write(f"{keys.folder()}/{name}.pub", f"{public}\n"):
        raise UsageError(f"there is a key called {name} already; use --name")
    say_json({"id": public.id, "name": name}) if options.json else say(f"trusted from now on: {public.id}, {name}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from torpor.cli.text import say, say_json
    from torpor.image import keys

    mine = keys.own(make=True)
    assert mine is not None
    text = keys.text_of(mine) if options.secret else str(mine.public)
    say_json({"id": mine.public.id, "key": text}) if options.json else say(text.rstrip("\n"))
    return 0
