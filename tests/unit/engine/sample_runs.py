"""Runs in the middle of their life, for tests of one operation, and readers of what it did."""

from __future__ import annotations

import random

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import History, HistoryEvent

from perdure.engine.execution import Execution
from perdure.engine.state import RunInfo, RunState, WorkflowTask
from perdure.engine.transition import Transition

NOW_NS = 1_700_000_000_000_000_000


def info(**changes: object) -> RunInfo:
    """The info of a plain run of "flow-1"."""
    values: dict[str, object] = {
        "namespace": "default",
        "namespace_id": "ns-id",
        "workflow_id": "flow-1",
        "run_id": "00000000-0000-4000-8000-00000000000a",
        "first_run_id": "00000000-0000-4000-8000-00000000000a",
        "original_run_id": "00000000-0000-4000-8000-00000000000a",
        "workflow_type": "Flow",
        "task_queue": "orders",
        "start_request_id": "start-1",
        "start_ns": NOW_NS,
    }
    return RunInfo(**{**values, **changes})  # type: ignore[arg-type]


def a_run(next_event_id: int = 5, **changes: object) -> Execution:
    """An open run between two workflow tasks: events 1 to 4 are written, nothing is pending."""
    state = RunState(next_event_id=next_event_id, version=1)
    state.last_task_started_event_id = 3
    state.last_task_completed_event_id = 4
    return Execution(1, info(**changes), state)


def give_task(run: Execution, *, started: bool) -> None:
    """Put a workflow task into the run, as if scheduled (and started) by the next events."""
    state = run.state
    scheduled = state.next_event_id
    state.workflow_task = WorkflowTask(scheduled, NOW_NS, run.info.task_queue)
    state.next_event_id += 1
    if started:
        state.workflow_task.started_event_id = scheduled + 1
        state.workflow_task.started_ns = NOW_NS
        state.next_event_id += 1


def step(run: Execution, seed: int = 1) -> Transition:
    """A transition over the run, one second on."""
    return Transition(run, NOW_NS + 1_000_000_000, random.Random(seed))


def events(tx: Transition) -> list[HistoryEvent]:
    """The events that the transition appended."""
    return list(History.FromString(tx.events).events)


def types(tx: Transition) -> list[str]:
    """Their types, without the prefix."""
    return [EventType.Name(e.event_type).removeprefix("EVENT_TYPE_") for e in events(tx)]


class Story:
    """A history in the making: one event a second from the run's start on."""

    def __init__(self) -> None:
        self.events: list[HistoryEvent] = []

    def add(self, kind: str, **attributes: object) -> int:
        """Append an event, e.g. add("timer_started", timer_id="1"); its id."""
        event_id = len(self.events) + 1
        event = HistoryEvent(event_id=event_id, event_type=EventType.Value(_type_name(kind)))
        event.event_time.FromNanoseconds(NOW_NS + event_id * 1_000_000_000)
        field = getattr(event, f"{kind}_event_attributes")
        field.SetInParent()
        field.MergeFrom(type(field)(**attributes))
        self.events.append(event)
        return event_id

    def begin(self, **attributes: object) -> Story:
        """The start and a first workflow task: events 1 to 4."""
        self.add("workflow_execution_started", **attributes)
        self.task()
        return self

    def schedule(self, attempt: int = 1) -> int:
        return self.add(
            "workflow_task_scheduled",
            task_queue={"name": "orders", "kind": 1},
            attempt=attempt,
            start_to_close_timeout={"seconds": 10},
        )

    def task(self, attempt: int = 1) -> int:
        """A whole workflow task; the id of its completed event."""
        scheduled = self.schedule(attempt)
        started = self.add(
            "workflow_task_started", scheduled_event_id=scheduled, request_id="r", identity="w"
        )
        return self.add(
            "workflow_task_completed", scheduled_event_id=scheduled, started_event_id=started
        )


def _type_name(kind: str) -> str:
    return "EVENT_TYPE_" + kind.upper()
