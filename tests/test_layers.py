"""Imports run one way, and what is heavy or optional is imported where it is used."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# The rooms, low to high; those of one row do not know one another. A module that lies directly in kdtool/ is in row 0.
ROWS = (("cache", "data", "methods", "models"), ("engine",), ("analysis",), ("workflows",), ("cli",))
ROW = {room: row for row, rooms in enumerate(ROWS, start=1) for room in rooms}
WHERE_USED = {
    "torchvision",
    "h5py",
    "matplotlib",
    "sklearn",
    "PIL",
    "scipy",
    "timm",
}  # slow to import, broken or absent on some machines

ROOT = Path(__file__).resolve().parents[1]


def room_of(path: Path) -> str:
    """The room of a file: kdtool/engine/teach.py -> engine, cli/main.py -> cli, kdtool/files.py -> files."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "kdtool" else parts[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere: `from kdtool import x` is kdtool.x, a relative one starts with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            yield from (f"kdtool.{alias.name}" for alias in node.names) if name == "kdtool" else (name,)


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: not the bodies of functions, not `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_import(node)


def violations(room: str, source: str) -> list[str]:
    """What a module of `room` imports and should not."""
    tree = ast.parse(source)
    wrong = []
    for name in imported(tree):
        target = name.split(".")[1] if name.startswith("kdtool.") else None
        if name.startswith("."):
            wrong.append(f"the relative import {name}")
        elif target and target != room and ROW.get(target, 0) >= max(ROW.get(room, 0), 1):
            wrong.append(f"{name}, which is not below {room}")
        elif room == "cache" and name.split(".")[0] == "torch":
            wrong.append("torch, which the cache does without")
    lines = (node for node in at_import(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    early = {name.split(".")[0] for node in lines for name in imported(node)}
    return wrong + [f"{name} outside a function" for name in sorted(early & WHERE_USED)]


MODULES = sorted(path for folder in ("kdtool", "cli", "cache") for path in (ROOT / folder).rglob("*.py"))
MODULES.remove(ROOT / "kdtool" / "__main__.py")  # the one module above cli
MODULES.remove(ROOT / "kdtool" / "__init__.py")  # names what lies above it, and imports nothing; see test_api


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    assert violations(room_of(path), path.read_text()) == []


def test_every_folder_has_its_place_in_the_order() -> None:
    folders = {path.parent.name for path in (ROOT / "kdtool").glob("*/__init__.py")} | {"cli", "cache"}
    assert folders == set(ROW)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("files", "from kdtool.cache import open_cache"),
        ("methods", "import kdtool.models.taps"),
        ("engine", "def late():\n    from kdtool import analysis"),
        ("workflows", "from kdtool.cli.main import main"),
        ("cache", "def late():\n    import torch.nn"),
        ("cli", "from . import main"),
        ("data", "import torchvision.io"),
        ("data", "class Reader:\n    import h5py"),
    ],
)
def test_a_wrong_import_is_seen(room: str, source: str) -> None:
    assert len(violations(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("targets", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import h5py"),
        ("files", "from kdtool.errors import DamageError"),
        ("cache", "from kdtool import __version__, files"),
        ("models", "def late():\n    import torchvision.models"),
        ("cli", "from kdtool.engine.teach import teach"),
    ],
)
def test_a_right_import_is_let_through(room: str, source: str) -> None:
    assert violations(room, source) == []
