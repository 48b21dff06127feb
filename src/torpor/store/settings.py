"""The user's configuration file, `${XDG_CONFIG_HOME:-~/.config}/torpor/config.toml`:

store = "cloud"                  # the default store: a name from below, or a location
compress = "auto"                # or none, fast, zstd; $TORPOR_COMPRESS goes before it

[stores.cloud]
location = "s3://bucket/folder"
endpoint = "https://..."         # whatever else the back end understands
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from torpor.model.errors import UsageError

COMPRESSION = ("auto", "none", "fast", "zstd")
"""See chunk.POLICIES."""


class Settings(NamedTuple):
    """What stands in the file. stores: by name, with `location` and options of the back end."""

    store: str = ""
    compress: str = ""
    stores: dict[str, dict[str, Any]] = {}


def path() -> str:
    """Where the file is, or would be."""
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return f"{folder}/torpor/config.toml"


def read() -> Settings:
    """The settings; empty ones if there is no file. Raises UsageError for a file that cannot be understood."""
    where = path()
    try:
        with open(where, "rb") as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return Settings()
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror}") from None
    import tomllib

    try:
        plain = tomllib.loads(data.decode())
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    return check(plain, where)


def compression() -> str:
    """How chunks are to be compressed: $TORPOR_COMPRESS, else what the file says, else 'auto'. Raises UsageError."""
    given = os.environ.get("TORPOR_COMPRESS", "")
    wanted = given or read().compress or "auto"
    if wanted not in COMPRESSION:
        where = "TORPOR_COMPRESS" if given else f"{path()}: compress"
        raise UsageError(f"{where} is one of {', '.join(COMPRESSION)}, not {wanted!r}")
    return wanted


def check(plain: dict[str, Any], where: str) -> Settings:
    """The settings of a parsed file. Pure. Raises UsageError."""
    stores = plain.get("stores", {})
    if not isinstance(stores, dict):
        raise UsageError(f"{where}: `stores` has to be tables: [stores.NAME]")
    for name, options in stores.items():
        if not isinstance(options, dict) or not isinstance(options.get("location"), str):
            raise UsageError(f'{where}: [stores.{name}] needs location = "..."')
    for key in ("store", "compress"):
        if not isinstance(plain.get(key, ""), str):
            raise UsageError(f"{where}: {key} has to be a string")
    if unknown := sorted(set(plain) - {"store", "compress", "stores"}):
        raise UsageError(f"{where}: {unknown[0]!r} is not a setting (store, compress, stores)")
    return Settings(plain.get("store", ""), plain.get("compress", ""), stores)
