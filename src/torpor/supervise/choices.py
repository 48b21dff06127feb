"""What somebody wants of a checkpoint, as it is handed on: checked, and so that it means the same to a supervisor in
another folder and with another environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torpor.model.errors import UsageError

if TYPE_CHECKING:
    from torpor.supervise.hooks import Hooks


def files(policy: str) -> str:
    """A policy for files whose paths mean the same to a supervisor in another folder. Raises UsageError."""
    if policy in ("auto", "keep", "save"):
        return policy
    if not policy.startswith("save:") or not policy[5:]:
        raise UsageError("--files is auto, keep, save or save:PATH,...")
    paths = [os.path.realpath(path) for path in policy[5:].split(",") if path]
    for path in paths:
        if not os.path.lexists(path):
            raise UsageError(f"--files=save: there is no {path}")
    return "save:" + ",".join(paths)


def readers(named: Sequence[str] | None) -> list[str] | None:
    """Keys written out, which mean the same to a supervisor with another environment; None for its default. Raises
    UsageError."""
    if named is None and "TORPOR_ENCRYPT_TO" not in os.environ:
        return None
    from torpor.image import seal

    return [str(key) for key in (seal.default_readers() if named is None else seal.readers(named))]


def parsed_hooks(given: Sequence[tuple[str, str]] | None) -> Hooks:
    """(event, command) each, checked. Raises UsageError."""
    if not given:
        return ()
    from torpor.supervise.hooks import parsed

    return parsed(given)


def compression(asked: str | None) -> str:
    """The choice, '' for none. Raises UsageError."""
    if not asked:
        return ""
    from torpor.store import settings

    return settings.compression(asked)


def location(store: str | None) -> str:
    """A location that means the same to a supervisor in another folder."""
    from torpor.store.locations import absolute

    return absolute(store or "")
