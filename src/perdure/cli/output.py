"""What a command prints: tables for people, JSON for programs.

With ``--json`` every command prints exactly one JSON value on stdout: an array for lists, an object
for everything else. Field names are those of perdure's records; times are ISO 8601 in UTC, statuses
are words (``RUNNING``), and what is not known is null. Fields may be added, never renamed.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any


class Output:
    """Where results go, in the form that was asked for."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def rows(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
        """A list; `columns` maps the keys shown to people to their headings."""
        if self.as_json:
            self.json(list(rows))
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(*columns.values(), box=None, header_style="bold", pad_edge=False)
        for row in rows:
            table.add_row(*(cell(row.get(key)) for key in columns))
        console = Console(markup=False, highlight=False)
        if not console.is_terminal:
            console.width = 10_000  # a pipe has no edge to wrap at
        console.print(table)

    def record(self, record: Mapping[str, Any]) -> None:
        """One thing; people see a line for each field that is known."""
        if self.as_json:
            self.json(record)
            return
        shown = {k.replace("_", " "): v for k, v in record.items() if v not in (None, "", [], {})}
        width = max(map(len, shown), default=0)
        for key, value in shown.items():
            print(f"{key:<{width}}  {cell(value)}")

    def done(self, sentence: str, **facts: Any) -> None:
        """Something was done: a sentence for people, the facts for programs."""
        if self.as_json:
            self.json(facts)
        else:
            print(sentence)

    def value(self, value: Any) -> None:
        """A result; a string is printed bare for people."""
        if isinstance(value, str) and not self.as_json:
            print(value)
        else:
            self.json(value)

    def json(self, value: Any) -> None:
        """One JSON value."""
        json.dump(plain(value), sys.stdout, indent=2, ensure_ascii=False)
        print()


def plain(value: Any) -> Any:
    """A value as JSON can say it: enums by their names, times as ISO 8601, durations in seconds."""
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(getattr(key, "name", key)): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return str(value)


def cell(value: Any) -> str:
    """A value in a table."""
    if value is None:
        return ""
    if isinstance(value, enum.Enum):
        return value.name.replace("_", " ").capitalize()
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, str | int | float):
        return str(value)
    return json.dumps(plain(value), ensure_ascii=False)
