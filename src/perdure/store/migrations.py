"""Numbered SQL files beside a store: its schema, step by step."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_FILE = re.compile(r"(\d{4})_\w+\.sql")


@cache
def load(package: str) -> tuple[str, ...]:
    """The migrations of a store's package, in order; the n-th (from 1) leads to version n."""
    found: dict[int, str] = {}
    for entry in files(package).joinpath("migrations").iterdir():
        match = _FILE.fullmatch(entry.name)
        if match:
            number = int(match[1])
            assert number not in found, f"two migrations are numbered {number}"
            found[number] = entry.read_text("utf-8")
    assert sorted(found) == list(range(1, len(found) + 1)), sorted(found)
    return tuple(found[number] for number in sorted(found))
