"""Child workflows: initiated by a command, started through the outbox, heard of when they close.

The parent's transition chooses the child's run id and request id and leaves a ``StartChild``
message. Whoever delivers it answers with ``started`` or ``start_failed``; the child's last run
answers with ``ChildClosed``, which ``closed`` applies. A message that arrives a second time finds
no child that waits for it and does nothing: delivered at least once, applied exactly once.

The delivery of ``StartChild`` goes: ``wanted`` (else drop the message), start the run under the
message's run id, ``started``. When the parent closed meanwhile, ``after_close`` says what to send.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from google.protobuf.duration_pb2 import Duration
from temporalio.api.command.v1 import StartChildWorkflowExecutionCommandAttributes
from temporalio.api.enums.v1 import (
    EventType,
    ParentClosePolicy,
    TaskQueueKind,
    WorkflowIdReusePolicy,
    WorkflowTaskFailedCause,
)
from temporalio.api.history.v1 import (
    ChildWorkflowExecutionCanceledEventAttributes,
    ChildWorkflowExecutionCompletedEventAttributes,
    ChildWorkflowExecutionFailedEventAttributes,
    ChildWorkflowExecutionStartedEventAttributes,
    ChildWorkflowExecutionTerminatedEventAttributes,
    ChildWorkflowExecutionTimedOutEventAttributes,
    HistoryEvent,
    StartChildWorkflowExecutionFailedEventAttributes,
    StartChildWorkflowExecutionInitiatedEventAttributes,
)
from temporalio.api.workflowservice.v1 import StartWorkflowExecutionRequest

from perdure.api import wire
from perdure.api.errors import InvalidArgument
from perdure.api.times import duration_ns
from perdure.engine import cron, priorities, retry, workflow_tasks
from perdure.engine.bad_command import BadCommand
from perdure.engine.execution import Execution
from perdure.engine.outbox import CancelRun, ChildClosed, StartChild, TerminateRun
from perdure.engine.state import BufferedEvent, Child, RunInfo
from perdure.engine.transition import Transition

ClosedAttributes: TypeAlias = (
    ChildWorkflowExecutionCompletedEventAttributes
    | ChildWorkflowExecutionFailedEventAttributes
    | ChildWorkflowExecutionCanceledEventAttributes
    | ChildWorkflowExecutionTimedOutEventAttributes
    | ChildWorkflowExecutionTerminatedEventAttributes
)

_CLOSED: Final[dict[int, type[ClosedAttributes]]] = {
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED: (
        ChildWorkflowExecutionCompletedEventAttributes
    ),
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED: (
        ChildWorkflowExecutionFailedEventAttributes
    ),
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED: (
        ChildWorkflowExecutionCanceledEventAttributes
    ),
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT: (
        ChildWorkflowExecutionTimedOutEventAttributes
    ),
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED: (
        ChildWorkflowExecutionTerminatedEventAttributes
    ),
}
_STARTED_EVENT_ID = {
    number: wire.tag(kind.DESCRIPTOR.fields_by_name["started_event_id"].number, wire.VARINT)
    for number, kind in _CLOSED.items()
}
_STARTED: Final = EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED
_BAD: Final = (
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_BAD_START_CHILD_EXECUTION_ATTRIBUTES
)
_TOO_MANY: Final = (
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_PENDING_CHILD_WORKFLOWS_LIMIT_EXCEEDED
)
_POLICY_REASON: Final = "by parent close policy"
_DEFAULT_TASK_TIMEOUT_S: Final = 10
_COPIED = (
    "workflow_execution_timeout", "retry_policy", "header", "memo", "search_attributes", "input",
    "priority", "versioning_override",
)  # fmt: skip


# -- the command -----------------------------------------------------------------------------------


def validate(
    run: Execution,
    attributes: StartChildWorkflowExecutionCommandAttributes,
    *,
    already_initiated: int = 0,
    pending_limit: int = 2_000,
    id_limit_bytes: int = 1_000,
) -> None:
    """Raise BadCommand unless the command is well formed and the run may have one more child.

    `already_initiated`: children that the same workflow task initiates before this one.
    """
    names = {
        "WorkflowId": attributes.workflow_id,
        "WorkflowType": attributes.workflow_type.name,
    }
    where = f"WorkflowId={names['WorkflowId']} WorkflowType={names['WorkflowType']}"
    for field, value in names.items():
        if not value:
            raise BadCommand(
                _BAD, f"Required field {field} is not set on StartChildWorkflowExecutionCommand."
                f" {where}"
            )  # fmt: skip
    names |= {"Namespace": attributes.namespace, "TaskQueue": attributes.task_queue.name}
    for field, value in names.items():
        if len(value.encode()) > id_limit_bytes:
            raise BadCommand(
                _BAD, f"{field} on StartChildWorkflowExecutionCommand exceeds length limit."
                f" Length={len(value.encode())} Limit={id_limit_bytes} {where[:99]}"
            )  # fmt: skip
        if "\0" in value:
            raise BadCommand(
                _BAD, f"{field} on StartChildWorkflowExecutionCommand contains a NUL character."
                f" {where[:99]!r}"
            )  # fmt: skip
    _check_times(attributes, where)
    fault = priorities.fault(attributes.priority)
    if fault:
        raise BadCommand(_BAD, f"invalid priorities: {fault}")
    if len(run.children) + already_initiated >= pending_limit:
        raise BadCommand(
            _TOO_MANY,
            f"the number of pending child workflow executions, {len(run.children)}, has reached "
            f"the per-workflow limit of {pending_limit}",
        )


def _check_times(attributes: StartChildWorkflowExecutionCommandAttributes, where: str) -> None:
    for field in ("workflow_execution_timeout", "workflow_run_timeout", "workflow_task_timeout"):
        if _length_ns(getattr(attributes, field)) < 0:
            raise BadCommand(
                _BAD, f"Invalid {field} on StartChildWorkflowExecutionCommand: negative. {where}"
            )
    wrong = retry.mistake(attributes.retry_policy) if attributes.HasField("retry_policy") else ""
    if wrong:
        raise BadCommand(
            _BAD,
            f"invalid WorkflowRetryPolicy on StartChildWorkflowExecutionCommand: {wrong} {where}",
        )
    try:
        cron.validate(attributes.cron_schedule)
    except InvalidArgument as error:
        raise BadCommand(_BAD, f"{error.message} {where}") from None


def initiate(
    tx: Transition,
    attributes: StartChildWorkflowExecutionCommandAttributes,
    workflow_task_completed_event_id: int,
    user_metadata: bytes = b"",
) -> int:
    """Apply a validated command: the initiated event, the pending child, its start's message.

    `user_metadata`: the command's, serialised. Returns the initiated event's id.
    """
    info = tx.run.info
    event = _initiated(info, attributes, workflow_task_completed_event_id)
    extra = wire.block(_USER_METADATA, user_metadata) if user_metadata else b""
    event_id = tx.append(
        EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED, event, extra
    )
    child = Child(
        tx.item_id(),
        event_id,
        event.namespace,
        event.workflow_id,
        event.workflow_type.name,
        event.parent_close_policy,
        request_id=tx.new_id(),
        run_id=tx.new_id(),
    )
    tx.put(child)
    tx.messages.append(start_message(child, event, user_metadata))
    return event_id


_USER_METADATA = wire.tag(
    HistoryEvent.DESCRIPTOR.fields_by_name["user_metadata"].number, wire.LENGTH_DELIMITED
)


def start_message(
    child: Child,
    initiated: StartChildWorkflowExecutionInitiatedEventAttributes,
    user_metadata: bytes = b"",
) -> StartChild:
    """The message that starts a pending child."""
    request = StartWorkflowExecutionRequest(
        namespace=initiated.namespace,
        workflow_id=initiated.workflow_id,
        request_id=child.request_id,
        workflow_id_reuse_policy=initiated.workflow_id_reuse_policy,
        cron_schedule=initiated.cron_schedule,
    )
    for field in (*_COPIED, "workflow_type", "task_queue"):
        if initiated.HasField(field):  # type: ignore[arg-type]
            getattr(request, field).CopyFrom(getattr(initiated, field))
    for field in ("workflow_run_timeout", "workflow_task_timeout"):
        getattr(request, field).CopyFrom(getattr(initiated, field))
    if user_metadata:
        request.user_metadata.MergeFromString(user_metadata)
    return StartChild(
        child.initiated_event_id,
        child.request_id,
        child.run_id,
        request.SerializeToString(),
        child.parent_close_policy,
    )


def _initiated(
    info: RunInfo,
    attributes: StartChildWorkflowExecutionCommandAttributes,
    workflow_task_completed_event_id: int,
) -> StartChildWorkflowExecutionInitiatedEventAttributes:
    """The event's attributes, with Temporal's defaults filled in."""
    namespace = attributes.namespace or info.namespace
    event = StartChildWorkflowExecutionInitiatedEventAttributes(
        namespace=namespace,
        namespace_id=namespace_id(info, namespace),
        workflow_id=attributes.workflow_id,
        workflow_type=attributes.workflow_type,
        parent_close_policy=attributes.parent_close_policy
        or ParentClosePolicy.PARENT_CLOSE_POLICY_TERMINATE,
        control=attributes.control,
        workflow_task_completed_event_id=workflow_task_completed_event_id,
        workflow_id_reuse_policy=attributes.workflow_id_reuse_policy
        or WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
        cron_schedule=attributes.cron_schedule,
        inherit_build_id=attributes.inherit_build_id,
    )
    event.task_queue.name = attributes.task_queue.name or info.task_queue
    event.task_queue.kind = TaskQueueKind.TASK_QUEUE_KIND_NORMAL
    for field in _COPIED:
        if attributes.HasField(field):  # type: ignore[arg-type]
            getattr(event, field).CopyFrom(getattr(attributes, field))
    _default_timeouts(event, attributes)
    return event


def _default_timeouts(
    event: StartChildWorkflowExecutionInitiatedEventAttributes,
    attributes: StartChildWorkflowExecutionCommandAttributes,
) -> None:
    """A run is no longer than its execution, a task (10 s by default) no longer than its run."""
    event.workflow_run_timeout.CopyFrom(
        _shorter(attributes.workflow_run_timeout, attributes.workflow_execution_timeout)
    )
    task = attributes.workflow_task_timeout
    if not _length_ns(task):
        task = Duration(seconds=_DEFAULT_TASK_TIMEOUT_S)
    event.workflow_task_timeout.CopyFrom(_shorter(task, event.workflow_run_timeout))


def _shorter(length: Duration, bound: Duration) -> Duration:
    """The shorter of two lengths of which 0 means "no bound"."""
    if not _length_ns(length):
        return bound
    return bound if 0 < _length_ns(bound) < _length_ns(length) else length


def _length_ns(length: Duration) -> int:
    return duration_ns(length)


def namespace_id(info: RunInfo, namespace: str) -> str:
    """The id of a namespace as far as the run knows it: its own."""
    return info.namespace_id if namespace == info.namespace else ""


# -- what the child answers ------------------------------------------------------------------------


def wanted(run: Execution, initiated_event_id: int) -> bool:
    """Whether a StartChild message still asks for something.

    Not when the parent knows the answer already, and not when the parent closed before the child
    started: Temporal then starts no child, whatever its close policy.
    """
    child = run.children.get(initiated_event_id)
    return run.is_open and child is not None and not child.key


def started(
    tx: Transition, initiated_event_id: int, run_id: str, key: int, header: bytes = b""
) -> bool:
    """The child runs as `run_id` under the store's `key`. False: known already, or nobody waits.

    `header`: the start request's, serialised; the event repeats it.
    """
    child = tx.run.children.get(initiated_event_id)
    if child is None or child.key or not tx.run.is_open:
        return False
    child.run_id = run_id
    child.key = key
    event = ChildWorkflowExecutionStartedEventAttributes(
        namespace=child.namespace,
        namespace_id=namespace_id(tx.run.info, child.namespace),
        initiated_event_id=initiated_event_id,
    )
    event.workflow_execution.workflow_id = child.workflow_id
    event.workflow_execution.run_id = run_id
    event.workflow_type.name = child.workflow_type
    if header:
        event.header.MergeFromString(header)
    child.started_event_id = tx.record(_STARTED, event, answers=initiated_event_id)
    tx.put(child)
    workflow_tasks.ensure_scheduled(tx)
    return True


def start_failed(tx: Transition, initiated_event_id: int, cause: int) -> bool:
    """The child cannot start. False: as `started`.

    `cause`: number of StartChildWorkflowExecutionFailedCause.
    """
    child = tx.run.children.get(initiated_event_id)
    if child is None or child.key or not tx.run.is_open:
        return False
    event = StartChildWorkflowExecutionFailedEventAttributes(
        namespace=child.namespace,
        namespace_id=namespace_id(tx.run.info, child.namespace),
        workflow_id=child.workflow_id,
        initiated_event_id=initiated_event_id,
    )
    event.workflow_type.name = child.workflow_type
    event.cause = cause  # type: ignore[assignment]
    tx.record(
        EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED,
        event,
        answers=initiated_event_id,
    )
    tx.drop(child)
    workflow_tasks.ensure_scheduled(tx)
    return True


def closed(tx: Transition, message: ChildClosed) -> bool:
    """The child's last run closed. False: known already, not this run's child, or the run closed.

    A child may close before its start is reported: the start is recorded first then. When the
    parent was reset, the message belongs to the run that ``state.reset_run_id`` names.
    """
    child = tx.run.children.get(message.initiated_event_id)
    if child is None or child.workflow_id != message.child_workflow_id or not tx.run.is_open:
        return False
    if not child.key:
        started(tx, child.initiated_event_id, child.run_id or message.child_run_id, key=-1)
    event = _CLOSED[message.event_type].FromString(message.attributes)
    event.namespace = child.namespace
    event.namespace_id = namespace_id(tx.run.info, child.namespace)
    event.workflow_execution.workflow_id = child.workflow_id
    event.workflow_execution.run_id = message.child_run_id
    event.workflow_type.name = child.workflow_type
    event.initiated_event_id = child.initiated_event_id
    event.started_event_id = child.started_event_id
    tx.record(message.event_type, event, answers=child.initiated_event_id)
    tx.drop(child)
    workflow_tasks.ensure_scheduled(tx)
    return True


def flush(tx: Transition, event: BufferedEvent, started_ids: dict[int, int]) -> bool:
    """Move a buffered event of a child into history; False, and nothing done, for other events.

    `started_ids`: one dict for all events of a flush, in which a start that was buffered together
    with its close leaves the id that the close refers to.
    """
    if event.event_type == _STARTED:
        event_id = tx.append_buffered(event, event.attributes)
        started_ids[event.initiated_event_id] = event_id
        child = tx.run.children.get(event.initiated_event_id)
        if child is not None:
            child.started_event_id = event_id
            tx.put(child)
        return True
    if event.event_type in _CLOSED:
        attributes = event.attributes
        started_id = started_ids.get(event.initiated_event_id)
        if started_id is not None:
            attributes += wire.number(_STARTED_EVENT_ID[event.event_type], started_id)
        tx.append_buffered(event, attributes)
        return True
    return False


# -- when a run closes -----------------------------------------------------------------------------


def tell_parent(tx: Transition, event_type: int, attributes: ClosedAttributes) -> None:
    """Send the parent, if any, how this run closed: its result, failure or details, without ids.

    Not when another run follows (continue-as-new, retry, cron, reset): the parent hears only of
    the last.
    """
    info = tx.run.info
    if not info.parent_key or tx.successor is not None or tx.run.state.reset_run_id:
        return
    assert event_type in _CLOSED
    tx.messages.append(
        ChildClosed(
            info.parent_key,
            info.parent_initiated_event_id,
            info.workflow_id,
            info.run_id,
            event_type,
            attributes.SerializeToString(),
        )
    )


def close_all(tx: Transition) -> None:
    """Apply the close policies of all children of a run that closes, whatever follows it.

    A run that was reset keeps quiet: its children go on with the run that the reset made.
    """
    if tx.run.state.reset_run_id:
        return
    for child in tx.run.children.values():
        message = after_close(child)
        if child.key and message is not None:
            tx.messages.append(message)


def after_close(child: Child) -> TerminateRun | CancelRun | None:
    """What the close of its parent means for a child.

    The run id is that of the child's *first* run: whichever run of that chain is open is meant.
    """
    match child.parent_close_policy:
        case ParentClosePolicy.PARENT_CLOSE_POLICY_ABANDON:
            return None
        case ParentClosePolicy.PARENT_CLOSE_POLICY_REQUEST_CANCEL:
            return CancelRun(
                0, child.request_id, child.namespace, child.workflow_id, child.run_id, True,
                "",
            )  # fmt: skip
        case _:
            return TerminateRun(child.namespace, child.workflow_id, child.run_id, _POLICY_REASON)
