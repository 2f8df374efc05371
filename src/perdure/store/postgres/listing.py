"""A page of runs, found in the way that looks quickest; see parts.py.

A query that the first look does not answer takes longer ones, as long as the planner thinks each
cheaper than to fetch all runs that the query asks for: whichever way is right, not much more than
twice its cost is spent. The planner is asked about costs only, not trusted to choose: it takes
values to be spread evenly over the order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

import msgspec

from perdure.store.postgres import render
from perdure.store.postgres.parts import Part, is_served, parts
from perdure.store.query import Field, Query

Read = Callable[..., Awaitable[list[Any]]]

FIRST_LOOK: Final = 2_000
"""Runs that are looked through before anything else is thought of."""

LONGER_LOOKS: Final = (20_000, 200_000)
"""Runs that the next ones go through, at most: each ends as soon as it has the page."""

FAIR_SHARE: Final = 0.1
"""Of a page: if the first look finds this, a longer one will probably find the rest."""


async def page(read: Read, query: Query, indexed: Collection[Field]) -> list[Any]:
    """The rows of a page.

    Args:
        read: runs a statement, planned for its parameters, and returns its rows.
        query: what is asked for.
        indexed: fields that only some runs have, with an index of their own.
    """
    rows: list[Any] = []
    for part in parts(query):
        rows += await _part(read, part, query.limit - len(rows), indexed)
        if len(rows) == query.limit:
            break
    return rows


async def _part(read: Read, part: Part, limit: int, indexed: Collection[Field]) -> list[Any]:
    first = render.look(part, limit, FIRST_LOOK) if limit <= FIRST_LOOK else None
    if first is None:
        return await _rows(read, render.select(part, limit))
    rows = await _rows(read, first)
    if len(rows) == limit:
        return rows
    has_fair_share = len(rows) >= limit * FAIR_SHARE
    if not is_served(part, indexed):
        looks, whole, budget = LONGER_LOOKS[:has_fair_share], render.select(part, limit), None
    else:
        looks, whole = LONGER_LOOKS, render.select_unordered(part, limit)
        budget = await _cost(read, whole)
    for runs in looks:
        longer = render.look(part, limit, runs)
        assert longer is not None, "the first look was worth it"
        if budget is not None and await _cost(read, longer) > budget:
            break
        rows = await _rows(read, longer)
        if len(rows) == limit:
            return rows
    return await _rows(read, whole)


async def _rows(read: Read, statement: render.Statement) -> list[Any]:
    return await read(statement[0], *statement[1])


async def _cost(read: Read, statement: render.Statement) -> float:
    """What the planner thinks that a statement costs if it finds no full page, in its own units."""
    rows = await read(f"EXPLAIN (FORMAT JSON) {statement[0]}", *statement[1])
    limited = msgspec.json.decode(rows[0][0])[0]["Plan"]
    cost: float = limited["Plans"][0]["Total Cost"]
    return cost
