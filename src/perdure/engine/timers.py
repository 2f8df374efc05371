"""Timers: started and cancelled by commands, fired by alarms."""

from __future__ import annotations

from temporalio.api.command.v1 import StartTimerCommandAttributes
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import (
    TimerCanceledEventAttributes,
    TimerFiredEventAttributes,
    TimerStartedEventAttributes,
)

from perdure.api.times import duration_ns
from perdure.engine import workflow_tasks
from perdure.engine.execution import Execution
from perdure.engine.state import BufferedEvent, Timer
from perdure.engine.transition import Transition

_FIRED = EventType.EVENT_TYPE_TIMER_FIRED


def start(
    tx: Transition, command: StartTimerCommandAttributes, completed_event_id: int, extra: bytes
) -> None:
    """Apply a validated StartTimer command."""
    event = TimerStartedEventAttributes(
        timer_id=command.timer_id, workflow_task_completed_event_id=completed_event_id
    )
    if command.HasField("start_to_fire_timeout"):
        event.start_to_fire_timeout.CopyFrom(command.start_to_fire_timeout)
    event_id = tx.append(EventType.EVENT_TYPE_TIMER_STARTED, event, extra)
    due_ns = tx.now_ns + duration_ns(command.start_to_fire_timeout)
    tx.put(Timer(tx.freed_item_id(), event_id, command.timer_id, due_ns))
    tx.wake_at(due_ns)


def buffered_fire(run: Execution, timer_id: str) -> BufferedEvent | None:
    """The buffered event of a timer that fired while the present workflow task ran."""
    for event in run.buffered.values():
        if event.event_type != _FIRED:
            continue
        if TimerFiredEventAttributes.FromString(event.attributes).timer_id == timer_id:
            return event
    return None


def cancel(tx: Transition, timer_id: str, completed_event_id: int, identity: str) -> None:
    """Apply a validated CancelTimer command; one that fired unseen counts as cancelled."""
    timer = tx.run.timers.get(timer_id)
    if timer is not None:
        started_event_id = timer.started_event_id
        tx.drop(timer)
    else:
        fired = buffered_fire(tx.run, timer_id)
        assert fired is not None, timer_id
        started_event_id = fired.initiated_event_id
        tx.drop(fired)
    event = TimerCanceledEventAttributes(
        timer_id=timer_id,
        started_event_id=started_event_id,
        workflow_task_completed_event_id=completed_event_id,
        identity=identity,
    )
    tx.append(EventType.EVENT_TYPE_TIMER_CANCELED, event)


def fire(tx: Transition, timer: Timer) -> None:
    """The timer is due."""
    event = TimerFiredEventAttributes(
        timer_id=timer.timer_id, started_event_id=timer.started_event_id
    )
    tx.drop(timer)
    tx.record(_FIRED, event, answers=timer.started_event_id)
    workflow_tasks.ensure_scheduled(tx)
