"""Names and values that a database cannot keep are refused, and cost nobody else anything."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from harness import Harness, activity_command, execution, start_request
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payload
from temporalio.api.filter.v1 import WorkflowExecutionFilter, WorkflowTypeFilter
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    ListClosedWorkflowExecutionsRequest,
    ListOpenWorkflowExecutionsRequest,
    ListWorkflowExecutionsRequest,
    RegisterNamespaceRequest,
    StartWorkflowExecutionRequest,
    UpdateActivityOptionsRequest,
)

from perdure.api.errors import InvalidArgument

KEYWORD = b"Keyword"
WIDE = "\u4e00" * 950  # within the limit by characters, and not by bytes


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


def bad_name(field: str, name: str) -> Command:
    command = activity_command("1")
    getattr(command.schedule_activity_task_command_attributes, field).name = name
    return command


@pytest.mark.parametrize("field", ["task_queue", "activity_type"])
@pytest.mark.parametrize(
    ("name", "why"), [("a\0b", "contains a NUL character"), (WIDE, "exceeds length limit")]
)
async def test_a_bad_name_in_a_command_fails_its_task(
    node: Harness, field: str, name: str, why: str
) -> None:
    await node.start()
    with pytest.raises(InvalidArgument, match=why):
        await node.complete(await node.take(), bad_name(field, name))
    assert "WorkflowTaskFailed" in await node.events()


@pytest.mark.parametrize("name", ["a\0b", WIDE])
async def test_a_bad_name_of_a_sticky_queue(node: Harness, name: str) -> None:
    await node.start()
    task = await node.take()
    with pytest.raises(InvalidArgument, match="WorkerTaskQueue"):
        await node.complete(task, sticky=name)
    await node.complete(task, sticky="good")


@pytest.mark.parametrize(
    ("field", "name", "why"),
    [
        ("task_queue.name", "a\0b", "TaskQueue contains a NUL character"),
        ("task_queue.name", WIDE, "TaskQueue exceeds length limit"),
        ("priority.fairness_key", "a\0b", "fairness key must not contain a NUL character"),
        ("priority.fairness_key", WIDE, "fairness key length exceeds limit"),
    ],
)
async def test_a_bad_name_in_the_options_of_an_activity(
    node: Harness, field: str, name: str, why: str
) -> None:
    await node.start()
    await node.complete(await node.take(), activity_command("1"))
    request = UpdateActivityOptionsRequest(
        namespace="default", execution=execution(), id="1", update_mask=FieldMask(paths=[field])
    )
    part, _, attribute = field.partition(".")
    setattr(getattr(request.activity_options, part), attribute, name)
    with pytest.raises(InvalidArgument, match=why):
        await node.service.update_activity_options(request)
    await node.finish_activity(await node.take_activity())


@pytest.mark.parametrize("run_id", ["", "\0" * 8 + "-1234-1234-1234-123456789012"])
async def test_a_nul_in_the_name_of_a_run_that_is_looked_for(node: Harness, run_id: str) -> None:
    request = DescribeWorkflowExecutionRequest(namespace="default")
    request.execution.workflow_id = "good" if run_id else "a\0b"
    request.execution.run_id = run_id
    with pytest.raises(InvalidArgument):
        await node.service.describe_workflow_execution(request)
