"""What `--store` takes, and which back end that is.

FOLDER                    a folder of a file system
stripe:DIR1,DIR2,...      folders on several disks that are written to in parallel
tier:FAST,SLOW            written to FAST, copied to SLOW behind; both are locations
s3://... gs://... az://   an object store
memory:NAME               in the memory of this process, for tests
NAME                      a store of the configuration file
SCHEME:...                what a package registered under the entry points `torpor.stores`
"""

from __future__ import annotations

import os
import re
from typing import Any

from torpor.model.errors import UsageError
from torpor.store import settings
from torpor.store.backend import Backend

SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.DOTALL)
NAME = re.compile(r"[A-Za-z0-9_-]+")
OBJECTS = ("s3", "gs", "az")
GROUP = "torpor.stores"


def default() -> str:
    """$TORPOR_STORE, else the configuration's `store`, else ${XDG_STATE_HOME:-~/.local/state}/torpor/store."""
    if given := os.environ.get("TORPOR_STORE") or settings.read().store:
        return given
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{state}/torpor/store"


def absolute(location: str) -> str:
    """A location that means the same in another working folder. Names of the configuration stay what they are."""
    scheme, rest = split(location)
    if scheme in ("stripe", "tier"):
        parts = rest.split(",") if scheme == "stripe" else list(halves(rest))
        return f"{scheme}:{','.join(absolute(part) if part else '' for part in parts)}"
    if scheme or not location or (NAME.fullmatch(location) and location in settings.read().stores):
        return location
    return os.path.abspath(os.path.expanduser(location))


def split(location: str) -> tuple[str, str]:
    """Scheme and the rest; the scheme is '' for folders and names. Pure."""
    match = SCHEME.fullmatch(location)
    return (match[1], match[2]) if match else ("", location)


def halves(rest: str) -> tuple[str, str]:
    """FAST and SLOW of a tier. SLOW is what stands behind the last comma, unless that is a stripe, which goes to
    the end. Pure. Raises UsageError."""
    at = rest.find(",stripe:")
    fast, slow = (rest[:at], rest[at + 1 :]) if at >= 0 else rest.rpartition(",")[::2]
    if not fast or not slow:
        raise UsageError(f"tier:{rest}: a tier is tier:FAST,SLOW")
    return fast, slow


def open_backend(location: str, apart: bool = False, options: dict[str, Any] | None = None) -> Backend:
    """The back end for an absolute location. Nothing is made.

    apart: this process is going to fork; what needs threads runs in a process of its own (apart.py). options: those of
    the configuration. Raises UsageError.
    """
    return _open(location, options or {}, apart, 0)


def _open(location: str, options: dict[str, Any], apart: bool, depth: int) -> Backend:
    scheme, rest = split(location)
    if not scheme:
        found = settings.read().stores.get(location) if NAME.fullmatch(location) else None
        if found is not None:
            if depth > 8:
                raise UsageError(f"{settings.path()}: store {location} is defined by itself")
            more = {key: value for key, value in found.items() if key != "location"}
            return _open(absolute(found["location"]), {**more, **options}, apart, depth + 1)
        from torpor.store.folder import Folder

        return Folder(os.path.abspath(os.path.expanduser(location)))
    if scheme == "stripe":
        from torpor.store.stripe import Stripe

        return Stripe([os.path.abspath(folder) for folder in rest.split(",") if folder])
    if scheme == "tier":
        from torpor.store.tier import Tier

        fast, slow = halves(rest)
        return Tier(*(_open(absolute(part), {}, apart, depth + 1) for part in (fast, slow)))
    if scheme == "memory":
        from torpor.store.memory import Memory

        return Memory.of(rest)
    if scheme in OBJECTS and rest.startswith("//"):
        if apart:
            from torpor.store.apart import Apart

            return Apart(location, options)
        from torpor.store.objects import Objects

        return Objects(location, **options)
    return _registered(scheme, location, options)


def _registered(scheme: str, location: str, options: dict[str, Any]) -> Backend:
    """A back end of another package."""
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP, name=scheme):
        try:
            made: Backend = entry.load()(location, **options)
        except (TypeError, ValueError, ImportError) as error:
            raise UsageError(f"{location}: {error}") from error
        return made
    known = ", ".join(("stripe:", "tier:", *(f"{name}://" for name in OBJECTS)))
    raise UsageError(
        f"{location}: no kind of store is called {scheme!r} (a folder, {known}, or what a package registers)"
    )
