"""Lines of a table of measurements."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table: a key of the facts, and which way is better."""

    key: str
    label: str
    unit: str
    more_is_better: bool = False


def shown(value: float | None, unit: str) -> str:
    """A value with its unit."""
    if value is None:
        return "–"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def ratio(first: float | None, other: float | None, row: Row) -> str:
    """How many times better the first is; empty where one is not known."""
    if not first or not other:
        return ""
    better = first / other if row.more_is_better else other / first
    return f"{better:.1f} ×"
