"""What the acceptance tests share: histories as words, and failures as plain values."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from perdure import WorkflowHandle

_TASK = ["WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskCompleted"]


def name(event: HistoryEvent) -> str:
    """The event's type as people write it, e.g. "TimerStarted"."""
    words = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")
    return "".join(word.capitalize() for word in words.split("_"))


async def events(handle: WorkflowHandle[Any]) -> Sequence[HistoryEvent]:
    """All events of the handle's run."""
    return (await handle.fetch_history()).events


def attributes(event: HistoryEvent) -> Any:
    """The event's attributes, whatever its type."""
    return getattr(event, str(event.WhichOneof("attributes")))


async def find(handle: WorkflowHandle[Any], kind: str) -> Any:
    """The attributes of the run's only event of a type."""
    (event,) = [event for event in await events(handle) if name(event) == kind]
    return attributes(event)


async def story(handle: WorkflowHandle[Any]) -> list[str]:
    """The run's event types in order; a workflow task without trouble is one word, "Task"."""
    words = [name(event) for event in await events(handle)]
    told: list[str] = []
    while words:
        if words[:3] == _TASK:
            told.append("Task")
            del words[:3]
        else:
            told.append(words.pop(0).removeprefix("WorkflowExecution"))
    return told


async def until(handle: WorkflowHandle[Any], word: str, times: int = 1) -> None:
    """Wait until the run's story has a word so often."""
    while (await story(handle)).count(word) < times:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def chain(error: BaseException | None) -> list[str]:
    """An error and its causes: "ClassName: message" each."""
    told: list[str] = []
    while error is not None:
        told.append(f"{type(error).__name__}: {getattr(error, 'message', error)}")
        error = error.__cause__
    return told
