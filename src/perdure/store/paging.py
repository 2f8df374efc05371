"""What orders runs in a list, and where a page ends."""

from __future__ import annotations

from perdure.store.contract import Record
from perdure.store.query import Column, Field, Order, Query, Scalar

NEWEST_FIRST = (Order(Column.START, descending=True),)

NULL_WHEN_ZERO = frozenset({Column.CLOSE})
NULL_WHEN_OPEN = frozenset(
    {Column.DURATION, Column.HISTORY_LENGTH, Column.HISTORY_SIZE, Column.TRANSITION_COUNT}
)
"""Known of closed runs only, as in Temporal: a list's row is not written at every step."""

NULL_WHEN_EMPTY = frozenset(
    {
        Column.PARENT_WORKFLOW_ID,
        Column.PARENT_RUN_ID,
        Column.ROOT_WORKFLOW_ID,
        Column.ROOT_RUN_ID,
    }
)


def sort_terms(query: Query) -> tuple[Order, ...]:
    """The order of a query's rows, but for the key: that comes last, the way of the last term."""
    return query.order or NEWEST_FIRST


def value(record: Record, field: Field) -> Scalar | list[str] | None:
    """A field of a record as filters see it; None stands for SQL's NULL."""
    if not isinstance(field, Column):
        return record.search_attributes.get(field.name)
    if field in NULL_WHEN_OPEN and not record.close_ns:
        return None
    if field is Column.DURATION:
        return record.close_ns - record.execution_ns
    found: Scalar = getattr(record, field.value)
    if field in NULL_WHEN_ZERO or field in NULL_WHEN_EMPTY:
        return found or None
    return found


def position(query: Query, record: Record) -> tuple[Scalar | None, ...]:
    """`Query.after` for the page that follows a page ending with this record."""
    values: list[Scalar | None] = []
    for term in sort_terms(query):
        found = value(record, term.field)
        assert not isinstance(found, list), "lists have no order"
        values.append(found)
    return (*values, record.key)
