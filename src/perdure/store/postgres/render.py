"""Queries as parameterised PostgreSQL SQL.

Custom attributes are JSON. A value is compared with those of its own kind, text by code point and
numbers (and booleans, as 0 and 1) by value; a run that holds another kind there counts as having
none.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.store.query import Custom, Field, Query, Scalar
from perdure.store.rendering import Rendering, nullable, way

Parameters = list[Scalar | None]


def select(query: Query) -> tuple[str, Parameters]:
    """The page of runs that a query asks for."""
    rendering = _PostgresRendering()
    return rendering.select(query), rendering.parameters


def count(query: Query) -> tuple[str, Parameters]:
    """The number of runs, after the columns that the query groups by."""
    rendering = _PostgresRendering()
    return rendering.count(query), rendering.parameters


def group(query: Query, row: Any) -> list[object]:
    """The values that a row of `count` is for: custom ones come as JSON."""
    pairs = zip(query.group_by, row, strict=False)
    return [_plain(value) if isinstance(field, Custom) else value for field, value in pairs]


def _plain(text: str | None) -> object:
    if text is None:
        return None
    value: object = msgspec.json.decode(text)
    return int(value) if isinstance(value, bool) else value


class _PostgresRendering(Rendering):
    """Parameters by number, each with its type."""

    table = "perdure.runs"

    def __init__(self) -> None:
        self.parameters: Parameters = []

    def bind(self, value: Scalar | None) -> str:
        if isinstance(value, bool):
            value = int(value)
        self.parameters.append(value)
        kind = {int: "bigint", float: "float8"}.get(type(value), "text")
        return f"${len(self.parameters)}::{kind}"

    def _json(self, field: Custom) -> str:
        return f"search_attributes -> {self.bind(field.name)}"

    def custom(self, field: Custom, value: Scalar | None = None) -> str:
        found = self._json(field)
        return _number(found) if isinstance(value, int | float) else _text(found)

    def has_no(self, field: Field) -> str:
        if isinstance(field, Custom):
            return f"(nullif({self._json(field)}, 'null') IS NULL)"
        return super().has_no(field)

    def any_member(self, field: Custom, test: str) -> str:
        found = self._json(field)
        members = f"CASE jsonb_typeof({found}) WHEN 'array' THEN {found} ELSE "
        members += f"jsonb_build_array({found}) END"
        return (
            f"(CASE WHEN nullif({found}, 'null') IS NULL THEN NULL ELSE EXISTS (SELECT FROM "
            f'(SELECT m COLLATE "C" AS value FROM jsonb_array_elements_text({members}) AS m) AS v '
            f"WHERE {test}) END)"
        )

    def sort_keys(self, field: Field, descending: bool) -> list[str]:
        nulls = f"{way(descending)} NULLS {'LAST' if descending else 'FIRST'}"
        if isinstance(field, Custom):
            found = self._json(field)
            return [f"{_number(found)} {nulls}", f"{_text(found)} {nulls}"]
        return [f"{self.field(field)} {nulls if nullable(field) else way(descending)}"]

    def grouped(self, field: Field) -> str:
        return f"({self._json(field)})" if isinstance(field, Custom) else self.field(field)


def _text(found: str) -> str:
    return f"((CASE jsonb_typeof({found}) WHEN 'string' THEN {found} END) #>> '{{}}') COLLATE \"C\""


def _number(found: str) -> str:
    return (
        f"(CASE jsonb_typeof({found}) WHEN 'number' THEN ({found})::numeric "
        f"WHEN 'boolean' THEN ({found})::boolean::integer END)"
    )
