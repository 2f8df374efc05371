"""The attributes of the six events that make a step, written as bytes.

A sequential step of a workflow is: activity scheduled, started, completed; workflow task
scheduled, started, completed. Their attributes are written directly (see ``perdure.api.wire``);
all other events are built through their message classes. A test holds the bytes against those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial

from google.protobuf.message import Message
from temporalio.api.command.v1 import ScheduleActivityTaskCommandAttributes
from temporalio.api.common.v1 import Link
from temporalio.api.enums.v1 import TaskQueueKind
from temporalio.api.history.v1 import (
    ActivityTaskCompletedEventAttributes,
    ActivityTaskScheduledEventAttributes,
    ActivityTaskStartedEventAttributes,
    HistoryEvent,
    WorkflowTaskCompletedEventAttributes,
    WorkflowTaskScheduledEventAttributes,
    WorkflowTaskStartedEventAttributes,
)
from temporalio.api.taskqueue.v1 import TaskQueue

from perdure.api import wire
from perdure.engine.state import Activity


def field(message: type[Message], name: str) -> bytes:
    """The tag of a message's field, one that is not a list of numbers."""
    found = message.DESCRIPTOR.fields_by_name[name]
    varint = found.cpp_type not in (found.CPPTYPE_MESSAGE, found.CPPTYPE_STRING)
    return wire.tag(found.number, wire.VARINT if varint else wire.LENGTH_DELIMITED)


def _text(key: bytes) -> Callable[[str], bytes]:
    """Writes one string field: for those with few values, such as a worker's identity."""
    return lru_cache(maxsize=1024)(partial(wire.text, key))


USER_METADATA = field(HistoryEvent, "user_metadata")
GROUP_MARKERS = field(HistoryEvent, "event_group_markers")
WORKER_MAY_IGNORE = HistoryEvent(worker_may_ignore=True).SerializeToString()


def links(those: Iterable[Link]) -> bytes:
    """What an event leads to elsewhere, as fields of the event."""
    return HistoryEvent(links=those).SerializeToString()


_WS = WorkflowTaskScheduledEventAttributes
_WS_QUEUE = field(_WS, "task_queue")
_WS_TIMEOUT = field(_WS, "start_to_close_timeout")
_WS_ATTEMPT = field(_WS, "attempt")


@lru_cache(maxsize=4096)
def task_queue(name: str, normal_name: str = "") -> bytes:
    """A TaskQueue message; sticky when `normal_name` is given."""
    kind = TaskQueueKind.TASK_QUEUE_KIND_NORMAL
    if normal_name:
        kind = TaskQueueKind.TASK_QUEUE_KIND_STICKY
    return TaskQueue(name=name, kind=kind, normal_name=normal_name).SerializeToString()


@lru_cache(maxsize=1024)
def length(length_ns: int) -> bytes:
    """The body of a Duration."""
    return wire.time_body(length_ns)


@lru_cache(maxsize=4096)
def workflow_task_scheduled(queue: bytes, timeout_ns: int, attempt: int) -> bytes:
    """WorkflowTaskScheduledEventAttributes; `queue` from `task_queue`."""
    return (
        wire.block(_WS_QUEUE, queue)
        + wire.block(_WS_TIMEOUT, length(timeout_ns))
        + wire.number(_WS_ATTEMPT, attempt)
    )


_WT = WorkflowTaskStartedEventAttributes
_WT_SCHEDULED = field(_WT, "scheduled_event_id")
_identity_wt = _text(field(_WT, "identity"))
_WT_REQUEST = field(_WT, "request_id")
_WT_SUGGEST = field(_WT, "suggest_continue_as_new")
_WT_REASONS = wire.tag(_WT.SUGGEST_CONTINUE_AS_NEW_REASONS_FIELD_NUMBER, wire.LENGTH_DELIMITED)
_WT_SIZE = field(_WT, "history_size_bytes")


def workflow_task_started(
    scheduled_event_id: int,
    identity: str,
    request_id: str,
    suggest_continue_as_new: bool,
    suggest_reasons: tuple[int, ...],
    history_size_bytes: int,
) -> bytes:
    """WorkflowTaskStartedEventAttributes."""
    body = (
        wire.number(_WT_SCHEDULED, scheduled_event_id)
        + _identity_wt(identity)
        + wire.text(_WT_REQUEST, request_id)
    )
    if suggest_continue_as_new:
        body += _WT_SUGGEST + b"\1"
        body += wire.block(_WT_REASONS, bytes(suggest_reasons))  # packed; each is below 128
    return body + wire.number(_WT_SIZE, history_size_bytes)


_WC = WorkflowTaskCompletedEventAttributes
_WC_SCHEDULED = field(_WC, "scheduled_event_id")
_WC_STARTED = field(_WC, "started_event_id")
_identity_wc = _text(field(_WC, "identity"))


def workflow_task_completed(
    scheduled_event_id: int, started_event_id: int, identity: str, rest: bytes
) -> bytes:
    """WorkflowTaskCompletedEventAttributes; `rest`: its other fields, serialised."""
    return (
        wire.number(_WC_SCHEDULED, scheduled_event_id)
        + wire.number(_WC_STARTED, started_event_id)
        + _identity_wc(identity)
        + rest
    )


_AT = ActivityTaskStartedEventAttributes
_AT_SCHEDULED = field(_AT, "scheduled_event_id")
_identity_at = _text(field(_AT, "identity"))
_AT_REQUEST = field(_AT, "request_id")
_AT_ATTEMPT = field(_AT, "attempt")
_AT_FAILURE = field(_AT, "last_failure")


def activity_task_started(activity: Activity) -> bytes:
    """ActivityTaskStartedEventAttributes of the present attempt."""
    failure = activity.last_failure
    varints = wire.VARINTS
    body = (
        _AT_SCHEDULED
        + varints[activity.scheduled_event_id]
        + _identity_at(activity.started_identity)
        + wire.text(_AT_REQUEST, activity.request_id)
        + _AT_ATTEMPT
        + varints[activity.attempt]
    )
    return body + wire.block(_AT_FAILURE, failure) if failure else body


_AC = ActivityTaskCompletedEventAttributes
_AC_RESULT = field(_AC, "result")
_AC_SCHEDULED = field(_AC, "scheduled_event_id")
_AC_STARTED = field(_AC, "started_event_id")
_identity_ac = _text(field(_AC, "identity"))


def activity_task_completed(
    result: bytes, has_result: bool, scheduled_event_id: int, started_event_id: int, identity: str
) -> bytes:
    """ActivityTaskCompletedEventAttributes; `result`: serialised Payloads."""
    return (
        (wire.block(_AC_RESULT, result) if has_result else b"")
        + _AC_SCHEDULED
        + wire.VARINTS[scheduled_event_id]
        + wire.number(_AC_STARTED, started_event_id)
        + _identity_ac(identity)
    )


_AS = ActivityTaskScheduledEventAttributes
_AS_ID = field(_AS, "activity_id")
_AS_TYPE = field(_AS, "activity_type")
_AS_QUEUE = field(_AS, "task_queue")
_AS_HEADER = field(_AS, "header")
_AS_INPUT = field(_AS, "input")
_AS_TO_CLOSE = field(_AS, "schedule_to_close_timeout")
_AS_TO_START = field(_AS, "schedule_to_start_timeout")
_AS_START_TO_CLOSE = field(_AS, "start_to_close_timeout")
_AS_HEARTBEAT = field(_AS, "heartbeat_timeout")
_AS_COMPLETED = field(_AS, "workflow_task_completed_event_id")
_AS_RETRY = field(_AS, "retry_policy")
_AS_WORKFLOW_BUILD = field(_AS, "use_workflow_build_id")
_AS_PRIORITY = field(_AS, "priority")
_TYPE_NAME = wire.tag(1, wire.LENGTH_DELIMITED)


def activity_task_scheduled(
    activity: Activity,
    command: ScheduleActivityTaskCommandAttributes,
    retry: bytes,
    workflow_task_completed_event_id: int,
) -> bytes:
    """ActivityTaskScheduledEventAttributes, with the defaults that the server chose."""
    body = (
        wire.text(_AS_ID, activity.activity_id)
        + _kind_of_activity(
            activity.activity_type,
            activity.queue,
            activity.schedule_to_close_ns,
            activity.schedule_to_start_ns,
            activity.start_to_close_ns,
            activity.heartbeat_ns,
            retry,
        )
        + wire.number(_AS_COMPLETED, workflow_task_completed_event_id)
    )
    if command.HasField("input"):
        body += wire.block(_AS_INPUT, activity.input)
    if activity.header:
        body += wire.block(_AS_HEADER, activity.header)
    if activity.priority:
        body += wire.block(_AS_PRIORITY, activity.priority)
    if command.use_workflow_build_id:
        body += _AS_WORKFLOW_BUILD + b"\1"
    return body


@lru_cache(maxsize=4096)
def _kind_of_activity(
    name: str,
    queue: str,
    schedule_to_close_ns: int,
    schedule_to_start_ns: int,
    start_to_close_ns: int,
    heartbeat_ns: int,
    retry: bytes,
) -> bytes:
    """What all calls of one activity with the same options have in common."""
    return b"".join((
        wire.block(_AS_TYPE, wire.text(_TYPE_NAME, name)),
        wire.block(_AS_QUEUE, task_queue(queue)),
        wire.block(_AS_TO_CLOSE, length(schedule_to_close_ns)),
        wire.block(_AS_TO_START, length(schedule_to_start_ns)),
        wire.block(_AS_START_TO_CLOSE, length(start_to_close_ns)),
        wire.block(_AS_HEARTBEAT, length(heartbeat_ns)),
        wire.block(_AS_RETRY, retry),
    ))  # fmt: skip
