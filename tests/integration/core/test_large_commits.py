"""A commit ends when it is large, so that the database never gets more at once than it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from harness import Harness, activity_command, execution, settle, start_request
from temporalio.api.common.v1 import Payload
from temporalio.api.workflowservice.v1 import (
    RecordActivityTaskHeartbeatRequest,
    SignalWorkflowExecutionRequest,
)

from driver_log import DriverLog
from perdure.service.settings import Settings
from perdure.store.contract import Store, Unit
from perdure.store.postgres import PostgresStore

LARGE = Payload(data=b"x" * 10_000)
SETTINGS = Settings(commit_bytes_max=35_000)
MOST = Settings().commit_units_max


class Slow:
    """A store whose commits wait for a gate, and are noted: how many units each had."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.gate = asyncio.Event()
        self.gate.set()
        self.commits: list[int] = []

    async def commit(self, units: Sequence[Unit]) -> list[int]:
        await self.gate.wait()
        self.commits.append(len(units))
        return await self.inner.commit(units)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.fixture
async def node(make_store: Callable[[], Store]) -> AsyncIterator[Harness]:
    harness = await Harness(lambda: Slow(make_store()), SETTINGS).open()  # type: ignore[arg-type,return-value]
    yield harness
    await harness.close()


async def commits(node: Harness, calls: Callable[[], Sequence[Any]]) -> list[int]:
    """How many units each commit has of calls that wait while another one is under way."""
    store = node.store
    assert isinstance(store, Slow)
    store.gate.clear()
    first = asyncio.ensure_future(node.start("first"))
    await settle()
    made = [asyncio.ensure_future(call) for call in calls()]
    await settle()
    store.commits.clear()
    store.gate.set()
    await asyncio.gather(first, *made)
    return store.commits[1:]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [5]),
        ({"input": {"payloads": [LARGE]}}, [4, 1]),
        ({"memo": {"fields": {"note": LARGE}}}, [2, 2, 1]),  # in the event and in the record
        ({"input": {"payloads": [LARGE] * 4}}, [1] * 5),
    ],
)
async def test_starts(node: Harness, fields: dict[str, Any], expected: list[int]) -> None:
    starts = [start_request(f"wf-{n}", **fields) for n in range(5)]
    call = node.service.start_workflow_execution
    assert await commits(node, lambda: [call(request) for request in starts]) == expected


async def many_starts(make_store: Callable[[], Store]) -> list[int]:
    """How many units each commit has when one more than two commits can take are started."""
    node = await Harness(lambda: Slow(make_store())).open()  # type: ignore[arg-type,return-value]
    starts = [start_request(f"wf-{n}") for n in range(2 * MOST + 1)]
    call = node.service.start_workflow_execution
    sizes = await commits(node, lambda: [call(request) for request in starts])
    await node.close()
    return sizes


async def test_many_small_starts_are_several_commits(make_store: Callable[[], Store]) -> None:
    sizes = await many_starts(make_store)
    assert (max(sizes), sum(sizes)) == (MOST, 2 * MOST + 1)


async def test_no_statement_gets_more_units_than_a_commit_takes(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = DriverLog(monkeypatch)
    await many_starts(lambda: PostgresStore(postgres_dsn))
    written = [len(q.args[0]) for q in log.queries if "INSERT INTO perdure.runs" in q.query]
    assert max(written) == MOST
    assert sum(written) == 2 * MOST + 2  # with the one that the others wait for


async def test_large_details_of_heartbeats(node: Harness) -> None:
    tasks = []
    for n in range(5):
        await node.start(f"wf-{n}")
        await node.complete(await node.take(), activity_command("a", heartbeat_s=30))
        tasks.append(await node.take_activity())

    def beats() -> list[Any]:
        return [
            node.service.record_activity_task_heartbeat(
                RecordActivityTaskHeartbeatRequest(
                    namespace="default", task_token=task.task_token, details={"payloads": [LARGE]}
                )
            )
            for task in tasks
        ]

    assert await commits(node, beats) == [4, 1]


async def test_large_signals_that_are_buffered(node: Harness) -> None:
    for n in range(5):
        await node.start(f"wf-{n}")
        await node.take()

    def signals() -> list[Any]:
        return [
            node.service.signal_workflow_execution(
                SignalWorkflowExecutionRequest(
                    namespace="default",
                    workflow_execution=execution(f"wf-{n}"),
                    signal_name="s",
                    input={"payloads": [LARGE]},
                )
            )
            for n in range(5)
        ]

    assert await commits(node, signals) == [4, 1]
