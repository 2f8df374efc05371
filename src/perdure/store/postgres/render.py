"""Queries as parameterised PostgreSQL SQL.

Some conditions are said twice: exactly, and in a weaker form that an index can serve (`_hint`).
Conditions on custom attributes are said so that the indexes of `indexes.py` can serve them, where
there are any; the statement has to be planned for its parameters then, as the attributes' names are
among them.

Runs with a common value are found quickest in the order of the page, those with a rare one by an
index, and the planner cannot tell well which it is. So a query for custom attributes takes a
`first_look` at the runs that come first; only when they do not fill the page is it asked in full.
If they hardly began to fill it, it is asked without thought of the order: values may go with that,
as those of times do.
"""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeGuard

import msgspec

from perdure.store.paging import NULL_WHEN_EMPTY, NULL_WHEN_ZERO, sort_terms
from perdure.store.postgres import custom
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
    Or,
    Query,
    Scalar,
    StartsWith,
)
from perdure.store.rendering import Rendering, nullable, way

Parameters = list[Scalar | Decimal | None]

FIRST_LOOK: Final = 2_000
"""Runs that are looked through before a query for custom attributes is asked in full."""

FAIR_SHARE: Final = 0.1
"""Of a page: if the first look finds this, going on in its order will find the rest soon."""

_HINTED_MAX: Final = 100
_INT64: Final = 1 << 63


class Part(NamedTuple):
    """A query, or what it asks of some runs.

    Attributes:
        query: which, apart from its limit.
        present: an attribute that they all have.
        absent: one that none of them has.
    """

    query: Query
    present: Custom | None = None
    absent: Custom | None = None


def parts(query: Query) -> list[Part]:
    """Queries whose answers, one behind the other, are a query's.

    Runs that have the attribute by which they are ordered come from its index; so those that have
    none are asked for on their own.
    """
    field = query.order[0].field if query.order else None
    if not isinstance(field, Custom):
        return [Part(query)]
    descending = query.order[0].descending
    mark = query.after[0] if query.after else None
    present = Part(_and(query, Not(IsNull(field))), present=field)
    absent = Part(_and(query, IsNull(field)), absent=field)
    if query.after is None:
        return [present, absent] if descending else [absent, present]
    if _rank(field, mark) is None:
        rest = msgspec.structs.replace(present.query, after=None)
        return [absent] if descending else [absent, Part(rest, present=field)]
    rest = msgspec.structs.replace(absent.query, after=None)
    return [present, Part(rest, absent=field)] if descending else [present]


def _and(query: Query, condition: Condition) -> Query:
    terms = (condition,) if query.where is None else (query.where, condition)
    return msgspec.structs.replace(query, where=And(terms))


def select(part: Part, limit: int) -> tuple[str, Parameters]:
    """The page of runs that a query asks for."""
    rendering = _PostgresRendering(part)
    return rendering.select(_limited(part, limit)), rendering.parameters


def select_unordered(part: Part, limit: int) -> tuple[str, Parameters]:
    """The same, by way of all the runs that a query asks for, whatever the page's order."""
    rendering = _PostgresRendering(part)
    return rendering.select_unordered(_limited(part, limit)), rendering.parameters


def is_served(part: Part, indexed: Collection[Custom]) -> bool:
    """Whether an index finds just the runs that some condition of a query lets pass."""
    terms = _conjuncts(part.query.where)
    return any(_is_served(term, indexed) for term in terms if not _is_about(part, term))


def first_look(part: Part, limit: int) -> tuple[str, Parameters] | None:
    """The page of a query among the runs that come first, for those that are worth it.

    A full page is the answer; one that is not says nothing.
    """
    terms = _conjuncts(part.query.where)
    is_custom = any(_is_custom(term) and not _is_about(part, term) for term in terms)
    if not is_custom or limit > FIRST_LOOK or not _has_index(_leader(part.query)):
        return None
    inner = _in_order(part, terms)
    outer = [term for term in terms if term not in inner]
    rendering = _PostgresRendering(part)
    return rendering.first_look(_limited(part, limit), inner, outer), rendering.parameters


def _limited(part: Part, limit: int) -> Query:
    return msgspec.structs.replace(part.query, limit=limit)


def count(query: Query) -> tuple[str, Parameters]:
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
        hints = [self._hint(term) for term in _conjuncts(query.where)]
        return " AND ".join([super().where(query), *filter(None, hints)])

    def first_look(self, query: Query, inner: list[Condition], outer: list[Condition]) -> str:
        """See the function of this name; the conditions are those of all runs that are looked
        through, and those that are looked for."""
        first = msgspec.structs.replace(query, where=And(tuple(inner)), limit=FIRST_LOOK)
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
            case Compare(Column() as field, op, value) if field in _EMPTY:
                return f"({field} > {_EMPTY[field]} AND {field} {op} {self.bind(value)})"
            case IsNull(Column() as field) if field in _EMPTY:
                return f"({field} = {_EMPTY[field]})"
            case Not(IsNull(Column() as field)) if field in _EMPTY:
                return f"({field} > {_EMPTY[field]})"
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
            case Compare(Custom() as field, "!=", value) if not field.is_list:
                return self._outside(field, [value])
            case Not(In(Custom() as field, values)) if _are_ordered(field, values):
                return self._outside(field, sorted(values))
        return super().condition(condition)

    def _outside(self, field: Custom, values: list[Scalar]) -> str:
        """Whether a value is none of these, which are ordered: it is between them."""
        tests = [f"{self.custom(field, values[0])} < {self.bind(values[0])}"]
        for low, high in pairwise(values):
            lower = f"{self.custom(field, low)} > {self.bind(low)}"
            tests.append(f"{lower} AND {self.custom(field, high)} < {self.bind(high)}")
        tests.append(f"{self.custom(field, values[-1])} > {self.bind(values[-1])}")
        return f"({' OR '.join(tests)})"

    def ranked(self, field: Field, value: Scalar | None = None) -> str:
        if isinstance(field, Custom):
            return custom.ordered(field.kind, self._json(field))
        return field.value if _is_stored_empty(field) else super().ranked(field, value)

    def rank(self, field: Field, value: Scalar | None) -> Scalar | None:
        return _rank(field, value)

    def may_be_null(self, field: Field) -> bool:
        return nullable(field) and not _is_stored_empty(field) and field != self._part.present

    def any_member(self, field: Custom, test: str) -> str:
        found = self._json(field)
        members = f"CASE jsonb_typeof({found}) WHEN 'array' THEN {found} ELSE "
        members += f"jsonb_build_array({found}) END"
        return (
            f"(CASE WHEN {custom.anything(found)} IS NULL THEN NULL ELSE EXISTS (SELECT FROM "
            f'(SELECT m COLLATE "C" AS value FROM jsonb_array_elements_text({members}) AS m) AS v '
            f"WHERE {test}) END)"
        )

    def sort_keys(self, field: Field, descending: bool) -> list[str]:
        if field == self._part.absent:
            return []
        nulls = f" NULLS {'LAST' if descending else 'FIRST'}" if nullable(field) else ""
        if _is_stored_empty(field):
            nulls = ""
        return [f"{self.ranked(field)} {way(descending)}{nulls}"]

    def grouped(self, field: Field) -> str:
        return f"({self._json(field)})" if isinstance(field, Custom) else self.field(field)


# Columns by which runs are indexed, and then by their start; first those that tell most.
_LEADING: Final = (
    Column.WORKFLOW_ID,
    Column.PARENT_WORKFLOW_ID,
    Column.STATUS,
    Column.WORKFLOW_TYPE,
    Column.TASK_QUEUE,
)

# How columns hold that there is no value: as the least of all, so that the order is right with it.
_EMPTY: Final[dict[Field, str]] = {
    **dict.fromkeys(NULL_WHEN_ZERO, "0"),
    **dict.fromkeys(NULL_WHEN_EMPTY, "''"),
}


def _is_stored_empty(field: Field) -> TypeGuard[Column]:
    return field in _EMPTY


def _rank(field: Field, value: Scalar | None) -> Scalar | None:
    """A value as it is ordered; None for one that the field cannot have."""
    if isinstance(field, Custom):
        if isinstance(value, str):
            return value[: custom.TEXT_MAX] if field.kind is Kind.TEXT else None
        return value if field.kind is Kind.NUMBER else None
    if value is None and _is_stored_empty(field):
        return 0 if field in NULL_WHEN_ZERO else ""
    return value


def _are_ordered(field: Custom, values: tuple[Scalar, ...]) -> bool:
    """Whether these are values of a kind that has an order, and not too many."""
    is_text = {isinstance(value, str) for value in values}
    return not field.is_list and len(is_text) == 1 and len(values) <= _HINTED_MAX


def _leader(query: Query) -> Field:
    """By what a query's runs are ordered first."""
    return sort_terms(query)[0].field


def _has_index(leader: Field) -> bool:
    return leader in (Column.START, Column.CLOSE) or isinstance(leader, Custom)


def _in_order(part: Part, terms: list[Condition]) -> list[Condition]:
    """The conditions with which an index still gives runs in their order, one after the other.

    With others it might have to pass over most of the table.
    """
    leader = _leader(part.query)
    kept = [term for term in terms if _is_about(part, term) or _column(term) is leader]
    if leader is Column.START:
        equal = [term for term in terms if isinstance(term, Compare) and term.op == "="]
        leading = [term for column in _LEADING for term in equal if term.field is column]
        kept += leading[:1]
    return kept


def _column(term: Condition) -> Column | None:
    match term:
        case Compare(Column() as column) | IsNull(Column() as column):
            return column
        case Not(IsNull(Column() as column)):
            return column
    return None


def _is_custom(term: Condition) -> bool:
    """Whether a condition is about custom attributes."""
    match term:
        case And(terms) | Or(terms):
            return any(map(_is_custom, terms))
        case Not(inner):
            return _is_custom(inner)
        case Compare(field) | In(field) | StartsWith(field) | IsNull(field):
            return isinstance(field, Custom)


def _is_served(term: Condition, indexed: Collection[Custom]) -> bool:
    match term:
        case And(terms):
            return any(_is_served(one, indexed) for one in terms)
        case Or(terms):
            return bool(terms) and all(_is_served(one, indexed) for one in terms)
        case Not(IsNull(Custom() as field)):
            return field in indexed
        case Not(Compare() | In() | StartsWith() as inner):
            return _is_served(inner, indexed)
        case Compare(Custom() as field) | In(Custom() as field) | StartsWith(Custom() as field):
            return field in indexed and not field.is_list
    return False


def _is_about(part: Part, term: Condition) -> bool:
    """Whether a condition is the one that makes a query's part."""
    if part.present is not None:
        return term == Not(IsNull(part.present))
    return part.absent is not None and term == IsNull(part.absent)


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
