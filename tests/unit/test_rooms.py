"""The rooms of the source tree and the arrows between them: who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "perdure"
MAXIMUM_LINES = 800

# A room may import itself and the rooms named here. What stands directly in perdure/ is the top: it
# puts the parts together, so it may import every room but is imported by the doors only.
ARROWS: dict[str, set[str]] = {
    "api": set(),
    "engine": {"api"},
    "store": {"api"},
    "service": {"api", "engine", "store"},
    "sdk": {"api"},
    "server": {"api", "engine", "store", "service"},
    "cli": {"api", "engine", "store", "service", "sdk", "server", "testing", "top"},
    "testing": {"api", "engine", "store", "service", "sdk", "top"},
    "top": {"api", "engine", "store", "service", "sdk", "testing", "server"},
}

FORBIDDEN_OUTSIDE = ("temporalio.client", "temporalio.worker", "temporalio.workflow",
                     "temporalio.activity", "temporalio.converter", "temporalio.service",
                     "temporalio.bridge")  # fmt: skip


def python_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room_of(module: str) -> str:
    """The room that a dotted name of perdure belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ARROWS else "top"


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Every module a file imports, at its top or later, for types or for real."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _imported_from(node, module, is_package=is_package)


def _imported_from(node: ast.ImportFrom, module: str, *, is_package: bool) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        parts = module.split(".") if is_package else module.split(".")[:-1]
        parts = parts[: len(parts) - (node.level - 1)]
        base = ".".join([*parts, base] if base else parts)
    yield base
    if base == "perdure":  # "from perdure import engine" names a room, the bare face does not
        yield from (f"perdure.{alias.name}" for alias in node.names)


def violations(text: str, module: str, *, is_package: bool = False) -> list[str]:
    """The imports of one file that go against the arrows."""
    room = room_of(module)
    allowed = ARROWS[room] | {room}
    found = []
    for name in imports(ast.parse(text), module, is_package=is_package):
        if name.startswith(FORBIDDEN_OUTSIDE):
            found.append(f"{module} imports {name}")
        if not name.startswith("perdure."):
            continue
        if room_of(name) not in allowed:
            found.append(f"{module} ({room}) imports {name}")
    return found


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_arrows_point_down_only(path: Path) -> None:
    found = violations(
        path.read_text(encoding="utf-8"), module_of(path), is_package=path.name == "__init__.py"
    )
    assert found == []


def test_no_file_is_too_long_to_read_in_one_sitting() -> None:
    folders = ("src", "tests", "examples", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    long = {str(p.relative_to(ROOT)): n for p in files if (n := _lines(p)) > MAXIMUM_LINES}
    assert long == {}


def _lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def test_examples_use_the_public_face_only() -> None:
    for name in ("orders", "pipeline", "approval", "outside"):
        tree = ast.parse((ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8"))
        inner = [m for m in imports(tree, name, is_package=False) if m.startswith("perdure.")]
        assert [m for m in inner if not _is_public_name(tree, m)] == [], name


def _is_public_name(tree: ast.AST, module: str) -> bool:
    """`from perdure import X` gives "perdure.X", which is no module of a room."""
    written = {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None
    }
    return module not in written


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("perdure.engine.timers", "from perdure.store.contract import Store"),
        ("perdure.store.contract", "import perdure.engine.state"),
        ("perdure.sdk.client", "from perdure.service import Service"),
        ("perdure.sdk.client", "def f():\n    from ..engine import state"),
        ("perdure.service.node", "from perdure.sdk.client import Client"),
        ("perdure.api.errors", "from perdure import sdk"),
        ("perdure.sdk.converter", "import temporalio.converter"),
        ("perdure.sdk.client", "import perdure.server.door"),
        ("perdure.store.memory", "from perdure.connecting import connect"),
    ],
)
def test_a_wrong_import_is_found(module: str, text: str) -> None:
    assert len(violations(text, module)) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("perdure.engine.timers", "from perdure.api.errors import RPCError"),
        ("perdure.service.node", "from perdure.engine import state"),
        ("perdure.connecting", "from perdure.service import node\nfrom perdure.sdk import client"),
        ("perdure.sdk.client", "from temporalio.api.common.v1 import Payload"),
    ],
)
def test_a_right_import_passes(module: str, text: str) -> None:
    assert violations(text, module) == []
