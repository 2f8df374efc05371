"""Two nodes, one of which is never told anything: it finds out by what it reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from harness import Harness, completion, settle
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    QueryWorkflowRequest,
    QueryWorkflowResponse,
    RespondQueryTaskCompletedRequest,
)

from perdure.service.queries import ANSWERED
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
    look = DescribeWorkflowExecutionRequest(namespace="default")
    look.execution.workflow_id = "wf"
    await deaf.service.describe_workflow_execution(look)
    asked = await poll
    assert asked.query.query_type == "state"
    await deaf.service.respond_query_task_completed(
        RespondQueryTaskCompletedRequest(task_token=asked.task_token, completed_type=ANSWERED)
    )
    await query
