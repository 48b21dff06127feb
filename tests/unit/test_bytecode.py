"""Modules that are brought from one file are those that an import makes; and the file is not believed too much."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from torpor import bytecode

PACKAGE = {
    "__init__.py": '"""A package."""\n',
    "a.py": '"""First."""\nfrom torpor.part import f, two\nVALUE = f() + two.TWO\n',
    "part/__init__.py": "from torpor.part.one import f\nfrom torpor.part import two\n",
    "part/one.py": "import torpor.leaf as leaf\ndef f():\n    return leaf.LEAF\n",
    "part/two.py": "from torpor.part.one import f\nTWO = 2\nclass Two:\n    pass\n",
    "leaf.py": "LEAF = 40\n",
}
"""A package with modules that need one another; a.VALUE is 42."""
BRING = "from torpor import bytecode; bytecode.bring('all', ['torpor.a']); bytecode.keep(); "
SPY = """
import sys, importlib.machinery as m
class Spy:
    def find_spec(self, name, path, target=None):
        if path is not None and name.startswith('torpor.') and name != 'torpor.bytecode': print('searched', name)
sys.meta_path.insert(0, Spy())
"""
"""Says which of the package's modules are looked for."""


@pytest.fixture
def folder(tmp_path: str) -> str:
    """A folder with such a package, and this module in it."""
    base = os.path.join(tmp_path, "torpor")
    for name, text in PACKAGE.items():
        os.makedirs(os.path.dirname(os.path.join(base, name)), exist_ok=True)
        with open(os.path.join(base, name), "w", encoding="utf-8") as file:
            file.write(text)
    shutil.copy(bytecode.__file__, os.path.join(base, "bytecode.py"))
    return str(tmp_path)


def run(folder: str, program: str, *flags: str) -> list[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *flags, "-c", f"import sys; sys.path.insert(0, {folder!r})\n{program}"],
        capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def kept(folder: str) -> list[str]:
    cache = os.path.join(folder, "torpor", "__pycache__")
    return [os.path.join(cache, name) for name in os.listdir(cache) if name.endswith(".codes")]


ABOUT = """
import sys
for name in sorted(n for n in sys.modules if n.startswith('torpor')):
    one = sys.modules[name]
    spec = one.__spec__
    parent, _, child = name.rpartition('.')
    print(name, one.__file__, one.__cached__, one.__package__, getattr(one, '__path__', None), one.__doc__,
          spec.name, spec.origin, spec.cached, spec.has_location, spec.parent, spec.submodule_search_locations,
          one.__loader__ is spec.loader, one.__loader__.get_filename(name), one.__loader__.get_source(name) != '',
          not parent or getattr(sys.modules[parent], child) is one)
import torpor.a, torpor.part.two
print(torpor.a.VALUE, torpor.part.two.Two.__module__, torpor.part.one.f.__code__.co_filename)
"""


def test_what_is_brought_is_what_an_import_makes(folder: str) -> None:
    plain = run(folder, "import torpor.bytecode, torpor.a" + ABOUT)
    assert run(folder, BRING + ABOUT) == plain
    assert len(kept(folder)) == 1
    brought = run(folder, SPY + BRING + ABOUT)
    assert brought == plain  # and nothing was searched for


def test_the_spy_sees_what_is_searched_for(folder: str) -> None:
    names = {line.split()[1] for line in run(folder, SPY + "import torpor.a")}
    assert names == {"torpor.a", "torpor.part", "torpor.part.one", "torpor.part.two", "torpor.leaf"}


def test_what_is_there_already_stays(folder: str) -> None:
    run(folder, BRING)
    found = run(folder, "import torpor.leaf as l; l.LEAF = 1; " + BRING + "import torpor.a; print(torpor.a.VALUE)")
    assert found == ["3"]


def change(folder: str, text: str, when: int | None = None) -> None:
    path = os.path.join(folder, "torpor", "leaf.py")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    if when is not None:
        os.utime(path, ns=(when, when))


def test_a_source_that_has_changed_counts_and_is_kept_anew(folder: str) -> None:
    run(folder, BRING)
    when = os.stat(os.path.join(folder, "torpor", "leaf.py")).st_mtime_ns
    change(folder, "LEAF = 50\n", when + 2 * 10**9)  # as long as before
    assert run(folder, BRING + "import torpor.a; print(torpor.a.VALUE)") == ["52"]
    change(folder, "LEAF = 600\n", when + 2 * 10**9)  # as old as before
    assert run(folder, BRING + "import torpor.a; print(torpor.a.VALUE)") == ["602"]
    assert run(folder, SPY + BRING + "import torpor.a; print(torpor.a.VALUE)") == ["602"]


def test_a_source_that_is_gone(folder: str) -> None:
    run(folder, BRING)
    os.rename(os.path.join(folder, "torpor", "leaf.py"), os.path.join(folder, "torpor", "part", "leaf.py"))
    assert run(folder, f"try:\n    {BRING}\nexcept ImportError as e: print(e.name)") == ["torpor.leaf"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: bytes(len(data)),
        lambda data: b"\xff" * len(data),
        lambda data: data.replace(sys.version.encode(), b"4" + sys.version.encode()[1:]),
    ],
    ids=["empty", "short", "shorter", "one less", "one more", "zeros", "ones", "another Python"],
)
def test_a_file_that_is_not_whole_is_left_alone(folder: str, damage: Callable[[bytes], bytes]) -> None:
    run(folder, BRING)
    (path,) = kept(folder)
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "wb") as file:
        file.write(damage(data))
    assert run(folder, BRING + "import torpor.a; print(torpor.a.VALUE)") == ["42"]
    with open(path, "rb") as file:
        assert file.read() == data  # written anew


def test_a_module_that_fails_says_so_as_ever(folder: str) -> None:
    with open(os.path.join(folder, "torpor", "leaf.py"), "a", encoding="utf-8") as file:
        file.write("import os\nif 'fail' in os.environ: raise KeyError('no')\n")
    run(folder, BRING)
    found = run(
        folder,
        f"""
import os; os.environ['fail'] = 'yes'
try:
    {BRING}
except KeyError as error:
    print(error)
print('torpor.leaf' in sys.modules, 'torpor.part' in sys.modules, 'torpor.a' in sys.modules)
del os.environ['fail']
import torpor.a
print(torpor.a.VALUE)
""",
    )
    assert found == ["'no'", "False False False", "42"]


def test_an_order_that_differs_makes_no_module_twice(folder: str) -> None:
    for name, line in (("leaf", "if 'early' in os.environ: import torpor.part.two"), ("part/two", "print('made')")):
        with open(os.path.join(folder, "torpor", f"{name}.py"), "a", encoding="utf-8") as file:
            file.write(f"import os\n{line}\n")
    run(folder, BRING)
    assert run(folder, f"import os; os.environ['early'] = 'yes'; {BRING}") == ["made"]


def test_python_that_writes_no_code_writes_none(folder: str) -> None:
    run(folder, BRING, "-B")
    assert not os.path.isdir(os.path.join(folder, "torpor", "__pycache__"))


def test_another_optimization_has_a_file_of_its_own(folder: str) -> None:
    run(folder, BRING)
    run(folder, BRING, "-O")
    assert len(kept(folder)) == 2


def test_a_process_that_had_imported_something_keeps_nothing(folder: str) -> None:
    """What it had imported would be missing."""
    run(folder, "import torpor.a; " + BRING)
    assert kept(folder) == []


def test_what_comes_after_something_that_was_not_brought_is_not_kept(folder: str) -> None:
    second = "bytecode.bring('more', ['torpor.leaf'], 'first'); bytecode.keep()"
    run(folder, f"from torpor import bytecode; {second}")
    assert kept(folder) == []
    run(folder, f"from torpor import bytecode; bytecode.bring('first', ['torpor.part.one']); {second}")
    assert [os.path.basename(path).partition(".")[0] for path in kept(folder)] == ["first"]
    with open(os.path.join(folder, "torpor", "late.py"), "w", encoding="utf-8"):
        pass
    run(
        folder,
        f"from torpor import bytecode; bytecode.bring('first', ['torpor.part.one']); {second}".replace("leaf", "late"),
    )
    assert len(kept(folder)) == 2


def test_all_that_a_restart_imports_is_brought(tmp_path: str) -> None:
    """Nothing of it is searched for, or fails, in the order in which it is kept."""
    source = os.path.dirname(bytecode.__file__)
    shutil.copytree(source, os.path.join(tmp_path, "torpor"), ignore=shutil.ignore_patterns("__pycache__"))
    begin = "from torpor.cli import restart, lean; from torpor import bytecode; lean.bring_msgspec()\n"
    bring = """
bytecode.bring("restart", restart.NEEDED)
from torpor.checkpoint.restart import _bring
_bring()
bytecode.keep()
print(len(sys.modules))
"""
    (count,) = run(str(tmp_path), begin + bring)
    assert run(str(tmp_path), begin + SPY + bring) == [count]
