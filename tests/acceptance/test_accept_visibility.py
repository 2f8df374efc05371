"""Describe, history, list and count through the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import RPCError, SearchAttributeKey, WorkflowStatus, activity, workflow
from targets import environment

NUMBER = SearchAttributeKey.int("Number")
SHARE = SearchAttributeKey.float("Share")
FLAG = SearchAttributeKey.bool("Flag")
WORD = SearchAttributeKey.keyword("Word")
NOTE = SearchAttributeKey.text("Note")
AT = SearchAttributeKey.datetime("At")
TAGS = SearchAttributeKey.keyword_list("Tags")

RUNS = 60


def _values(n: int) -> dict[SearchAttributeKey[Any], Any]:
    values: dict[SearchAttributeKey[Any], Any] = {
        NUMBER: n % 7 - 3,
        SHARE: n / 8,
        FLAG: n % 2 == 0,
        WORD: f"w{n % 5}'\"%_",
        NOTE: f"Lorem {'ipsum' if n % 3 else 'dolor'} number {n}",
        AT: datetime(2026, 1, 1 + n % 28, 12, tzinfo=UTC),
        TAGS: [f"t{n % 4}", f"u{n % 2}"],
    }
    if n % 10 == 9:  # some have none
        return {}
    return values


@workflow
async def sleeper(n: int) -> int:
    await asyncio.sleep(3600)
    return n


@workflow
async def quick(n: int) -> None:
    workflow.upsert_search_attributes({NUMBER: n, WORD: "set by the run"})


def _has(test: Callable[[dict[Any, Any]], bool]) -> Callable[[int], bool]:
    return lambda n: bool(_values(n)) and test(_values(n))


FILTERS: list[tuple[str, Callable[[int], bool]]] = [
    ("", lambda n: True),
    ("Number = 2", _has(lambda v: v[NUMBER] == 2)),
    ("Number != 2", _has(lambda v: v[NUMBER] != 2)),
    ("Number > 0 AND Number <= 2", _has(lambda v: 0 < v[NUMBER] <= 2)),
    ("Number BETWEEN -2 AND 1", _has(lambda v: -2 <= v[NUMBER] <= 1)),
    ("Number IN (-3, 3)", _has(lambda v: v[NUMBER] in (-3, 3))),
    ("Number NOT IN (-3, 3)", _has(lambda v: v[NUMBER] not in (-3, 3))),
    ("Number IS NULL", lambda n: not _values(n)),
    ("Number IS NOT NULL", _has(lambda v: True)),
    ("Share < 2.5", _has(lambda v: v[SHARE] < 2.5)),
    ("Share = 1.125", _has(lambda v: v[SHARE] == 1.125)),
    ("Flag = true", _has(lambda v: v[FLAG])),
    ("Flag = false AND Share > 5", _has(lambda v: not v[FLAG] and v[SHARE] > 5)),
    ('Word = "w1\'\\"%_"', _has(lambda v: v[WORD] == "w1'\"%_")),
    ("Word STARTS_WITH 'w3'", _has(lambda v: v[WORD].startswith("w3"))),
    ("Word STARTS_WITH 'w_'", lambda n: False),  # no wildcard
    ("Note = 'Dolor'", _has(lambda v: "dolor" in v[NOTE])),  # a text is found by any word
    ("Note = 'dolor 4'", _has(lambda v: {"dolor", "4"} & set(v[NOTE].split()))),
    ("Note STARTS_WITH 'dol'", _has(lambda v: "dolor" in v[NOTE])),
    ("At >= '2026-01-20T12:00:00Z'", _has(lambda v: v[AT].day >= 20)),
    ("At < '2026-01-05T13:00:00+02:00'", _has(lambda v: v[AT].day < 5)),
    ("Tags = 't1'", _has(lambda v: "t1" in v[TAGS])),
    ("Tags IN ('t1', 'u0')", _has(lambda v: {"t1", "u0"} & set(v[TAGS]) != set())),
    (
        "(Flag = true OR Number = -3) AND Tags != 't2'",
        _has(lambda v: (v[FLAG] or v[NUMBER] == -3) and "t2" not in v[TAGS]),
    ),
    ("WorkflowType = 'sleeper' AND ExecutionStatus = 'Running'", lambda n: True),
    ("ExecutionStatus != 'Running'", lambda n: False),
    ("WorkflowId BETWEEN 'r-010' AND 'r-019'", lambda n: 10 <= n <= 19),
]


@pytest.fixture(params=["memory", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/list.db"


async def _ids(client: perdure.Client, filter: str, **options: Any) -> list[str]:
    return [run.id async for run in client.list(filter, **options)]


@pytest.mark.only_on("embedded", reason="it is about the databases of a node")
async def test_filters_on_attributes_of_every_type(database: str) -> None:
    async with perdure.connect(database) as client:
        for n in range(RUNS):
            await client.start(sleeper, n, id=f"r-{n:03}", search_attributes=_values(n))
            # Seen the moment that the start returns.
            assert await _ids(client, f"WorkflowId = 'r-{n:03}'") == [f"r-{n:03}"]
        for filter, test in FILTERS:
            expected = {f"r-{n:03}" for n in range(RUNS) if test(n)}
            found = await _ids(client, filter, page_size=7)
            assert len(found) == len(set(found)), filter
            assert set(found) == expected, filter
            assert (await client.count(filter)).count == len(expected), filter
        (run,) = [run async for run in client.list("WorkflowId = 'r-011'")]
        assert {key: run.search_attributes.get(key) for key in _values(11)} == _values(11)
        described = await client.handle("r-011").describe()
        assert {key: described.search_attributes.get(key) for key in _values(11)} == _values(11)


@pytest.mark.only_on(
    "embedded",
    "on_postgres",
    "perdure",
    "cluster",
    reason="on SQLite, Temporal cannot order a list",
)
@pytest.mark.parametrize(
    ("order", "key"),
    [
        ("WorkflowId", lambda n: f"r-{n:03}"),
        ("Number", lambda n: _values(n)[NUMBER]),
        ("Share", lambda n: _values(n)[SHARE]),
        ("At", lambda n: _values(n)[AT]),
        ("StartTime", lambda n: n),
    ],
)
@pytest.mark.parametrize("direction", ["", " ASC", " DESC"])
async def test_order_over_many_pages(order: str, key: Callable[[int], Any], direction: str) -> None:
    async with environment() as env:
        for n in range(RUNS):
            await env.client.start(sleeper, n, id=f"r-{n:03}", search_attributes=_values(n))
        filter = f"Number IS NOT NULL ORDER BY {order}{direction}"
        found = await _ids(env.client, filter, page_size=4)
        keys = [key(int(id[2:])) for id in found]
        assert sorted(found) == [f"r-{n:03}" for n in range(RUNS) if _values(n)]
        assert keys == sorted(keys, reverse=direction == " DESC")
        assert await _ids(env.client, filter, page_size=4, limit=11) == found[:11]
        everything = await _ids(env.client, f"ORDER BY {order}{direction}", page_size=9)
        assert sorted(everything) == [f"r-{n:03}" for n in range(RUNS)]


@pytest.mark.only_on(
    "embedded", "on_postgres", "perdure", "cluster", reason="Temporal's list lags behind"
)
async def test_what_a_run_sets_and_its_end_are_seen_at_once() -> None:
    async with environment() as env, env.client.worker(workflows=[quick], activities=[]):
        await env.client.start(sleeper, 0, id="other", search_attributes={NUMBER: 0})
        for n in range(1, 5):
            await env.client.execute(quick, n, id="same")
            (run,) = [run async for run in env.client.list(f"Number = {n}")]
            assert (run.id, run.status) == ("same", WorkflowStatus.COMPLETED)
            assert run.search_attributes.get(WORD) == "set by the run"
        counted = await env.client.count("GROUP BY ExecutionStatus")
        assert counted.count == 5
        await env.client.handle("other").terminate()
        assert await _ids(env.client, "ExecutionStatus = 'Terminated'") == ["other"]
        await env.client.handle("other").delete()
        assert await _ids(env.client, "WorkflowId = 'other'") == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"Number": "seven"}, "Number"),
        ({SearchAttributeKey.keyword("Number"): "seven"}, "Number"),
        ({SearchAttributeKey.int("WorkflowId"): 1}, "WorkflowId"),
        ({SearchAttributeKey.keyword("Long"): "x" * 3000}, "Long|size|limit"),
    ],
)
async def test_a_wrong_attribute_is_named_and_nothing_starts(given: Any, says: str) -> None:
    async with environment() as env:
        await env.client.start(sleeper, 0, id="first", search_attributes={NUMBER: 1})
        with pytest.raises((RPCError, ValueError, TypeError), match=says):
            await env.client.start(sleeper, 0, id="second", search_attributes=given)
        with pytest.raises(perdure.WorkflowNotFoundError):
            await env.client.handle("second").describe()


# --- history --------------------------------------------------------------------------------------


@activity
async def echo(n: int) -> int:
    return n


@workflow
class Steps:
    def __init__(self) -> None:
        self.go_on = 0

    @workflow.run
    async def run(self, steps: int) -> int:
        for n in range(steps):
            await workflow.wait_condition(lambda n=n: self.go_on > n)  # type: ignore[misc]
            await echo(n)
        return steps

    @workflow.signal
    def go(self) -> None:
        self.go_on += 1


async def test_a_history_is_followed_to_its_end_as_it_grows() -> None:
    async with environment() as env, env.client.worker(workflows=[Steps], activities=[echo]):
        handle = await env.client.start(Steps, 8)
        seen: list[int] = []

        async def follow() -> None:
            async for event in handle.history(wait=True):
                seen.append(event.event_id)

        following = asyncio.create_task(follow())
        for _ in range(8):
            before = len(seen)
            await handle.signal(Steps.go)
            while len(seen) == before:  # noqa: ASYNC110  # it comes, without anybody asking again
                await asyncio.sleep(0.001)
        assert await handle.result() == 8
        await asyncio.wait_for(following, 20)
        whole = (await handle.fetch_history()).events
        assert seen == [event.event_id for event in whole] == list(range(1, len(whole) + 1))
        assert whole[-1].HasField("workflow_execution_completed_event_attributes")
        described = await handle.describe()
        assert described.history_length == len(whole)
        assert described.close_time is not None
        assert described.close_time >= described.start_time


async def test_describing_an_open_run_shows_what_it_waits_for() -> None:
    async with environment() as env:
        handle = await env.client.start(
            sleeper, 1, memo={"why": "test"}, execution_timeout=timedelta(days=3)
        )
        described = await handle.describe()
        assert described.status is WorkflowStatus.RUNNING
        assert (described.workflow_type, described.memo) == ("sleeper", {"why": "test"})
        assert described.execution_timeout == timedelta(days=3)
        assert described.close_time is None
        assert list(described.pending_activities) == []
