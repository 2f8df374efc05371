"""Runs that reach other runs: children, signals, requests to cancel, close policies."""

from __future__ import annotations

import asyncio
import random

import pytest
from harness import (
    QUEUE,
    Harness,
    complete_command,
    execution,
    payloads,
    settle,
)
from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType, ParentClosePolicy
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueResponse,
    SignalWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
)

from perdure.store.contract import Store
from perdure.store.sqlite import SqliteStore
from perdure.testing.faults import Faults, FaultyStore

TERMINATE = ParentClosePolicy.PARENT_CLOSE_POLICY_TERMINATE
CANCEL = ParentClosePolicy.PARENT_CLOSE_POLICY_REQUEST_CANCEL
ABANDON = ParentClosePolicy.PARENT_CLOSE_POLICY_ABANDON


def child_command(workflow_id: str, policy: int = TERMINATE) -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION)
    attributes = made.start_child_workflow_execution_command_attributes
    attributes.namespace = "default"
    attributes.workflow_id = workflow_id
    attributes.workflow_type.name = "child"
    attributes.task_queue.name = QUEUE
    attributes.input.CopyFrom(payloads("in"))
    attributes.parent_close_policy = policy  # type: ignore[assignment]
    return made


def signal_command(workflow_id: str) -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION)
    attributes = made.signal_external_workflow_execution_command_attributes
    attributes.namespace = "default"
    attributes.execution.workflow_id = workflow_id
    attributes.signal_name = "poke"
    attributes.input.CopyFrom(payloads("x"))
    return made


def cancel_command(workflow_id: str) -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION)
    attributes = made.request_cancel_external_workflow_execution_command_attributes
    attributes.namespace = "default"
    attributes.workflow_id = workflow_id
    return made


async def take(node: Harness, workflow_id: str) -> PollWorkflowTaskQueueResponse:
    """The next workflow task, which must be of that workflow."""
    task = await node.take()
    assert task.workflow_execution.workflow_id == workflow_id
    return task


async def with_child(node: Harness, policy: int = TERMINATE) -> PollWorkflowTaskQueueResponse:
    """A parent that knows that its child has started; the child's first task."""
    await node.start("parent")
    await node.complete(await take(node, "parent"), child_command("kid", policy))
    first = [await node.take(), await node.take()]
    tasks = {task.workflow_execution.workflow_id: task for task in first}
    await node.complete(tasks["parent"])
    return tasks["kid"]


async def test_a_child_starts_and_its_result_comes_back(node: Harness) -> None:
    task = await with_child(node)
    started = task.history.events[0].workflow_execution_started_event_attributes
    assert started.parent_workflow_execution.workflow_id == "parent"
    assert started.root_workflow_execution.workflow_id == "parent"
    assert started.input == payloads("in")
    await node.complete(task, complete_command("out"))
    parent = await take(node, "parent")
    closed = [
        event.child_workflow_execution_completed_event_attributes
        for event in parent.history.events
        if event.HasField("child_workflow_execution_completed_event_attributes")
    ]
    assert [event.result for event in closed] == [payloads("out")]
    await node.complete(parent, complete_command())
    await settle()
    assert await node.store.messages(0, 10) == []


async def test_a_child_whose_id_is_taken_cannot_start(node: Harness) -> None:
    await node.start("kid")
    await take(node, "kid")
    await node.start("parent")
    await node.complete(await take(node, "parent"), child_command("kid"))
    await take(node, "parent")
    assert "StartChildWorkflowExecutionFailed" in await node.events("parent")


@pytest.mark.parametrize(
    ("policy", "event"),
    [
        (TERMINATE, "WorkflowExecutionTerminated"),
        (CANCEL, "WorkflowExecutionCancelRequested"),
        (ABANDON, None),
    ],
)
async def test_a_parent_that_closes_deals_with_its_child(
    node: Harness, policy: int, event: str | None
) -> None:
    await with_child(node, policy)
    await node.service.terminate_workflow_execution(
        TerminateWorkflowExecutionRequest(
            namespace="default", workflow_execution=execution("parent")
        )
    )
    await settle()
    key = await node.node.executions.resolve("default", "kid")
    run = (await node.node.executions.read(key)).run
    assert run.is_open is (policy != TERMINATE)
    assert run.state.cancel_requested is (policy == CANCEL)
    if policy == TERMINATE:
        assert event in await node.events("kid")
    assert await node.store.messages(0, 10) == []


async def test_a_run_signals_and_cancels_another(node: Harness) -> None:
    await node.start("target")
    target = await take(node, "target")
    await node.complete(target)
    await node.start("sender")
    task = await take(node, "sender")
    await node.complete(task, signal_command("target"), cancel_command("target"))
    got = [event for event in (await node.history("target")).events if event.event_id > 4]
    while len(got) < 3:
        await settle()
        got = [event for event in (await node.history("target")).events if event.event_id > 4]
    [signaled] = [
        event.workflow_execution_signaled_event_attributes
        for event in got
        if event.HasField("workflow_execution_signaled_event_attributes")
    ]
    assert signaled.external_workflow_execution.workflow_id == "sender"
    events = await node.events("target")
    assert events.count("WorkflowExecutionCancelRequested") == 1
    events = await node.events("sender")
    assert "ExternalWorkflowExecutionSignaled" in events
    assert "ExternalWorkflowExecutionCancelRequested" in events


async def test_who_is_not_there_cannot_be_reached(node: Harness) -> None:
    await node.start("sender")
    task = await take(node, "sender")
    await node.complete(task, signal_command("nobody"), cancel_command("nobody"))
    await settle()
    events = await node.events("sender")
    assert "SignalExternalWorkflowExecutionFailed" in events
    assert "RequestCancelExternalWorkflowExecutionFailed" in events
    assert await node.store.messages(0, 10) == []


async def test_messages_survive_a_crash_at_every_commit_and_count_once() -> None:
    """A parent with a child and a signal; the process dies at the n-th commit, for every n."""
    for n in range(1, 12):
        await _crash_at(n)


async def _crash_at(n: int) -> None:
    disk = SqliteStore(":memory:")
    await disk.open()
    stores: list[FaultyStore] = []

    def make_store() -> Store:
        stores.append(FaultyStore(disk, Faults(), random.Random(n)))
        return stores[-1]  # type: ignore[return-value]

    node = await Harness(make_store).open()
    real_commit, count = disk.commit, 0

    async def commit(units):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        done = await real_commit(units)
        if count == n:
            stores[-1].crash()
            await stores[-1].commit([])
        return done

    disk.commit = commit  # type: ignore[method-assign]
    script = asyncio.ensure_future(_script(node))
    await asyncio.wait([script], timeout=1.0)
    script.cancel()
    count = 1_000  # the next process lives
    await node.open()
    await settle()
    if "WorkflowExecutionStarted" in await _events(node, "parent"):
        events = await _events(node, "parent")
        started = events.count("StartChildWorkflowExecutionInitiated")
        assert events.count("ChildWorkflowExecutionStarted") <= started
        kid = await _events(node, "kid")
        assert bool(kid) == bool(started)
        signals = (await _events(node, "target")).count("WorkflowExecutionSignaled")
        assert signals == events.count("SignalExternalWorkflowExecutionInitiated"), n
    assert await node.store.messages(0, 10) == []
    await node.close()


async def _events(node: Harness, workflow_id: str) -> list[str]:
    if await node.node.executions.find("default", workflow_id) is None:
        return []
    return await node.events(workflow_id)


async def _script(node: Harness) -> None:
    await node.start("target")
    await node.complete(await take(node, "target"))
    await node.start("parent")
    task = await take(node, "parent")
    await node.complete(task, child_command("kid", ABANDON), signal_command("target"))


async def test_a_signal_sent_again_to_the_next_run_is_known_there(node: Harness) -> None:
    await node.start("target")
    request = SignalWorkflowExecutionRequest(
        namespace="default",
        workflow_execution=execution("target"),
        signal_name="poke",
        request_id="once",
    )
    await node.service.signal_workflow_execution(request)
    again = Command(command_type=CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION)
    attributes = again.continue_as_new_workflow_execution_command_attributes
    attributes.workflow_type.name = "flow"
    await node.complete(await node.take(), again)
    await node.service.signal_workflow_execution(request)
    assert await node.events("target") == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]
