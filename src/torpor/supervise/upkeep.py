"""What is done for a job without anybody asking at the moment: when it is saved, what a signal means, what is kept,
what follows from its end. All of it decisions without side effects; `keeper.py` and the supervisor carry them out.

It is written down in the job's entry (`registry.Entry`) and, as the label `upkeep` of every checkpoint, in the store:
so a restart, here or on another host, goes on with what the job was started with.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torpor.model.errors import UsageError
from torpor.named_tuple import NamedTuple
from torpor.supervise import hooks as hooking
from torpor.supervise.hooks import Hooks
from torpor.supervise.signals import PASSED_ON

STOPPED_STATUS = 75
"""sysexits.h, EX_TEMPFAIL: not done, but worth another attempt."""
ACTIONS = ("checkpoint", "checkpoint-stop", "pass")
ENDING = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGQUIT))
"""Signals whose sender wants the job to end, in whatever way it then does so."""
LAST = 3
"""As many checkpoints are looked at to tell how long the next one will take."""


class Upkeep(NamedTuple):
    """every: seconds from the end of a checkpoint to the beginning of the next, 0: none are made unasked.  keep: that
    many newest checkpoints of the job are kept, 0: all.  on_signal: number and action, for signals that are not simply
    passed on.  deadline: seconds from a signal that means `checkpoint-stop` until whoever sent it will end the job, 0:
    not known.  crashes: how often the job is restarted after a crash.  stopped_status: exit status once the job was
    saved and ended.  with_files: every checkpoint carries the files that the job needs.  compress: how they all are
    compressed, '' for the default.  track: writes to memory are tracked, so that a checkpoint reads what has changed
    (checkpoint/tracking.py).  hooks: commands that are run around checkpoints and restarts.  forget: what is left out
    of every checkpoint.  services: what addresses are called in the ledger, NAME=ADDRESS each."""

    every: float = 0.0
    keep: int = 0
    on_signal: tuple[tuple[int, str], ...] = ()
    deadline: float = 0.0
    crashes: int = 0
    stopped_status: int = STOPPED_STATUS
    with_files: bool = False
    compress: str = ""
    track: bool = False
    hooks: Hooks = ()
    forget: tuple[str, ...] = ()
    services: tuple[str, ...] = ()

    def action(self, number: int) -> str:
        """What that signal means."""
        return dict(self.on_signal).get(number, "pass")


def changed(upkeep: Upkeep, given: Mapping[str, Any]) -> Upkeep:
    """`upkeep` with what was given in its place: fields by name, None for those that were not. Signals are replaced one
    by one, hooks event by event."""
    told = {key: value for key, value in given.items() if value is not None}
    if "on_signal" in told:
        told["on_signal"] = tuple(sorted({**dict(upkeep.on_signal), **dict(told["on_signal"])}.items()))
    if "hooks" in told:
        told["hooks"] = hooking.changed(upkeep.hooks, told["hooks"])
    return upkeep._replace(**told)


def of_part(upkeep: Upkeep) -> Upkeep:
    """What the host of a part of a job over hosts has to do that is not the first one: that does the rest for all."""
    return Upkeep(stopped_status=upkeep.stopped_status, track=upkeep.track)


def encode(upkeep: Upkeep) -> str:
    """As it is written down: JSON of what differs from the default, '' if nothing does. Signals have their names."""
    plain: dict[str, Any] = {
        key: value for key, value in upkeep._asdict().items() if value != Upkeep._field_defaults[key]
    }
    if upkeep.on_signal:
        plain["on_signal"] = {signal_name(number): action for number, action in upkeep.on_signal}
    return json.dumps(plain, sort_keys=True) if plain else ""


def decode(text: str) -> Upkeep:
    """What `encode` wrote. Raises ValueError for what is not understood."""
    if not text:
        return Upkeep()
    plain = json.loads(text)
    if not isinstance(plain, dict) or not set(plain) <= set(Upkeep._fields):
        raise ValueError(f"upkeep {text!r}")
    try:
        hooks = hooking.parsed(plain.pop("hooks", ()))
        table = {signal_number(name): str(action) for name, action in plain.pop("on_signal", {}).items()}
        kinds = {key: type(default) for key, default in Upkeep._field_defaults.items()}
        found = Upkeep(**{key: kinds[key](value) for key, value in plain.items()})
    except (UsageError, TypeError, AttributeError) as error:
        raise ValueError(f"upkeep {text!r}: {error}") from None
    if not set(table.values()) <= set(ACTIONS):
        raise ValueError(f"upkeep {text!r}")
    return found._replace(on_signal=tuple(sorted(table.items())), hooks=hooks)


def options(upkeep: Upkeep) -> list[str]:
    """The same as options of `torpor run`; none for what is not done."""
    words = []
    if upkeep.every:
        words.append(f"--every={upkeep.every:.12g}s")
    if upkeep.keep:
        words.append(f"--keep={upkeep.keep}")
    words += [f"--on-signal={signal_name(number)}={action}" for number, action in upkeep.on_signal]
    if upkeep.deadline:
        words.append(f"--deadline={upkeep.deadline:.12g}s")
    if upkeep.crashes:
        words.append(f"--on-crash=restart:{upkeep.crashes}")
    if upkeep.stopped_status != STOPPED_STATUS:
        words.append(f"--stopped-status={upkeep.stopped_status}")
    if upkeep.with_files:
        words.append("--with-files")
    if upkeep.track:
        words.append("--track")
    if upkeep.compress:
        words.append(f"--compress={upkeep.compress}")
    for event, command in upkeep.hooks:
        words += ["--on", event, command]
    words += [f"--forget={word}" for word in upkeep.forget]
    words += [f"--service={word}" for word in upkeep.services]
    return words


def signal_number(name: str) -> int:
    """Of `TERM`, `SIGTERM`, `15`, `RTMIN+1`. Raises UsageError."""
    upper = name.upper().removeprefix("SIG")
    base, plus, offset = upper.partition("+")
    if base == "RTMIN" and plus and offset.isdigit() and signal.SIGRTMIN + int(offset) <= signal.SIGRTMAX:
        return signal.SIGRTMIN + int(offset)
    if name.isascii() and name.isdigit() and int(name) in signal.valid_signals():
        return int(name)
    try:
        return signal.Signals[f"SIG{upper}"]
    except KeyError:
        raise UsageError(f"there is no signal {name}") from None


def signal_name(number: int) -> str:
    """`TERM`, `RTMIN+1`."""
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return f"RTMIN+{number - signal.SIGRTMIN}"


def reaction(text: str) -> tuple[int, str]:
    """Of `TERM=checkpoint-stop`. Raises UsageError."""
    name, equals, action = text.partition("=")
    number = signal_number(name)
    if not equals or action not in ACTIONS:
        raise UsageError(f"{text!r}: say SIGNAL=ACTION, with an action of {', '.join(ACTIONS)}")
    if number not in PASSED_ON:
        raise UsageError(f"{name} cannot be answered: it is not a signal that torpor passes on to a job")
    return number, action


def due(upkeep: Upkeep, now: float, last: float) -> float | None:
    """Seconds until the next checkpoint is to be made, 0 if it is to be made now, None if none is. last: when the
    latest attempt ended, or the job began to run."""
    return max(0.0, last + upkeep.every - now) if upkeep.every else None


def predict(seconds: Sequence[float]) -> float | None:
    """How long the next checkpoint will take, given how long earlier ones took, oldest first: as long as the slowest of
    the last three. None if there were none."""
    return max(seconds[-LAST:], default=None)


def answer(action: str, busy: str, expected: float | None, left: float | None) -> str:
    """What to do about a signal that means `action`.

    busy: '', or what is going on: 'checkpoint', 'checkpoint-stop' (or one is to follow), 'check'.  expected: seconds
    the checkpoint will take, None if not known.  left: seconds until the job will be ended, None if not known.  Returns
    'pass', 'save', 'after' (save once what is going on is over), 'again' (it is being done already) or 'late' (it will
    not fit).
    """
    if action == "pass":
        return "pass"
    if busy in (action, "checkpoint-stop"):
        return "again"
    if action == "checkpoint-stop" and expected is not None and left is not None and expected > left:
        return "late"
    return "after" if busy else "save"


def surplus(whole: Collection[int], keep: int) -> list[int]:
    """Which checkpoints are not kept, oldest first. whole: numbers of those that are complete; others do not count, and
    are nobody's business here."""
    return sorted(whole)[:-keep] if keep > 0 else []


def crashed(status: int, signals: Collection[int]) -> bool:
    """Did a job with that wait status end in a way that nobody asked for? signals: those it was sent from outside."""
    if status == 0 or ENDING & set(signals):
        return False
    return not (os.WIFSIGNALED(status) and os.WTERMSIG(status) in signals)


def final_status(upkeep: Upkeep, status: int, stopped: bool, interrupted: bool, saved: bool) -> int:
    """The wait status to end with. stopped: the job was saved and then ended.  interrupted: there was no time to save
    it, or that failed, and it was told the signal.  saved: there is a checkpoint to go on from."""
    if stopped or (interrupted and saved and status != 0):
        return upkeep.stopped_status << 8
    return status
