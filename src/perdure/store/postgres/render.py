"""Queries as parameterised PostgreSQL SQL.

Custom attributes are JSON. A value is compared with those of its own kind, text by code point and
numbers (and booleans, as 0 and 1) by value; a run that holds another kind there counts as having
none.

Some conditions are said twice: exactly, and in a weaker form that an index can serve (`_hint`). The
planner knows nothing of how common a custom attribute's value is, and would collect and sort half
of a large table for the first page. So such a query takes a `first_look` at the runs that come
first; only when they do not fill the page is the index asked.
"""

from __future__ import annotations

from typing import Any, Final, TypeGuard

import msgspec

from perdure.store.paging import NULL_WHEN_EMPTY, NULL_WHEN_ZERO
from perdure.store.query import (
    And,
    Column,
    Compare,
    Condition,
    Custom,
    Field,
    In,
    IsNull,
    Not,
    Query,
    Scalar,
)
from perdure.store.rendering import Rendering, nullable, way

Parameters = list[Scalar | None]

FIRST_LOOK: Final = 2_000
"""Runs that are looked through before an index of custom attributes is asked."""

_HINTED_MAX: Final = 100
_INT64: Final = 1 << 63


def select(query: Query) -> tuple[str, Parameters]:
    """The page of runs that a query asks for."""
    rendering = _PostgresRendering()
    return rendering.select(query), rendering.parameters


def first_look(query: Query) -> tuple[str, Parameters] | None:
    """The page of a query among the runs that come first, for those that are worth it.

    A full page is the answer; one that is not says nothing.
    """
    terms = _conjuncts(query.where)
    indexed = [term for term in terms if _contained(term)]
    if not indexed or query.limit > FIRST_LOOK:
        return None
    rendering = _PostgresRendering()
    return rendering.first_look(query, terms, indexed), rendering.parameters


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
        elif isinstance(value, int) and not -_INT64 <= value < _INT64:
            value = float(value)  # a stored float that is whole comes back as an int
        self.parameters.append(value)
        kind = {int: "bigint", float: "float8"}.get(type(value), "text")
        return f"${len(self.parameters)}::{kind}"

    def _json(self, field: Custom) -> str:
        return f"search_attributes -> {self.bind(field.name)}"

    def custom(self, field: Custom, value: Scalar | None = None) -> str:
        found = self._json(field)
        return _number(found) if isinstance(value, int | float) else _text(found)

    # -- what indexes serve ------------------------------------------------------------------------

    def where(self, query: Query) -> str:
        hints = [self._hint(term) for term in _conjuncts(query.where)]
        return " AND ".join([super().where(query), *filter(None, hints)])

    def first_look(self, query: Query, terms: list[Condition], indexed: list[Condition]) -> str:
        """See the function of this name."""
        others = tuple(term for term in terms if term not in indexed)
        outer = And(tuple(indexed))
        inner = msgspec.structs.replace(query, where=And(others), limit=FIRST_LOOK)
        found, order = self.select(inner), self.order(query)
        return (
            f"SELECT * FROM ({found}) AS first WHERE {self.condition(outer)} "
            f"ORDER BY {order} LIMIT {self.bind(query.limit)}"
        )

    def _hint(self, term: Condition) -> str:
        """What holds wherever a condition does, in a form that an index serves; "" for nothing.

        Only for a condition that is true of every run: where a NOT stands before it, or an OR
        beside, "weaker" would be the wrong way round.
        """
        contained = _contained(term)
        if contained:
            tests = " OR ".join(
                f"search_attributes @> {self.bind(text)}::jsonb" for text in contained
            )
            return f"(search_attributes <> '{{}}' AND ({tests}))"
        match term:
            case Compare(Column() as field, op, value) if field in _EMPTY:
                return f"({field} > {_EMPTY[field]} AND {field} {op} {self.bind(value)})"
            case IsNull(Column() as field) if field in _EMPTY:
                return f"({field} = {_EMPTY[field]})"
            case Not(IsNull(Column() as field)) if field in _EMPTY:
                return f"({field} > {_EMPTY[field]})"
        return ""

    def ranked(self, field: Field, value: Scalar | None = None) -> str:
        return field.value if _is_stored_empty(field) else super().ranked(field, value)

    def rank(self, field: Field, value: Scalar | None) -> Scalar | None:
        if value is None and _is_stored_empty(field):
            return 0 if field in NULL_WHEN_ZERO else ""
        return value

    def may_be_null(self, field: Field) -> bool:
        return nullable(field) and not _is_stored_empty(field)

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
        if not self.may_be_null(field):
            return [f"{self.ranked(field)} {way(descending)}"]
        nulls = f"{way(descending)} NULLS {'LAST' if descending else 'FIRST'}"
        if isinstance(field, Custom):
            found = self._json(field)
            return [f"{_number(found)} {nulls}", f"{_text(found)} {nulls}"]
        return [f"{self.field(field)} {nulls}"]

    def grouped(self, field: Field) -> str:
        return f"({self._json(field)})" if isinstance(field, Custom) else self.field(field)


# How columns hold that there is no value: as the least of all, so that the order is right with it.
_EMPTY: Final[dict[Field, str]] = {
    **dict.fromkeys(NULL_WHEN_ZERO, "0"),
    **dict.fromkeys(NULL_WHEN_EMPTY, "''"),
}


def _is_stored_empty(field: Field) -> TypeGuard[Column]:
    return field in _EMPTY


def _conjuncts(condition: Condition | None) -> list[Condition]:
    """The conditions that must all hold."""
    if condition is None:
        return []
    if isinstance(condition, And):
        return [one for term in condition.terms for one in _conjuncts(term)]
    return [condition]


def _contained(term: Condition) -> list[str]:
    """JSON objects of which a run's attributes contain one when the condition holds."""
    match term:
        case Compare(Custom() as field, "=", value):
            values: tuple[Scalar, ...] = (value,)
        case In(Custom() as field, values) if len(values) <= _HINTED_MAX:
            pass
        case _:
            return []
    if any(isinstance(value, float) for value in values):
        return []  # compared after rounding, so that several stored numbers may be equal to it
    alike = [other for value in values for other in _alike(value)]
    held = ([value] if field.is_list else value for value in alike)
    return [msgspec.json.encode({field.name: value}).decode() for value in held]


def _alike(value: Scalar) -> list[Scalar]:
    """The JSON values that count as equal to one."""
    return [int(value), bool(value)] if value in (0, 1) else [value]


def _text(found: str) -> str:
    return f"((CASE jsonb_typeof({found}) WHEN 'string' THEN {found} END) #>> '{{}}') COLLATE \"C\""


def _number(found: str) -> str:
    return (
        f"(CASE jsonb_typeof({found}) WHEN 'number' THEN ({found})::numeric "
        f"WHEN 'boolean' THEN ({found})::boolean::integer END)"
    )
