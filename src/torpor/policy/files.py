"""Which policies are in force: those of the system and of the user, and one that is given."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torpor.model.errors import UsageError

if TYPE_CHECKING:
    from torpor.model.terms import Layer

SYSTEM = "/etc/torpor/policy.toml"
_MOST = 1 << 20
"""Bytes of a policy."""


def user() -> str:
    """Where the user's own is, or would be."""
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return f"{folder}/torpor/policy.toml"


def places() -> tuple[str, str]:
    """Where those of the system and the user are, or would be."""
    return SYSTEM, user()


def standing() -> tuple[Layer, ...]:
    """The system's and the user's, where there are such files. Raises UsageError."""
    return tuple(layer for path in places() if (layer := _read(path)) is not None)


def given(path: str) -> Layer:
    """The policy in a file that was named. Raises UsageError."""
    found = _read(os.path.abspath(path))
    if found is None:
        raise UsageError(f"{path}: there is no such file")
    return found


def _read(path: str) -> Layer | None:
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MOST:
        raise UsageError(f"{path} is no policy: it has more than {_MOST >> 20} MiB")
    from torpor.policy import read

    try:
        return read.parse(data.decode(), path)
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text in UTF-8") from None
