"""The byte code of many modules in one file, for a command in which each millisecond counts.

Python looks for each module by itself, asks when its source was written, reads its byte code from a file of its own and
builds all names in it anew. For the 140 modules that a restart imports before the job can run that is a third of its
time. So their code is kept in one file as well, once it was imported, beside what Python keeps itself (`__pycache__`),
in the order in which they were ready. It is used only if all their sources are still of the same size and time, which
is what Python asks of its own files; otherwise, and whatever else may be wrong with it, everything is imported as ever,
and the file written anew. A folder that we may not write to has none.

Only modules of torpor itself are kept: where these are does not depend on the environment. This module stands below all
floors, and imports nothing that Python has not imported already.
"""

from __future__ import annotations

import marshal
import os
import sys

TYPE_CHECKING = False  # as type checkers know it; the module `typing` is not imported for it
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
    from typing import Any

_FORM = 1
"""How the file is written: counted up where that changes."""
_LENGTH = 8
_ROOT = "torpor"

_Row = tuple[str, str, str, bool, int, int]
"""Of a module: name, source, where Python keeps its code, is it a package, time (ns) and size of the source."""

_missed: dict[str, list[str]] = {}
"""Names of modules that were imported in the ordinary way, by the file they are to be kept in, in the order in which
they were ready."""
_brought: set[str] = set()
"""Files that were used, or are to be kept."""


def bring(name: str, roots: Sequence[str], after: str = "") -> None:
    """Import modules, and all that these import. name: of the file in which their code is kept.  after: of another file
    that is brought before; where it was not, nothing is kept.

    Raises what importing them raises."""
    kept = _read(name)
    if kept is not None:
        _brought.add(name)
        _execute(*kept)
    # Of what was imported otherwise before, nothing would be kept, and it would be missing for good.
    elif (not after or after in _brought) and not any(root in sys.modules for root in roots):
        with _Order() as order:
            _import(roots)
        _brought.add(name)
        _missed[name] = order.ready
    _import(roots)


def _import(modules: Sequence[str]) -> None:
    for name in modules:
        __import__(name)


def keep() -> None:
    """Keep the code of what `bring` has found no use of a file for. Takes some 30 ms, if there is anything to do. Never
    raises: the next time it is as slow as now, then."""
    while _missed:
        name, modules = _missed.popitem()
        path = _path(name)
        if not path or sys.dont_write_bytecode:
            continue
        try:
            _write(path, packed(modules))
        except (OSError, ImportError, ValueError, SyntaxError):
            continue


def packed(modules: Sequence[str]) -> bytes:
    """The contents of a file, for modules that were imported. Raises OSError, ImportError, SyntaxError."""
    rows, codes = [], []
    for name in modules:
        spec = sys.modules[name].__spec__
        if spec is None or spec.loader is None or spec.origin is None or spec.cached is None:
            raise ImportError(f"{name} has no source")
        now = os.stat(spec.origin)  # before it is read: what is newer than that is then not taken for the same
        codes.append(spec.loader.get_code(name))  # type: ignore[attr-defined]
        package = spec.submodule_search_locations is not None
        rows.append((name, spec.origin, spec.cached, package, now.st_mtime_ns, now.st_size))
    code = marshal.dumps(tuple(codes))
    head = marshal.dumps((_FORM, sys.version, len(code), tuple(rows)))
    return len(head).to_bytes(_LENGTH, "little") + head + code


def unpacked(data: bytes) -> tuple[tuple[_Row, ...], tuple[CodeType, ...]] | None:
    """The modules of such a file, and their code; None if it is not whole, of another Python, or of other sources."""
    view = memoryview(data)
    start = _LENGTH + int.from_bytes(view[:_LENGTH], "little")
    try:
        form, version, size, rows = marshal.loads(view[_LENGTH:start])
        if (form, version, size) != (_FORM, sys.version, len(view) - start):
            return None
        for _, source, _, _, when, length in rows:
            now = os.stat(source)
            if now.st_mtime_ns != when or now.st_size != length:
                return None
        return rows, marshal.loads(view[start:])
    except (OSError, ValueError, TypeError, EOFError):
        return None


class _Order:
    """While this is entered, writes down which of our modules are imported, in the order in which they are ready."""

    def __init__(self) -> None:
        self.ready: list[str] = []

    def __enter__(self) -> _Order:
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] != _ROOT:
            return None
        from importlib.machinery import PathFinder, SourceFileLoader

        spec = PathFinder.find_spec(name, path, target)
        if spec is None or type(spec.loader) is not SourceFileLoader or spec.origin is None:
            return spec
        ready = self.ready

        class Noting(SourceFileLoader):
            def exec_module(self, module: ModuleType) -> None:
                super().exec_module(module)
                ready.append(module.__name__)

        spec.loader = Noting(name, spec.origin)
        return spec


def _path(name: str) -> str:
    """The path of a file, '' if Python keeps no code for us."""
    spec: Any = __spec__
    cached = getattr(spec, "cached", None)
    if not cached:
        return ""
    folder, own = os.path.split(cached)
    kind = own.removeprefix("bytecode").removesuffix(".pyc")  # such as .cpython-311, or .cpython-311.opt-1
    return f"{folder}/{name}{kind}.codes"


def _read(name: str) -> tuple[tuple[_Row, ...], tuple[CodeType, ...]] | None:
    path = _path(name)
    if not path:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        size = os.fstat(fd).st_size
        data = os.read(fd, size)
    except OSError:
        return None
    finally:
        os.close(fd)
    return unpacked(data)


def _write(path: str, data: bytes) -> None:
    """Put a file in place, whole or not at all. Raises OSError."""
    new = f"{path}.{os.getpid()}"
    mode = os.stat(__file__).st_mode & 0o666  # who may read our source may read this
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, path)
    except BaseException:
        os.unlink(new)
        raise


def _execute(rows: Sequence[_Row], codes: Sequence[CodeType]) -> None:
    """Do what importing these modules does, but find them. Stops where that does not work: what is not there then is
    imported as ever, and says what is wrong."""
    spec: Any = __spec__
    module, make, loader = type(sys), type(spec), type(spec.loader)
    modules = sys.modules
    new: list[Any] = []
    for name, source, cached, package, _, _ in rows:
        if name in modules:
            new.append(None)
            continue
        one: Any = module(name)
        one.__loader__ = loader(name, source)
        one.__spec__ = spec = make(name, one.__loader__, origin=source, is_package=package)
        spec.has_location, spec.cached = True, cached
        one.__file__, one.__cached__ = source, cached
        one.__package__ = name if package else name.rpartition(".")[0]
        if package:
            spec.submodule_search_locations = one.__path__ = [os.path.dirname(source)]
            modules[name] = one  # its modules may come before it
        new.append(one)
    for at, code in enumerate(codes):
        if new[at] is None:
            continue
        name, one = rows[at][0], new[at]
        parent, _, child = name.rpartition(".")
        if modules.setdefault(name, one) is not one:
            continue  # one before it has imported it, in the ordinary way
        try:
            exec(code, one.__dict__)
            setattr(modules[parent], child, one)
        except Exception:
            for (name, *_), left in zip(rows[at:], new[at:]):
                if left is not None and modules.get(name) is left:
                    del modules[name]
            return
