"""Where the files of a job are now: prefixes of paths and what stands in their place (`--map-path OLD=NEW`)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from torpor.model.errors import UsageError


class PathMap:
    """Rules, each a file or folder as it was called and as it is called now; both absolute. The longest that fits
    counts, and only once: what it gives is not looked up again."""

    def __init__(self, rules: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.rules = sorted(((_bare(old), _bare(new)) for old, new in rules), key=lambda rule: -len(rule[0]))

    @classmethod
    def parse(cls, texts: Iterable[str]) -> PathMap:
        """From OLD=NEW each. NEW may be relative to our working directory. Raises UsageError."""
        rules: dict[str, str] = {}
        for text in texts:
            old, _, new = text.partition("=")
            if not old.startswith("/") or not new:
                raise UsageError(f"--map-path {text}: OLD=NEW is wanted, OLD an absolute path")
            if rules.setdefault(os.path.normpath(old), os.path.abspath(new)) != os.path.abspath(new):
                raise UsageError(f"--map-path {text}: {old} is given two places")
        return cls((os.fsencode(old), os.fsencode(new)) for old, new in rules.items())

    def __bool__(self) -> bool:
        return bool(self.rules)

    def __call__(self, path: bytes) -> bytes:
        """Where to look for what was at `path`. Pure; a prefix ends at a slash or with the path."""
        for old, new in self.rules:
            if path == old or path.startswith(old + b"/"):
                return new + path[len(old) :] or b"/"
        return path


def _bare(path: bytes) -> bytes:
    """Without slashes at its end; the root is empty then."""
    return path.rstrip(b"/")
