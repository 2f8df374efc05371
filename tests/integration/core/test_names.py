"""Names and values that a database cannot keep are refused, and cost nobody else anything."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from harness import Harness, activity_command, start_request
from temporalio.api.common.v1 import Payload
from temporalio.api.filter.v1 import WorkflowExecutionFilter, WorkflowTypeFilter
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    ListClosedWorkflowExecutionsRequest,
    ListOpenWorkflowExecutionsRequest,
    ListWorkflowExecutionsRequest,
    RegisterNamespaceRequest,
    StartWorkflowExecutionRequest,
)

from perdure.api.errors import InvalidArgument

KEYWORD = b"Keyword"


def with_attribute(data: bytes) -> StartWorkflowExecutionRequest:
    made = start_request()
    payload = Payload(metadata={"encoding": b"json/plain", "type": KEYWORD}, data=data)
    made.search_attributes.indexed_fields["City"].CopyFrom(payload)
    return made


def named(field: str) -> StartWorkflowExecutionRequest:
    made = start_request()
    match field:
        case "WorkflowId":
            made.workflow_id = "a\0b"
        case "WorkflowType":
            made.workflow_type.name = "a\0b"
        case "taskQueue":
            made.task_queue.name = "a\0b"
        case "fairness key":
            made.priority.fairness_key = "a\0b"
    return made


@pytest.mark.parametrize("field", ["WorkflowId", "WorkflowType", "taskQueue", "fairness key"])
async def test_a_nul_in_a_name(node: Harness, field: str) -> None:
    good = asyncio.ensure_future(node.start(workflow_id="good"))
    with pytest.raises(InvalidArgument, match=f"{field} must not contain a NUL character"):
        await node.service.start_workflow_execution(named(field))
    assert (await good).run_id


@pytest.mark.parametrize("data", [rb'"a\u0000b"', rb'"a\ud800b"', rb'["a\u0000b"]'])
async def test_text_that_is_none_in_an_attribute(node: Harness, data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="invalid value for search attribute City"):
        await node.service.start_workflow_execution(with_attribute(data))


async def test_a_nul_in_a_filter_and_in_a_namespace(node: Harness) -> None:
    request = ListWorkflowExecutionsRequest(namespace="default", query="WorkflowId = 'a\0b'")
    with pytest.raises(InvalidArgument, match="contains a NUL character"):
        await node.service.list_workflow_executions(request)
    with pytest.raises(InvalidArgument, match="Namespace must not contain a NUL character"):
        await node.service.register_namespace(RegisterNamespaceRequest(namespace="a\0b"))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("WorkflowId", {"execution_filter": WorkflowExecutionFilter(workflow_id="a\0b")}),
        ("RunId", {"execution_filter": WorkflowExecutionFilter(run_id="a\0b")}),
        ("WorkflowType", {"type_filter": WorkflowTypeFilter(name="a\0b")}),
    ],
)
async def test_a_nul_in_what_the_older_lists_look_for(
    node: Harness, name: str, wanted: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument, match=f"{name} must not contain a NUL character"):
        await node.service.list_open_workflow_executions(
            ListOpenWorkflowExecutionsRequest(namespace="default", **wanted)
        )
    with pytest.raises(InvalidArgument, match=f"{name} must not contain a NUL character"):
        await node.service.list_closed_workflow_executions(
            ListClosedWorkflowExecutionsRequest(namespace="default", **wanted)
        )


async def test_a_nul_in_a_command_fails_its_task(node: Harness) -> None:
    await node.start()
    command = activity_command("1")
    command.schedule_activity_task_command_attributes.task_queue.name = "a\0b"
    with pytest.raises(InvalidArgument, match="contains a NUL character"):
        await node.complete(await node.take(), command)
    assert "WorkflowTaskFailed" in await node.events()


@pytest.mark.parametrize("run_id", ["", "\0" * 8 + "-1234-1234-1234-123456789012"])
async def test_a_nul_in_the_name_of_a_run_that_is_looked_for(node: Harness, run_id: str) -> None:
    request = DescribeWorkflowExecutionRequest(namespace="default")
    request.execution.workflow_id = "good" if run_id else "a\0b"
    request.execution.run_id = run_id
    with pytest.raises(InvalidArgument):
        await node.service.describe_workflow_execution(request)
