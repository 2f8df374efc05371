"""What a query means, told slowly: conditions in three-valued logic, over records in a list."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from perdure.store.contract import Record
from perdure.store.paging import sort_terms, value
from perdure.store.query import (
    And,
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
    StartsWith,
)

_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def truth(condition: Condition, record: Record) -> bool | None:
    """True, False, or None for unknown."""
    match condition:
        case And(terms):
            truths = [truth(term, record) for term in terms]
            return False if False in truths else None if None in truths else True
        case Or(terms):
            truths = [truth(term, record) for term in terms]
            return True if True in truths else None if None in truths else False
        case Not(term):
            inner = truth(term, record)
            return None if inner is None else not inner
        case IsNull(field):
            return value(record, field) is None
        case Compare(Custom(_, Kind.LIST) as field, "!=", wanted):
            found = value(record, field)
            return None if found is None else wanted not in found
        case Compare(field, op, wanted):
            return _any(record, field, lambda found: _TESTS[op](found, wanted))
        case In(field, values):
            return _any(record, field, lambda found: found in values)
        case StartsWith(field, prefix):
            return _any(record, field, lambda found: found.startswith(prefix))


def _any(record: Record, field: Field, test: Callable[[Any], bool]) -> bool | None:
    found = value(record, field)
    if found is None:
        return None
    if isinstance(found, list):
        return any(test(member) for member in found)
    return test(found)


def answer(records: Iterable[Record], query: Query) -> list[Record]:
    """The page of records that a query asks for."""
    found = [
        record
        for record in records
        if record.namespace == query.namespace
        and (query.where is None or truth(query.where, record) is True)
    ]
    terms = sort_terms(query)

    def before(a: Record, b: Record) -> int:
        for term in terms:
            x, y = (_rank(value(r, term.field)) for r in (a, b))
            if x != y:
                return (-1 if x < y else 1) * (-1 if term.descending else 1)
        return (a.key - b.key) * (-1 if terms[-1].descending else 1)

    found.sort(key=functools.cmp_to_key(before))
    return found[: query.limit]


def _rank(found: Any) -> tuple[bool, Any]:
    """NULL is the least value."""
    return (found is not None, 0 if found is None else found)
