"""The kinds of seat providers: those of torpor, and what other packages register as entry points `torpor.seats`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torpor.seats.provider import NotEntitled, Provider, Request

GROUP = "torpor.seats"


def make(provider: str, options: Mapping[str, Any], request: Request) -> Provider:
    """The provider of that name. Raises NotEntitled where there is none, or it cannot be made."""
    if provider == "pool":
        from torpor.seats.pool import Pool

        return Pool(options, request)
    if provider == "command":
        from torpor.seats.command import Command

        return Command(options, request)
    if provider == "http":
        from torpor.seats.http import Http

        return Http(options, request)
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP, name=provider):
        try:
            made: Provider = entry.load()(options, request)
        except Exception as error:
            raise NotEntitled(f"provider {provider!r}: {type(error).__name__}: {error}") from error
        return made
    raise NotEntitled(f"there is no provider {provider!r} (command, http, pool, or what a package registers)")
