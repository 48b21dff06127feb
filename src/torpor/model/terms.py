"""On what terms a job uses what is outside of it. Read and applied by the floor `policy`, kept in the image."""

from __future__ import annotations

from typing import Any

import msgspec


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done about outside services that match it: all that is given has to match, one of each is enough.

    action: 'reset', 'reconnect', 'refuse' or 'seat'; seat: which.  addresses: '10.1.2.3' or '10.0.0.0/8'.  ports: from
    and to.  names, programs: patterns (fnmatch).  to: of 'reconnect', 'HOST' or 'HOST:PORT' to connect to in place of
    the old address.  wait: of 'reconnect', seconds for which it is tried.  otherwise: what follows if it fails, 'reset'
    or 'refuse'.
    """

    action: str
    seat: str = ""
    addresses: tuple[str, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    names: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    to: str = ""
    wait: float = 0.0
    otherwise: str = "reset"


class SeatTerms(msgspec.Struct, frozen=True, kw_only=True):
    """Where a seat comes from (seats/provider.py).

    provider, options: who gives it, and what he has to know.  wait: seconds for which a restart waits for one.
    on_loss: what becomes of the job if it cannot be renewed, 'pause' or 'warn'; grace: seconds between the warning and
    the pause.  at_start: `torpor run` takes one too.
    """

    name: str
    provider: str
    options: dict[str, Any] = {}
    wait: float = 0.0
    on_loss: str = "pause"
    grace: float = 300.0
    at_start: bool = True


class Layer(msgspec.Struct, frozen=True):
    """One policy file. source: its path. The first rule that matches counts."""

    source: str
    rules: tuple[Rule, ...] = ()
    seats: tuple[SeatTerms, ...] = ()


class Sign(msgspec.Struct, frozen=True):
    """A variable in the environment of a process of the job that says where licences come from. value: '' if that
    was not to be kept.  program: its executable."""

    variable: str
    value: str
    program: str


class Terms(msgspec.Struct, frozen=True):
    """What is sealed into a checkpoint: the policy in force when it was made, the seats that the job held (names), and
    what there was to be seen of licences."""

    layers: tuple[Layer, ...] = ()
    held: tuple[str, ...] = ()
    signs: tuple[Sign, ...] = ()
