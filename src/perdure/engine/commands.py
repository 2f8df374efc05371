"""What a worker answers to a workflow task: commands, each checked first, then applied.

All commands of an answer are checked before any is applied, so a bad one changes nothing: the
workflow task fails with the cause that names it, and the run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import (
    MarkerRecordedEventAttributes,
    UpsertWorkflowSearchAttributesEventAttributes,
    WorkflowPropertiesModifiedEventAttributes,
    WorkflowTaskCompletedEventAttributes,
)
from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest

from perdure.api import wire
from perdure.api.errors import InvalidArgument, NotFound
from perdure.api.times import duration_ns
from perdure.engine import (
    activities,
    buffer,
    children,
    closing,
    events,
    external,
    timers,
    updates,
    workflow_tasks,
)
from perdure.engine.bad_command import BadCommand
from perdure.engine.checks import Plan, check
from perdure.engine.state import WorkflowTask
from perdure.engine.transition import Transition

_Type = CommandType
_CLOSING = frozenset(
    int(kind)
    for kind in (
        _Type.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION,
        _Type.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION,
        _Type.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION,
        _Type.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION,
    )
)


class CompletedTask(msgspec.Struct):
    """What became of an answer.

    Attributes:
        failed: it was refused: the workflow task has failed with `cause` and `message`.
        eager_activities: scheduled event ids of activities that the worker asks to get at once.
    """

    failed: bool = False
    cause: int = 0
    message: str = ""
    eager_activities: list[int] = []


def complete(
    tx: Transition,
    request: RespondWorkflowTaskCompletedRequest,
    *,
    admitted: Mapping[str, bytes] | None = None,
) -> CompletedTask:
    """Apply a worker's answer to the started workflow task.

    `admitted`: the updates that the service has sent along, update id → serialised Request.
    Raises NotFound when no task is started.
    """
    task = tx.run.state.workflow_task
    if task is None or not task.started_ns:
        raise NotFound("Workflow task not found.")
    try:
        inbox = _checked(tx, request, admitted)
    except BadCommand as bad:
        return _refuse(tx, request, bad)
    if not request.commands and task.speculative and _leaves_no_trace(tx, request):
        return _drop_speculative(tx, request, inbox)
    completed_event_id = _write_completed(tx, request, task)
    result = CompletedTask()
    tx.answering = True
    for command in request.commands:
        if not tx.run.is_open:
            break  # the run has closed: what comes after has no meaning
        _apply(tx, command, request.identity, completed_event_id, inbox, result)
    inbox.apply_rest(tx)
    tx.answering = False
    if tx.run.is_open:
        _go_on(tx, request)
    return result


def _checked(
    tx: Transition,
    request: RespondWorkflowTaskCompletedRequest,
    admitted: Mapping[str, bytes] | None,
) -> updates.Inbox:
    """Check all commands and messages. Raises BadCommand; changes nothing."""
    plan = Plan(tx.run, tx.limits)
    message_ids = []
    for command in request.commands:
        check(plan, command)
        if command.command_type == _Type.COMMAND_TYPE_PROTOCOL_MESSAGE:
            message_ids.append(command.protocol_message_command_attributes.message_id)
        if command.command_type in _CLOSING:
            if tx.run.buffered:
                raise BadCommand(
                    Cause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND, "UnhandledCommand"
                )
            break
    return updates.Inbox.read(
        tx.run,
        request.messages,
        message_ids,
        admitted,
        total_limit=tx.limits.updates_max,
    )


def _refuse(
    tx: Transition, request: RespondWorkflowTaskCompletedRequest, bad: BadCommand
) -> CompletedTask:
    failure = Failure(message=bad.message, source="Server")
    failure.server_failure_info.non_retryable = True
    workflow_tasks.fail(tx, bad.cause, failure, request.identity)
    return CompletedTask(True, bad.cause, bad.message)


def _leaves_no_trace(tx: Transition, request: RespondWorkflowTaskCompletedRequest) -> bool:
    """Whether a task made for updates ends with nothing but rejections."""
    only_rejections = all(
        message.body.type_url.endswith("temporal.api.update.v1.Rejection")
        for message in request.messages
    )
    return only_rejections and not tx.run.buffered and not request.force_create_new_workflow_task


def _drop_speculative(
    tx: Transition, request: RespondWorkflowTaskCompletedRequest, inbox: updates.Inbox
) -> CompletedTask:
    state = tx.run.state
    state.workflow_task = None
    _set_sticky(tx, request)
    inbox.apply_rest(tx)
    return CompletedTask()


def _write_completed(
    tx: Transition, request: RespondWorkflowTaskCompletedRequest, task: WorkflowTask
) -> int:
    state = tx.run.state
    workflow_tasks.write(tx, task)
    body = events.workflow_task_completed(
        task.scheduled_event_id, task.started_event_id, request.identity, _rest(request)
    )
    event_id = tx.append(EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED, body)
    state.workflow_task = None
    state.failed_task_attempts = 0
    state.last_task_started_event_id = task.started_event_id
    state.last_task_completed_event_id = event_id
    _set_sticky(tx, request)
    return event_id


def _rest(request: RespondWorkflowTaskCompletedRequest) -> bytes:
    """The event's fields that are copied from the answer."""
    body = b""
    if request.HasField("sdk_metadata"):
        body += wire.block(_SDK_METADATA, request.sdk_metadata.SerializeToString())
    if request.HasField("metering_metadata"):
        body += wire.block(_METERING, request.metering_metadata.SerializeToString())
    if request.HasField("worker_version_stamp"):
        body += wire.block(_VERSION, request.worker_version_stamp.SerializeToString())
    return body + wire.text(_CHECKSUM, request.binary_checksum)


_SDK_METADATA = events.field(WorkflowTaskCompletedEventAttributes, "sdk_metadata")
_METERING = events.field(WorkflowTaskCompletedEventAttributes, "metering_metadata")
_VERSION = events.field(WorkflowTaskCompletedEventAttributes, "worker_version")
_CHECKSUM = events.field(WorkflowTaskCompletedEventAttributes, "binary_checksum")


def _set_sticky(tx: Transition, request: RespondWorkflowTaskCompletedRequest) -> None:
    state = tx.run.state
    sticky = request.sticky_attributes
    if request.HasField("sticky_attributes") and sticky.worker_task_queue.name:
        state.sticky_queue = sticky.worker_task_queue.name
        state.sticky_timeout_ns = duration_ns(sticky.schedule_to_start_timeout)
    else:
        state.sticky_queue = ""
        state.sticky_timeout_ns = 0


def _go_on(tx: Transition, request: RespondWorkflowTaskCompletedRequest) -> None:
    """Let events that arrived meanwhile in, and ask for the next task if one is due."""
    wanted = tx.wants_task or request.force_create_new_workflow_task
    tx.wants_task = False
    if buffer.flush(tx) or wanted:
        workflow_tasks.ensure_scheduled(tx)
    closing.enforce_history_limit(tx)


# -- applying --------------------------------------------------------------------------------------


def _apply(
    tx: Transition,
    command: Command,
    identity: str,
    completed: int,
    inbox: updates.Inbox,
    result: CompletedTask,
) -> None:
    """Apply one checked command; `completed` is the id of the task's completed event."""
    metadata = b""
    if command.HasField("user_metadata"):
        metadata = command.user_metadata.SerializeToString()
    extra = wire.block(events.USER_METADATA, metadata) if metadata else b""
    match command.command_type:
        case _Type.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK:
            wanted = command.schedule_activity_task_command_attributes
            activity = activities.schedule(tx, wanted, completed, extra)
            if wanted.request_eager_execution:
                result.eager_activities.append(activity.scheduled_event_id)
        case _Type.COMMAND_TYPE_START_TIMER:
            timers.start(tx, command.start_timer_command_attributes, completed, extra)
        case _Type.COMMAND_TYPE_CANCEL_TIMER:
            timer_id = command.cancel_timer_command_attributes.timer_id
            timers.cancel(tx, timer_id, completed, identity)
        case _Type.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK:
            asked = command.request_cancel_activity_task_command_attributes
            activities.request_cancel(tx, asked.scheduled_event_id, completed, identity)
        case _Type.COMMAND_TYPE_PROTOCOL_MESSAGE:
            inbox.apply(tx, command.protocol_message_command_attributes.message_id)
        case _Type.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION:
            child = command.start_child_workflow_execution_command_attributes
            children.initiate(tx, child, completed, metadata)
        case _Type.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION:
            signal = command.signal_external_workflow_execution_command_attributes
            external.initiate_signal(tx, signal, completed)
        case _Type.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION:
            cancel = command.request_cancel_external_workflow_execution_command_attributes
            external.initiate_cancel(tx, cancel, completed)
        case kind if kind in _CLOSING:
            _close(tx, command, completed)
        case _:
            _note(tx, command, completed, extra)


def _close(tx: Transition, command: Command, completed: int) -> None:
    match command.command_type:
        case _Type.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION:
            attributes = command.complete_workflow_execution_command_attributes
            closing.complete(tx, attributes, completed)
        case _Type.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION:
            closing.fail(tx, command.fail_workflow_execution_command_attributes, completed)
        case _Type.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION:
            closing.cancel(tx, command.cancel_workflow_execution_command_attributes, completed)
        case _:
            again = command.continue_as_new_workflow_execution_command_attributes
            closing.continue_as_new(tx, again, completed)


def _note(tx: Transition, command: Command, completed: int, extra: bytes) -> None:
    """Commands that only write something down: markers, search attributes, memo."""
    run = tx.run
    match command.command_type:
        case _Type.COMMAND_TYPE_RECORD_MARKER:
            wanted = command.record_marker_command_attributes
            marker = MarkerRecordedEventAttributes(
                marker_name=wanted.marker_name, workflow_task_completed_event_id=completed
            )
            for name, payloads in wanted.details.items():
                marker.details[name].CopyFrom(payloads)
            for part in ("header", "failure"):
                if wanted.HasField(part):
                    getattr(marker, part).CopyFrom(getattr(wanted, part))
            tx.append(EventType.EVENT_TYPE_MARKER_RECORDED, marker, extra)
        case _Type.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES:
            changes = command.upsert_workflow_search_attributes_command_attributes
            upserted = UpsertWorkflowSearchAttributesEventAttributes(
                workflow_task_completed_event_id=completed
            )
            upserted.search_attributes.CopyFrom(changes.search_attributes)
            tx.append(EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES, upserted, extra)
            run.attributes = closing.merged_attributes(run.attributes, changes.search_attributes)
            tx.visible = True
        case _Type.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES:
            modified = WorkflowPropertiesModifiedEventAttributes(
                workflow_task_completed_event_id=completed
            )
            memo = command.modify_workflow_properties_command_attributes.upserted_memo
            modified.upserted_memo.CopyFrom(memo)
            tx.append(EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED, modified, extra)
            run.memo = closing.merged_memo(run.memo, memo)
            tx.visible = True
        case _:  # checked before: cannot be
            raise InvalidArgument(f"unknown command type {command.command_type}")
