"""Events that arrived while a workflow task ran, on their way into history."""

from __future__ import annotations

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import (
    ActivityTaskCanceledEventAttributes,
    ActivityTaskCompletedEventAttributes,
    ActivityTaskFailedEventAttributes,
    ActivityTaskTimedOutEventAttributes,
)

from perdure.api import wire
from perdure.engine.events import field
from perdure.engine.transition import Transition

_STARTED_FIELD = {
    int(EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED): field(
        ActivityTaskCompletedEventAttributes, "started_event_id"
    ),
    int(EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED): field(
        ActivityTaskFailedEventAttributes, "started_event_id"
    ),
    int(EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT): field(
        ActivityTaskTimedOutEventAttributes, "started_event_id"
    ),
    int(EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED): field(
        ActivityTaskCanceledEventAttributes, "started_event_id"
    ),
}
_LAST = frozenset(_STARTED_FIELD) | {
    int(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED),
    int(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED),
    int(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT),
    int(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED),
    int(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED),
}
_ACTIVITY_STARTED = int(EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED)


def flush(tx: Transition) -> bool:
    """Move all buffered events into history; False when there are none.

    They keep their order, but ends of activities and children go after all others, so that each
    comes after its beginning. An end that was buffered together with its beginning gets the id of
    that event here: protobuf's last value of a field wins, so it is enough to append it.
    """
    if not tx.run.buffered:
        return False
    from perdure.engine import children  # children schedules workflow tasks, which flush

    buffered = list(tx.run.buffered.values())
    started: dict[int, int] = {}
    for event in sorted(buffered, key=lambda one: one.event_type in _LAST):
        if children.flush(tx, event, started):
            continue
        attributes = event.attributes
        tag = _STARTED_FIELD.get(event.event_type)
        if tag is not None and event.initiated_event_id in started:
            attributes += wire.number(tag, started[event.initiated_event_id])
        event_id = tx.append_buffered(event, attributes)
        if event.event_type == _ACTIVITY_STARTED:
            started[event.initiated_event_id] = event_id
    return True
