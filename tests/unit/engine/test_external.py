from __future__ import annotations

from typing import Any

import pytest
from sample_runs import a_run, events, give_task, info, step, types
from temporalio.api.command.v1 import (
    RequestCancelExternalWorkflowExecutionCommandAttributes,
    SignalExternalWorkflowExecutionCommandAttributes,
)
from temporalio.api.enums.v1 import (
    CancelExternalWorkflowExecutionFailedCause,
    SignalExternalWorkflowExecutionFailedCause,
    WorkflowExecutionStatus,
    WorkflowTaskFailedCause,
)
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest

from perdure.engine import external, outbox
from perdure.engine.bad_command import BadCommand
from perdure.engine.execution import Execution
from perdure.engine.outbox import CancelRun, SignalRun

Cause = WorkflowTaskFailedCause
BAD_SIGNAL = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_SIGNAL_WORKFLOW_EXECUTION_ATTRIBUTES
BAD_CANCEL = (
    Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_ATTRIBUTES
)
NO_SIGNAL_TARGET = SignalExternalWorkflowExecutionFailedCause.SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND  # noqa: E501
NO_CANCEL_TARGET = CancelExternalWorkflowExecutionFailedCause.CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND  # noqa: E501
RUN_ID = "11111111-2222-4333-8444-555555555555"


def signal(
    workflow_id: str = "target", run_id: str = "", **changes: Any
) -> SignalExternalWorkflowExecutionCommandAttributes:
    attributes = SignalExternalWorkflowExecutionCommandAttributes(
        **{"signal_name": "go", "control": "7", **changes}
    )
    attributes.execution.workflow_id = workflow_id
    attributes.execution.run_id = run_id
    return attributes


def cancel(
    workflow_id: str = "target", run_id: str = "", **changes: Any
) -> RequestCancelExternalWorkflowExecutionCommandAttributes:
    return RequestCancelExternalWorkflowExecutionCommandAttributes(
        workflow_id=workflow_id, run_id=run_id, **{"reason": "late", "control": "7", **changes}
    )


def sent_signal(run: Execution, **changes: Any) -> SignalRun:
    tx = step(run)
    external.initiate_signal(tx, signal(**changes), 4)
    (message,) = tx.messages
    return message


def sent_cancel(run: Execution, **changes: Any) -> CancelRun:
    tx = step(run)
    external.initiate_cancel(tx, cancel(**changes), 4)
    (message,) = tx.messages
    return message


# -- commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (SignalExternalWorkflowExecutionCommandAttributes(signal_name="s"), "Execution is not set"),
        (signal(""), "WorkflowId is not set"),
        (signal("x" * 1_001), "WorkflowId .* exceeds length limit"),
        (signal(namespace="n" * 1_001), "Namespace .* exceeds length limit"),
        (signal(run_id="run-1"), "Invalid RunId"),
        (signal(signal_name=""), "SignalName is not set"),
    ],
)
def test_bad_signal_is_refused(
    attributes: SignalExternalWorkflowExecutionCommandAttributes, words: str
) -> None:
    with pytest.raises(BadCommand, match=words) as caught:
        external.validate_signal(a_run(), attributes)
    assert caught.value.cause == BAD_SIGNAL


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (cancel(""), "WorkflowId is not set"),
        (cancel("x" * 1_001), "WorkflowId .* exceeds length limit"),
        (cancel(namespace="n" * 1_001), "Namespace .* exceeds length limit"),
        (cancel(run_id="run-1"), "Invalid RunId"),
        (cancel("kid"), "Start and RequestCancel for child workflow"),
    ],
)
def test_bad_cancel_is_refused(
    attributes: RequestCancelExternalWorkflowExecutionCommandAttributes, words: str
) -> None:
    with pytest.raises(BadCommand, match=words) as caught:
        external.validate_cancel(a_run(), attributes, initiated_children={"kid"})
    assert caught.value.cause == BAD_CANCEL


def test_good_commands_pass() -> None:
    external.validate_signal(a_run(), signal(run_id=RUN_ID))
    external.validate_cancel(a_run(), cancel(run_id=RUN_ID))


def test_pending_signals_and_cancels_are_limited() -> None:
    run = a_run()
    sent_signal(run)
    sent_cancel(run)
    external.validate_signal(run, signal(), pending_limit=2)
    external.validate_cancel(run, cancel(), pending_limit=2)
    with pytest.raises(BadCommand) as signals:
        external.validate_signal(run, signal(), already_initiated=1, pending_limit=2)
    with pytest.raises(BadCommand) as cancels:
        external.validate_cancel(run, cancel(), already_initiated=1, pending_limit=2)
    assert signals.value.cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_PENDING_SIGNALS_LIMIT_EXCEEDED
    assert (
        cancels.value.cause
        == Cause.WORKFLOW_TASK_FAILED_CAUSE_PENDING_REQUEST_CANCEL_LIMIT_EXCEEDED
    )


# -- signals ---------------------------------------------------------------------------------------


def test_initiated_signal() -> None:
    run = a_run()
    tx = step(run)
    attributes = signal(run_id=RUN_ID, child_workflow_only=True)
    attributes.input.payloads.add(data=b"1")
    attributes.header.fields["trace"].data = b"t"
    assert external.initiate_signal(tx, attributes, 4) == 5
    (event,) = events(tx)
    written = event.signal_external_workflow_execution_initiated_event_attributes
    assert written.workflow_task_completed_event_id == 4
    assert (written.namespace, written.namespace_id) == ("default", "ns-id")
    assert written.workflow_execution == attributes.execution
    assert written.signal_name == "go"
    assert written.input == attributes.input
    assert written.header == attributes.header
    assert written.child_workflow_only
    assert written.control == "7"
    (message,) = tx.messages
    assert outbox.decode(outbox.encode(message)) == message
    assert (message.workflow_id, message.run_id, message.child_only) == ("target", RUN_ID, True)
    request = SignalWorkflowExecutionRequest.FromString(message.request)
    assert request.namespace == "default"
    assert request.workflow_execution == attributes.execution
    assert request.signal_name == "go"
    assert request.input == attributes.input
    assert request.header == attributes.header
    assert request.request_id == message.request_id == run.signals[5].request_id != ""


def test_signaled() -> None:
    run = a_run()
    message = sent_signal(run)
    tx = step(run)
    assert external.signaled(tx, message)
    assert types(tx) == ["EXTERNAL_WORKFLOW_EXECUTION_SIGNALED", "WORKFLOW_TASK_SCHEDULED"]
    written = events(tx)[0].external_workflow_execution_signaled_event_attributes
    assert written.initiated_event_id == 5
    assert (written.namespace, written.namespace_id) == ("default", "ns-id")
    assert written.workflow_execution.workflow_id == "target"
    assert written.control == "7"
    assert not run.signals


def test_signal_failed() -> None:
    run = a_run()
    message = sent_signal(run, namespace="elsewhere")
    tx = step(run)
    assert external.signal_failed(tx, message, NO_SIGNAL_TARGET)
    assert types(tx) == ["SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED", "WORKFLOW_TASK_SCHEDULED"]
    written = events(tx)[0].signal_external_workflow_execution_failed_event_attributes
    assert written.cause == NO_SIGNAL_TARGET
    assert written.initiated_event_id == 5
    assert (written.namespace, written.namespace_id) == ("elsewhere", "")
    assert written.workflow_execution.workflow_id == "target"
    assert written.control == "7"
    assert not run.signals


# -- cancels ---------------------------------------------------------------------------------------


def test_initiated_cancel() -> None:
    run = a_run()
    tx = step(run)
    assert external.initiate_cancel(tx, cancel(run_id=RUN_ID, child_workflow_only=True), 4) == 5
    (event,) = events(tx)
    written = event.request_cancel_external_workflow_execution_initiated_event_attributes
    assert written.workflow_task_completed_event_id == 4
    assert (written.namespace, written.namespace_id) == ("default", "ns-id")
    assert written.workflow_execution.workflow_id == "target"
    assert written.workflow_execution.run_id == RUN_ID
    assert written.child_workflow_only
    assert written.reason == "late"
    assert written.control == "7"
    (message,) = tx.messages
    assert outbox.decode(outbox.encode(message)) == message
    request_id = run.cancels[5].request_id
    assert message == CancelRun(5, request_id, "default", "target", RUN_ID, True, "late", "7")


def test_cancelled() -> None:
    run = a_run()
    message = sent_cancel(run)
    tx = step(run)
    assert external.cancelled(tx, message)
    assert types(tx) == [
        "EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED", "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip
    written = events(tx)[0].external_workflow_execution_cancel_requested_event_attributes
    assert written.initiated_event_id == 5
    assert (written.namespace, written.namespace_id) == ("default", "ns-id")
    assert written.workflow_execution.workflow_id == "target"
    assert not run.cancels


def test_cancel_failed() -> None:
    run = a_run()
    message = sent_cancel(run)
    tx = step(run)
    assert external.cancel_failed(tx, message, NO_CANCEL_TARGET)
    assert types(tx) == [
        "REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED", "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip
    written = events(tx)[0].request_cancel_external_workflow_execution_failed_event_attributes
    assert written.cause == NO_CANCEL_TARGET
    assert written.initiated_event_id == 5
    assert written.workflow_execution.workflow_id == "target"
    assert not run.cancels


# -- redelivery, closed runs, the target -----------------------------------------------------------


@pytest.mark.parametrize("task_started", [False, True])
def test_an_answer_applied_twice_does_nothing_the_second_time(task_started: bool) -> None:
    run = a_run()
    a_signal, a_cancel = sent_signal(run), sent_cancel(run)
    give_task(run, started=task_started)
    assert external.signaled(step(run), a_signal)
    assert external.cancelled(step(run), a_cancel)
    tx = step(run)
    assert not external.signaled(tx, a_signal)
    assert not external.signal_failed(tx, a_signal, NO_SIGNAL_TARGET)
    assert not external.cancelled(tx, a_cancel)
    assert not external.cancel_failed(tx, a_cancel, NO_CANCEL_TARGET)
    assert not tx.has_events
    assert not tx.changed


def test_answers_are_buffered_while_a_workflow_task_runs() -> None:
    run = a_run()
    message = sent_signal(run)
    give_task(run, started=True)
    tx = step(run)
    external.signaled(tx, message)
    assert not tx.has_events
    assert [e.initiated_event_id for e in run.buffered.values()] == [5]


def test_a_closed_run_hears_nothing() -> None:
    run = a_run()
    a_signal, a_cancel = sent_signal(run), sent_cancel(run)
    run.state.status = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TERMINATED
    tx = step(run)
    assert not external.signaled(tx, a_signal)
    assert not external.signal_failed(tx, a_signal, NO_SIGNAL_TARGET)
    assert not external.cancelled(tx, a_cancel)
    assert not external.cancel_failed(tx, a_cancel, NO_CANCEL_TARGET)
    assert not tx.has_events


@pytest.mark.parametrize(
    ("target", "child_only", "expected"),
    [
        ({"workflow_id": "other"}, False, True),
        ({"workflow_id": "flow-1"}, False, False),  # nobody signals himself
        ({"workflow_id": "flow-1", "namespace": "elsewhere"}, False, True),
        ({"workflow_id": "other"}, True, False),
        (
            {"workflow_id": "kid", "parent_workflow_id": "flow-1", "parent_run_id": RUN_ID},
            True,
            True,
        ),
        ({"workflow_id": "kid", "parent_workflow_id": "flow-1", "parent_run_id": "x"}, True, False),
    ],
)
def test_whom_a_message_may_reach(target: dict[str, str], child_only: bool, expected: bool) -> None:
    run = a_run()
    sender = info(run_id=RUN_ID)
    for message in (
        sent_signal(run, child_workflow_only=child_only),
        sent_cancel(run, child_workflow_only=child_only),
    ):
        assert external.may_reach(sender, info(**target), message) is expected
