"""The house: arrows point down only (docs/architecture.md), and the code knows no program."""

from __future__ import annotations

import ast
import os
import re

import pytest

SRC = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "src", "torpor")
FLOORS = [
    "linux",
    "model",
    "tracee",
    "posix",
    "store",
    "image",
    "checkpoint",
    "watch",
    "policy",
    "seats",
    "link",
    "coordinate",
    "supervise",
    "launch",
    "cli",
]
"""From the ground up: a floor may use those before it."""
AT_MOST = {
    "linux": set(),
    "model": {"linux"},
    "posix": {"linux", "model", "tracee"},
    "store": {"linux", "model"},
}
"""What these may use at most."""


def modules() -> list[str]:
    found = []
    for folder, _, names in os.walk(SRC):
        found += [os.path.relpath(os.path.join(folder, n), SRC) for n in names if n.endswith(".py")]
    return sorted(found)


def imports(path: str, source: str | None = None) -> list[tuple[int, str]]:
    """(line, module) of every import, also those inside functions and behind TYPE_CHECKING."""
    if source is None:
        with open(os.path.join(SRC, path), encoding="utf-8") as f:
            source = f.read()
    package = ["torpor", *path.split(os.sep)[:-1]]
    out: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            out += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            # `from torpor import store` names a floor, too
            out += [(node.lineno, f"{base}.{alias.name}" if base == "torpor" else base) for alias in node.names]
    return out


def floor_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "torpor" and parts[1] in FLOORS else ""


def upward(path: str, source: str | None = None) -> list[str]:
    """Imports of one module that do not point down."""
    own = path.split(os.sep)[0]
    allowed = AT_MOST.get(own, set(FLOORS[: FLOORS.index(own)])) | {own}
    return [
        f"{path}:{line} imports {module}"
        for line, module in imports(path, source)
        if floor_of(module) and floor_of(module) not in allowed
    ]


def test_every_module_is_on_a_floor() -> None:
    for path in modules():
        assert os.sep not in path or path.split(os.sep)[0] in FLOORS, f"{path} is on no floor"


@pytest.mark.parametrize("floor", [f for f in FLOORS if os.path.isdir(os.path.join(SRC, f))])
def test_arrows_point_down(floor: str) -> None:
    found = [line for path in modules() if path.split(os.sep)[0] == floor for line in upward(path)]
    assert found == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("linux/x.py", "import torpor.model.errors"),
        ("posix/x.py", "def f():\n    from torpor.store import open_store"),
        ("posix/memory/x.py", "from ...image import codec"),
        ("store/x.py", "from torpor import tracee"),
        ("checkpoint/x.py", "from torpor.cli.main import main"),
        ("supervise/x.py", "if True:\n    import torpor.launch.api as api"),
    ],
)
def test_the_check_sees_an_arrow_that_points_up(path: str, source: str) -> None:
    assert len(upward(path, source)) == 1


ONLY_BETWEEN_HOSTS = {os.path.join("link", name) for name in ("nats.py", "session.py", "connection.py")}
"""Modules that need asyncio and nats-py."""


@pytest.mark.parametrize("module", ["asyncio", "logging", "nats", "typer", "click", "rich"])
def test_nothing_heavy_is_imported(module: str) -> None:
    """Start-up time is restart time."""
    allowed = ONLY_BETWEEN_HOSTS if module in ("asyncio", "logging", "nats") else set()
    found = [
        f"{path}:{line}"
        for path in modules()
        for line, name in imports(path)
        if name.split(".")[0] == module and path not in allowed
    ]
    assert found == []


def test_what_is_only_for_jobs_over_several_hosts_is_imported_late() -> None:
    """Inside a function, where such a job is begun."""
    names = {"torpor." + path.removesuffix(".py").replace(os.sep, ".") for path in ONLY_BETWEEN_HOSTS}
    found = []
    for path in sorted(set(modules()) - ONLY_BETWEEN_HOSTS):
        with open(os.path.join(SRC, path), encoding="utf-8") as f:
            tree = ast.parse(f.read(), path)
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        found += [f"{path}: {name}" for _, name in imports(path, ast.unparse(ast.Module(top, []))) if name in names]
    assert found == []


PROGRAMS = [
    "java",
    "jvm",
    "openjdk",
    "nodejs",
    "sqlite",
    "numpy",
    "openmp",
    "golang",
    "perl",
    "emacs",
    "postgres",
    "mysql",
    "redis",
    "mpirun",
    "openmpi",
    "pytorch",
    "tensorflow",
    "matlab",
]


def code_words(path: str) -> str:
    """The source without comments and docstrings."""
    with open(os.path.join(SRC, path), encoding="utf-8") as f:
        tree = ast.parse(f.read(), path)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree).lower()


def test_the_code_knows_no_program() -> None:
    pattern = re.compile(r"\b(" + "|".join(PROGRAMS) + r")\b")
    found = [f"{path}: {m.group(0)}" for path in modules() for m in pattern.finditer(code_words(path))]
    assert found == []
