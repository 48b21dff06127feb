"""torpor seats"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from torpor.cli.options import add_json, add_store, store
from torpor.model.errors import UsageError

if TYPE_CHECKING:
    from torpor.store.backend import Backend

HELP = """Pools of licence seats, for sites whose licences allow so many jobs at a time (docs/policy.md). A pool is
kept in a store. A job holds a seat while it runs; it is given back when the job ends, is stopped, or is saved
with --stop, and comes free by itself if its holder is not heard of any more.

  create NAME     make a pool of --count seats
  list            the pools of a store
  status NAME     who has its seats
  rm NAME         remove a pool of which no seat is taken"""
EXAMPLE = """  torpor seats create sim --count 4 --store /shared/store
  torpor seats create sim --count 4 --until 2027-12-31
  torpor seats status sim"""

ACTIONS = ("create", "list", "status", "rm")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=ACTIONS, metavar="create|list|status|rm")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the pool")
    parser.add_argument("--count", type=int, metavar="N", help="create: how many seats it has")
    parser.add_argument(
        "--until",
        metavar="DATE",
        help="create: the licence holds to the end of that day, 2027-12-31 (default: for ever)",
    )
    parser.add_argument(
        "--ttl", metavar="TIME", help="create: how long a seat is kept for a holder who is not heard of (default: 60s)"
    )
    add_store(parser)
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    from torpor.store import locations
    from torpor.supervise.registry import check_name

    if (options.name is None) != (options.action == "list"):
        raise UsageError(f"seats {options.action}: {'which pool?' if options.name is None else 'no NAME here'}")
    if options.action != "create" and (options.count is not None or options.until or options.ttl):
        raise UsageError("seats: --count, --until and --ttl are for create")
    if options.name is not None:
        check_name(options.name)
    backend = locations.open_backend(store(options) or locations.absolute(locations.default()))
    try:
        return {"create": _create, "list": _list, "status": _status, "rm": _remove}[options.action](options, backend)
    finally:
        backend.close()


def _create(options: argparse.Namespace, backend: Backend) -> int:
    from torpor.cli.text import plural, say
    from torpor.model import duration
    from torpor.seats import pool
    from torpor.store.holds import TTL

    if options.count is None or not 0 < options.count <= pool.MOST:
        raise UsageError(f"seats create: --count is 1 to {pool.MOST}")
    ttl = duration.parse(options.ttl) if options.ttl else TTL
    if ttl < 1:
        raise UsageError("seats create: --ttl is at least 1s")
    about = pool.About(options.count, ttl, _end_of(options.until) if options.until else 0.0)
    pool.create(backend, options.name, about)
    say(f"{options.name}: {plural(options.count, 'seat')}, in {backend.place}")
    return 0


def _end_of(day: str) -> float:
    """The end of a day here, seconds since the epoch. Raises UsageError."""
    import time

    try:
        return time.mktime(time.strptime(day, "%Y-%m-%d")) + 86400
    except (ValueError, OverflowError):
        raise UsageError(f"--until {day}: say a day, 2027-12-31") from None


def _list(options: argparse.Namespace, backend: Backend) -> int:
    from torpor.cli.text import moment, say, say_json, table
    from torpor.seats import pool

    found = [(name, pool.about(backend, name), len(pool.holders(backend, name))) for name in pool.names(backend)]
    if options.json:
        say_json([
            {"name": name, "count": about.count, "taken": taken, "until": about.until, "ttl": about.ttl}
            for name, about, taken in found
        ])  # fmt: skip
        return 0
    if not found:
        say(f"no pools of seats in {backend.place}")
        return 0
    rows = [[name, str(about.count), str(taken), moment(about.until)] for name, about, taken in found]
    say(table(("POOL", "SEATS", "TAKEN", "UNTIL"), rows, right=(1, 2)))
    return 0


def _status(options: argparse.Namespace, backend: Backend) -> int:
    from torpor.cli.text import moment, say, say_json, table
    from torpor.seats import pool

    about, taken = pool.about(backend, options.name), pool.holders(backend, options.name)
    held = [(slot, seen.holder, seen.age) for slot, seen in taken if seen.holder is not None]
    if options.json:
        say_json({
            "name": options.name, "count": about.count, "until": about.until, "ttl": about.ttl,
            "holders": [
                {"seat": slot, "job": holder.job, "host": holder.host, "user": holder.user, "since": holder.since,
                 "seen": age}
                for slot, holder, age in held
            ],
        })  # fmt: skip
        return 0
    until = f", until {moment(about.until)}" if about.until else ""
    say(f"{options.name}: {len(held)} of {about.count} seats taken{until}")
    if held:
        rows = [
            [str(slot), holder.job, holder.host, holder.user, moment(holder.since), f"{age:.0f} s ago"]
            for slot, holder, age in held
        ]
        say(table(("SEAT", "JOB", "HOST", "USER", "SINCE", "SEEN"), rows, right=(0,)))
    return 0


def _remove(options: argparse.Namespace, backend: Backend) -> int:
    from torpor.cli.text import say
    from torpor.seats import pool

    pool.remove(backend, options.name)
    say(f"removed {options.name}")
    return 0
