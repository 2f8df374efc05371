"""History by page, as it comes, and backwards."""

from __future__ import annotations

import asyncio

import pytest
from api_stage import Stage, activity, execution, finish, names, soon, staged, timer, virtual
from temporalio.api.enums.v1 import HistoryEventFilterType
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryResponse,
    GetWorkflowExecutionHistoryReverseRequest,
)

from perdure.api.errors import InvalidArgument, NamespaceNotFound, NotFound
from perdure.service.settings import Settings

CLOSE = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT


async def get(
    stage: Stage, workflow_id: str = "a", run_id: str = "", **fields: object
) -> GetWorkflowExecutionHistoryResponse:
    return await stage.api.get_workflow_execution_history(
        GetWorkflowExecutionHistoryRequest(
            namespace="default",
            execution=execution(workflow_id, run_id),
            **fields,  # type: ignore[arg-type]
        )
    )


@virtual
async def test_a_start_is_seen_at_once() -> None:
    async with staged() as stage:
        await stage.start("a")
        assert names(await stage.history("a")) == [
            "WorkflowExecutionStarted",
            "WorkflowTaskScheduled",
        ]


@virtual
async def test_pages_follow_each_other_without_gap() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(*(timer(f"t{n}") for n in range(10)))
        seen, token = [], b""
        while True:
            page = await get(stage, maximum_page_size=3, next_page_token=token)
            assert len(page.history.events) <= 3
            seen += [event.event_id for event in page.history.events]
            token = page.next_page_token
            if not token:
                break
        assert seen == list(range(1, 15))


@virtual
async def test_a_page_holds_so_many_bytes() -> None:
    async with staged(settings=Settings(history_page_bytes=600)) as stage:
        await stage.start("a")
        await stage.step(*(timer(f"t{n}") for n in range(20)))
        page = await get(stage)
        assert page.next_page_token
        assert 0 < page.history.ByteSize() <= 600


@virtual
async def test_reverse_is_the_same_backwards() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(*(timer(f"t{n}") for n in range(4)))
        seen, token = [], b""
        while True:
            page = await stage.api.get_workflow_execution_history_reverse(
                GetWorkflowExecutionHistoryReverseRequest(
                    namespace="default",
                    execution=execution("a"),
                    maximum_page_size=3,
                    next_page_token=token,
                )
            )
            seen += [event.event_id for event in page.history.events]
            token = page.next_page_token
            if not token:
                break
        assert seen == list(range(8, 0, -1))


@virtual
async def test_waiting_gives_what_is_there_then_what_comes() -> None:
    async with staged() as stage:
        await stage.start("a")
        first = await get(stage, wait_new_event=True)
        assert len(first.history.events) == 2
        waiting = soon(get(stage, wait_new_event=True, next_page_token=first.next_page_token))
        await asyncio.sleep(1)
        assert not waiting.done()
        await stage.signal("a")
        second = await waiting
        assert names(list(second.history.events)) == ["WorkflowExecutionSignaled"]
        assert second.next_page_token


@virtual
async def test_waiting_ends_with_an_empty_page_and_goes_on_with_its_token() -> None:
    async with staged() as stage:
        await stage.start("a")
        first = await get(stage, wait_new_event=True)
        token = first.next_page_token
        before = asyncio.get_running_loop().time()
        empty = await get(stage, wait_new_event=True, next_page_token=token)
        assert asyncio.get_running_loop().time() - before >= 19
        assert not empty.history.events
        await stage.terminate("a")
        last = await get(stage, wait_new_event=True, next_page_token=empty.next_page_token)
        assert names(list(last.history.events)) == ["WorkflowExecutionTerminated"]
        assert not last.next_page_token


@virtual
async def test_the_close_event_is_waited_for() -> None:
    async with staged() as stage:
        await stage.start("a")
        waiting = soon(get(stage, wait_new_event=True, history_event_filter_type=CLOSE))
        await stage.signal("a")
        await stage.step(finish("42"))
        page = await waiting
        [event] = page.history.events
        result = event.workflow_execution_completed_event_attributes.result
        assert result.payloads[0].data == b"42"
        assert not page.next_page_token


@virtual
async def test_the_close_event_of_a_run_that_is_not_in_memory() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(finish("42"))
        [key] = [await stage.node.executions.resolve("default", "a")]
        stage.node.executions.drop(await stage.node.executions.entry(key))
        page = await get(stage, wait_new_event=True, history_event_filter_type=CLOSE)
        assert names(list(page.history.events)) == ["WorkflowExecutionCompleted"]


@virtual
async def test_an_open_run_has_no_close_event() -> None:
    async with staged() as stage:
        await stage.start("a")
        page = await get(stage, history_event_filter_type=CLOSE)
        assert (len(page.history.events), page.next_page_token) == (0, b"")
        waited = await get(stage, wait_new_event=True, history_event_filter_type=CLOSE)
        assert len(waited.history.events) == 0
        assert waited.next_page_token


@virtual
async def test_watchers_that_give_up_are_forgotten() -> None:
    async with staged() as stage:
        await stage.start("a")
        for _ in range(3):
            await get(stage, wait_new_event=True, history_event_filter_type=CLOSE)
        first = await get(stage, wait_new_event=True)
        await get(stage, wait_new_event=True, next_page_token=first.next_page_token)
        assert not stage.node.executions._watchers
        assert not stage.node.executions._close_watchers


@virtual
async def test_a_worker_sees_the_events_of_its_transient_task() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.fail(await stage.poll())
        task = await stage.poll()
        assert task.attempt == 2
        events = await stage.history("a")
        assert names(events)[-2:] == ["WorkflowTaskScheduled", "WorkflowTaskStarted"]
        assert events == list(task.history.events)
        assert [event.event_id for event in events] == list(range(1, len(events) + 1))
        await stage.complete(task, finish())
        assert names(await stage.history("a"))[3:] == [
            "WorkflowTaskFailed",
            "WorkflowTaskScheduled",
            "WorkflowTaskStarted",
            "WorkflowTaskCompleted",
            "WorkflowExecutionCompleted",
        ]


@virtual
async def test_a_token_is_bound_to_its_run() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(timer("t"))
        other = await stage.start("b")
        token = (await get(stage, maximum_page_size=1)).next_page_token
        with pytest.raises(InvalidArgument, match="RunId in the request does not match"):
            await get(stage, "b", other, next_page_token=token)
        with pytest.raises(NotFound):
            await get(stage, "b", next_page_token=token)
        with pytest.raises(InvalidArgument, match="Invalid NextPageToken"):
            await get(stage, next_page_token=b"junk")


@virtual
async def test_wrong_requests_are_refused_with_the_field() -> None:
    async with staged() as stage:
        request = GetWorkflowExecutionHistoryRequest(namespace="default")
        with pytest.raises(InvalidArgument, match="Execution is not set"):
            await stage.api.get_workflow_execution_history(request)
        with pytest.raises(InvalidArgument, match="WorkflowId is not set"):
            await get(stage, "")
        with pytest.raises(InvalidArgument, match="Invalid RunId"):
            await get(stage, "a", "zz")
        with pytest.raises(NotFound, match="workflow not found for ID: a"):
            await get(stage, "a")
        request.namespace = "nope"
        with pytest.raises(NamespaceNotFound):
            await stage.api.get_workflow_execution_history(request)


@virtual
async def test_activities_show_in_order() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(activity("1"), activity("2"))
        assert names(await stage.history("a"))[4:] == ["ActivityTaskScheduled"] * 2
