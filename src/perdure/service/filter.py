"""The list filter: what users write to find runs, turned into the store's conditions.

    WorkflowType = 'checkout' AND ExecutionStatus = 'Running' AND StartTime > now() - 1h
    CustomerId IN ('a', 'b') AND NOT WorkflowId STARTS_WITH 'test-' ORDER BY CloseTime DESC

The language is Temporal's, a subset of SQL's WHERE, with ORDER BY and GROUP BY. As in SQL, a
comparison with an attribute that a run does not have is neither true nor false, and so is its
negation: use ``IS NULL``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from perdure.api.errors import InvalidArgument
from perdure.store.query import Condition, Field, Order

MAXIMUM_FILTER_SIZE = 100_000  # characters


class Filter(NamedTuple):
    """A parsed filter; ``where`` is None when it lets every run pass."""

    where: Condition | None
    order: tuple[Order, ...]
    group_by: tuple[Field, ...]


def parse(text: str, attribute_types: Mapping[str, int], now_ns: int) -> Filter:
    """What a filter means.

    Args:
        text: the filter; an empty one lets every run pass.
        attribute_types: the custom search attributes of the namespace, by name, each with the
            number of its ``temporal.api.enums.v1.IndexedValueType``.
        now_ns: what ``now()`` stands for, nanoseconds since the epoch.

    Raises:
        InvalidArgument: the filter cannot be understood; the message says where and why.
    """
    if not text.strip():
        return Filter(None, (), ())
    if "\0" in text:
        raise InvalidArgument(f"invalid query: it contains a NUL character: {text[:100]!r}")
    # Loading the grammar takes half a second, which most programs never need.
    from perdure.service.filter_grammar import translate

    return Filter(*translate(text, attribute_types, now_ns))
