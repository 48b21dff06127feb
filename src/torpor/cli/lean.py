"""msgspec without what a restart does not need of it.

Start-up is restart time, and more than half of what importing msgspec takes is for its other users: two names of
`typing_extensions` that `typing` has as well (8 ms, where it is installed); `platform`, in which `uuid` looks whether
this is Linux (1.5 ms); and `msgspec.inspect` with JSON schemas (1.5 ms). These two are loaded when somebody uses them.
"""

from __future__ import annotations

import sys
from types import ModuleType

TYPE_CHECKING = False  # as type checkers know it; the module `typing` is not imported for it
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Later(ModuleType):
    """Stands for a module until something of it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_real(self.__name__), name)


def _real(module: str) -> ModuleType:
    import importlib

    return importlib.import_module(module)


def _function(module: str, name: str) -> Callable[..., Any]:
    return lambda *words, **named: getattr(_real(module), name)(*words, **named)


def bring_msgspec() -> None:
    """Import msgspec, if that was not done yet."""
    if "msgspec" in sys.modules:
        return
    platform = ModuleType("platform")
    platform.system = lambda: "Linux"  # type: ignore[attr-defined]
    schemas = ModuleType("msgspec._json_schema")
    for name in ("schema", "schema_components"):
        setattr(schemas, name, _function(schemas.__name__, name))
    absent: dict[str, Any] = {
        "typing_extensions": None,
        "platform": platform,
        "msgspec.inspect": _Later("msgspec.inspect"),
        schemas.__name__: schemas,
    }
    absent = {name: stand_in for name, stand_in in absent.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        import msgspec  # noqa: F401
    except ImportError:
        pass  # a version of it that wants more of them: as it is, then, where it is used
    finally:
        for name in absent:
            sys.modules.pop(name, None)
