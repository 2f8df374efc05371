"""Queries as parameterised PostgreSQL SQL.

Some conditions are said twice: exactly, and in a weaker form that an index can serve (`_hint`).
Conditions on fields that only some runs have are said so that the indexes of `indexes.py` can serve
them, where there are any; the statement has to be planned for its parameters then, as the names of
custom attributes are among them.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

import msgspec

from perdure.store.paging import NULL_WHEN_OPEN
from perdure.store.postgres import custom
from perdure.store.postgres.parts import (
    EMPTY,
    OWN,
    Part,
    conjuncts,
    has_order,
    is_not_own,
    is_stored_empty,
    looked_through,
    rank,
)
from perdure.store.query import (
    And,
    Column,
    Compare,
    Condition,
    Custom,
    Field,
    In,
    IsNull,
    Kind,
    Not,
    Query,
    Scalar,
    StartsWith,
)
from perdure.store.rendering import Rendering, nullable, way

Parameters = list[Scalar | Decimal | None]
Statement = tuple[str, Parameters]

_HINTED_MAX: Final = 100
_INT64: Final = 1 << 63


def select(part: Part, limit: int) -> Statement:
    """The page of runs that a query asks for."""
    rendering = _PostgresRendering(part)
    return rendering.select(_limited(part, limit)), rendering.parameters


def select_unordered(part: Part, limit: int) -> Statement:
    """The same, by way of all the runs that a query asks for, whatever the page's order."""
    rendering = _PostgresRendering(part)
    return rendering.select_unordered(_limited(part, limit)), rendering.parameters


def look(part: Part, limit: int, runs: int) -> Statement | None:
    """The page of a query among so many runs that come first, for those that are worth it.

    A full page is the answer; one that is not says nothing.
    """
    found = looked_through(part)
    if found is None:
        return None
    rendering = _PostgresRendering(part)
    return rendering.look(_limited(part, limit), *found, runs), rendering.parameters


def _limited(part: Part, limit: int) -> Query:
    return msgspec.structs.replace(part.query, limit=limit)


def count(query: Query) -> Statement:
    """The number of runs, after the columns that the query groups by."""
    rendering = _PostgresRendering(Part(query))
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

    def __init__(self, part: Part) -> None:
        self._part = part
        self.parameters: Parameters = []

    def bind(self, value: Scalar | Decimal | None) -> str:
        if isinstance(value, bool):
            value = int(value)
        elif isinstance(value, int) and not -_INT64 <= value < _INT64:
            value = Decimal(value)  # a stored float that is whole comes back as an int
        elif isinstance(value, float):
            value = Decimal(repr(value))  # as it is stored; a float would be compared as one
        self.parameters.append(value)
        kind = {int: "bigint", Decimal: "numeric"}.get(type(value), "text")
        return f"${len(self.parameters)}::{kind}"

    def _json(self, field: Custom) -> str:
        return custom.json(self.bind(field.name))

    def custom(self, field: Custom, value: Scalar | None = None) -> str:
        found = self._json(field)
        if isinstance(value, int | float):
            return custom.number(found)
        if isinstance(value, str):
            return custom.short_text(found) if len(value) < custom.TEXT_MAX else custom.text(found)
        return custom.ordered(field.kind, found)

    # -- what indexes serve ------------------------------------------------------------------------

    def where(self, query: Query) -> str:
        hints = [self._hint(term) for term in conjuncts(query.where)]
        return " AND ".join([super().where(query), *filter(None, hints)])

    def look(self, query: Query, inner: list[Condition], outer: list[Condition], runs: int) -> str:
        """See the function of this name; the conditions are those of all runs that are looked
        through, and those that are looked for."""
        first = msgspec.structs.replace(query, where=And(tuple(inner)), limit=runs)
        found, order = self.select(first), self.order(query)
        return (
            f"SELECT * FROM ({found}) AS first WHERE {self.condition(And(tuple(outer)))} "
            f"ORDER BY {order} LIMIT {self.bind(query.limit)}"
        )

    def select_unordered(self, query: Query) -> str:
        """See the function of this name."""
        where = self.where(query)
        if query.after is not None:
            where += f" AND {self.after(query, query.after)}"
        # OFFSET makes the planner forget that only the first are wanted.
        found = f"SELECT * FROM {self.table} WHERE {where} OFFSET 0"
        order, limit = self.order(query), self.bind(query.limit)
        return f"SELECT * FROM ({found}) AS found ORDER BY {order} LIMIT {limit}"

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
            case Compare(Column() as field, "=", value) if field in OWN:
                bound = self.bind(value)
                return f"({OWN[field]} = {bound} OR ({is_not_own(field)} AND {field} = {bound}))"
            case Compare(Column() as field, op, value) if field in EMPTY:
                return f"({field} > {EMPTY[field]} AND {field} {op} {self.bind(value)})"
            case IsNull(Column() as field) if field in NULL_WHEN_OPEN:
                return "(close_ns = 0)"
            case IsNull(Column() as field) if field in EMPTY:
                return f"({field} = {EMPTY[field]})"
            case Not(IsNull(Column() as field)) if field in EMPTY:
                return f"({field} > {EMPTY[field]})"
            case Compare(Custom(_, Kind.LIST) as field) | StartsWith(Custom(_, Kind.LIST) as field):
                return f"(NOT {self.has_no(field)})"
            case Not(
                Compare(Custom(_, Kind.LIST) as field)
                | In(Custom(_, Kind.LIST) as field)
                | StartsWith(Custom(_, Kind.LIST) as field)
            ):
                return f"(NOT {self.has_no(field)})"
        return ""

    def condition(self, condition: Condition) -> str:
        match condition:
            case Compare(field, "!=", value) if has_order(field):
                return self._outside(field, [value])
            case Not(In(field, values)) if _are_ordered(field, values):
                return self._outside(field, sorted(values))
        return super().condition(condition)

    def _outside(self, field: Field, values: list[Scalar]) -> str:
        """Whether a value is none of these, which are ordered: it is between them."""
        tests = [f"{self.field(field, values[0])} < {self.bind(values[0])}"]
        for low, high in pairwise(values):
            lower = f"{self.field(field, low)} > {self.bind(low)}"
            tests.append(f"{lower} AND {self.field(field, high)} < {self.bind(high)}")
        tests.append(f"{self.field(field, values[-1])} > {self.bind(values[-1])}")
        return f"({' OR '.join(tests)})"

    def ranked(self, field: Field, value: Scalar | None = None) -> str:
        if isinstance(field, Custom):
            return custom.ordered(field.kind, self._json(field))
        return field.value if is_stored_empty(field) else super().ranked(field, value)

    def rank(self, field: Field, value: Scalar | None) -> Scalar | None:
        return rank(field, value)

    def may_be_null(self, field: Field) -> bool:
        return nullable(field) and not is_stored_empty(field) and field != self._part.present

    def any_member(self, field: Custom, test: str) -> str:
        found = self._json(field)
        members = f"CASE jsonb_typeof({found}) WHEN 'array' THEN {found} ELSE "
        members += f"jsonb_build_array({found}) END"
        return (
            f"(CASE WHEN {custom.anything(found)} IS NULL THEN NULL ELSE EXISTS (SELECT FROM "
            f'(SELECT m COLLATE "C" AS value FROM jsonb_array_elements_text({members}) AS m) AS v '
            f"WHERE {test}) END)"
        )

    def after(self, query: Query, marks: tuple[Scalar | None, ...]) -> str:
        if self._part.absent is None:
            return super().after(query, marks)
        if len(query.order) > 1:  # the first term is the same for all
            rest = msgspec.structs.replace(query, order=query.order[1:])
            return super().after(rest, marks[1:])
        return f"key {'<' if query.order[0].descending else '>'} {self.bind(marks[-1])}"

    def sort_keys(self, field: Field, descending: bool) -> list[str]:
        if field == self._part.absent:
            return []
        nulls = f" NULLS {'LAST' if descending else 'FIRST'}" if nullable(field) else ""
        if is_stored_empty(field):
            nulls = ""
        return [f"{self.ranked(field)} {way(descending)}{nulls}"]

    def grouped(self, field: Field) -> str:
        if isinstance(field, Custom):
            return custom.anything(self._json(field))
        return self.field(field)


def _are_ordered(field: Field, values: tuple[Scalar, ...]) -> bool:
    """Whether these are values of a kind that has an order, and not too many."""
    is_text = {isinstance(value, str) for value in values}
    return has_order(field) and len(is_text) == 1 and len(values) <= _HINTED_MAX


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
