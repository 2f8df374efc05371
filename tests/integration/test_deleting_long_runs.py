"""Delete: never much at once, so that others' commits go on; and what a run left half-way shows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from api_stage import QUEUE, Stage, execution, soon, staged, virtual
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryReverseRequest,
    ListWorkflowExecutionsRequest,
    QueryWorkflowRequest,
    ResetWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
    UpdateNamespaceRequest,
)

from perdure.api.errors import NotFound, Unavailable
from perdure.service import deleting
from perdure.store.contract import StoreUnavailable
from perdure.store.query import Query

CLOSED_EVENTS = 3  # of a run that is started and terminated
RETENTION_S = 86_400
AT_ONCE = 10


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many events are removed at once."""
    monkeypatch.setattr(deleting, "_WEIGHT_AT_ONCE", AT_ONCE)
    monkeypatch.setattr(deleting, "_WEIGHT_MIN", 1)
    monkeypatch.setattr(deleting.delete_run, "__defaults__", (AT_ONCE,))


class Spy:
    """What the store is asked to remove: the keys of each deletion, and pieces of histories."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.deletions: list[tuple[int, ...]] = []
        self.pieces: list[int] = []
        self.fails: Callable[[tuple[int, ...]], bool] = lambda _: False
        store = stage.node.store
        delete, shorten = store.delete, store.shorten

        async def counted(*keys: int) -> int:
            if self.fails(keys):
                raise StoreUnavailable("too slow")
            self.deletions.append(keys)
            return await delete(*keys)

        async def noted(key: int, count: int) -> bool:
            found = await shorten(key, count)
            if found:
                self.pieces.append(count)
            return found

        monkeypatch.setattr(store, "delete", counted)
        monkeypatch.setattr(store, "shorten", noted)


async def keep(stage: Stage) -> None:
    """Closed runs are kept for a day."""
    request = UpdateNamespaceRequest(namespace="default")
    request.config.workflow_execution_retention_ttl.FromSeconds(RETENTION_S)
    await stage.api.update_namespace(request)


async def close(stage: Stage, workflow_id: str, signals: int = 0) -> None:
    """Start a run, and end it after a number of events more."""
    await stage.start(workflow_id)
    if signals:
        await stage.step()
    for _ in range(signals):
        await stage.signal(workflow_id)
    request = TerminateWorkflowExecutionRequest(
        namespace="default", workflow_execution=execution(workflow_id)
    )
    await stage.api.terminate_workflow_execution(request)


async def delete(stage: Stage, workflow_id: str) -> None:
    request = DeleteWorkflowExecutionRequest(
        namespace="default", workflow_execution=execution(workflow_id)
    )
    await stage.api.delete_workflow_execution(request)


async def listed(stage: Stage) -> list[str]:
    request = ListWorkflowExecutionsRequest(namespace="default")
    answer = await stage.api.list_workflow_executions(request)
    return sorted(found.execution.workflow_id for found in answer.executions)


@pytest.mark.usefixtures("few")
@virtual
async def test_runs_go_together_while_their_histories_are_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with staged() as stage:
        await keep(stage)
        for number in range(7):
            await close(stage, f"w{number}")
        spy = Spy(stage, monkeypatch)
        await asyncio.sleep(RETENTION_S + 7200)
        assert await listed(stage) == []
        counts = [len(keys) for keys in spy.deletions]
        assert max(counts) == AT_ONCE // CLOSED_EVENTS
        assert sum(counts) == 7
        assert spy.pieces == []


@pytest.mark.usefixtures("few")
@virtual
async def test_a_long_history_goes_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged() as stage:
        await keep(stage)
        await close(stage, "long", signals=40)
        await close(stage, "a")
        await close(stage, "z")
        key = await stage.node.executions.resolve("default", "long")
        spy = Spy(stage, monkeypatch)
        await asyncio.sleep(RETENTION_S + 7200)
        assert await listed(stage) == []
        assert await stage.node.store.history(key, 1, 99, limit=99) == []
        assert [len(keys) for keys in spy.deletions] == [2, 1]
        assert spy.pieces == [AT_ONCE] * 4


@pytest.mark.usefixtures("few")
@virtual
async def test_a_history_of_large_events_goes_in_smaller_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with staged() as stage:
        await stage.start("large", memo={"fields": {"x": {"data": b"x" * 30_000}}})
        for _ in range(4):
            await stage.signal("large")
        spy = Spy(stage, monkeypatch)
        await delete(stage, "large")
        assert await listed(stage) == []
        assert spy.pieces
        assert max(spy.pieces) < AT_ONCE


@virtual
async def test_less_is_tried_at_once_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged() as stage:
        await keep(stage)
        for number in range(60):
            await close(stage, f"w{number}")
        spy = Spy(stage, monkeypatch)
        spy.fails = lambda keys: len(keys) > 20
        await asyncio.sleep(RETENTION_S + 7200)
        assert await listed(stage) == []


# -- a run whose history is not whole --------------------------------------------------------------


async def leave_half(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long run whose deletion failed after a part of its history."""
    await close(stage, "a", signals=40)
    with monkeypatch.context() as patched:
        spy = Spy(stage, patched)
        spy.fails = lambda _: True
        with pytest.raises(Unavailable):
            await delete(stage, "a")
        assert spy.pieces


@pytest.mark.usefixtures("few")
@virtual
async def test_a_run_that_is_left_half_way_can_be_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged() as stage:
        await leave_half(stage, monkeypatch)
        assert await listed(stage) == ["a"]
        assert (await stage.describe("a")).workflow_execution_info.close_time
        await delete(stage, "a")
        assert await listed(stage) == []
        with pytest.raises(NotFound, match="not found"):
            await stage.describe("a")


@pytest.mark.usefixtures("few")
@virtual
async def test_a_run_that_is_left_half_way_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged() as stage:
        await keep(stage)
        await leave_half(stage, monkeypatch)
        await asyncio.sleep(RETENTION_S + 7200)
        assert await stage.node.store.list_runs(Query("default")) == []


async def history(stage: Stage) -> Any:
    return await stage.history("a")


async def new_events(stage: Stage) -> Any:
    request = GetWorkflowExecutionHistoryRequest(
        namespace="default", execution=execution("a"), wait_new_event=True
    )
    return await stage.api.get_workflow_execution_history(request)


async def history_reverse(stage: Stage) -> Any:
    request = GetWorkflowExecutionHistoryReverseRequest(
        namespace="default", execution=execution("a"), maximum_page_size=5
    )
    seen = 0
    while True:
        answer = await stage.api.get_workflow_execution_history_reverse(request)
        seen += len(answer.history.events)
        request.next_page_token = answer.next_page_token
        assert answer.next_page_token, f"{seen} events are taken for all"


async def reset(stage: Stage) -> Any:
    request = ResetWorkflowExecutionRequest(
        namespace="default", workflow_execution=execution("a"), request_id="r"
    )
    request.workflow_task_finish_event_id = 3
    return await stage.api.reset_workflow_execution(request)


async def query(stage: Stage) -> Any:
    poll = soon(stage.poll())
    request = QueryWorkflowRequest(
        namespace="default", execution=execution("a"), query=WorkflowQuery(query_type=QUEUE)
    )
    try:
        return await stage.api.query_workflow(request)
    finally:
        poll.cancel()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("read", [history, new_events, history_reverse, reset, query])
@virtual
async def test_nobody_takes_what_is_left_for_a_whole_history(
    read: Callable[[Stage], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged() as stage:
        await leave_half(stage, monkeypatch)
        with pytest.raises(NotFound, match="being deleted"):
            await read(stage)
