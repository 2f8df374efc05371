"""History cut into the steps in which workflow code saw it, and matched with commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from perdure.sdk.errors import NonDeterminismError
from perdure.sdk.runtime.commands import Record, describe
from perdure.sdk.runtime.markers import marker_id

_STARTED: Final = EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED
_COMPLETED: Final = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
_MARKER: Final = EventType.EVENT_TYPE_MARKER_RECORDED
_UPDATE_ACCEPTED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED


@dataclass(slots=True)
class Step:
    """The events between one workflow task's start and the next one's.

    Attributes:
        events: in order, the WorkflowTaskStarted that ends the step included.
        started: the workflow task's WorkflowTaskStarted; None for what follows the last task.
        replaying: the task was completed before, with the commands that follow in history.
        ahead: of a replayed task, the markers and accepted updates that it left in history.
    """

    events: list[HistoryEvent]
    started: HistoryEvent | None
    replaying: bool
    ahead: Sequence[HistoryEvent] = ()


def steps(events: Sequence[HistoryEvent], started_event_id: int) -> Iterable[Step]:
    """Cut events as the original execution saw them.

    A WorkflowTaskStarted counts only if its task was completed (the next event says so) or if it is
    the task in hand; the code never saw the end of tasks that timed out or failed.

    Args:
        started_event_id: the task in hand; 0 if there is none, as in a pure replay.
    """
    last = len(events) - 1
    kinds = [event.event_type for event in events]
    if last >= 0 and events[last].event_id == started_event_id and _STARTED not in kinds[:last]:
        return [Step(list(events), events[last], False)]  # one new task, as in nearly all calls
    return _looking_ahead(_cut(events, kinds, started_event_id))


def _cut(
    events: Sequence[HistoryEvent], kinds: Sequence[int], started_event_id: int
) -> Iterator[Step]:
    """Step by step, so that a long history is never all there as Python objects."""
    pending: list[HistoryEvent] = []
    last = len(kinds) - 1
    for index, event in enumerate(events):
        pending.append(event)
        if kinds[index] != _STARTED:
            continue
        replaying = index < last and kinds[index + 1] == _COMPLETED
        if replaying or event.event_id == started_event_id:
            yield Step(pending, event, replaying)
            pending = []
    if pending:
        yield Step(pending, None, True)


def _looking_ahead(found: Iterator[Step]) -> Iterator[Step]:
    """Give each step what the next one holds of its task."""
    step = next(found, None)
    while step is not None:
        following = next(found, None)
        if following is not None:
            step.ahead = [e for e in following.events if e.event_type in _LOOKED_AHEAD]
        yield step
        step = following


_LOOKED_AHEAD: Final = frozenset((_MARKER, _UPDATE_ACCEPTED))


# --- matching -----------------------------------------------------------------------------------


def _none(event: HistoryEvent) -> tuple[object, ...]:
    return ()


def _activity(event: HistoryEvent) -> tuple[object, ...]:
    attributes = event.activity_task_scheduled_event_attributes
    return attributes.activity_id, attributes.activity_type.name


def _activity_cancel(event: HistoryEvent) -> tuple[object, ...]:
    return (event.activity_task_cancel_requested_event_attributes.scheduled_event_id,)


def _timer(event: HistoryEvent) -> tuple[object, ...]:
    return (event.timer_started_event_attributes.timer_id,)


def _timer_cancel(event: HistoryEvent) -> tuple[object, ...]:
    return (event.timer_canceled_event_attributes.timer_id,)


def _child(event: HistoryEvent) -> tuple[object, ...]:
    attributes = event.start_child_workflow_execution_initiated_event_attributes
    return attributes.workflow_id, attributes.workflow_type.name


def _signal(event: HistoryEvent) -> tuple[object, ...]:
    attributes = event.signal_external_workflow_execution_initiated_event_attributes
    return attributes.workflow_execution.workflow_id, attributes.signal_name


def _cancel(event: HistoryEvent) -> tuple[object, ...]:
    attributes = event.request_cancel_external_workflow_execution_initiated_event_attributes
    return (attributes.workflow_execution.workflow_id,)


def _marker(event: HistoryEvent) -> tuple[object, ...]:
    attributes = event.marker_recorded_event_attributes
    return attributes.marker_name, marker_id(attributes)


def _accepted(event: HistoryEvent) -> tuple[object, ...]:
    return (event.workflow_execution_update_accepted_event_attributes.protocol_instance_id,)


def _update_completed(event: HistoryEvent) -> tuple[object, ...]:
    return (event.workflow_execution_update_completed_event_attributes.meta.update_id,)


def _continued(event: HistoryEvent) -> tuple[object, ...]:
    return (event.workflow_execution_continued_as_new_event_attributes.workflow_type.name,)


COMMAND_EVENTS: Final[dict[int, Callable[[HistoryEvent], tuple[object, ...]]]] = {
    EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED: _activity,
    EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED: _activity_cancel,
    EventType.EVENT_TYPE_TIMER_STARTED: _timer,
    EventType.EVENT_TYPE_TIMER_CANCELED: _timer_cancel,
    EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED: _child,
    EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED: _signal,
    EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED: _cancel,
    EventType.EVENT_TYPE_MARKER_RECORDED: _marker,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED: _accepted,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED: _update_completed,
    EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES: _none,
    EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED: _none,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED: _none,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED: _none,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED: _none,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW: _continued,
}
"""Events that commands leave in history, and what identifies each."""


def mismatch(event: HistoryEvent | None, record: Record | None, run: Any) -> NonDeterminismError:
    """The error that shows what history holds beside what the code did."""
    if event is None:
        held = "  history holds: nothing more from this workflow task"
    else:
        key = COMMAND_EVENTS[event.event_type](event)
        held = f"  history holds: event {event.event_id}, {describe(event.event_type, key)}"
    if record is None:
        did = "  the code did:  nothing at this point; it waits or has returned"
    else:
        did = f"  the code did:  {record.describe()}"
        if record.place:
            did += f"\n  at             {record.place}"
    return NonDeterminismError(
        f"workflow {run.type_name!r} (id {run.workflow_id!r}, run {run.run_id!r}) does not match "
        f"its history:\n{held}\n{did}\n"
        "The code was changed under an open run, or does something that differs from one execution "
        "to the next. Bring the old order back, or guard the change with workflow.patched(...)."
    )
