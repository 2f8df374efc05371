"""Starts: policies, request ids, refusals, signal-with-start, delays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from harness import (
    QUEUE,
    Harness,
    activity_command,
    complete_command,
    execution,
    payloads,
    settle,
    start_request,
)
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import RetryPolicy
from temporalio.api.enums.v1 import (
    CommandType,
    WorkflowExecutionStatus,
    WorkflowIdConflictPolicy,
    WorkflowIdReusePolicy,
)
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    SignalWithStartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
)

from perdure.api.errors import (
    InvalidArgument,
    NamespaceNotFound,
    NotFound,
    WorkflowAlreadyStarted,
)
from perdure.service.settings import Settings
from perdure.store.query import Query

Reuse = WorkflowIdReusePolicy
Conflict = WorkflowIdConflictPolicy
USE = Conflict.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
TERMINATE = Conflict.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING


def _continue_as_new() -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION)
    made.continue_as_new_workflow_execution_command_attributes.workflow_type.name = "flow"
    return made


def _fail() -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION)
    made.fail_workflow_execution_command_attributes.failure.message = "no luck"
    return made


async def test_the_same_request_again_is_the_same_run(node: Harness) -> None:
    first = await node.start(request_id="r1")
    again = await node.start(request_id="r1")
    assert again.run_id == first.run_id
    assert again.started
    assert await node.events() == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]


async def test_the_same_request_again_finds_the_run_when_it_has_closed(node: Harness) -> None:
    first = await node.start(request_id="r1")
    await node.complete(await node.take(), complete_command())
    assert (await node.start(request_id="r1")).run_id == first.run_id
    assert (await node.start(request_id="r2")).run_id != first.run_id


async def test_the_same_request_again_finds_the_run_that_continued_as_new(node: Harness) -> None:
    first = await node.start(request_id="r1")
    for _ in range(2):
        await node.complete(await node.take(), _continue_as_new())
        again = await node.start(request_id="r1")
        assert (again.run_id, again.started) == (first.run_id, True)
        assert again.status == WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW
    with pytest.raises(WorkflowAlreadyStarted):
        await node.start(request_id="r2")
    await node.complete(await node.take(), complete_command())
    assert (await node.start(request_id="r1")).run_id == first.run_id
    assert len(await node.store.list_runs(Query("default"))) == 3


@pytest.mark.parametrize(
    "chain",
    [
        {"retry_policy": RetryPolicy(initial_interval=Duration(seconds=1))},
        {"cron_schedule": "* * * * *"},
    ],
)
async def test_the_same_request_again_finds_the_run_of_which_another_attempt_is_made(
    node: Harness, chain: dict[str, Any]
) -> None:
    first = await node.start(request_id="r1", **chain)
    await node.clock.advance(60)
    await node.complete(await node.take(), _fail())
    assert len(await node.store.list_runs(Query("default"))) == 2
    again = await node.start(request_id="r1", **chain)
    assert (again.run_id, again.first_execution_run_id) == (first.run_id, first.run_id)


async def test_the_same_request_again_names_a_run_that_is_not_kept(node: Harness) -> None:
    first = await node.start(request_id="r1")
    await node.complete(await node.take(), _continue_as_new())
    await node.complete(await node.take(), complete_command())
    await node.service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace="default", workflow_execution=execution(run_id=first.run_id)
        )
    )
    await settle()
    assert len(await node.store.list_runs(Query("default"))) == 1
    assert (await node.start(request_id="r1")).run_id == first.run_id


async def test_a_second_start_is_refused_with_the_run_that_is_in_the_way(node: Harness) -> None:
    first = await node.start(request_id="r1")
    with pytest.raises(WorkflowAlreadyStarted, match="already running") as refused:
        await node.start(request_id="r2")
    assert refused.value.run_id == first.run_id


async def test_starts_at_the_same_time_make_one_run(node: Harness) -> None:
    answers = await asyncio.gather(
        *(node.start(request_id=f"r{n}") for n in range(5)), return_exceptions=True
    )
    started = [a for a in answers if not isinstance(a, BaseException)]
    refused = [a for a in answers if isinstance(a, WorkflowAlreadyStarted)]
    assert (len(started), len(refused)) == (1, 4)
    assert {error.run_id for error in refused} == {started[0].run_id}


async def test_a_conflict_policy_may_use_the_run_that_is_there(node: Harness) -> None:
    first = await node.start()
    second = await node.start(workflow_id_conflict_policy=USE)
    assert (second.run_id, second.started) == (first.run_id, False)


@pytest.mark.parametrize(
    "policy",
    [
        {"workflow_id_conflict_policy": TERMINATE},
        {"workflow_id_reuse_policy": Reuse.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING},
    ],
)
async def test_a_conflict_policy_may_end_the_run_that_is_there(
    node: Harness, policy: dict[str, Any]
) -> None:
    first = await node.start()
    second = await node.start(**policy)
    assert second.run_id != first.run_id
    assert (await node.events(run_id=first.run_id))[-1] == "WorkflowExecutionTerminated"
    assert await node.events() == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]


async def test_reuse_policies_look_at_how_the_last_run_ended(node: Harness) -> None:
    await node.start()
    await node.complete(await node.take(), complete_command())
    for policy in (
        Reuse.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
        Reuse.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE_FAILED_ONLY,
    ):
        with pytest.raises(WorkflowAlreadyStarted, match="already finished"):
            await node.start(workflow_id_reuse_policy=policy)
    second = await node.start()
    await node.service.terminate_workflow_execution(
        TerminateWorkflowExecutionRequest(namespace="default", workflow_execution=execution())
    )
    third = await node.start(
        workflow_id_reuse_policy=Reuse.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE_FAILED_ONLY
    )
    assert third.run_id != second.run_id


def _without(field: str) -> Any:
    request = start_request()
    request.ClearField(field)  # type: ignore[arg-type]
    return request


def _negative() -> Any:
    request = start_request()
    request.workflow_run_timeout.FromSeconds(-1)
    return request


def _retry() -> Any:
    request = start_request()
    request.retry_policy.backoff_coefficient = 0.5
    return request


def _delayed_cron() -> Any:
    request = start_request(cron_schedule="* * * * *")
    request.workflow_start_delay.FromSeconds(5)
    return request


def _two_policies() -> Any:
    return start_request(
        workflow_id_conflict_policy=USE,
        workflow_id_reuse_policy=Reuse.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING,
    )


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (_without("workflow_id"), "WorkflowId"),
        (_without("workflow_type"), "WorkflowType"),
        (_without("task_queue"), "taskQueue"),
        (start_request("x" * 1001), "WorkflowId exceeds"),
        (start_request(request_id="x" * 1001), "RequestId length"),
        (start_request(input=payloads("x" * 3_000_000)), "input"),
        (start_request(cron_schedule="every day"), "CronSchedule"),
        (_negative(), "WorkflowRunTimeout"),
        (_retry(), "BackoffCoefficient"),
        (_delayed_cron(), "WorkflowStartDelay"),
        (_two_policies(), "WorkflowIDReusePolicy"),
    ],
)
async def test_a_bad_start_is_refused_with_the_argument_and_nothing_is_stored(
    node: Harness, request_: Any, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        await node.service.start_workflow_execution(request_)
    assert await node.store.find("default", request_.workflow_id or "wf") is None
    assert await node.store.backlogs() == []


async def test_an_unknown_namespace_is_refused(node: Harness) -> None:
    request = start_request()
    request.namespace = "nowhere"
    with pytest.raises(NamespaceNotFound):
        await node.service.start_workflow_execution(request)


async def test_a_delayed_start_waits_and_a_cron_start_waits_for_its_minute(node: Harness) -> None:
    request = start_request("delayed")
    request.workflow_start_delay.FromSeconds(30)
    await node.service.start_workflow_execution(request)
    await node.start("cron", cron_schedule="*/5 * * * *")  # the clock stands 100 s before
    poll = node.poll()
    await node.clock.advance(29)
    assert not poll.done()
    await node.clock.advance(2)
    task = await poll
    assert task.workflow_execution.workflow_id == "delayed"
    await node.complete(task, complete_command())
    poll = node.poll()
    await node.clock.advance(59)
    assert not poll.done()
    await node.clock.advance(11)
    task = await node.take() if not (await poll).task_token else poll.result()
    assert task.workflow_execution.workflow_id == "cron"


async def test_an_eager_start_brings_the_first_task_along(node: Harness) -> None:
    started = await node.start(request_eager_execution=True)
    task = started.eager_workflow_task
    assert [e.event_id for e in task.history.events] == [1, 2, 3]
    await node.complete(task, activity_command("a"))
    assert (await node.events())[-1] == "ActivityTaskScheduled"


def _signal_with_start(request_id: str = "") -> SignalWithStartWorkflowExecutionRequest:
    request = SignalWithStartWorkflowExecutionRequest(
        namespace="default", workflow_id="wf", signal_name="poke", request_id=request_id
    )
    request.workflow_type.name = "flow"
    request.task_queue.name = QUEUE
    request.signal_input.CopyFrom(payloads("hello"))
    return request


async def test_signal_with_start_starts_once_and_signals_each_time(node: Harness) -> None:
    call = node.service.signal_with_start_workflow_execution
    first = await call(_signal_with_start("r1"))
    assert first.started
    again = await call(_signal_with_start("r1"))
    assert again.run_id == first.run_id
    second = await call(_signal_with_start("r2"))
    assert (second.run_id, second.started) == (first.run_id, False)
    events = await node.events()
    assert events == [
        "WorkflowExecutionStarted",
        "WorkflowExecutionSignaled",
        "WorkflowTaskScheduled",
        "WorkflowExecutionSignaled",
    ]


async def test_the_same_signal_with_start_again_finds_the_run_that_continued_as_new(
    node: Harness,
) -> None:
    call = node.service.signal_with_start_workflow_execution
    first = await call(_signal_with_start("r1"))
    await node.complete(await node.take(), _continue_as_new())
    assert (await call(_signal_with_start("r1"))).run_id == first.run_id
    assert await node.events() == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]
    await node.complete(await node.take(), complete_command())
    assert (await call(_signal_with_start("r1"))).run_id == first.run_id
    assert len(await node.store.list_runs(Query("default"))) == 2


async def test_a_run_that_was_never_started_is_not_found(node: Harness) -> None:
    with pytest.raises(NotFound, match="workflow not found for ID: wf"):
        await node.service.terminate_workflow_execution(
            TerminateWorkflowExecutionRequest(namespace="default", workflow_execution=execution())
        )


async def test_one_cached_run_is_enough_for_many(make_store: Any) -> None:
    node = await Harness(make_store, Settings(cached_runs_max=1)).open()
    for number in range(5):
        await node.start(f"wf-{number}")
    for _ in range(5):
        await node.complete(await node.take(), complete_command())
    for number in range(5):
        entry = await node.node.executions.read(
            await node.node.executions.resolve("default", f"wf-{number}")
        )
        assert entry.run.state.status == WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED
    await node.close()
