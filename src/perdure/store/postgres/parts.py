"""What a query asks of which runs, and in which way it is best answered.

Runs with a common value of a custom attribute are found quickest in the order of the page, those
with a rare one by an index, and the planner cannot tell well which it is. So a query for custom
attributes takes a first look at the runs that come first, and a longer one if these have a fair
share of the page. Only when they do not fill it is it asked in full: without thought of the order
if there is an index, as values may go with the order, as those of times do.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple, TypeGuard

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

# Columns by which runs are indexed, and then by their start; first those that tell most.
_LEADING: Final = (
    Column.WORKFLOW_ID,
    Column.PARENT_WORKFLOW_ID,
    Column.STATUS,
    Column.WORKFLOW_TYPE,
    Column.TASK_QUEUE,
)

# How columns hold that there is no value: as the least of all, so that the order is right with it.
EMPTY: Final[dict[Field, str]] = {
    **dict.fromkeys(NULL_WHEN_ZERO, "0"),
    **dict.fromkeys(NULL_WHEN_EMPTY, "''"),
}


def is_stored_empty(field: Field) -> TypeGuard[Column]:
    return field in EMPTY


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
    if rank(field, mark) is None:
        rest = msgspec.structs.replace(present.query, after=None)
        return [absent] if descending else [absent, Part(rest, present=field)]
    rest = msgspec.structs.replace(absent.query, after=None)
    return [present, Part(rest, absent=field)] if descending else [present]


def _and(query: Query, condition: Condition) -> Query:
    terms = (condition,) if query.where is None else (query.where, condition)
    return msgspec.structs.replace(query, where=And(terms))


def is_served(part: Part, indexed: Collection[Custom]) -> bool:
    """Whether an index finds just the runs that some condition of a query lets pass."""
    terms = conjuncts(part.query.where)
    return any(_is_served(term, indexed) for term in terms if not _is_about(part, term))


def rank(field: Field, value: Scalar | None) -> Scalar | None:
    """A value as it is ordered; None for one that the field cannot have."""
    if isinstance(field, Custom):
        if isinstance(value, str):
            return value[: custom.TEXT_MAX] if field.kind is Kind.TEXT else None
        return value if field.kind is Kind.NUMBER else None
    if value is None and is_stored_empty(field):
        return 0 if field in NULL_WHEN_ZERO else ""
    return value


def looked_through(part: Part) -> tuple[list[Condition], list[Condition]] | None:
    """The conditions of the runs that a first look goes through, and those that it looks for; None
    where it is of no use."""
    leader = sort_terms(part.query)[0].field
    terms = conjuncts(part.query.where)
    has_index = leader in (Column.START, Column.CLOSE) or isinstance(leader, Custom)
    if not has_index or not any(_is_custom(term) and not _is_about(part, term) for term in terms):
        return None
    inner = _in_order(part, leader, terms)
    return inner, [term for term in terms if term not in inner]


def _in_order(part: Part, leader: Field, terms: list[Condition]) -> list[Condition]:
    """The conditions with which an index still gives runs in their order, one after the other.

    With others it might have to pass over most of the table.
    """
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


def conjuncts(condition: Condition | None) -> list[Condition]:
    """The conditions that must all hold."""
    if condition is None:
        return []
    if isinstance(condition, And):
        return [one for term in condition.terms for one in conjuncts(term)]
    return [condition]
