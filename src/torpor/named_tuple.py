"""`NamedTuple`, as `typing` has it, at a tenth of the price.

`typing.NamedTuple` compiles every annotation and then a constructor, 130 us for a class of five fields, and a restart
defines fifty such classes before it has done anything. Here annotations stay as they are written, and a constructor is
compiled when the first tuple is made, if that ever happens. Type checkers see the class of `typing`.

Beside the fields there are `_fields`, `_field_defaults`, `_make`, `_replace` and `_asdict`. This module stands below
all floors.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; the module `typing` is not imported for it
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    try:
        from _collections import _tuplegetter as _field
    except ImportError:  # `collections` does without it, too

        def _field(index, doc):
            return property(lambda row: tuple.__getitem__(row, index), doc=doc)

    class _Row(tuple):
        """What all of them have."""

        __slots__ = ()

        def __new__(cls, *given, **named):
            """The first of its class: from now on the constructor of the class itself is called."""
            owner = next(each for each in cls.__mro__ if "_fields" in each.__dict__)
            names = "".join(f"{name}, " for name in owner._fields)
            make = eval(f"lambda _cls, {names}: _new(_cls, ({names}))", {"_new": tuple.__new__})
            make.__defaults__ = tuple(owner._field_defaults.values())
            make.__name__ = "__new__"
            make.__qualname__ = f"{owner.__qualname__}.__new__"
            owner.__new__ = staticmethod(make)
            return make(cls, *given, **named)

        @classmethod
        def _make(cls, values):
            return cls(*values)

        def _replace(self, **changed):
            row = self._make([changed.pop(name, value) for name, value in zip(self._fields, self)])
            if changed:
                raise ValueError(f"{type(self).__name__} has no field {', '.join(changed)}")
            return row

        def _asdict(self):
            return dict(zip(self._fields, self))

        def __repr__(self):
            inner = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self))
            return f"{type(self).__name__}({inner})"

        def __getnewargs__(self):
            return tuple(self)

    class _Define(type):
        """The metaclass of `NamedTuple` alone: what is derived from it becomes an ordinary class, on top of `_Row`."""

        def __new__(meta, name, bases, namespace):
            if not bases:
                return super().__new__(meta, name, bases, namespace)
            if len(bases) > 1:
                raise TypeError("a named tuple is nothing else beside")
            fields = tuple(namespace.get("__annotations__", ()))
            defaults = {each: namespace[each] for each in fields if each in namespace}
            if tuple(defaults) != fields[len(fields) - len(defaults) :]:
                raise TypeError(f"{name}: a field without a default follows one that has one")
            namespace |= {each: _field(index, each) for index, each in enumerate(fields)}
            namespace |= {"__slots__": (), "__match_args__": fields, "_fields": fields, "_field_defaults": defaults}
            return type.__new__(type, name, (_Row,), namespace)

    class NamedTuple(metaclass=_Define):
        """class Name(NamedTuple), with annotated fields, defaults, methods."""


__all__ = ["NamedTuple"]
