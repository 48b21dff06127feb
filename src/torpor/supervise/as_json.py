"""JSON by whatever is there: importing `json` takes 2 ms of a restart, which has msgspec already, and others have not.

What msgspec does not write or read (text that is no Unicode, such as file names may be) is left to `json`.
"""

from __future__ import annotations

import sys
from typing import Any


def encoded(value: Any) -> bytes:
    """Plain values as JSON. Raises TypeError, ValueError."""
    msgspec = _msgspec()
    if msgspec is not None:
        try:
            found: bytes = msgspec.json.encode(value)
            return found
        except (TypeError, ValueError, OverflowError):
            pass
    import json

    return json.dumps(value).encode()


def decoded(data: bytes) -> Any:
    """Plain values from JSON. Raises ValueError."""
    msgspec = _msgspec()
    if msgspec is not None:
        try:
            return msgspec.json.decode(data)
        except ValueError:
            pass
    import json

    return json.loads(data)


def _msgspec() -> Any:
    return None if "json" in sys.modules else sys.modules.get("msgspec")
