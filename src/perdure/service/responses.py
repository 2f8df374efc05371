"""Poll responses, written as bytes and parsed once: cheaper than to set field by field."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from temporalio.api.common.v1 import RetryPolicy as RetryPolicyMessage
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueResponse,
)

from perdure.api import wire
from perdure.engine import events, priorities
from perdure.engine.state import Activity, RetryPolicy, RunInfo, WorkflowTask
from perdure.service import tokens

if TYPE_CHECKING:
    from perdure.service.entries import Entry


def _keys(message: type, wire_types: dict[str, int]) -> dict[str, bytes]:
    fields = message.DESCRIPTOR.fields_by_name  # type: ignore[attr-defined]
    return {name: wire.tag(fields[name].number, kind) for name, kind in wire_types.items()}


_BLOCK, _INT = wire.LENGTH_DELIMITED, wire.VARINT
_W: Final = _keys(
    PollWorkflowTaskQueueResponse,
    {
        "task_token": _BLOCK, "workflow_execution": _BLOCK, "workflow_type": _BLOCK,
        "previous_started_event_id": _INT, "started_event_id": _INT, "attempt": _INT,
        "history": _BLOCK, "workflow_execution_task_queue": _BLOCK, "scheduled_time": _BLOCK,
        "started_time": _BLOCK,
    },
)  # fmt: skip
_A: Final = _keys(
    PollActivityTaskQueueResponse,
    {
        "task_token": _BLOCK, "workflow_namespace": _BLOCK, "workflow_type": _BLOCK,
        "workflow_execution": _BLOCK, "activity_type": _BLOCK, "activity_id": _BLOCK,
        "header": _BLOCK, "input": _BLOCK, "heartbeat_details": _BLOCK, "scheduled_time": _BLOCK,
        "current_attempt_scheduled_time": _BLOCK, "started_time": _BLOCK, "attempt": _INT,
        "schedule_to_close_timeout": _BLOCK, "start_to_close_timeout": _BLOCK,
        "heartbeat_timeout": _BLOCK, "retry_policy": _BLOCK, "priority": _BLOCK,
    },
)  # fmt: skip
_FIRST = wire.tag(1, wire.LENGTH_DELIMITED)
_SECOND = wire.tag(2, wire.LENGTH_DELIMITED)

_W_TOKEN, _W_PREVIOUS, _W_STARTED = (
    _W["task_token"], _W["previous_started_event_id"], _W["started_event_id"],
)  # fmt: skip
_W_ATTEMPT, _W_HISTORY = _W["attempt"], _W["history"]
_W_SCHEDULED_TIME, _W_STARTED_TIME = _W["scheduled_time"], _W["started_time"]
_A_TOKEN, _A_ID, _A_HEADER = _A["task_token"], _A["activity_id"], _A["header"]
_A_INPUT, _A_DETAILS, _A_ATTEMPT = _A["input"], _A["heartbeat_details"], _A["attempt"]
_A_SCHEDULED, _A_DUE = _A["scheduled_time"], _A["current_attempt_scheduled_time"]
_A_STARTED, _A_PRIORITY = _A["started_time"], _A["priority"]


def _length(key: bytes, length_ns: int) -> bytes:
    """A duration, present also when it is 0: the TypeScript SDK refuses a task without."""
    return wire.block(key, wire.time_body(length_ns) if length_ns else b"")


def workflow_prefix(info: RunInfo) -> bytes:
    """What all workflow tasks of a run say alike."""
    execution = wire.text(_FIRST, info.workflow_id) + wire.text(_SECOND, info.run_id)
    return (
        wire.block(_W["workflow_execution"], execution)
        + wire.block(_W["workflow_type"], wire.text(_FIRST, info.workflow_type))
        + wire.block(_W["workflow_execution_task_queue"], events.task_queue(info.task_queue))
    )


def workflow_task(
    entry: Entry, task: WorkflowTask, previous_started_event_id: int, history: bytes
) -> PollWorkflowTaskQueueResponse:
    """The response that hands out a started workflow task; `history` framed as History."""
    prefix = entry.task_prefix
    if prefix is None:
        prefix = entry.task_prefix = workflow_prefix(entry.run.info)
    token = tokens.encode(
        tokens.WORKFLOW, entry.run.key, entry.tag, task.scheduled_event_id, task.started_event_id,
        task.attempt, task.stamp,
    )  # fmt: skip
    varints = wire.VARINTS
    started = wire.time_body(task.started_ns)
    scheduled_ns = task.scheduled_ns
    scheduled = started if scheduled_ns == task.started_ns else wire.time_body(scheduled_ns)
    return PollWorkflowTaskQueueResponse.FromString(
        b"".join((
            prefix, _W_TOKEN, varints[len(token)], token,
            wire.number(_W_PREVIOUS, previous_started_event_id),
            _W_STARTED, varints[task.started_event_id], _W_ATTEMPT, varints[task.attempt],
            _W_HISTORY, varints[len(history)], history,
            _W_SCHEDULED_TIME, varints[len(scheduled)], scheduled,
            _W_STARTED_TIME, varints[len(started)], started,
        ))
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _retry_body(
    initial_ns: int, coefficient: float, maximum_ns: int, attempts: int, types: tuple[str, ...]
) -> bytes:
    message = RetryPolicyMessage(
        backoff_coefficient=coefficient, maximum_attempts=attempts, non_retryable_error_types=types
    )
    message.initial_interval.FromNanoseconds(initial_ns)
    if maximum_ns:
        message.maximum_interval.FromNanoseconds(maximum_ns)
    return message.SerializeToString()


def retry_body(policy: RetryPolicy | None) -> bytes:
    """A retry policy as serialised common.v1.RetryPolicy."""
    if policy is None:
        return b""
    return _retry_body(
        policy.initial_interval_ns, policy.backoff_coefficient, policy.maximum_interval_ns,
        policy.maximum_attempts, tuple(policy.non_retryable_types),
    )  # fmt: skip


def activity_prefix(info: RunInfo) -> bytes:
    """What all activity tasks of a run say alike."""
    execution = wire.text(_FIRST, info.workflow_id) + wire.text(_SECOND, info.run_id)
    return (
        wire.text(_A["workflow_namespace"], info.namespace)
        + wire.block(_A["workflow_type"], wire.text(_FIRST, info.workflow_type))
        + wire.block(_A["workflow_execution"], execution)
    )


def activity_task(entry: Entry, activity: Activity) -> PollActivityTaskQueueResponse:
    """The response that hands out a started activity."""
    prefix = entry.activity_prefix
    if prefix is None:
        prefix = entry.activity_prefix = activity_prefix(entry.run.info)
    token = tokens.encode(
        tokens.ACTIVITY, entry.run.key, entry.tag, activity.scheduled_event_id, 0,
        activity.attempt, activity.stamp,
    )  # fmt: skip
    started_ns, scheduled_ns = activity.started_ns, activity.scheduled_ns
    due_ns = activity.due_ns or scheduled_ns
    started = wire.time_body(started_ns)
    scheduled = started if scheduled_ns == started_ns else wire.time_body(scheduled_ns)
    due = scheduled if due_ns == scheduled_ns else wire.time_body(due_ns)
    block, varints = wire.block, wire.VARINTS
    activity_id = activity.activity_id.encode()
    details, priority = activity.heartbeat_details, activity.priority
    if entry.run.info.priority:
        priority = priorities.merged(entry.run.info.priority, priority)
    return PollActivityTaskQueueResponse.FromString(
        b"".join((
            prefix, _A_TOKEN, varints[len(token)], token,
            _A_ID, varints[len(activity_id)], activity_id,
            block(_A_HEADER, activity.header) if activity.header else b"",
            block(_A_INPUT, activity.input) if activity.input else b"",
            block(_A_DETAILS, details) if details else b"",
            _A_SCHEDULED, varints[len(scheduled)], scheduled,
            _A_DUE, varints[len(due)], due,
            _A_STARTED, varints[len(started)], started,
            _A_ATTEMPT, varints[activity.attempt], _activity_options(activity),
            block(_A_PRIORITY, priority) if priority else b"",
        ))
    )  # fmt: skip


_options: dict[tuple[str, int, int, int], tuple[RetryPolicy | None, bytes]] = {}
_OPTIONS_MAX = 1_000


def _activity_options(activity: Activity) -> bytes:
    """Type, timeouts and retry policy: alike for all activities that one call in the code makes."""
    key = (
        activity.activity_type, activity.schedule_to_close_ns, activity.start_to_close_ns,
        activity.heartbeat_ns,
    )  # fmt: skip
    known = _options.get(key)
    if known is not None and known[0] is activity.retry:
        return known[1]
    made = (
        wire.block(_A["activity_type"], wire.text(_FIRST, activity.activity_type))
        + _length(_A["schedule_to_close_timeout"], activity.schedule_to_close_ns)
        + _length(_A["start_to_close_timeout"], activity.start_to_close_ns)
        + _length(_A["heartbeat_timeout"], activity.heartbeat_ns)
    )
    if activity.retry is not None:
        made += wire.block(_A["retry_policy"], retry_body(activity.retry))
    if len(_options) >= _OPTIONS_MAX:
        _options.clear()
    _options[key] = (activity.retry, made)
    return made
