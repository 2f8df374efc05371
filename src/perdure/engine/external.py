"""Signals and cancel requests that a workflow sends to other workflows, children included.

A command writes an initiated event and a message; whoever delivers the message answers with the
event that says how it went. The target applies the message's request id once, and an answer that
comes a second time finds nothing pending and does nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Container
from typing import Final

from temporalio.api.command.v1 import (
    RequestCancelExternalWorkflowExecutionCommandAttributes,
    SignalExternalWorkflowExecutionCommandAttributes,
)
from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.api.history.v1 import (
    ExternalWorkflowExecutionCancelRequestedEventAttributes,
    ExternalWorkflowExecutionSignaledEventAttributes,
    RequestCancelExternalWorkflowExecutionFailedEventAttributes,
    RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    SignalExternalWorkflowExecutionFailedEventAttributes,
    SignalExternalWorkflowExecutionInitiatedEventAttributes,
)
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest

from perdure.engine import workflow_tasks
from perdure.engine.bad_command import BadCommand
from perdure.engine.children import namespace_id
from perdure.engine.execution import Execution
from perdure.engine.outbox import CancelRun, SignalRun
from perdure.engine.state import ExternalCancel, ExternalSignal, RunInfo
from perdure.engine.transition import Transition

_Cause = WorkflowTaskFailedCause
_BAD_SIGNAL: Final = _Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_SIGNAL_WORKFLOW_EXECUTION_ATTRIBUTES
_BAD_CANCEL: Final = (
    _Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_ATTRIBUTES
)


# -- signals ---------------------------------------------------------------------------------------


def validate_signal(
    run: Execution,
    attributes: SignalExternalWorkflowExecutionCommandAttributes,
    *,
    already_initiated: int = 0,
    pending_limit: int = 2_000,
    id_limit_bytes: int = 1_000,
) -> None:
    """Raise BadCommand unless the command is well formed and one more signal may be under way.

    `already_initiated`: signals that the same workflow task sends before this one.
    """
    command = "SignalExternalWorkflowExecutionCommand"
    if not attributes.HasField("execution"):
        raise BadCommand(_BAD_SIGNAL, f"Execution is not set on {command}.")
    _check_target(
        _BAD_SIGNAL, command, attributes.namespace, attributes.execution.workflow_id,
        attributes.execution.run_id, id_limit_bytes,
    )  # fmt: skip
    if not attributes.signal_name:
        raise BadCommand(
            _BAD_SIGNAL,
            f"SignalName is not set on {command}. WorkflowId={attributes.execution.workflow_id}",
        )
    if len(run.signals) + already_initiated >= pending_limit:
        raise BadCommand(
            _Cause.WORKFLOW_TASK_FAILED_CAUSE_PENDING_SIGNALS_LIMIT_EXCEEDED,
            f"the number of pending signals to external workflows, {len(run.signals)}, has reached "
            f"the per-workflow limit of {pending_limit}",
        )


def initiate_signal(
    tx: Transition,
    attributes: SignalExternalWorkflowExecutionCommandAttributes,
    workflow_task_completed_event_id: int,
) -> int:
    """Apply a validated command: the initiated event, the pending signal, the message.

    Returns the initiated event's id.
    """
    info = tx.run.info
    namespace = attributes.namespace or info.namespace
    event = SignalExternalWorkflowExecutionInitiatedEventAttributes(
        workflow_task_completed_event_id=workflow_task_completed_event_id,
        namespace=namespace,
        namespace_id=namespace_id(info, namespace),
        workflow_execution=attributes.execution,
        signal_name=attributes.signal_name,
        control=attributes.control,
        child_workflow_only=attributes.child_workflow_only,
    )
    if attributes.HasField("input"):
        event.input.CopyFrom(attributes.input)
    if attributes.HasField("header"):
        event.header.CopyFrom(attributes.header)
    event_id = tx.append(EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED, event)
    pending = ExternalSignal(tx.item_id(), event_id, tx.new_id())
    tx.put(pending)
    tx.messages.append(signal_message(pending, event))
    return event_id


def signal_message(
    pending: ExternalSignal, initiated: SignalExternalWorkflowExecutionInitiatedEventAttributes
) -> SignalRun:
    """The message that carries a pending signal."""
    request = SignalWorkflowExecutionRequest(
        namespace=initiated.namespace,
        workflow_execution=initiated.workflow_execution,
        signal_name=initiated.signal_name,
        request_id=pending.request_id,
        control=initiated.control,
    )
    if initiated.HasField("input"):
        request.input.CopyFrom(initiated.input)
    if initiated.HasField("header"):
        request.header.CopyFrom(initiated.header)
    return SignalRun(
        pending.initiated_event_id,
        pending.request_id,
        initiated.namespace,
        initiated.workflow_execution.workflow_id,
        initiated.workflow_execution.run_id,
        initiated.child_workflow_only,
        request.SerializeToString(),
        initiated.control,
    )


def signaled(tx: Transition, message: SignalRun) -> bool:
    """The target has the signal. False: known already, or the run closed."""
    event = ExternalWorkflowExecutionSignaledEventAttributes(control=message.control)
    return _answer(tx, message, EventType.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED, event)


def signal_failed(tx: Transition, message: SignalRun, cause: int) -> bool:
    """The signal cannot be delivered. `cause`: SignalExternalWorkflowExecutionFailedCause."""
    event = SignalExternalWorkflowExecutionFailedEventAttributes(control=message.control)
    event.cause = cause  # type: ignore[assignment]
    kind = EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED
    return _answer(tx, message, kind, event)


# -- cancel requests -------------------------------------------------------------------------------


def validate_cancel(
    run: Execution,
    attributes: RequestCancelExternalWorkflowExecutionCommandAttributes,
    *,
    already_initiated: int = 0,
    initiated_children: Container[str] = (),
    pending_limit: int = 2_000,
    id_limit_bytes: int = 1_000,
) -> None:
    """Raise BadCommand unless the command is well formed and one more request may be under way.

    `initiated_children`: workflow ids of the children that the same workflow task starts; a child
    cannot be started and cancelled in one breath.
    """
    command = "RequestCancelExternalWorkflowExecutionCommand"
    _check_target(
        _BAD_CANCEL, command, attributes.namespace, attributes.workflow_id, attributes.run_id,
        id_limit_bytes,
    )  # fmt: skip
    if attributes.workflow_id in initiated_children:
        raise BadCommand(
            _BAD_CANCEL,
            "Start and RequestCancel for child workflow is not allowed in same workflow task. "
            f"WorkflowId={attributes.workflow_id}",
        )
    if len(run.cancels) + already_initiated >= pending_limit:
        raise BadCommand(
            _Cause.WORKFLOW_TASK_FAILED_CAUSE_PENDING_REQUEST_CANCEL_LIMIT_EXCEEDED,
            "the number of pending requests to cancel external workflows, "
            f"{len(run.cancels)}, has reached the per-workflow limit of {pending_limit}",
        )


def initiate_cancel(
    tx: Transition,
    attributes: RequestCancelExternalWorkflowExecutionCommandAttributes,
    workflow_task_completed_event_id: int,
) -> int:
    """Apply a validated command: the initiated event, the pending request, the message.

    Returns the initiated event's id.
    """
    info = tx.run.info
    namespace = attributes.namespace or info.namespace
    event = RequestCancelExternalWorkflowExecutionInitiatedEventAttributes(
        workflow_task_completed_event_id=workflow_task_completed_event_id,
        namespace=namespace,
        namespace_id=namespace_id(info, namespace),
        control=attributes.control,
        child_workflow_only=attributes.child_workflow_only,
        reason=attributes.reason,
    )
    event.workflow_execution.workflow_id = attributes.workflow_id
    event.workflow_execution.run_id = attributes.run_id
    event_id = tx.append(
        EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED, event
    )
    pending = ExternalCancel(tx.item_id(), event_id, tx.new_id())
    tx.put(pending)
    tx.messages.append(cancel_message(pending, event))
    return event_id


def cancel_message(
    pending: ExternalCancel,
    initiated: RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
) -> CancelRun:
    """The message that carries a pending cancel request."""
    return CancelRun(
        pending.initiated_event_id,
        pending.request_id,
        initiated.namespace,
        initiated.workflow_execution.workflow_id,
        initiated.workflow_execution.run_id,
        initiated.child_workflow_only,
        initiated.reason,
        initiated.control,
    )


def cancelled(tx: Transition, message: CancelRun) -> bool:
    """The target was asked to cancel. False: known already, or the run closed."""
    kind = EventType.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED
    return _answer(tx, message, kind, ExternalWorkflowExecutionCancelRequestedEventAttributes())


def cancel_failed(tx: Transition, message: CancelRun, cause: int) -> bool:
    """The request cannot be delivered. `cause`: CancelExternalWorkflowExecutionFailedCause."""
    event = RequestCancelExternalWorkflowExecutionFailedEventAttributes()
    event.cause = cause  # type: ignore[assignment]
    kind = EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED
    return _answer(tx, message, kind, event)


# -- how it went -----------------------------------------------------------------------------------


_Answer = (
    ExternalWorkflowExecutionSignaledEventAttributes
    | SignalExternalWorkflowExecutionFailedEventAttributes
    | ExternalWorkflowExecutionCancelRequestedEventAttributes
    | RequestCancelExternalWorkflowExecutionFailedEventAttributes
)


def _answer(
    tx: Transition, message: SignalRun | CancelRun, kind: EventType.ValueType, event: _Answer
) -> bool:
    """Record how a message ended. False: known already, or the run closed."""
    run = tx.run
    waiting = run.signals if isinstance(message, SignalRun) else run.cancels
    pending = waiting.get(message.initiated_event_id)
    if pending is None or not run.is_open:
        return False
    event.initiated_event_id = message.initiated_event_id
    event.namespace = message.namespace
    event.namespace_id = namespace_id(run.info, message.namespace)
    event.workflow_execution.workflow_id = message.workflow_id
    event.workflow_execution.run_id = message.run_id
    tx.record(kind, event, answers=message.initiated_event_id)
    tx.drop(pending)
    workflow_tasks.ensure_scheduled(tx)
    return True


# -- the target ------------------------------------------------------------------------------------


def may_reach(sender: RunInfo, target: RunInfo, message: SignalRun | CancelRun) -> bool:
    """Whether a message may be applied to a target that was found; if not, it counts as not found.

    Nobody signals or cancels a run of his own workflow id, and a message for children only reaches
    none but the sender's own children.
    """
    itself = (target.namespace, target.workflow_id) == (sender.namespace, sender.workflow_id)
    if itself:
        return False
    return not message.child_only or (
        (target.parent_workflow_id, target.parent_run_id) == (sender.workflow_id, sender.run_id)
    )


def _check_target(
    cause: int, command: str, namespace: str, workflow_id: str, run_id: str, id_limit_bytes: int
) -> None:
    where = f"WorkflowId={workflow_id[:200]} RunId={run_id[:200]} Namespace={namespace[:200]}"
    if not workflow_id:
        raise BadCommand(cause, f"WorkflowId is not set on {command}. {where}")
    for field, value in (("Namespace", namespace), ("WorkflowId", workflow_id)):
        if len(value.encode()) > id_limit_bytes:
            raise BadCommand(
                cause, f"{field} on {command} exceeds length limit. Limit={id_limit_bytes} {where}"
            )
        if "\0" in value:
            raise BadCommand(cause, f"{field} on {command} contains a NUL character. {where!r}")
    if run_id and not _is_uuid(run_id):
        raise BadCommand(cause, f"Invalid RunId set on {command}. {where}")


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
