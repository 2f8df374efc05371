"""Operators and pending activities: pause, unpause, reset, other options. No event tells of it."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from harness import QUEUE, Harness, activity_command, execution, settle
from temporalio.api.activity.v1 import ActivityOptions
from temporalio.api.common.v1 import RetryPolicy
from temporalio.api.failure.v1 import ApplicationFailureInfo, Failure
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    PauseActivityExecutionRequest,
    PauseActivityRequest,
    PollActivityTaskQueueResponse,
    RecordActivityTaskHeartbeatRequest,
    ResetActivityExecutionRequest,
    ResetActivityRequest,
    RespondActivityTaskFailedRequest,
    UnpauseActivityExecutionRequest,
    UnpauseActivityRequest,
    UpdateActivityExecutionOptionsRequest,
    UpdateActivityOptionsRequest,
)

from perdure.api.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented

WF: dict[str, Any] = {"namespace": "default", "execution": execution()}
A: dict[str, Any] = {**WF, "id": "a"}
SCHEDULED, STARTED, PAUSED, PAUSE_REQUESTED = 1, 2, 4, 5

BROKEN = Failure(message="broken", application_failure_info=ApplicationFailureInfo())


async def scheduled(node: Harness, **fields: Any) -> None:
    await node.start()
    await node.complete(await node.take(), activity_command("a", **fields))


async def shown(node: Harness) -> PendingActivityInfo:
    request = DescribeWorkflowExecutionRequest(namespace="default", execution=execution())
    answer = await node.service.describe_workflow_execution(request)
    found: PendingActivityInfo = answer.pending_activities[0]
    return found


async def fail(node: Harness, task: PollActivityTaskQueueResponse) -> None:
    await node.service.respond_activity_task_failed(
        RespondActivityTaskFailedRequest(
            namespace="default", task_token=task.task_token, failure=BROKEN
        )
    )


async def beat(node: Harness, task: PollActivityTaskQueueResponse) -> Any:
    request = RecordActivityTaskHeartbeatRequest(namespace="default", task_token=task.task_token)
    request.details.payloads.add().data = b"1"
    return await node.service.record_activity_task_heartbeat(request)


# -- pause and unpause -----------------------------------------------------------------------------


async def test_a_paused_activity_is_not_handed_out(node: Harness) -> None:
    await scheduled(node)
    await node.service.pause_activity(
        PauseActivityRequest(**A, identity="me", reason="why", request_id="r")
    )
    info = await shown(node)
    assert (info.state, info.paused) == (PAUSED, True)
    assert (info.pause_info.manual.identity, info.pause_info.manual.reason) == ("me", "why")
    poll = node.poll_activity()
    await settle()
    assert not poll.done()
    before = await node.events()
    await node.service.unpause_activity(UnpauseActivityRequest(**A))
    task = await poll
    assert task.attempt == 1
    assert (await shown(node)).state == STARTED
    assert await node.events() == before
    await node.finish_activity(task)


async def test_a_pause_is_done_once(node: Harness) -> None:
    await scheduled(node)
    for _ in range(2):
        await node.service.pause_activity(PauseActivityRequest(**A, request_id="r"))
    with pytest.raises(FailedPrecondition, match="activity is already paused"):
        await node.service.pause_activity(PauseActivityRequest(**A, request_id="s"))


async def test_a_paused_activity_that_runs_goes_on_and_is_not_tried_again(node: Harness) -> None:
    await scheduled(node)
    task = await node.take_activity()
    await node.service.pause_activity(PauseActivityRequest(**WF, type="act"))
    assert (await shown(node)).state == PAUSE_REQUESTED
    assert (await beat(node, task)).activity_paused
    await fail(node, task)
    await node.clock.advance(30)
    info = await shown(node)
    assert (info.state, info.attempt) == (PAUSED, 2)
    assert not info.HasField("next_attempt_schedule_time")
    await node.service.unpause_activity(UnpauseActivityRequest(**WF, unpause_all=True))
    again = await node.take_activity()
    assert again.attempt == 2
    assert again.heartbeat_details.payloads[0].data == b"1"


async def test_unpaused_with_everything_reset(node: Harness) -> None:
    await scheduled(node)
    task = await node.take_activity()
    await beat(node, task)
    await node.service.pause_activity(PauseActivityRequest(**A))
    await fail(node, task)
    request = UnpauseActivityRequest(**A, reset_attempts=True, reset_heartbeat=True)
    await node.service.unpause_activity(request)
    again = await node.take_activity()
    assert again.attempt == 1
    assert not again.HasField("heartbeat_details")


async def test_an_unpause_of_what_is_not_paused_changes_nothing(node: Harness) -> None:
    await scheduled(node)
    await node.service.unpause_activity(UnpauseActivityRequest(**A, jitter=Duration(seconds=50)))
    assert (await node.take_activity()).attempt == 1


async def test_unpaused_within_a_jitter(node: Harness) -> None:
    await scheduled(node)
    await node.service.pause_activity(PauseActivityRequest(**A))
    request = UnpauseActivityRequest(**A, jitter=Duration(seconds=60))
    await node.service.unpause_activity(request)
    poll = node.poll_activity()
    await settle()
    assert not poll.done()
    await node.clock.advance(59.9)
    assert (await poll).attempt == 1


async def test_a_pause_outlasts_a_restart_and_its_timeouts_go_on(node: Harness) -> None:
    await node.start(workflow_run_timeout=Duration(seconds=100))
    await node.complete(await node.take(), activity_command("a"))
    await node.service.pause_activity(PauseActivityRequest(**A))
    await node.clock.advance(101)
    assert (await node.events())[-1] == "WorkflowExecutionTimedOut"


# -- reset -----------------------------------------------------------------------------------------


async def test_a_reset_begins_again_at_once(node: Harness) -> None:
    await scheduled(node)
    await fail(node, await node.take_activity())
    assert (await shown(node)).attempt == 2
    await node.service.reset_activity(ResetActivityRequest(**A))
    assert (await node.take_activity()).attempt == 1


async def test_a_reset_can_leave_the_pause(node: Harness) -> None:
    await scheduled(node)
    await fail(node, await node.take_activity())
    await node.service.pause_activity(PauseActivityRequest(**A))
    await node.service.reset_activity(ResetActivityRequest(**A, keep_paused=True))
    info = await shown(node)
    assert (info.state, info.attempt) == (PAUSED, 1)
    await node.service.reset_activity(ResetActivityRequest(**A))
    assert (await node.take_activity()).attempt == 1


async def test_a_reset_of_a_running_attempt_counts_it_as_the_first(node: Harness) -> None:
    await scheduled(node, attempts=3)
    await fail(node, await node.take_activity())
    await node.clock.advance(5)
    task = await node.take_activity()
    assert task.attempt == 2
    await node.service.reset_activity(
        ResetActivityRequest(**WF, match_all=True, reset_heartbeat=True)
    )
    assert (await shown(node)).attempt == 1
    answer = await beat(node, task)
    assert answer.activity_reset
    await fail(node, task)
    await node.clock.advance(5)
    task = await node.take_activity()
    assert (task.attempt, task.HasField("heartbeat_details")) == (2, False)
    assert not (await beat(node, task)).activity_reset
    await node.finish_activity(task)


# -- options ---------------------------------------------------------------------------------------


def change(options: ActivityOptions, *paths: str) -> UpdateActivityOptionsRequest:
    return UpdateActivityOptionsRequest(
        **A, activity_options=options, update_mask=FieldMask(paths=paths)
    )


async def test_options_are_changed_one_by_one(node: Harness) -> None:
    await scheduled(node)
    asked = ActivityOptions(
        start_to_close_timeout=Duration(seconds=7), heartbeat_timeout=Duration(seconds=3)
    )
    answer = await node.service.update_activity_options(change(asked, "startToCloseTimeout"))
    assert answer.activity_options.start_to_close_timeout.seconds == 7
    assert answer.activity_options.heartbeat_timeout.seconds == 0
    assert answer.activity_options.retry_policy.maximum_attempts == 3
    task = await node.take_activity()
    assert task.start_to_close_timeout.seconds == 7


async def test_the_retry_policy_of_a_waiting_attempt(node: Harness) -> None:
    await scheduled(node)
    await fail(node, await node.take_activity())
    asked = ActivityOptions(retry_policy=RetryPolicy(initial_interval=Duration(seconds=40)))
    request = change(asked, "retry_policy.initial_interval")
    await node.service.update_activity_options(request)
    poll = node.poll_activity()
    await node.clock.advance(39)
    assert not poll.done()
    await node.clock.advance(2)
    assert (await poll).attempt == 2


async def test_another_task_queue_and_back(node: Harness) -> None:
    await scheduled(node)
    asked = ActivityOptions(task_queue=TaskQueue(name="elsewhere"))
    await node.service.update_activity_options(change(asked, "task_queue.name"))
    poll = node.poll_activity()
    await settle()
    assert not poll.done()
    assert (await shown(node)).activity_options.task_queue.name == "elsewhere"
    request = UpdateActivityOptionsRequest(**A, restore_original=True)
    answer = await node.service.update_activity_options(request)
    assert answer.activity_options.task_queue.name == QUEUE
    assert (await poll).attempt == 1


async def test_a_timeout_of_a_running_attempt_can_be_brought_forward(node: Harness) -> None:
    await scheduled(node, start_to_close_s=1_000)
    await node.take_activity()
    asked = ActivityOptions(start_to_close_timeout=Duration(seconds=5))
    await node.service.update_activity_options(change(asked, "start_to_close_timeout"))
    await node.clock.advance(6)
    assert (await shown(node)).attempt == 2


async def test_a_reset_can_restore_the_options(node: Harness) -> None:
    await scheduled(node, start_to_close_s=30)
    asked = ActivityOptions(start_to_close_timeout=Duration(seconds=5))
    await node.service.update_activity_options(change(asked, "start_to_close_timeout"))
    await node.service.reset_activity(ResetActivityRequest(**A, restore_original_options=True))
    assert (await node.take_activity()).start_to_close_timeout.seconds == 30


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (UpdateActivityOptionsRequest(**A), "ActivityOptions are not provided"),
        (
            UpdateActivityOptionsRequest(**A, activity_options=ActivityOptions()),
            "UpdateMask is not provided",
        ),
        (change(ActivityOptions(), "task_queue.name"), "TaskQueue is not provided"),
        (change(ActivityOptions(), "nonsense"), "UpdateMask names nonsense; there are"),
        (
            change(ActivityOptions(), "start_to_close_timeout"),
            "a valid StartToCloseTimeout or ScheduleToCloseTimeout must be set on the activity. "
            "ActivityId=a ActivityType=act",
        ),
        (
            change(
                ActivityOptions(retry_policy=RetryPolicy(maximum_attempts=-1)),
                "retry_policy.maximum_attempts",
            ),
            "MaximumAttempts cannot be negative on retry policy.",
        ),
        (
            change(ActivityOptions(heartbeat_timeout=Duration(seconds=-1)), "heartbeat_timeout"),
            "heartbeat_timeout cannot be negative.",
        ),
        (
            UpdateActivityOptionsRequest(
                **A, restore_original=True, update_mask=FieldMask(paths=["priority"])
            ),
            "Both UpdateMask and RestoreOriginal are provided",
        ),
    ],
)
async def test_options_that_make_no_sense(
    node: Harness, request_: UpdateActivityOptionsRequest, why: str
) -> None:
    await scheduled(node)
    before = await shown(node)
    with pytest.raises(InvalidArgument) as error:
        await node.service.update_activity_options(request_)
    assert error.value.message.startswith(why)
    assert await shown(node) == before


# -- which activity --------------------------------------------------------------------------------


async def test_requests_that_name_nothing(node: Harness) -> None:
    await scheduled(node)
    pause = node.service.pause_activity
    with pytest.raises(InvalidArgument, match=r"Either Activity\.Id or Activity\.Type"):
        await pause(PauseActivityRequest(**WF))
    with pytest.raises(InvalidArgument, match="WorkflowId is not set on request"):
        await pause(PauseActivityRequest(namespace="default", id="a"))
    for wrong in ({"id": "b"}, {"type": "other"}):
        with pytest.raises(NotFound, match="Can't find pending activity with such ID"):
            await pause(PauseActivityRequest(**WF, **wrong))
    await node.finish_activity(await node.take_activity())
    with pytest.raises(NotFound, match="Can't find pending activity"):
        await pause(PauseActivityRequest(**A))


async def test_the_younger_form(node: Harness) -> None:
    await scheduled(node)
    one: dict[str, Any] = {"namespace": "default", "workflow_id": "wf", "activity_id": "a"}
    service = node.service
    await service.pause_activity_execution(PauseActivityExecutionRequest(**one, reason="why"))
    assert (await shown(node)).state == PAUSED
    await service.unpause_activity_execution(UnpauseActivityExecutionRequest(**one))
    assert (await shown(node)).state == SCHEDULED
    answer = await service.update_activity_execution_options(
        UpdateActivityExecutionOptionsRequest(
            **one,
            activity_options=ActivityOptions(start_to_close_timeout=Duration(seconds=9)),
            update_mask=FieldMask(paths=["start_to_close_timeout"]),
        )
    )
    assert answer.activity_options.start_to_close_timeout.seconds == 9
    await service.reset_activity_execution(
        ResetActivityExecutionRequest(**one, restore_original_options=True)
    )
    assert (await node.take_activity()).start_to_close_timeout.seconds == 30
    with pytest.raises(Unimplemented, match="activities without a workflow"):
        await service.pause_activity_execution(
            PauseActivityExecutionRequest(namespace="default", activity_id="a")
        )
