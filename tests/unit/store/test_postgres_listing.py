"""Which ways of finding a page are tried, by what the planner says that they cost."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from perdure.store.postgres import listing
from perdure.store.postgres.parts import parts
from perdure.store.query import (
    And,
    Column,
    Compare,
    Condition,
    Custom,
    In,
    IsNull,
    Kind,
    Not,
    Or,
    Order,
    Query,
    StartsWith,
)

CITY, TAGS = Custom("City"), Custom("Tags", Kind.LIST)
COUNT = Custom("Count", Kind.NUMBER)
PAGE = 50
WALKED = (2_000, 20_000, 200_000)


class Database:
    """Answers looks with so many rows each, and says what statements cost.

    Attributes:
        asked: for every statement that it ran: the runs that the look goes through, 0 for none.
    """

    def __init__(self, found: dict[int, int], costs: dict[int, float]) -> None:
        self._found, self._costs = found, costs
        self.asked: list[int] = []

    async def read(self, statement: str, *parameters: Any) -> list[Any]:
        runs = next((runs for runs in WALKED if runs in parameters), 0)
        if statement.startswith("EXPLAIN"):
            inner = {"Total Cost": self._costs[runs]}
            return [[json.dumps([{"Plan": {"Total Cost": 1.0, "Plans": [inner]}}])]]
        self.asked.append(runs)
        return [[runs]] * self._found.get(runs, 0)


async def ask(query: Query, found: dict[int, int], costs: dict[int, float]) -> list[int]:
    database = Database(found, costs)
    rows = await listing.page(database.read, query, {CITY, Column.HISTORY_LENGTH})
    assert len(rows) == found.get(database.asked[-1], 0)
    return database.asked


COMMON = Query("default", Not(IsNull(CITY)), limit=PAGE)


async def test_the_first_look_finds_it() -> None:
    assert await ask(COMMON, {2_000: PAGE}, {}) == [2_000]


async def test_the_newest_do_not_have_it_but_most_others() -> None:
    costs = {0: 1e6, 20_000: 8e3, 200_000: 8e4}
    assert await ask(COMMON, {20_000: PAGE}, costs) == [2_000, 20_000]
    assert await ask(COMMON, {200_000: PAGE}, costs) == [2_000, 20_000, 200_000]
    assert await ask(COMMON, {0: PAGE}, costs) == [2_000, 20_000, 200_000, 0]


async def test_few_have_it() -> None:
    assert await ask(COMMON, {2_000: 10, 0: 20}, {0: 200, 20_000: 8e3}) == [2_000, 0]
    costs = {0: 9e3, 20_000: 8e3, 200_000: 8e4}
    assert await ask(COMMON, {0: PAGE}, costs) == [2_000, 20_000, 0]


async def test_what_is_known_of_closed_runs() -> None:
    query = Query("default", Compare(Column.HISTORY_LENGTH, ">", 1_000), limit=PAGE)
    assert await ask(query, {0: 3}, {0: 200, 20_000: 8e3}) == [2_000, 0]


async def test_no_index_serves_it() -> None:
    query = Query("default", StartsWith(TAGS, "a"), limit=PAGE)
    assert await ask(query, {0: 3}, {}) == [2_000, 0]
    assert await ask(query, {2_000: 5, 20_000: PAGE}, {}) == [2_000, 20_000]
    assert await ask(query, {2_000: 5, 20_000: 9, 0: PAGE}, {}) == [2_000, 20_000, 0]


async def test_other_conditions_are_left_to_the_planner() -> None:
    query = Query("default", Compare(Column.WORKFLOW_TYPE, "=", "order"), limit=PAGE)
    assert await ask(query, {0: PAGE}, {}) == [0]


SMALL, SAME_TYPE = Compare(COUNT, "<", 5), Compare(Column.WORKFLOW_TYPE, "=", "order")


@pytest.mark.parametrize(
    "where",
    [
        SMALL,
        Compare(COUNT, "!=", 5),
        In(COUNT, (1, 2)),
        Not(SMALL),
        Not(IsNull(COUNT)),
        And((SAME_TYPE, And((SAME_TYPE, SMALL)))),
        Or((SMALL, And((SAME_TYPE, Not(IsNull(COUNT)))))),
    ],
)
@pytest.mark.parametrize("descending", [False, True])
def test_who_asks_for_values_of_a_field_is_not_shown_runs_without(
    where: Condition, descending: bool
) -> None:
    query = Query("default", where, order=(Order(COUNT, descending),))
    [part] = parts(query)
    assert part.present == COUNT
    [part] = parts(msgspec.structs.replace(query, after=(3, 1)))
    assert part.present == COUNT


@pytest.mark.parametrize(
    "where",
    [
        None,
        SAME_TYPE,
        IsNull(COUNT),
        StartsWith(CITY, "a"),
        Or((SMALL, SAME_TYPE)),
        Not(And((SMALL, SAME_TYPE))),
    ],
)
def test_who_does_not_is_shown_them_too(where: Condition | None) -> None:
    query = Query("default", where, order=(Order(COUNT),))
    assert [part.absent for part in parts(query)] == [COUNT, None]
