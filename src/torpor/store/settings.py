"""The user's configuration file, `${XDG_CONFIG_HOME:-~/.config}/torpor/config.toml`:

store = "cloud"                  # the default store: a name from below, or a location
compress = "auto"                # or none, fast, zstd; $TORPOR_COMPRESS goes before it
encrypt_to = ["self", "site"]    # who can read checkpoints; $TORPOR_ENCRYPT_TO goes before it

[stores.cloud]
location = "s3://bucket/folder"
endpoint = "https://..."         # whatever else the back end understands

[engine]                         # a site's NATS, for jobs over several hosts: link/engine.py
url = "tls://..."
"""

from __future__ import annotations

import os
from typing import Any

from torpor.model.errors import UsageError
from torpor.named_tuple import NamedTuple

COMPRESSION = ("auto", "none", "fast", "zstd")
"""See chunk.KINDS, and pace.py for 'auto'."""


class Settings(NamedTuple):
    """What stands in the file. encrypt_to: recipients, as image.seal.reader takes them.  stores: by name, with
    `location` and options of the back end.  engine: as it stands there (link/engine.py)."""

    store: str = ""
    compress: str = ""
    encrypt_to: tuple[str, ...] = ()
    stores: dict[str, dict[str, Any]] = {}
    engine: dict[str, Any] = {}


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


def compression(asked: str = "") -> str:
    """How chunks are to be compressed: as asked for, else $TORPOR_COMPRESS, else what the file says, else 'auto'.
    Raises UsageError."""
    given = os.environ.get("TORPOR_COMPRESS", "")
    wanted = asked or given or read().compress or "auto"
    if wanted not in COMPRESSION:
        where = "--compress" if asked else "TORPOR_COMPRESS" if given else f"{path()}: compress"
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
    readers = plain.get("encrypt_to", [])
    if not isinstance(readers, list) or not all(isinstance(each, str) and each for each in readers):
        raise UsageError(f'{where}: encrypt_to has to be a list of keys: encrypt_to = ["self", "NAME"]')
    if not isinstance(plain.get("engine", {}), dict):
        raise UsageError(f"{where}: `engine` has to be a table: [engine]")
    if unknown := sorted(set(plain) - set(Settings._fields)):
        raise UsageError(f"{where}: {unknown[0]!r} is not a setting ({', '.join(Settings._fields)})")
    return Settings(plain.get("store", ""), plain.get("compress", ""), tuple(readers), stores, plain.get("engine", {}))
