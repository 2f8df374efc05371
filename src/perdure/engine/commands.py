"""What a worker answers to a workflow task: commands, each checked first, then applied.

All commands of an answer are checked before any is applied, so a bad one changes nothing: the
workflow task fails with the cause that names it, and the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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

_SHOWN_AGAIN_MAX = 10  # events; more would cost more to send again than to keep the task
_Type = CommandType
_COMPLETED = int(EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED)
_PROTOCOL_MESSAGE = int(_Type.COMMAND_TYPE_PROTOCOL_MESSAGE)
_CLOSING: frozenset[int] = frozenset(
    int(kind)
    for kind in (
        _Type.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION,
        _Type.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION,
        _Type.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION,
        _Type.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION,
    )
)


class CompletedTask(msgspec.Struct, gc=False):
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
    Raises NotFound when no task is started, InvalidArgument when commands follow the end.
    """
    task = tx.run.state.workflow_task
    if task is None or not task.started_ns:
        raise NotFound("Workflow task not found.")
    given = request.commands[:]  # a list: protobuf's own sequence is slow to go through
    try:
        inbox = _checked(tx, request, given, admitted)
    except BadCommand as bad:
        return _refuse(tx, request, bad)
    if not given and task.speculative and _leaves_no_trace(tx, request):
        return _drop_speculative(tx, request, inbox)
    answer = _Answer(tx, _write_completed(tx, request, task), request.identity, inbox)
    tx.answering = True
    for command in given:
        _APPLY[command.command_type](answer, command)
    inbox.apply_rest(tx)
    tx.answering = False
    if tx.run.is_open:
        _go_on(tx, request)
    return answer.result


def _checked(
    tx: Transition,
    request: RespondWorkflowTaskCompletedRequest,
    given: Sequence[Command],
    admitted: Mapping[str, bytes] | None,
) -> updates.Inbox:
    """Check all commands and messages. Raises BadCommand; changes nothing."""
    plan = Plan(tx.run, tx.limits, workflow_tasks.first_command_event_id(tx.run))
    message_ids = []
    for command in given:
        kind = check(plan, command)
        if kind == _PROTOCOL_MESSAGE:
            message_ids.append(command.protocol_message_command_attributes.message_id)
        if kind in _CLOSING:
            if command is not given[-1]:
                raise _not_last(given, kind)
            if len(tx.run.buffered) > len(plan.unseen):
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


def _not_last(given: Sequence[Command], kind: int) -> InvalidArgument:
    """What an answer gets that goes on after the end."""
    names = ", ".join(_command_name(command.command_type) for command in given)
    return InvalidArgument(
        f"invalid command sequence: [{names}], command {_command_name(kind)} must be the last "
        "command."
    )


def _command_name(kind: int) -> str:
    words = _Type.Name(kind).removeprefix("COMMAND_TYPE_").split("_")  # type: ignore[arg-type]
    return "".join(word.capitalize() for word in words)


def _refuse(
    tx: Transition, request: RespondWorkflowTaskCompletedRequest, bad: BadCommand
) -> CompletedTask:
    message = _cause_name(bad.cause)
    if bad.cause != Cause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND:
        message += f": {bad.message}"
    failure = Failure(message=message)
    failure.server_failure_info.SetInParent()
    workflow_tasks.fail(tx, bad.cause, failure, request.identity)
    return CompletedTask(True, bad.cause, message)


def _cause_name(cause: int) -> str:
    """WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND → UnhandledCommand."""
    words = Cause.Name(cause).removeprefix("WORKFLOW_TASK_FAILED_CAUSE_")  # type: ignore[arg-type]
    return words.title().replace("_", "")


def _leaves_no_trace(tx: Transition, request: RespondWorkflowTaskCompletedRequest) -> bool:
    """Whether a task made for updates ends with nothing but rejections."""
    only_rejections = all(
        message.body.type_url.endswith("temporal.api.update.v1.Rejection")
        for message in request.messages
    )
    return (
        only_rejections
        and not tx.run.buffered
        and not request.force_create_new_workflow_task
        and _events_shown(tx) <= _shown_again_max(request)
    )


def _events_shown(tx: Transition) -> int:
    """Events since the last task that was kept: a worker is shown them again if this one is not."""
    state = tx.run.state
    return max(0, state.next_event_id - state.last_task_started_event_id - 2)


def _shown_again_max(request: RespondWorkflowTaskCompletedRequest) -> int:
    capable = request.capabilities.discard_speculative_workflow_task_with_events
    return _SHOWN_AGAIN_MAX if capable else 0


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
    event_id = tx.append(_COMPLETED, body)
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


class _Answer:
    """A worker's answer being applied: what every command's handler needs."""

    __slots__ = ("completed", "identity", "inbox", "result", "tx")

    def __init__(self, tx: Transition, completed: int, identity: str, inbox: updates.Inbox) -> None:
        self.tx = tx
        self.completed = completed  # id of the workflow task's completed event
        self.identity = identity
        self.inbox = inbox
        self.result = CompletedTask()


def _extra(command: Command) -> bytes:
    """What its event carries on of a command: what it is for, and what it belongs to."""
    extra = b""
    if command.HasField("user_metadata"):
        extra = wire.block(events.USER_METADATA, command.user_metadata.SerializeToString())
    for marker in command.event_group_markers:
        extra += wire.block(events.GROUP_MARKERS, marker.SerializeToString())
    return extra


def _schedule_activity(to: _Answer, command: Command) -> None:
    wanted = command.schedule_activity_task_command_attributes
    activity = activities.schedule(to.tx, wanted, to.completed, _extra(command))
    if wanted.request_eager_execution:
        to.result.eager_activities.append(activity.scheduled_event_id)


def _cancel_activity(to: _Answer, command: Command) -> None:
    asked = command.request_cancel_activity_task_command_attributes
    activities.request_cancel(to.tx, asked.scheduled_event_id, to.completed, to.identity)


def _start_timer(to: _Answer, command: Command) -> None:
    wanted = command.start_timer_command_attributes
    timers.start(to.tx, wanted, to.completed, _extra(command))


def _cancel_timer(to: _Answer, command: Command) -> None:
    timer_id = command.cancel_timer_command_attributes.timer_id
    timers.cancel(to.tx, timer_id, to.completed, to.identity)


def _start_child(to: _Answer, command: Command) -> None:
    child = command.start_child_workflow_execution_command_attributes
    metadata = command.user_metadata.SerializeToString()
    children.initiate(to.tx, child, to.completed, metadata)


def _signal_external(to: _Answer, command: Command) -> None:
    signal = command.signal_external_workflow_execution_command_attributes
    external.initiate_signal(to.tx, signal, to.completed)


def _cancel_external(to: _Answer, command: Command) -> None:
    cancel = command.request_cancel_external_workflow_execution_command_attributes
    external.initiate_cancel(to.tx, cancel, to.completed)


def _protocol_message(to: _Answer, command: Command) -> None:
    to.inbox.apply(to.tx, command.protocol_message_command_attributes.message_id)


def _complete(to: _Answer, command: Command) -> None:
    closing.complete(to.tx, command.complete_workflow_execution_command_attributes, to.completed)


def _fail(to: _Answer, command: Command) -> None:
    closing.fail(to.tx, command.fail_workflow_execution_command_attributes, to.completed)


def _cancel(to: _Answer, command: Command) -> None:
    closing.cancel(to.tx, command.cancel_workflow_execution_command_attributes, to.completed)


def _continue(to: _Answer, command: Command) -> None:
    again = command.continue_as_new_workflow_execution_command_attributes
    closing.continue_as_new(to.tx, again, to.completed)


def _record_marker(to: _Answer, command: Command) -> None:
    wanted = command.record_marker_command_attributes
    marker = MarkerRecordedEventAttributes(
        marker_name=wanted.marker_name, workflow_task_completed_event_id=to.completed
    )
    for name, payloads in wanted.details.items():
        marker.details[name].CopyFrom(payloads)
    for part in ("header", "failure"):
        if wanted.HasField(part):
            getattr(marker, part).CopyFrom(getattr(wanted, part))
    to.tx.append(EventType.EVENT_TYPE_MARKER_RECORDED, marker, _extra(command))


def _upsert_attributes(to: _Answer, command: Command) -> None:
    run = to.tx.run
    changes = command.upsert_workflow_search_attributes_command_attributes.search_attributes
    event = UpsertWorkflowSearchAttributesEventAttributes(
        workflow_task_completed_event_id=to.completed, search_attributes=changes
    )
    kind = EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES
    to.tx.append(kind, event, _extra(command))
    run.attributes = closing.merged_attributes(run.attributes, changes)
    to.tx.visible = True


def _modify_properties(to: _Answer, command: Command) -> None:
    run = to.tx.run
    memo = command.modify_workflow_properties_command_attributes.upserted_memo
    event = WorkflowPropertiesModifiedEventAttributes(
        workflow_task_completed_event_id=to.completed, upserted_memo=memo
    )
    kind = EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED
    to.tx.append(kind, event, _extra(command))
    run.memo = closing.merged_memo(run.memo, memo)
    to.tx.visible = True


_APPLY: dict[int, Callable[[_Answer, Command], None]] = {
    _Type.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK: _schedule_activity,
    _Type.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK: _cancel_activity,
    _Type.COMMAND_TYPE_START_TIMER: _start_timer,
    _Type.COMMAND_TYPE_CANCEL_TIMER: _cancel_timer,
    _Type.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION: _start_child,
    _Type.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION: _signal_external,
    _Type.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION: _cancel_external,
    _Type.COMMAND_TYPE_PROTOCOL_MESSAGE: _protocol_message,
    _Type.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION: _complete,
    _Type.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION: _fail,
    _Type.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION: _cancel,
    _Type.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION: _continue,
    _Type.COMMAND_TYPE_RECORD_MARKER: _record_marker,
    _Type.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES: _upsert_attributes,
    _Type.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES: _modify_properties,
}
