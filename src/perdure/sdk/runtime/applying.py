"""What each event of a history does to a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from perdure.api.times import timestamp_ns
from perdure.sdk.runtime import closing
from perdure.sdk.runtime.info import WorkflowInfo
from perdure.sdk.runtime.loop import first_hash
from perdure.sdk.search_attributes import SearchAttributes

if TYPE_CHECKING:
    from perdure.sdk.runtime.run import Run


def _execution_started(run: Run, event: HistoryEvent) -> None:
    attributes = event.workflow_execution_started_event_attributes
    run.start_ns = run.now_ns = timestamp_ns(event.event_time)
    seed = attributes.original_execution_run_id or run.run_id
    run.streams.reseed(seed)
    run.loop.restart(first_hash(seed))
    run.info = WorkflowInfo(run, attributes)
    run.task_queue = attributes.task_queue.name or run.task_queue
    run.memo_payloads = dict(attributes.memo.fields)
    if attributes.HasField("search_attributes"):
        run.search_attributes = dict(SearchAttributes.from_message(attributes.search_attributes))
    closing.prepare(run, attributes)


def _cancel_requested(run: Run, event: HistoryEvent) -> None:
    run.cancel_requested = True
    run.cancel_reason = event.workflow_execution_cancel_requested_event_attributes.cause
    if run.main is not None:
        run.main.cancel()


def _task_failed(run: Run, event: HistoryEvent) -> None:
    attributes = event.workflow_task_failed_event_attributes
    if attributes.new_run_id:  # a reset: what follows must not repeat the ids of the other branch
        run.streams.reseed(attributes.new_run_id)


APPLY: Final[dict[int, Callable[[Run, HistoryEvent], None]]] = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED: _execution_started,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED: _cancel_requested,
    EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED: _task_failed,
    EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: lambda r, e: r.activities.completed(e),
    EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED: lambda r, e: r.activities.failed(e),
    EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT: lambda r, e: r.activities.timed_out(e),
    EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED: lambda r, e: r.activities.canceled(e),
    EventType.EVENT_TYPE_TIMER_FIRED: lambda r, e: r.timers.fired(e),
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED: lambda r, e: r.handlers.signaled(e),
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED: lambda r, e: r.updates.admitted(e),
    EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED: (
        lambda r, e: r.children.start_failed(e)
    ),
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED: lambda r, e: r.children.started(e),
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED: lambda r, e: r.children.completed(e),
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED: lambda r, e: r.children.failed(e),
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED: lambda r, e: r.children.canceled(e),
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT: lambda r, e: r.children.timed_out(e),
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED: (
        lambda r, e: r.children.terminated(e)
    ),
    EventType.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED: lambda r, e: r.externals.signaled(e),
    EventType.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED: (
        lambda r, e: r.externals.cancel_delivered(e)
    ),
    EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED: (
        lambda r, e: r.externals.signal_failed(e)
    ),
    EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED: (
        lambda r, e: r.externals.cancel_failed(e)
    ),
}
"""What each event does to a run; events that are not here tell it nothing."""

IGNORED: Final = frozenset(
    (
        EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED,
        EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED,
        EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED,
        EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED,
    )
)
"""The most frequent of those that tell it nothing."""

FIRST: Final = frozenset(
    (
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
    )
)
"""Events that are taken in before all others of their workflow task."""
