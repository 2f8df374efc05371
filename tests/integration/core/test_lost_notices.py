"""Two nodes, one of which is not told what the other does: it finds out by what it reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from harness import Harness, complete_command, completion, settle
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import HistoryEventFilterType
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryRequest,
    QueryWorkflowRequest,
    QueryWorkflowResponse,
    RespondQueryTaskCompletedRequest,
    SignalWorkflowExecutionRequest,
)

from perdure.service.queries import ANSWERED
from perdure.store.contract import Loaded
from perdure.store.postgres import PostgresStore


@pytest.fixture
async def two(postgres_dsn: str) -> AsyncIterator[tuple[Harness, Harness]]:
    first = await Harness(lambda: PostgresStore(postgres_dsn)).open()
    second = await Harness(lambda: PostgresStore(postgres_dsn)).open()
    for node in (first, second):
        sharing = node.store.sharing
        assert sharing is not None
        await sharing.beat([], [])
        assert sharing.has_company
    yield first, second
    await first.close()
    await second.close()


def deafen(node: Harness) -> None:
    assert node.store.sharing is not None
    node.store.sharing.listener = lambda _: None


def ask(node: Harness) -> asyncio.Task[QueryWorkflowResponse]:
    request = QueryWorkflowRequest(
        namespace="default",
        execution=WorkflowExecution(workflow_id="wf"),
        query=WorkflowQuery(query_type="state"),
    )
    return asyncio.create_task(node.service.query_workflow(request))


def describe(node: Harness) -> asyncio.Task[DescribeWorkflowExecutionResponse]:
    request = DescribeWorkflowExecutionRequest(namespace="default")
    request.execution.workflow_id = "wf"
    return asyncio.create_task(node.service.describe_workflow_execution(request))


async def test_a_query_that_waits_hears_of_a_change_that_another_call_came_upon(
    two: tuple[Harness, Harness],
) -> None:
    deaf, other = two
    await deaf.start()
    task = await deaf.take()
    deafen(deaf)
    query = ask(deaf)
    await settle()
    await other.service.respond_workflow_task_completed(completion(task.task_token))
    poll = deaf.poll()
    await settle()
    assert not query.done()
    # The run has no task any more that the query could ride on. Who looks at the run finds that
    # out, and with that the query is told, for memory is not behind the store any longer.
    await describe(deaf)
    asked = await poll
    assert asked.query.query_type == "state"
    await deaf.service.respond_query_task_completed(
        RespondQueryTaskCompletedRequest(task_token=asked.task_token, completed_type=ANSWERED)
    )
    await query


async def test_who_asks_while_a_run_is_being_read_sees_what_was_true_when_he_asked(
    two: tuple[Harness, Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, other = two
    await other.start()
    has_read, may_go_on = asyncio.Event(), asyncio.Event()
    load = reader.store.load

    async def slow(key: int) -> Loaded | None:
        found = await load(key)
        has_read.set()
        await may_go_on.wait()
        return found

    monkeypatch.setattr(reader.store, "load", slow)
    early = describe(reader)
    await has_read.wait()
    signal = SignalWorkflowExecutionRequest(namespace="default", signal_name="s")
    signal.workflow_execution.workflow_id = "wf"
    await other.service.signal_workflow_execution(signal)
    late = describe(reader)
    await settle()
    may_go_on.set()
    assert (await early).workflow_execution_info.history_length == 2
    assert (await late).workflow_execution_info.history_length == 3


def say_nothing(node: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if its process had died after each commit, before it told of it."""
    store = node.store
    assert isinstance(store, PostgresStore)
    monkeypatch.setattr(store._sharing.news, "add", lambda _queues, _runs: None)


async def beat(node: Harness) -> None:
    assert node.node.neighbours is not None
    await node.node.neighbours._beat()


async def test_a_beat_finds_tasks_that_nobody_told_of(
    two: tuple[Harness, Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, other = two
    say_nothing(silent, monkeypatch)
    poll = other.poll()
    await settle()
    await silent.start()
    await beat(other)
    assert (await asyncio.wait_for(poll, 5)).workflow_execution.workflow_id == "wf"


@pytest.mark.parametrize("closes", [False, True])
async def test_a_beat_finds_commits_that_somebody_waits_for(
    two: tuple[Harness, Harness], monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    silent, other = two
    await silent.start()
    request = GetWorkflowExecutionHistoryRequest(namespace="default", wait_new_event=True)
    request.execution.workflow_id = "wf"
    if closes:
        wanted = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT
        request.history_event_filter_type = wanted
    else:
        seen = await other.service.get_workflow_execution_history(request)
        request.next_page_token = seen.next_page_token
    waits = asyncio.create_task(other.service.get_workflow_execution_history(request))
    await settle()
    task = await silent.take()
    say_nothing(silent, monkeypatch)
    await silent.complete(task, complete_command())
    await beat(other)
    assert (await asyncio.wait_for(waits, 5)).history.events
