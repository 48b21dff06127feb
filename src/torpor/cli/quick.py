"""Parsing without argparse, of command lines that leave no doubt: argparse takes 6 ms of a restart.

What is not plain here (--help, an unknown option, a value that is missing, no number, none of the choices or begins
with a dash, too many words) is left to argparse, which understands it or says what is wrong. So this need not know
everything; but what it does understand has to mean the same (tests/unit/cli/test_quick.py).
"""

from __future__ import annotations

from types import SimpleNamespace

TYPE_CHECKING = False  # as type checkers know it; the module `typing` is not imported for it
if TYPE_CHECKING:
    import argparse
    from types import ModuleType
    from typing import Any


class Unclear(Exception):
    """Let argparse see to it."""


class _Option:
    """What `add_argument` was told. kind: '' (takes one value), 'store_true', 'append', 'yes-no'."""

    def __init__(self, name: str, told: dict[str, Any]) -> None:
        self.dest = name.lstrip("-").replace("-", "_")
        self.kind: str = told.get("action", "")
        self.convert = told.get("type")
        self.choices = told.get("choices")
        self.values: int | str | None = told.get("nargs")
        self.default: Any = told.get("default", False if self.kind == "store_true" else None)
        known = {"help", "metavar", "action", "type", "choices", "nargs", "default"}
        if not told.keys() <= known or self.kind not in ("", "store_true", "append", "yes-no"):
            raise Unclear

    def value(self, word: str) -> Any:
        if word.startswith("-"):
            raise Unclear
        try:
            found = self.convert(word) if self.convert is not None else word
        except ValueError:
            raise Unclear from None
        if self.choices is not None and found not in self.choices:
            raise Unclear
        return found


class Quick:
    """What a command's `options` is given in place of a parser."""

    def __init__(self) -> None:
        self._flags: dict[str, _Option] = {}
        self._places: list[_Option] = []

    def add_argument(self, *names: str, **told: Any) -> None:
        option = _Option(names[0], told)
        if len(names) != 1 or (names[0].startswith("-") and not names[0].startswith("--")):
            raise Unclear
        if not names[0].startswith("-"):
            self._places.append(option)
            return
        if option.values == "?":
            raise Unclear
        self._flags[names[0]] = option
        if option.kind == "yes-no":
            self._flags[f"--no-{names[0][2:]}"] = option

    def add_argument_group(self, *words: str) -> Quick:
        return self

    def parse(self, words: list[str]) -> SimpleNamespace:
        """Raises Unclear."""
        found = {option.dest: option.default for option in (*self._flags.values(), *self._places)}
        places = iter(self._places)
        rest = iter(words)
        for word in rest:
            if not word.startswith("-"):
                place = next(places, None)
                if place is None or place.values not in (None, "?"):
                    raise Unclear
                found[place.dest] = place.value(word)
                continue
            flag, given, value = word.partition("=")
            option = self._flags.get(flag)
            if option is None:
                raise Unclear
            if option.kind in ("store_true", "yes-no"):
                if given:
                    raise Unclear
                found[option.dest] = not flag.startswith("--no-") or option.kind == "store_true"
                continue
            many = option.values
            if given and many is not None:
                raise Unclear
            taken = [option.value(each) for each in ([value] if given else _next(rest, many or 1))]
            new = taken if many is not None else taken[0]
            found[option.dest] = [*(found[option.dest] or ()), new] if option.kind == "append" else new
        if any(place.values is None for place in places):
            raise Unclear
        return SimpleNamespace(**found)


def _next(words: Any, count: Any) -> list[str]:
    found = [word for _, word in zip(range(count), words)]
    if len(found) != count:
        raise Unclear
    return found


def parse(module: ModuleType, words: list[str]) -> argparse.Namespace | None:
    """The options of a command line, None for one that is not plain."""
    quick = Quick()
    try:
        module.options(quick)
        return quick.parse(words)  # type: ignore[return-value]  # its attributes are all that is looked at
    except Unclear:
        return None
