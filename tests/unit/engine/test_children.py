from __future__ import annotations

from typing import Any

import pytest
from sample_runs import a_run, events, give_task, step, types
from temporalio.api.command.v1 import StartChildWorkflowExecutionCommandAttributes
from temporalio.api.enums.v1 import (
    EventType,
    ParentClosePolicy,
    StartChildWorkflowExecutionFailedCause,
    WorkflowExecutionStatus,
    WorkflowTaskFailedCause,
)
from temporalio.api.history.v1 import (
    ChildWorkflowExecutionCanceledEventAttributes,
    ChildWorkflowExecutionCompletedEventAttributes,
    ChildWorkflowExecutionFailedEventAttributes,
    ChildWorkflowExecutionTerminatedEventAttributes,
    ChildWorkflowExecutionTimedOutEventAttributes,
)
from temporalio.api.sdk.v1 import UserMetadata
from temporalio.api.workflowservice.v1 import StartWorkflowExecutionRequest

from perdure.engine import children, outbox
from perdure.engine.bad_command import BadCommand
from perdure.engine.execution import Execution
from perdure.engine.outbox import CancelRun, ChildClosed, StartChild, TerminateRun
from perdure.engine.transition import Transition

BAD = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_BAD_START_CHILD_EXECUTION_ATTRIBUTES
TOO_MANY = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_PENDING_CHILD_WORKFLOWS_LIMIT_EXCEEDED
COMPLETED = EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED


def command(**changes: Any) -> StartChildWorkflowExecutionCommandAttributes:
    attributes = StartChildWorkflowExecutionCommandAttributes(workflow_id="kid")
    attributes.workflow_type.name = "Kid"
    for name, value in changes.items():
        field = getattr(attributes, name)
        if hasattr(field, "MergeFrom"):
            field.MergeFrom(type(field)(**value))
        else:
            setattr(attributes, name, value)
    return attributes


def initiated(run: Execution, **changes: Any) -> StartChild:
    """Initiate a child in a transition of its own; the message that starts it."""
    tx = step(run)
    children.initiate(tx, command(**changes), 4)
    (message,) = tx.messages
    return message


def is_running(run: Execution, **changes: Any) -> StartChild:
    message = initiated(run, **changes)
    children.started(step(run), message.initiated_event_id, message.run_id, key=9)
    run.state.workflow_task = None
    return message


def close_message(
    message: StartChild,
    event_type: int = COMPLETED,
    attributes: bytes = b"",
    run_id: str = "last-run",
    workflow_id: str = "kid",
) -> ChildClosed:
    return ChildClosed(
        1, message.initiated_event_id, workflow_id, run_id, event_type, attributes
    )  # fmt: skip


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workflow_id": ""}, "WorkflowId is not set"),
        ({"workflow_type": {"name": ""}, "workflow_id": "x" * 1_001}, "WorkflowId .* length limit"),
        ({"workflow_id": "é" * 501}, "Length=1002 Limit=1000"),
        ({"task_queue": {"name": "q" * 1_001}}, "TaskQueue .* exceeds length limit"),
        ({"namespace": "n" * 1_001}, "Namespace .* exceeds length limit"),
        ({"workflow_run_timeout": {"seconds": -1}}, "workflow_run_timeout"),
        ({"workflow_execution_timeout": {"nanos": -1}}, "workflow_execution_timeout"),
        ({"cron_schedule": "often"}, "'often'"),
        ({"retry_policy": {"backoff_coefficient": 0.5}}, "BackoffCoefficient"),
        ({"retry_policy": {"maximum_attempts": -1}}, "MaximumAttempts"),
    ],
)
def test_bad_command_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadCommand, match=words) as caught:
        children.validate(a_run(), command(**changes))
    assert caught.value.cause == BAD


def test_a_command_without_a_type_is_refused() -> None:
    with pytest.raises(BadCommand, match="WorkflowType is not set"):
        children.validate(a_run(), StartChildWorkflowExecutionCommandAttributes(workflow_id="kid"))


def test_pending_children_are_limited() -> None:
    run = a_run()
    initiated(run)
    children.validate(run, command(), pending_limit=2)
    with pytest.raises(BadCommand) as caught:
        children.validate(run, command(), already_initiated=1, pending_limit=2)
    assert caught.value.cause == TOO_MANY


def test_initiate_fills_in_the_defaults() -> None:
    run = a_run()
    tx = step(run)
    event_id = children.initiate(tx, command(workflow_run_timeout={"seconds": 7}), 4)
    (event,) = events(tx)
    assert event.event_id == event_id == 5
    attributes = event.start_child_workflow_execution_initiated_event_attributes
    assert attributes.namespace == "default"
    assert attributes.namespace_id == "ns-id"
    assert attributes.workflow_id == "kid"
    assert attributes.workflow_type.name == "Kid"
    assert attributes.task_queue.name == "orders"
    assert attributes.task_queue.kind == 1
    assert attributes.parent_close_policy == ParentClosePolicy.PARENT_CLOSE_POLICY_TERMINATE
    assert attributes.workflow_id_reuse_policy == 1
    assert attributes.workflow_task_completed_event_id == 4
    assert attributes.workflow_run_timeout.seconds == 7
    assert attributes.workflow_task_timeout.seconds == 7  # no longer than the run
    assert run.children[5].workflow_id == "kid"


def test_initiate_leaves_a_message_that_starts_the_child() -> None:
    run = a_run()
    tx = step(run)
    metadata = UserMetadata()
    metadata.summary.data = b"why"
    children.initiate(
        tx,
        command(
            namespace="other", task_queue={"name": "kids"}, cron_schedule="@daily",
            workflow_execution_timeout={"seconds": 60}, input={"payloads": [{"data": b"1"}]},
            header={"fields": {"trace": {"data": b"t"}}}, memo={"fields": {"m": {"data": b"m"}}},
            parent_close_policy=2,
        ),
        4,
        metadata.SerializeToString(),
    )  # fmt: skip
    (message,) = tx.messages
    assert outbox.decode(outbox.encode(message)) == message
    child = run.children[5]
    assert (message.run_id, message.request_id) == (child.run_id, child.request_id)
    assert message.run_id != message.request_id
    assert message.parent_close_policy == 2
    request = StartWorkflowExecutionRequest.FromString(message.request)
    assert request.namespace == "other"
    assert request.workflow_id == "kid"
    assert request.workflow_type.name == "Kid"
    assert request.task_queue.name == "kids"
    assert request.request_id == child.request_id
    assert request.cron_schedule == "@daily"
    assert request.workflow_execution_timeout.seconds == 60
    assert request.workflow_run_timeout.seconds == 60  # no longer than the execution
    assert request.workflow_task_timeout.seconds == 10
    assert request.input.payloads[0].data == b"1"
    assert request.header.fields["trace"].data == b"t"
    assert request.memo.fields["m"].data == b"m"
    assert request.user_metadata.summary.data == b"why"
    (event,) = events(tx)
    assert event.user_metadata.summary.data == b"why"
    assert event.start_child_workflow_execution_initiated_event_attributes.namespace_id == ""


def test_two_children_have_ids_of_their_own() -> None:
    run = a_run()
    tx = step(run)
    children.initiate(tx, command(), 4)
    children.initiate(tx, command(workflow_id="kid-2"), 4)
    first, second = tx.messages
    assert len({first.run_id, second.run_id, first.request_id, second.request_id}) == 4


# -- start -----------------------------------------------------------------------------------------


def test_started_writes_the_event_and_wakes_the_workflow() -> None:
    run = a_run()
    message = initiated(run)
    tx = step(run)
    assert children.wanted(run, 5)
    header = StartWorkflowExecutionRequest().header
    header.fields["trace"].data = b"t"
    assert children.started(tx, 5, message.run_id, key=9, header=header.SerializeToString())
    assert types(tx) == ["CHILD_WORKFLOW_EXECUTION_STARTED", "WORKFLOW_TASK_SCHEDULED"]
    attributes = events(tx)[0].child_workflow_execution_started_event_attributes
    assert attributes.initiated_event_id == 5
    assert attributes.workflow_execution.workflow_id == "kid"
    assert attributes.workflow_execution.run_id == message.run_id
    assert attributes.workflow_type.name == "Kid"
    assert attributes.namespace == "default"
    assert attributes.namespace_id == "ns-id"
    assert attributes.header.fields["trace"].data == b"t"
    assert run.children[5].started_event_id == 6
    assert run.children[5].key == 9


@pytest.mark.parametrize("task_started", [False, True])
def test_started_twice_does_nothing_the_second_time(task_started: bool) -> None:
    run = a_run()
    message = initiated(run)
    give_task(run, started=task_started)
    assert children.started(step(run), 5, message.run_id, key=9)
    again = step(run)
    assert not children.wanted(run, 5)
    assert not children.started(again, 5, message.run_id, key=9)
    assert not children.start_failed(again, 5, 1)
    assert not again.has_events
    assert not again.changed


@pytest.mark.parametrize(
    "cause",
    [
        StartChildWorkflowExecutionFailedCause.START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_WORKFLOW_ALREADY_EXISTS,
        StartChildWorkflowExecutionFailedCause.START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_NAMESPACE_NOT_FOUND,
    ],
)
def test_start_failed(cause: StartChildWorkflowExecutionFailedCause.ValueType) -> None:
    run = a_run()
    initiated(run)
    tx = step(run)
    assert children.start_failed(tx, 5, cause)
    assert types(tx) == ["START_CHILD_WORKFLOW_EXECUTION_FAILED", "WORKFLOW_TASK_SCHEDULED"]
    attributes = events(tx)[0].start_child_workflow_execution_failed_event_attributes
    assert attributes.cause == cause
    assert attributes.initiated_event_id == 5
    assert attributes.workflow_id == "kid"
    assert attributes.workflow_type.name == "Kid"
    assert attributes.namespace == "default"
    assert not run.children
    assert not children.start_failed(step(run), 5, cause)


# -- close -----------------------------------------------------------------------------------------


def closing(event_type: int) -> tuple[Any, str]:
    """Attributes as a child sends them, and the field of the event that holds them."""
    name = EventType.Name(event_type).removeprefix("EVENT_TYPE_").lower()
    field = f"{name}_event_attributes"
    match name.rpartition("_")[2]:
        case "completed":
            completed = ChildWorkflowExecutionCompletedEventAttributes()
            completed.result.payloads.add(data=b"42")
            return completed, field
        case "failed":
            failed = ChildWorkflowExecutionFailedEventAttributes(retry_state=2)
            failed.failure.message = "no"
            return failed, field
        case "canceled":
            canceled = ChildWorkflowExecutionCanceledEventAttributes()
            canceled.details.payloads.add(data=b"why")
            return canceled, field
        case "out":
            return ChildWorkflowExecutionTimedOutEventAttributes(retry_state=3), field
        case _:
            return ChildWorkflowExecutionTerminatedEventAttributes(), field


CLOSES = [
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED,
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED,
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED,
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT,
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED,
]


@pytest.mark.parametrize("event_type", CLOSES)
def test_closed_fills_in_all_ids(event_type: int) -> None:
    run = a_run()
    message = is_running(run)
    sent, field = closing(event_type)
    told = close_message(message, event_type, sent.SerializeToString())
    tx = step(run)
    assert children.closed(tx, told)
    assert events(tx)[0].event_type == event_type
    assert types(tx)[1:] == ["WORKFLOW_TASK_SCHEDULED"]
    expected = type(sent)()
    expected.CopyFrom(sent)
    expected.namespace = "default"
    expected.namespace_id = "ns-id"
    expected.workflow_execution.workflow_id = "kid"
    expected.workflow_execution.run_id = "last-run"  # of the last run of the child's chain
    expected.workflow_type.name = "Kid"
    expected.initiated_event_id = 5
    expected.started_event_id = 6
    assert getattr(events(tx)[0], field) == expected
    assert not run.children


def test_closed_twice_does_nothing_the_second_time() -> None:
    run = a_run()
    told = close_message(is_running(run))
    assert children.closed(step(run), told)
    again = step(run)
    assert not children.closed(again, told)
    assert not again.has_events


def test_closed_of_another_workflow_is_ignored() -> None:
    run = a_run()
    told = close_message(is_running(run), workflow_id="stranger")
    assert not children.closed(step(run), told)
    assert run.children


def test_a_close_that_overtakes_the_start_records_the_start_first() -> None:
    run = a_run()
    message = initiated(run)
    tx = step(run)
    assert children.closed(tx, close_message(message))
    assert types(tx) == [
        "CHILD_WORKFLOW_EXECUTION_STARTED", "WORKFLOW_TASK_SCHEDULED",
        "CHILD_WORKFLOW_EXECUTION_COMPLETED",
    ]  # fmt: skip
    start, _, close = events(tx)
    started = start.child_workflow_execution_started_event_attributes
    completed = close.child_workflow_execution_completed_event_attributes
    assert started.workflow_execution.run_id == message.run_id
    assert completed.started_event_id == start.event_id
    late = step(run)
    assert not children.started(late, 5, message.run_id, key=9)
    assert not late.has_events


def flush(run: Execution) -> Transition:
    """End the workflow task and move what it held up into history."""
    run.state.workflow_task = None
    tx = step(run)
    started_ids: dict[int, int] = {}
    for event in list(run.buffered.values()):
        assert children.flush(tx, event, started_ids)
    return tx


@pytest.mark.parametrize("event_type", CLOSES)
def test_start_and_close_buffered_together_are_paired(event_type: int) -> None:
    run = a_run()
    message = initiated(run)
    give_task(run, started=True)
    sent, field = closing(event_type)
    assert children.started(step(run), 5, message.run_id, key=9)
    assert children.closed(step(run), close_message(message, event_type, sent.SerializeToString()))
    assert len(run.buffered) == 2
    tx = flush(run)
    start, close = events(tx)
    assert start.child_workflow_execution_started_event_attributes.initiated_event_id == 5
    assert getattr(close, field).started_event_id == start.event_id
    assert not run.buffered


def test_a_buffered_start_leaves_its_id_with_the_child() -> None:
    run = a_run()
    message = initiated(run)
    give_task(run, started=True)
    children.started(step(run), 5, message.run_id, key=9)
    assert run.children[5].started_event_id == 0
    tx = flush(run)
    assert run.children[5].started_event_id == events(tx)[0].event_id
    assert run.children[5].id in tx.changed


def test_flush_leaves_other_events_alone() -> None:
    run = a_run()
    give_task(run, started=True)
    tx = step(run)
    tx.record(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED, b"")
    (event,) = run.buffered.values()
    assert not children.flush(tx, event, {})
    assert run.buffered


def test_a_closed_parent_hears_nothing() -> None:
    run = a_run()
    message = initiated(run)
    run.state.status = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED
    tx = step(run)
    assert not children.wanted(run, 5)
    assert not children.started(tx, 5, message.run_id, key=9)
    assert not children.start_failed(tx, 5, 1)
    assert not children.closed(tx, close_message(message))
    assert not tx.has_events


# -- the parent closes; the child tells ------------------------------------------------------------


def test_close_policies() -> None:
    run = a_run()
    killed = is_running(run, workflow_id="killed", parent_close_policy=1)
    is_running(run, workflow_id="left", parent_close_policy=2)
    asked = is_running(run, workflow_id="asked", parent_close_policy=3)
    unset = is_running(run, workflow_id="unset")
    initiated(run, workflow_id="not-yet-started")  # its start will not be wanted any more
    tx = step(run)
    children.close_all(tx)
    reason = "by parent close policy"
    assert tx.messages == [
        TerminateRun("default", "killed", killed.run_id, reason),
        CancelRun(0, asked.request_id, "default", "asked", asked.run_id, True, ""),
        TerminateRun("default", "unset", unset.run_id, reason),
    ]


def test_close_policies_apply_before_continue_as_new_too() -> None:
    run = a_run()
    is_running(run)
    tx = step(run)
    tx.successor = object()
    children.close_all(tx)
    assert len(tx.messages) == 1


def test_a_reset_run_leaves_its_children_and_its_parent_alone() -> None:
    run = a_run(parent_key=77)
    is_running(run)
    run.state.reset_run_id = "new-run"
    tx = step(run)
    children.close_all(tx)
    children.tell_parent(tx, COMPLETED, ChildWorkflowExecutionCompletedEventAttributes())
    assert not tx.messages


def test_the_parent_hears_of_the_last_run_only() -> None:
    run = a_run(parent_key=77, parent_initiated_event_id=12)
    tx = step(run)
    attributes = ChildWorkflowExecutionCompletedEventAttributes()
    attributes.result.payloads.add(data=b"42")
    tx.successor = object()
    children.tell_parent(tx, COMPLETED, attributes)
    assert not tx.messages
    tx.successor = None
    children.tell_parent(tx, COMPLETED, attributes)
    assert tx.messages == [
        ChildClosed(
            77, 12, "flow-1", run.info.run_id, COMPLETED, attributes.SerializeToString()
        )
    ]  # fmt: skip


def test_a_run_without_a_parent_tells_nobody() -> None:
    tx = step(a_run())
    children.tell_parent(tx, COMPLETED, ChildWorkflowExecutionCompletedEventAttributes())
    assert not tx.messages
