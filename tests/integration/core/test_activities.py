"""Activities through the RPCs: results, failures, retries, heartbeats, cancellation, by id."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from harness import Harness, activity_command, complete_command, execution, payloads, settle
from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType
from temporalio.api.failure.v1 import Failure
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueResponse,
    RecordActivityTaskHeartbeatByIdRequest,
    RecordActivityTaskHeartbeatRequest,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCompletedByIdRequest,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedByIdRequest,
    RespondActivityTaskFailedRequest,
    SignalWorkflowExecutionRequest,
)

from perdure.api.errors import InvalidArgument, NotFound


async def started(node: Harness, **fields: Any) -> PollActivityTaskQueueResponse:
    """A run whose one activity a worker holds."""
    await node.start()
    await node.complete(await node.take(), activity_command("a", **fields))
    return await node.take_activity()


def failed(token: bytes, message: str = "broken") -> RespondActivityTaskFailedRequest:
    failure = Failure(message=message)
    failure.application_failure_info.type = "Broken"
    return RespondActivityTaskFailedRequest(
        namespace="default", task_token=token, failure=failure, identity="worker"
    )


async def test_a_task_says_all_about_its_activity(node: Harness) -> None:
    task = await started(node, start_to_close_s=7, heartbeat_s=3)
    assert task.workflow_namespace == "default"
    assert task.workflow_type.name == "flow"
    assert task.workflow_execution.workflow_id == "wf"
    assert task.activity_type.name == "act"
    assert task.attempt == 1
    assert task.start_to_close_timeout.seconds == 7
    assert task.heartbeat_timeout.seconds == 3
    assert task.retry_policy.maximum_attempts == 3
    assert task.scheduled_time == task.started_time == task.current_attempt_scheduled_time


async def test_a_failed_attempt_comes_again_after_its_pause(node: Harness) -> None:
    task = await started(node)
    await node.service.respond_activity_task_failed(failed(task.task_token))
    poll = node.poll_activity()
    await settle()
    assert not poll.done()
    await node.clock.advance(1.5)
    again = await poll
    assert again.attempt == 2
    with pytest.raises(NotFound):
        await node.finish_activity(task)
    await node.finish_activity(again)
    events = await node.history()
    assert events.events[5].activity_task_started_event_attributes.attempt == 2
    assert events.events[5].activity_task_started_event_attributes.last_failure.message == "broken"


async def test_the_last_attempt_ends_the_activity(node: Harness) -> None:
    task = await started(node, attempts=1)
    await node.service.respond_activity_task_failed(failed(task.task_token))
    assert (await node.events())[-3:] == [
        "ActivityTaskStarted",
        "ActivityTaskFailed",
        "WorkflowTaskScheduled",
    ]


async def test_an_attempt_that_takes_too_long_comes_again(node: Harness) -> None:
    task = await started(node, start_to_close_s=5)
    poll = node.poll_activity()
    await node.clock.advance(7)
    again = await poll
    assert again.attempt == 2
    with pytest.raises(NotFound, match="already timed out"):
        await node.finish_activity(task)


async def test_heartbeats_keep_an_attempt_alive_and_its_details(node: Harness) -> None:
    task = await started(node, heartbeat_s=5)
    poll = node.poll_activity()
    beat = RecordActivityTaskHeartbeatRequest(
        namespace="default", task_token=task.task_token, details=payloads("half")
    )
    for _ in range(3):
        await node.clock.advance(4)
        answer = await node.service.record_activity_task_heartbeat(beat)
        assert not answer.cancel_requested
    assert not poll.done()
    await node.clock.advance(8)
    again = await poll
    assert again.attempt == 2
    assert again.heartbeat_details == payloads("half")


async def test_a_cancelled_activity_hears_of_it_and_answers(node: Harness) -> None:
    task = await started(node)
    request = RespondActivityTaskCanceledRequest(namespace="default", task_token=task.task_token)
    with pytest.raises(InvalidArgument, match="without activity being request canceled"):
        await node.service.respond_activity_task_canceled(request)
    await node.service.signal_workflow_execution(
        SignalWorkflowExecutionRequest(
            namespace="default", workflow_execution=execution(), signal_name="stop"
        )
    )
    cancel = Command(command_type=CommandType.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK)
    cancel.request_cancel_activity_task_command_attributes.scheduled_event_id = 5
    await node.complete(await node.take(), cancel)
    beat = RecordActivityTaskHeartbeatRequest(namespace="default", task_token=task.task_token)
    assert (await node.service.record_activity_task_heartbeat(beat)).cancel_requested
    await node.service.respond_activity_task_canceled(request)
    assert "ActivityTaskCanceled" in await node.events()


async def test_an_activity_may_be_ended_by_its_id(node: Harness) -> None:
    await started(node)
    by_id = {"namespace": "default", "workflow_id": "wf", "activity_id": "a"}
    await node.service.record_activity_task_heartbeat_by_id(
        RecordActivityTaskHeartbeatByIdRequest(**by_id)
    )
    with pytest.raises(NotFound):
        await node.service.respond_activity_task_failed_by_id(
            RespondActivityTaskFailedByIdRequest(**(by_id | {"activity_id": "b"}))
        )
    await node.service.respond_activity_task_completed_by_id(
        RespondActivityTaskCompletedByIdRequest(**by_id, result=payloads("x"))
    )
    assert "ActivityTaskCompleted" in await node.events()
    with pytest.raises(NotFound):
        await node.service.respond_activity_task_completed_by_id(
            RespondActivityTaskCompletedByIdRequest(**by_id)
        )


async def test_a_result_that_is_too_large_fails_the_activity(node: Harness) -> None:
    task = await started(node)
    request = RespondActivityTaskCompletedRequest(
        namespace="default", task_token=task.task_token, result=payloads("x" * 3_000_000)
    )
    await node.service.respond_activity_task_completed(request)
    event = (await node.history()).events[6]
    assert event.activity_task_failed_event_attributes.failure.message == (
        "Complete result exceeds size limit."
    )


async def test_a_token_of_another_run_or_namespace_is_refused(node: Harness) -> None:
    task = await started(node)
    request = RespondActivityTaskCompletedRequest(namespace="elsewhere", task_token=task.task_token)
    with pytest.raises(NotFound):  # no such namespace
        await node.service.respond_activity_task_completed(request)
    other = bytearray(task.task_token)
    other[12] ^= 1
    with pytest.raises(InvalidArgument):  # the checksum
        await node.service.respond_activity_task_completed(
            RespondActivityTaskCompletedRequest(namespace="default", task_token=bytes(other))
        )


async def test_an_activity_on_its_way_to_a_vanished_poll_is_not_counted(node: Harness) -> None:
    await node.start()
    poll = node.poll_activity()
    task = await node.take()
    answer = asyncio.ensure_future(node.complete(task, activity_command("a", attempts=1)))
    await asyncio.sleep(0)  # the activity is matched, and not yet committed
    poll.cancel()
    await answer
    await settle()
    again = await node.take_activity()
    assert again.attempt == 1
    await node.finish_activity(again)
    await node.complete(await node.take(), complete_command())


async def test_eager_activities_come_with_the_answer(node: Harness) -> None:
    await node.start()
    answer = await node.complete(await node.take(), activity_command("a", eager=True))
    [task] = answer.activity_tasks
    await node.finish_activity(task)
    assert "ActivityTaskCompleted" in await node.events()


async def test_a_thousand_activities_wait_in_order(node: Harness) -> None:
    await node.start()
    commands = [activity_command(f"a{n}") for n in range(1_500)]
    await node.complete(await node.take(), *commands)
    seen = [(await node.take_activity()).activity_id for _ in range(1_500)]
    assert seen == [f"a{n}" for n in range(1_500)]
    await settle()
    assert await node.store.backlogs() == []


async def test_a_failure_that_no_code_raised_is_refused(node: Harness) -> None:
    task = await started(node)
    request = failed(task.task_token)
    request.failure.timeout_failure_info.SetInParent()
    with pytest.raises(InvalidArgument, match=r"Failure must have ApplicationFailureInfo\."):
        await node.service.respond_activity_task_failed(request)
    await node.finish_activity(task)  # nothing has happened to it
