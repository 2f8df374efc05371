"""A run's state derived from its history alone.

Used to make the run that a reset starts with, and by tests as the invariant "state equals replay".
History does not hold everything: attempts between the first and the last of an activity,
heartbeats, transient and speculative workflow tasks, request ids of messages under way, keys of
children. What is rebuilt leaves these at their defaults, and `differences` does not compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from temporalio.api.enums.v1 import (
    TaskQueueKind,
    WorkflowExecutionStatus,
    WorkflowTaskFailedCause,
)
from temporalio.api.history.v1 import HistoryEvent

from perdure.api import wire
from perdure.api.times import duration_ns, timestamp_ns
from perdure.engine import closing, retry
from perdure.engine.differences import differences
from perdure.engine.execution import Execution
from perdure.engine.state import (
    Activity,
    AnyItem,
    Child,
    ExternalCancel,
    ExternalSignal,
    RunInfo,
    RunState,
    SeenRequest,
    StartAttributes,
    Timer,
    Update,
    WorkflowTask,
)

__all__ = ["UNKNOWN_KEY", "apply", "differences", "framed", "rebuild"]

UNKNOWN_KEY: Final = -1  # the key of a child that started: it has one, history does not say which
_RESET: Final = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW
_FRAME = wire.tag(1, wire.LENGTH_DELIMITED)  # History.events

_Apply = Callable[[Execution, HistoryEvent, Any], None]


def rebuild(key: int, info: RunInfo, events: Iterable[HistoryEvent]) -> Execution:
    """The run that these events, from the first on, lead to.

    Raises ValueError when the events are not contiguous from 1, or refer to something that is not
    pending.
    """
    run = Execution(key, info, RunState())
    for event in events:
        apply(run, event)
    return run


def apply(run: Execution, event: HistoryEvent) -> None:
    """Change the run as one more event says. Raises ValueError as `rebuild`."""
    state = run.state
    if event.event_id != state.next_event_id:
        raise ValueError(f"expected event {state.next_event_id}, found {event.event_id}")
    state.next_event_id += 1
    state.history_size_bytes += len(framed(event))
    field = event.WhichOneof("attributes") or ""
    change = _CHANGES.get(field.removesuffix("_event_attributes"))
    if change is None:
        return
    try:
        change(run, event, getattr(event, field))
    except KeyError as error:
        raise ValueError(
            f"event {event.event_id} refers to {error}, which is not pending"
        ) from None


def framed(event: HistoryEvent) -> bytes:
    """An event as the store holds it: as the field `events` of a History message."""
    return wire.block(_FRAME, event.SerializeToString())


def _add(run: Execution, make: Callable[[int], AnyItem]) -> None:
    run.index(make(run.state.next_item_id))
    run.state.next_item_id += 1


# -- the run ---------------------------------------------------------------------------------------


def _started(run: Execution, event: HistoryEvent, a: Any) -> None:
    if a.HasField("memo"):
        run.memo = a.memo.SerializeToString()
    if a.HasField("search_attributes"):
        run.attributes = a.search_attributes.SerializeToString()
    backoff_ns = duration_ns(a.first_workflow_task_backoff)
    if backoff_ns:
        run.state.first_task_backoff_until_ns = timestamp_ns(event.event_time) + backoff_ns
    if run.info.retry is not None or run.info.cron_schedule:
        _add(run, lambda item_id: StartAttributes(item_id, a.SerializeToString()))


def _signaled(run: Execution, event: HistoryEvent, a: Any) -> None:
    run.state.signal_count += 1
    if a.request_id and a.request_id not in run.requests:
        _add(run, lambda item_id: SeenRequest(item_id, a.request_id))


def _cancel_requested(run: Execution, event: HistoryEvent, a: Any) -> None:
    run.state.cancel_requested = True


def _closes(status: int) -> _Apply:
    def close(run: Execution, event: HistoryEvent, a: Any) -> None:
        state = run.state
        state.status = status
        state.close_event_id = event.event_id
        state.close_ns = timestamp_ns(event.event_time)
        state.successor_run_id = getattr(a, "new_execution_run_id", "")
        state.workflow_task = None

    return close


def _paused(run: Execution, event: HistoryEvent, a: Any) -> None:
    run.state.status = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED


def _unpaused(run: Execution, event: HistoryEvent, a: Any) -> None:
    run.state.status = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING


def _attributes_upserted(run: Execution, event: HistoryEvent, a: Any) -> None:
    run.attributes = closing.merged_attributes(run.attributes, a.search_attributes)


def _memo_upserted(run: Execution, event: HistoryEvent, a: Any) -> None:
    run.memo = closing.merged_memo(run.memo, a.upserted_memo)


# -- workflow tasks --------------------------------------------------------------------------------


def _task_scheduled(run: Execution, event: HistoryEvent, a: Any) -> None:
    run.state.workflow_task = WorkflowTask(
        event.event_id,
        timestamp_ns(event.event_time),
        a.task_queue.name,
        sticky=a.task_queue.kind == TaskQueueKind.TASK_QUEUE_KIND_STICKY,
        attempt=max(1, a.attempt),
        timeout_ns=duration_ns(a.start_to_close_timeout),
    )


def _task_started(run: Execution, event: HistoryEvent, a: Any) -> None:
    task = _task(run, a.scheduled_event_id)
    task.started_event_id = event.event_id
    task.started_ns = timestamp_ns(event.event_time)
    task.request_id = a.request_id
    task.identity = a.identity
    task.history_size_bytes = a.history_size_bytes
    task.suggest_continue_as_new = a.suggest_continue_as_new
    task.suggest_reasons = tuple(a.suggest_continue_as_new_reasons)


def _task_completed(run: Execution, event: HistoryEvent, a: Any) -> None:
    _task(run, a.scheduled_event_id)
    run.state.workflow_task = None
    run.state.failed_task_attempts = 0
    run.state.last_task_started_event_id = a.started_event_id
    run.state.last_task_completed_event_id = event.event_id


def _task_ended(run: Execution, event: HistoryEvent, a: Any) -> None:
    """Failed or timed out. A later attempt is transient: history is silent until it completes."""
    _task(run, a.scheduled_event_id)
    run.state.workflow_task = None
    if getattr(a, "cause", 0) == _RESET:
        run.state.failed_task_attempts = 0
    else:
        run.state.failed_task_attempts += 1


def _task(run: Execution, scheduled_event_id: int) -> WorkflowTask:
    task = run.state.workflow_task
    if task is None or task.scheduled_event_id != scheduled_event_id:
        raise KeyError(f"workflow task {scheduled_event_id}")
    return task


# -- activities and timers -------------------------------------------------------------------------


def _activity_scheduled(run: Execution, event: HistoryEvent, a: Any) -> None:
    time_ns = timestamp_ns(event.event_time)
    _add(
        run,
        lambda item_id: Activity(
            item_id,
            event.event_id,
            a.activity_id,
            a.activity_type.name,
            a.task_queue.name,
            time_ns,
            input=a.input.SerializeToString() if a.HasField("input") else b"",
            header=a.header.SerializeToString() if a.HasField("header") else b"",
            schedule_to_close_ns=duration_ns(a.schedule_to_close_timeout),
            schedule_to_start_ns=duration_ns(a.schedule_to_start_timeout),
            start_to_close_ns=duration_ns(a.start_to_close_timeout),
            heartbeat_ns=duration_ns(a.heartbeat_timeout),
            retry=retry.policy(a.retry_policy) if a.HasField("retry_policy") else None,
            due_ns=time_ns,
            workflow_task_completed_event_id=a.workflow_task_completed_event_id,
            priority=a.priority.SerializeToString() if a.HasField("priority") else b"",
            user_metadata=event.user_metadata.SerializeToString()
            if event.HasField("user_metadata")
            else b"",
        ),
    )


def _activity_started(run: Execution, event: HistoryEvent, a: Any) -> None:
    activity = run.activities[a.scheduled_event_id]
    activity.started_ns = timestamp_ns(event.event_time)
    activity.started_identity = a.identity
    activity.request_id = a.request_id
    activity.attempt = max(1, a.attempt)


def _activity_cancel_requested(run: Execution, event: HistoryEvent, a: Any) -> None:
    activity = run.activities[a.scheduled_event_id]
    activity.cancel_requested = True
    activity.cancel_requested_event_id = event.event_id


def _activity_closed(run: Execution, event: HistoryEvent, a: Any) -> None:
    run.forget(run.activities[a.scheduled_event_id])


def _timer_started(run: Execution, event: HistoryEvent, a: Any) -> None:
    due_ns = timestamp_ns(event.event_time) + duration_ns(a.start_to_fire_timeout)
    _add(run, lambda item_id: Timer(item_id, event.event_id, a.timer_id, due_ns))


def _timer_ended(run: Execution, event: HistoryEvent, a: Any) -> None:
    run.forget(run.timers[a.timer_id])


# -- children and other runs -----------------------------------------------------------------------


def _child_initiated(run: Execution, event: HistoryEvent, a: Any) -> None:
    _add(
        run,
        lambda item_id: Child(
            item_id,
            event.event_id,
            a.namespace,
            a.workflow_id,
            a.workflow_type.name,
            a.parent_close_policy,
            request_id="",
        ),
    )


def _child_started(run: Execution, event: HistoryEvent, a: Any) -> None:
    child = run.children[a.initiated_event_id]
    child.run_id = a.workflow_execution.run_id
    child.started_event_id = event.event_id
    child.key = UNKNOWN_KEY


def _child_ended(run: Execution, event: HistoryEvent, a: Any) -> None:
    run.forget(run.children[a.initiated_event_id])


def _signal_initiated(run: Execution, event: HistoryEvent, a: Any) -> None:
    _add(run, lambda item_id: ExternalSignal(item_id, event.event_id, ""))


def _signal_ended(run: Execution, event: HistoryEvent, a: Any) -> None:
    run.forget(run.signals[a.initiated_event_id])


def _cancel_initiated(run: Execution, event: HistoryEvent, a: Any) -> None:
    _add(run, lambda item_id: ExternalCancel(item_id, event.event_id, ""))


def _cancel_ended(run: Execution, event: HistoryEvent, a: Any) -> None:
    run.forget(run.cancels[a.initiated_event_id])


# -- updates ---------------------------------------------------------------------------------------


def _update_admitted(run: Execution, event: HistoryEvent, a: Any) -> None:
    _add(run, lambda item_id: Update(item_id, a.request.meta.update_id, 0))
    run.state.update_count += 1


def _update_accepted(run: Execution, event: HistoryEvent, a: Any) -> None:
    update = run.updates.get(a.protocol_instance_id)
    if update is not None:
        update.accepted_event_id = event.event_id
        return
    _add(run, lambda item_id: Update(item_id, a.protocol_instance_id, event.event_id))
    run.state.update_count += 1


def _update_completed(run: Execution, event: HistoryEvent, a: Any) -> None:
    update = run.updates[a.meta.update_id]
    update.completed_event_id = event.event_id
    update.outcome = a.outcome.SerializeToString()


_Status = WorkflowExecutionStatus
_CHANGES: Final[dict[str, _Apply]] = {
    "workflow_execution_started": _started,
    "workflow_execution_signaled": _signaled,
    "workflow_execution_cancel_requested": _cancel_requested,
    "workflow_execution_completed": _closes(_Status.WORKFLOW_EXECUTION_STATUS_COMPLETED),
    "workflow_execution_failed": _closes(_Status.WORKFLOW_EXECUTION_STATUS_FAILED),
    "workflow_execution_timed_out": _closes(_Status.WORKFLOW_EXECUTION_STATUS_TIMED_OUT),
    "workflow_execution_canceled": _closes(_Status.WORKFLOW_EXECUTION_STATUS_CANCELED),
    "workflow_execution_terminated": _closes(_Status.WORKFLOW_EXECUTION_STATUS_TERMINATED),
    "workflow_execution_continued_as_new": _closes(
        _Status.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW
    ),
    "workflow_execution_paused": _paused,
    "workflow_execution_unpaused": _unpaused,
    "upsert_workflow_search_attributes": _attributes_upserted,
    "workflow_properties_modified": _memo_upserted,
    "workflow_task_scheduled": _task_scheduled,
    "workflow_task_started": _task_started,
    "workflow_task_completed": _task_completed,
    "workflow_task_failed": _task_ended,
    "workflow_task_timed_out": _task_ended,
    "activity_task_scheduled": _activity_scheduled,
    "activity_task_started": _activity_started,
    "activity_task_cancel_requested": _activity_cancel_requested,
    "activity_task_completed": _activity_closed,
    "activity_task_failed": _activity_closed,
    "activity_task_timed_out": _activity_closed,
    "activity_task_canceled": _activity_closed,
    "timer_started": _timer_started,
    "timer_fired": _timer_ended,
    "timer_canceled": _timer_ended,
    "start_child_workflow_execution_initiated": _child_initiated,
    "start_child_workflow_execution_failed": _child_ended,
    "child_workflow_execution_started": _child_started,
    "child_workflow_execution_completed": _child_ended,
    "child_workflow_execution_failed": _child_ended,
    "child_workflow_execution_canceled": _child_ended,
    "child_workflow_execution_timed_out": _child_ended,
    "child_workflow_execution_terminated": _child_ended,
    "signal_external_workflow_execution_initiated": _signal_initiated,
    "signal_external_workflow_execution_failed": _signal_ended,
    "external_workflow_execution_signaled": _signal_ended,
    "request_cancel_external_workflow_execution_initiated": _cancel_initiated,
    "request_cancel_external_workflow_execution_failed": _cancel_ended,
    "external_workflow_execution_cancel_requested": _cancel_ended,
    "workflow_execution_update_admitted": _update_admitted,
    "workflow_execution_update_accepted": _update_accepted,
    "workflow_execution_update_completed": _update_completed,
}
