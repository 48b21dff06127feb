"""msgspec without what a restart does not need of it.

Start-up is restart time, and more than half of what importing msgspec takes is for its other users: two names of
`typing_extensions` that `typing` has as well (8 ms, where it is installed); `platform`, in which `uuid` looks whether
this is Linux (1.5 ms); and `msgspec.inspect` with JSON schemas (1.5 ms). These two are loaded when somebody uses them.
Where `datetime` is written in Python as well (before 3.12), only what is written in C is taken, which it consists of in
the end (1 ms).

And what is to be known of a record's fields is found in a shorter way (`_Fields`): `typing` compiles each annotation
for itself, and then looks through it for what we do not use (4 ms for the 270 of a small restart).
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


class _Fields:
    """Evaluates annotations for `msgspec._utils`, in place of `typing`, whose way it goes where there is a doubt."""

    def __init__(self, utils: Any) -> None:
        self._reference, self._evaluate = utils._forward_ref, utils._eval_type
        self._known: dict[str, tuple[tuple[str, ...], Any]] = {}
        """By annotation, of those that name nothing but what is built in: these names, and what it means."""
        utils._forward_ref = lambda annotation: annotation
        utils._eval_type = self.evaluate

    def evaluate(self, annotation: Any, own: dict[str, Any], module: dict[str, Any]) -> Any:
        """What an annotation means. own: the names of its class, module: those around it, which come first."""
        if type(annotation) is not str:
            return self._evaluate(annotation, own, module)
        names, value = self._known.get(annotation, (None, None))
        if names is not None and not any(name in own or name in module for name in names):
            return value
        try:
            code = compile(annotation, "<string>", "eval")
            value = eval(code, own, module)
        except Exception:
            value = annotation
        if not _settled(value):
            return self._evaluate(self._reference(annotation), own, module)
        if not any(name in own or name in module for name in code.co_names):
            self._known[annotation] = code.co_names, value
        return value


def _settled(value: Any) -> bool:
    """Does a type consist of nothing but classes?"""
    if type(value) in (_GENERIC, _UNION):
        return all(_settled(each) for each in value.__args__)
    return isinstance(value, type) or value is None or value is Ellipsis


_GENERIC, _UNION = type(list[int]), type(int | str)


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
    if sys.version_info < (3, 12):
        absent["datetime"] = _datetime()
    absent = {name: stand_in for name, stand_in in absent.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        import msgspec  # noqa: F401
    except ImportError:
        pass  # a version of it that wants more of them: as it is, then, where it is used
    finally:
        for name in absent:
            sys.modules.pop(name, None)
    utils = sys.modules.get("msgspec._utils")
    if utils is not None and hasattr(utils, "_forward_ref") and hasattr(utils, "_eval_type"):
        _Fields(utils)


def _datetime() -> ModuleType:
    """What the module `datetime` has of its own, all of which comes from here."""
    import _datetime  # type: ignore[import-not-found]

    found = ModuleType("datetime")
    found.__dict__.update((name, value) for name, value in vars(_datetime).items() if not name.startswith("__"))
    return found
