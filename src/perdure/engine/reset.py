"""Reset: a run begins anew from a point of its history.

The point is the end of a workflow task: the events before it are kept, the task is failed with the
cause RESET_WORKFLOW, and the workflow code goes on from there in a new run. What others did to the
old run after the point is done to the new run too: signals, updates, and how the kept children and
messages ended. The service

1. marks the open run, if any, as left (`leave`) and terminates it,
2. reads the base run's events and those of the runs that followed it by continue-as-new
   (`next_run_id`),
3. calls `reset`, and writes its transition in one unit with the first.

News of a kept child still goes to the old run's key: whoever delivers it follows
``state.reset_run_id``.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import msgspec
from google.protobuf.message import Message
from temporalio.api.enums.v1 import (
    EventType,
    ResetReapplyExcludeType,
    ResetReapplyType,
    RetryState,
    TaskQueueType,
    WorkflowTaskFailedCause,
)
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import (
    ActivityTaskFailedEventAttributes,
    HistoryEvent,
    WorkflowTaskFailedEventAttributes,
    WorkflowTaskStartedEventAttributes,
)
from temporalio.api.update.v1 import Request
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest

from perdure.api.errors import InvalidArgument
from perdure.engine import alarms, children, external, replay, updates, workflow_tasks
from perdure.engine.execution import Execution
from perdure.engine.state import RunInfo, SeenRequest
from perdure.engine.transition import TaskRef, Transition

SERVICE_IDENTITY: Final = "history-service"
RESETTER_IDENTITY: Final = "history-resetter"
"""Who terminates a run that is left by a reset; Temporal's clients know the name."""

_SIGNAL: Final = ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_SIGNAL
_UPDATE: Final = ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_UPDATE
_ALL_KINDS: Final = frozenset(
    number for number in ResetReapplyExcludeType.values() if number  # but not UNSPECIFIED
)  # fmt: skip
_CHILD_STARTED: Final = "child_workflow_execution_started_event_attributes"
_CHILD_ENDED: Final = frozenset(
    f"{name}_event_attributes"
    for name in (
        "start_child_workflow_execution_failed",
        "child_workflow_execution_completed",
        "child_workflow_execution_failed",
        "child_workflow_execution_canceled",
        "child_workflow_execution_timed_out",
        "child_workflow_execution_terminated",
    )
)
_SIGNAL_ENDED: Final = frozenset((
    "external_workflow_execution_signaled_event_attributes",
    "signal_external_workflow_execution_failed_event_attributes",
))  # fmt: skip
_CANCEL_ENDED: Final = frozenset((
    "external_workflow_execution_cancel_requested_event_attributes",
    "request_cancel_external_workflow_execution_failed_event_attributes",
))  # fmt: skip


def check(request: ResetWorkflowExecutionRequest, next_event_id: int) -> None:
    """Raise InvalidArgument unless the request names an event of the base run."""
    if not 1 < request.workflow_task_finish_event_id < next_event_id:
        raise InvalidArgument("Workflow task finish ID must be > 1 && <= workflow last event ID.")


def leave(tx: Transition, new_run_id: str) -> None:
    """Point a run to the one that a reset makes of it.

    Done before the run is terminated, so that it closes quietly: its children and its parent go on
    with the new run.
    """
    tx.run.state.reset_run_id = new_run_id


def next_run_id(events: Sequence[HistoryEvent]) -> str:
    """The run that a run with these events continued as; "" when it did not."""
    if not events:
        return ""
    return events[-1].workflow_execution_continued_as_new_event_attributes.new_execution_run_id


def excluded_kinds(request: ResetWorkflowExecutionRequest) -> frozenset[int]:
    """ResetReapplyExcludeType numbers, from the request's present and deprecated fields."""
    excluded = {int(kind) for kind in request.reset_reapply_exclude_types}
    if request.reset_reapply_type == ResetReapplyType.RESET_REAPPLY_TYPE_SIGNAL:
        excluded.add(_UPDATE)
    elif request.reset_reapply_type == ResetReapplyType.RESET_REAPPLY_TYPE_NONE:
        excluded |= {_SIGNAL, _UPDATE}
    return frozenset(excluded)


def reset(
    request: ResetWorkflowExecutionRequest,
    base: Execution,
    events: Sequence[HistoryEvent],
    following: Iterable[HistoryEvent],
    *,
    key: int,
    run_id: str,
    now_ns: int,
    rng: random.Random,
) -> Transition:
    """The new run, in the transition that makes it: its whole history, items, tasks and messages.

    Args:
        request: the point, the reason, and what not to apply again.
        base: the run to reset, as it is now (closed, or left and terminated).
        events: the base run's events, all of them.
        following: the events of the runs that the base run continued as, in order.
        key: the store's number of the new run.
        run_id: the new run's id.

    Raises InvalidArgument when no workflow task is under way at the point.
    """
    check(request, len(events) + 1)
    kept = events[: request.workflow_task_finish_event_id - 1]
    run = replay.rebuild(key, _new_info(base.info, run_id, now_ns), kept)
    if run.state.workflow_task is None:
        raise InvalidArgument(
            "Can only reset workflow to event ID in range [WorkflowTaskScheduled +1, "
            f"WorkflowTaskStarted + 1]: {request.workflow_task_finish_event_id}"
        )
    tx = Transition(run, now_ns, rng)
    tx.precede([replay.framed(event) for event in kept])
    tx.visible = True
    for item in run.items.values():
        tx.put(item)
    _fail_workflow_task(tx, request.reason, base.info.run_id)
    _restart_activities(tx, kept, request.reason)
    _reapply(tx, events[len(kept) :], following, excluded_kinds(request))
    _send_again(tx, base, kept)
    if request.request_id and request.request_id not in run.requests:
        tx.put(SeenRequest(tx.item_id(), request.request_id))
    workflow_tasks.ensure_scheduled(tx)
    tx.wake_at(alarms.next_ns(run))
    return tx


def _new_info(base: RunInfo, run_id: str, now_ns: int) -> RunInfo:
    """The base run's info for a run that starts now: its timeouts count anew."""
    execution_deadline_ns = now_ns + base.execution_timeout_ns if base.execution_timeout_ns else 0
    run_deadline_ns = now_ns + base.run_timeout_ns if base.run_timeout_ns else 0
    if execution_deadline_ns and run_deadline_ns:
        run_deadline_ns = min(run_deadline_ns, execution_deadline_ns)
    return msgspec.structs.replace(
        base,
        run_id=run_id,
        start_ns=now_ns,
        execution_deadline_ns=execution_deadline_ns,
        run_deadline_ns=run_deadline_ns,
    )


def _reset_failure(reason: str) -> Failure:
    failure = Failure(message=reason)
    failure.reset_workflow_failure_info.SetInParent()
    return failure


def _fail_workflow_task(tx: Transition, reason: str, base_run_id: str) -> None:
    task = tx.run.state.workflow_task
    assert task is not None
    started_event_id = task.started_event_id
    if not started_event_id:
        started = WorkflowTaskStartedEventAttributes(
            scheduled_event_id=task.scheduled_event_id, identity=SERVICE_IDENTITY
        )
        started_event_id = tx.append(EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED, started)
    failed = WorkflowTaskFailedEventAttributes(
        scheduled_event_id=task.scheduled_event_id,
        started_event_id=started_event_id,
        cause=WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW,
        failure=_reset_failure(reason),
        identity=SERVICE_IDENTITY,
        base_run_id=base_run_id,
        new_run_id=tx.run.info.run_id,
    )
    tx.append(EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED, failed)
    tx.run.state.workflow_task = None
    tx.run.state.failed_task_attempts = 0


def _restart_activities(tx: Transition, kept: Sequence[HistoryEvent], reason: str) -> None:
    """Pending activities of the kept part are scheduled again.

    One whose start was kept, but not its end, has failed.
    """
    starts = {
        event.activity_task_started_event_attributes.scheduled_event_id: event.event_id
        for event in kept
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED
    }
    for activity in list(tx.run.activities.values()):
        if not activity.started_ns:
            activity.scheduled_ns = activity.due_ns = tx.now_ns
            tx.tasks.append(
                TaskRef(
                    TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
                    activity.queue,
                    activity.scheduled_event_id,
                    activity.stamp,
                )
            )
            continue
        failed = ActivityTaskFailedEventAttributes(
            failure=_reset_failure(reason),
            scheduled_event_id=activity.scheduled_event_id,
            started_event_id=starts[activity.scheduled_event_id],
            identity=activity.started_identity,
            retry_state=RetryState.RETRY_STATE_NON_RETRYABLE_FAILURE,
        )
        tx.append(EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED, failed)
        tx.drop(activity)


# -- what happened after the point -----------------------------------------------------------------


def _reapply(
    tx: Transition,
    later: Sequence[HistoryEvent],
    following: Iterable[HistoryEvent],
    excluded: Collection[int],
) -> None:
    """Apply what others did to the old run, in order: its own later events, then its followers'.

    How kept children and messages ended is in the base run's own events only: event ids of its
    followers mean something else.
    """
    if _ALL_KINDS.issubset(excluded):
        return
    for event in later:
        _reapply_input(tx, event, excluded)
        _reapply_ending(tx, event)
    for event in following:
        _reapply_input(tx, event, excluded)


def _reapply_input(tx: Transition, event: HistoryEvent, excluded: Collection[int]) -> None:
    match event.event_type:
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED if _SIGNAL not in excluded:
            _reapply_signal(tx, event)
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED if _UPDATE not in excluded:
            _readmit(tx, event.workflow_execution_update_admitted_event_attributes.request)
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED if _UPDATE not in excluded:
            accepted = event.workflow_execution_update_accepted_event_attributes
            if accepted.HasField("accepted_request"):  # else an admitted event came before it
                _readmit(tx, accepted.accepted_request)


def _reapply_signal(tx: Transition, event: HistoryEvent) -> None:
    attributes = event.workflow_execution_signaled_event_attributes
    extra = HistoryEvent(links=event.links, user_metadata=event.user_metadata)
    if not event.HasField("user_metadata"):
        extra.ClearField("user_metadata")
    tx.append(event.event_type, attributes, extra.SerializeToString())
    tx.run.state.signal_count += 1
    if attributes.request_id and attributes.request_id not in tx.run.requests:
        tx.put(SeenRequest(tx.item_id(), attributes.request_id))


def _readmit(tx: Transition, request: Request) -> None:
    if request.meta.update_id not in tx.run.updates:
        updates.admit(tx, request)


def _reapply_ending(tx: Transition, event: HistoryEvent) -> None:
    """Repeat the event by which a kept child or message was answered."""
    run = tx.run
    field = event.WhichOneof("attributes") or ""
    initiated_event_id = getattr(getattr(event, field, None), "initiated_event_id", 0)
    if field == _CHILD_STARTED:
        child = run.children.get(initiated_event_id)
        if child is not None and not child.key:
            child.started_event_id = _repeat(tx, event, field)
            child.run_id = (
                event.child_workflow_execution_started_event_attributes.workflow_execution.run_id
            )
            child.key = replay.UNKNOWN_KEY
            tx.put(child)
        return
    if field in _CHILD_ENDED:
        ended: Any = run.children.get(initiated_event_id)
    elif field in _SIGNAL_ENDED:
        ended = run.signals.get(initiated_event_id)
    elif field in _CANCEL_ENDED:
        ended = run.cancels.get(initiated_event_id)
    else:
        return
    if ended is not None:
        _repeat(tx, event, field, getattr(ended, "started_event_id", 0))
        tx.drop(ended)


def _repeat(tx: Transition, event: HistoryEvent, field: str, started_event_id: int = 0) -> int:
    attributes: Message = getattr(event, field)
    if started_event_id and hasattr(attributes, "started_event_id"):
        changed: Any = type(attributes)()
        changed.CopyFrom(attributes)
        changed.started_event_id = started_event_id
        attributes = changed
    return tx.append(event.event_type, attributes)


# -- what is still to be done ----------------------------------------------------------------------


def _send_again(tx: Transition, base: Execution, kept: Sequence[HistoryEvent]) -> None:
    """Send the kept messages to other runs that nobody has answered.

    A child that the base run is just starting keeps its ids: if it starts for the old run after
    all, the new run's message finds it and takes it over.
    """
    run = tx.run
    for child in run.children.values():
        if child.key:
            continue
        known = base.children.get(child.initiated_event_id)
        child.run_id = known.run_id if known is not None else tx.new_id()
        child.request_id = known.request_id if known is not None else tx.new_id()
        event = kept[child.initiated_event_id - 1]
        metadata = event.user_metadata.SerializeToString()
        tx.messages.append(
            children.start_message(
                child, event.start_child_workflow_execution_initiated_event_attributes, metadata
            )
        )
    for signal in run.signals.values():
        signal.request_id = tx.new_id()
        event = kept[signal.initiated_event_id - 1]
        tx.messages.append(
            external.signal_message(
                signal, event.signal_external_workflow_execution_initiated_event_attributes
            )
        )
    for cancel in run.cancels.values():
        cancel.request_id = tx.new_id()
        event = kept[cancel.initiated_event_id - 1]
        tx.messages.append(
            external.cancel_message(
                cancel, event.request_cancel_external_workflow_execution_initiated_event_attributes
            )
        )
