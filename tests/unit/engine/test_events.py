"""Bytes written by hand say exactly what the message classes would."""

from __future__ import annotations

from temporalio.api.command.v1 import ScheduleActivityTaskCommandAttributes
from temporalio.api.common.v1 import Header, Payload, Payloads, RetryPolicy
from temporalio.api.enums.v1 import TaskQueueKind
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import (
    ActivityTaskCompletedEventAttributes,
    ActivityTaskScheduledEventAttributes,
    ActivityTaskStartedEventAttributes,
    WorkflowTaskCompletedEventAttributes,
    WorkflowTaskScheduledEventAttributes,
    WorkflowTaskStartedEventAttributes,
)

from perdure.engine import events
from perdure.engine.state import Activity

SECOND = 1_000_000_000
RESULT = Payloads(payloads=[Payload(data=b"1" * 300, metadata={"encoding": b"json/plain"})])


def test_workflow_task_scheduled() -> None:
    expected = WorkflowTaskScheduledEventAttributes(attempt=3)
    expected.task_queue.name = "sticky"
    expected.task_queue.normal_name = "queue"
    expected.task_queue.kind = TaskQueueKind.TASK_QUEUE_KIND_STICKY
    expected.start_to_close_timeout.FromMilliseconds(10_500)
    body = events.workflow_task_scheduled(events.task_queue("sticky", "queue"), 10_500_000_000, 3)
    assert WorkflowTaskScheduledEventAttributes.FromString(body) == expected


def test_workflow_task_started() -> None:
    expected = WorkflowTaskStartedEventAttributes(
        scheduled_event_id=51_199,
        identity="wörker",
        request_id="r",
        suggest_continue_as_new=True,
        suggest_continue_as_new_reasons=[1, 3],
        history_size_bytes=1 << 33,
    )
    body = events.workflow_task_started(51_199, "wörker", "r", True, (1, 3), 1 << 33)
    assert WorkflowTaskStartedEventAttributes.FromString(body) == expected


def test_workflow_task_completed() -> None:
    expected = WorkflowTaskCompletedEventAttributes(
        scheduled_event_id=2, started_event_id=3, identity="me", binary_checksum="c"
    )
    rest = WorkflowTaskCompletedEventAttributes(binary_checksum="c").SerializeToString()
    body = events.workflow_task_completed(2, 3, "me", rest)
    assert WorkflowTaskCompletedEventAttributes.FromString(body) == expected


def test_activity_task_started() -> None:
    failure = Failure(message="broken")
    activity = Activity(
        1, 5, "a", "work", "queue", 0, attempt=4, started_identity="me", request_id="r",
        last_failure=failure.SerializeToString(),
    )  # fmt: skip
    expected = ActivityTaskStartedEventAttributes(
        scheduled_event_id=5, identity="me", request_id="r", attempt=4, last_failure=failure
    )
    body = events.activity_task_started(activity)
    assert ActivityTaskStartedEventAttributes.FromString(body) == expected


def test_activity_task_completed() -> None:
    expected = ActivityTaskCompletedEventAttributes(
        result=RESULT, scheduled_event_id=5, started_event_id=300, identity="me"
    )
    body = events.activity_task_completed(RESULT.SerializeToString(), True, 5, 300, "me")
    assert ActivityTaskCompletedEventAttributes.FromString(body) == expected


def test_activity_task_scheduled() -> None:
    header = Header(fields={"trace": Payload(data=b"x")})
    retry = RetryPolicy(maximum_attempts=3, backoff_coefficient=1.5)
    command = ScheduleActivityTaskCommandAttributes(use_workflow_build_id=True, input=RESULT)
    command.priority.priority_key = 2
    activity = Activity(
        1, 5, "a", "work", "queue", 0,
        input=RESULT.SerializeToString(), header=header.SerializeToString(),
        schedule_to_close_ns=90 * SECOND, schedule_to_start_ns=30 * SECOND,
        start_to_close_ns=1_500_000_000, heartbeat_ns=0,
        priority=command.priority.SerializeToString(),
    )  # fmt: skip
    expected = ActivityTaskScheduledEventAttributes(
        activity_id="a", header=header, input=RESULT, workflow_task_completed_event_id=4,
        retry_policy=retry, use_workflow_build_id=True,
    )  # fmt: skip
    expected.activity_type.name = "work"
    expected.task_queue.name = "queue"
    expected.task_queue.kind = TaskQueueKind.TASK_QUEUE_KIND_NORMAL
    expected.schedule_to_close_timeout.FromSeconds(90)
    expected.schedule_to_start_timeout.FromSeconds(30)
    expected.start_to_close_timeout.FromMilliseconds(1_500)
    expected.heartbeat_timeout.SetInParent()
    expected.priority.priority_key = 2
    body = events.activity_task_scheduled(activity, command, retry.SerializeToString(), 4)
    assert ActivityTaskScheduledEventAttributes.FromString(body) == expected
