"""What a query asks of which runs, and in which ways it may be answered.

Some fields only some runs have, and have an index of these (`indexes.py`): custom attributes, and
what is known of closed runs only. Runs with a common value there are found quickest in the order
of the page, those with a rare one by the index, and the planner cannot tell well which it is. So a
query for such fields first looks among the runs that come first (`listing.py`). Only when they do
not fill the page is it asked in full: without thought of the order if there is an index, as values
may go with the order, as those of times do.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple, TypeGuard

import msgspec

from perdure.store.paging import NULL_WHEN_EMPTY, NULL_WHEN_OPEN, NULL_WHEN_ZERO, sort_terms
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


# What a run's root is unless it is another run: the run itself.
OWN: Final[dict[Field, Column]] = {
    Column.ROOT_WORKFLOW_ID: Column.WORKFLOW_ID,
    Column.ROOT_RUN_ID: Column.RUN_ID,
}


def is_not_own(field: Column) -> str:
    """Whether a run's root is another run, as SQL: few are, and these have an index."""
    return f"{field} <> {OWN[field]}"


def is_stored_empty(field: Field) -> TypeGuard[Column]:
    return field in EMPTY


def is_sparse(field: Field) -> bool:
    """Whether only some runs have a value there, and an index of these."""
    return isinstance(field, Custom) or field in NULL_WHEN_OPEN


def has_order(field: Field) -> bool:
    """Whether it is such a field, and its index is in the order of its values."""
    return is_sparse(field) and not (isinstance(field, Custom) and field.is_list)


class Part(NamedTuple):
    """A query, or what it asks of some runs.

    Attributes:
        query: which, apart from its limit.
        present: a field of which they all have a value.
        absent: one of which none of them has.
    """

    query: Query
    present: Field | None = None
    absent: Field | None = None


def parts(query: Query) -> list[Part]:
    """Queries whose answers, one behind the other, are a query's.

    Runs that have a value of the field by which they are ordered come from its index; so those that
    have none are asked for on their own, unless the query lets none of them pass.
    """
    found = _all_parts(query)
    return [part for part in found if part.absent is None or not _needs(query, part.absent)]


def _all_parts(query: Query) -> list[Part]:
    field = query.order[0].field if query.order else None
    if field is None or not is_sparse(field):
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


def _needs(query: Query, field: Field) -> bool:
    """Whether a query cannot hold for a run that has no value there."""
    return any(_is_false_without(field, term) for term in conjuncts(query.where))


def _is_false_without(field: Field, term: Condition) -> bool:
    """Whether a condition is false, or unknown, for runs that have no value there."""
    match term:
        case And(terms):
            return any(_is_false_without(field, one) for one in terms)
        case Or(terms):
            return all(_is_false_without(field, one) for one in terms)
        case Not(IsNull(asked)):
            return asked == field
        case Not(Compare() | In() | StartsWith() as inner):
            return _is_false_without(field, inner)  # unknown, and so is its negation
        case Compare(asked) | In(asked) | StartsWith(asked):
            return asked == field
    return False


def _and(query: Query, condition: Condition) -> Query:
    terms = (condition,) if query.where is None else (query.where, condition)
    return msgspec.structs.replace(query, where=And(terms))


def is_served(part: Part, indexed: Collection[Field]) -> bool:
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
    has_index = leader in (Column.START, Column.CLOSE) or is_sparse(leader)
    if not has_index or not any(
        _is_about_some(term) and not _is_about(part, term) for term in terms
    ):
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


def _is_about_some(term: Condition) -> bool:
    """Whether a condition is about fields that only some runs have."""
    match term:
        case And(terms) | Or(terms):
            return any(map(_is_about_some, terms))
        case Not(inner):
            return _is_about_some(inner)
        case Compare(field) | In(field) | StartsWith(field) | IsNull(field):
            return is_sparse(field)


def _is_served(term: Condition, indexed: Collection[Field]) -> bool:
    match term:
        case And(terms):
            return any(_is_served(one, indexed) for one in terms)
        case Or(terms):
            return bool(terms) and all(_is_served(one, indexed) for one in terms)
        case Not(IsNull(field)):
            return field in indexed and is_sparse(field)
        case Not(Compare() | In() | StartsWith() as inner):
            return _is_served(inner, indexed)
        case Compare(field) | In(field) | StartsWith(field):
            return field in indexed and has_order(field)
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
