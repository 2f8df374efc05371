"""Queries as parameterised SQLite SQL."""

from __future__ import annotations

from typing import Final

from perdure.store.query import Custom, Query, Scalar
from perdure.store.rendering import Rendering

_INT64: Final = 1 << 63

Parameters = dict[str, Scalar | None]


def select(query: Query) -> tuple[str, Parameters]:
    """The page of runs that a query asks for."""
    rendering = _SqliteRendering()
    return rendering.select(query), rendering.parameters


def count(query: Query) -> tuple[str, Parameters]:
    """The number of runs, after the columns that the query groups by."""
    rendering = _SqliteRendering()
    return rendering.count(query), rendering.parameters


class _SqliteRendering(Rendering):
    """Parameters by name."""

    def __init__(self) -> None:
        self.parameters: Parameters = {}

    def bind(self, value: Scalar | None) -> str:
        if isinstance(value, int) and not -_INT64 <= value < _INT64:
            value = float(value)  # as SQLite itself reads such a number in JSON
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f":{name}"

    def custom(self, field: Custom, value: Scalar | None = None) -> str:
        name = field.name
        if name and name.isprintable() and '"' not in name and "\\" not in name:
            path = self.bind(f'$."{name}"')
            return f"json_extract(search_attributes, {path})"
        return f"(SELECT value FROM json_each(search_attributes) WHERE key = {self.bind(name)})"

    def any_member(self, field: Custom, test: str) -> str:
        members = self.custom(field)
        return (
            f"iif({members} IS NULL, NULL, "
            f"EXISTS (SELECT 1 FROM json_each({members}) WHERE {test}))"
        )
