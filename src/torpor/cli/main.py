"""The command `torpor`: finds the subcommand, and builds and imports only that one.

Exit status: 0 done; 1 attempted and failed, or refused; 2 the request was not understood, or there is no such
job or checkpoint. `run`, `restart`, `attach` and `wait` pass on the exit status of the job; where a signal
ended it, they end of the same signal. `run` says 127 where the program was not found and 126 where it cannot
be executed.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as type checkers know it; the module `typing` is not imported for it
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

COMMANDS = {
    "run": "start a program as a job",
    "checkpoint": "save a job",
    "restart": "start a saved job again",
    "jobs": "list the running jobs",
    "list": "list the checkpoints",
    "attach": "follow a detached job until it ends",
    "logs": "show what a detached job has written",
    "wait": "wait for a job to end",
    "stop": "end a job",
    "inspect": "show what a checkpoint holds",
    "watch": "write down from now on what a job asks for outside",
    "check": "could a job be saved, and what stands in the way",
    "rm": "remove checkpoints",
    "prune": "remove old checkpoints, and what nobody needs",
    "verify": "is a checkpoint whole",
    "drill": "would a checkpoint start: rehearse its restart",
    "scan": "does a checkpoint hold keys, tokens, passwords",
    "core": "write a saved process as a core file, for a debugger",
    "copy": "copy a checkpoint to another store",
    "key": "keys: who signs checkpoints, who is trusted, who can read",
    "policy": "what restarted jobs may do about services outside of them",
    "seats": "pools of licence seats",
    "doctor": "what this machine allows",
    "rsh": "inside a job over hosts: run a command on another of them",
    "completion": "print a completion script for a shell",
}

HIDDEN = ("member",)
"""Commands that torpor itself starts."""

USAGE = "usage: torpor COMMAND [OPTIONS]   (torpor COMMAND --help)"

HELP = f"""{USAGE}

Save a running computation and start it again later, without a change to the program.

commands:
{chr(10).join(f"  {name:<12}{what}" for name, what in COMMANDS.items())}

example:
  torpor run --name train -- python3 train.py
  torpor checkpoint train --stop
  torpor restart train

exit status: 0 done, 1 failed or refused, 2 not understood or no such thing; run, restart, attach and wait
pass on the job's own."""


def load(name: str) -> ModuleType:
    """The module of a command."""
    import importlib

    return importlib.import_module(f"torpor.cli.{'list_' if name == 'list' else name}")


def main(argv: list[str] | None = None) -> int:
    """Carry out a command line; the exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        try:
            status = _dispatch(words)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _die("SIGINT")
    except BrokenPipeError:
        _drop_output()
        return _die("SIGPIPE")


def _dispatch(words: list[str]) -> int:
    from torpor.cli.text import complain, say

    if not words or words[0] in ("-h", "--help", "help"):
        if words[:1] == ["help"] and words[1:2] and words[1] in COMMANDS:
            return _dispatch([words[1], "--help"])
        (say if words else complain)(HELP if words else f"which command?\n{USAGE}")
        return 0 if words else 2
    name, rest = words[0], words[1:]
    if name in ("-V", "--version", "version"):
        from torpor import __version__

        say(f"torpor {__version__}")
        return 0
    if name not in COMMANDS and name not in HIDDEN:
        complain(f"there is no command {name!r} (torpor --help)")
        return 2
    from torpor.model.errors import TorporError

    as_json = name != "rsh" and "--json" in (rest[: rest.index("--")] if "--" in rest else rest)
    try:
        module = load(name)
        options: Any = None
        if getattr(module, "QUICK", False):
            from torpor.cli import quick

            options = quick.parse(module, rest)
        if options is None:
            from torpor.cli import parser

            options = parser.parse(name, module, rest)
        status: int = module.command(options)
        return status
    except TorporError as error:
        if as_json:
            from torpor.cli.text import say_json
            from torpor.supervise.protocol import error_message

            say_json(error_message(error))
        complain(" ".join(str(error).split("\n")))
        return error.status
    except BrokenPipeError:
        raise
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    except ModuleNotFoundError as error:
        complain(f"{name}: not available in this installation ({error})")
        return 1


def _drop_output() -> None:
    """Nobody reads: what is still buffered must not raise again when the interpreter ends."""
    import os

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)


def _die(name: str) -> int:
    import signal

    from torpor.supervise.signals import die_of

    number = signal.Signals[name]
    die_of(number)
    return 128 + number
