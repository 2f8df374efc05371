"""A store's SQL: a ``.sql`` file beside it, cut into named statements."""

from __future__ import annotations

import re
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def parse(text: str) -> dict[str, str]:
    """Statements by the names in their ``-- name:`` lines, without comments."""
    parts = _NAME.split(text)[1:]
    statements: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        assert name not in statements, name
        lines = [line for line in body.splitlines() if not line.startswith("--")]
        statements[name] = "\n".join(lines).strip().removesuffix(";")
    return statements


def load(package: str, file: str = "statements.sql") -> dict[str, str]:
    """The statements of a store's package."""
    return parse(files(package).joinpath(file).read_text("utf-8"))
