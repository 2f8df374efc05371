"""What workflow code asked for: one record per command, matched later with its recorded event."""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any, Final

from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import EventType

EVENT_NAMES: Final[dict[int, str]] = {
    number: "".join(word.capitalize() for word in name.removeprefix("EVENT_TYPE_").split("_"))
    for name, number in EventType.items()
}
"""`EventType` numbers to the names that Temporal's tools print, such as ActivityTaskScheduled."""


class Record:
    """One command.

    Attributes:
        event_type: the event that it leaves in history.
        key: what must be equal in the event: ids and type names.
        message: the command to send; None while replaying, where nothing is sent.
        owner: who wants to know the recorded event's id: its `recorded(event_id)` is called.
        dropped: taken back before it was sent.
        batch: number of the completion that carries it.
        where: code and line of the user's call; only known while replaying.
    """

    __slots__ = ("batch", "dropped", "event_type", "key", "message", "owner", "where")

    def __init__(
        self,
        event_type: int,
        key: tuple[object, ...],
        message: Command | None,
        owner: Any,
        batch: int,
        where: tuple[CodeType, int] | None,
    ) -> None:
        self.event_type = event_type
        self.key = key
        self.message = message
        self.owner = owner
        self.batch = batch
        self.where = where
        self.dropped = False

    @property
    def place(self) -> str:
        """File and line of the user's call, or ""."""
        if self.where is None:
            return ""
        code, line = self.where
        return f"{code.co_filename}:{line} in {code.co_qualname}"

    def describe(self) -> str:
        """The event this command would leave, for people."""
        return describe(self.event_type, self.key)


_KEY_NAMES: Final[dict[int, tuple[str, ...]]] = {
    EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED: ("activity_id", "activity_type"),
    EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED: ("scheduled_event_id",),
    EventType.EVENT_TYPE_TIMER_STARTED: ("timer_id",),
    EventType.EVENT_TYPE_TIMER_CANCELED: ("timer_id",),
    EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED: (
        "workflow_id",
        "workflow_type",
    ),
    EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED: (
        "workflow_id",
        "signal_name",
    ),
    EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED: ("workflow_id",),
    EventType.EVENT_TYPE_MARKER_RECORDED: ("marker_name", "id"),
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED: ("update_id",),
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED: ("update_id",),
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW: ("workflow_type",),
}


def describe(event_type: int, key: tuple[object, ...]) -> str:
    """An event's type and key attributes, for people."""
    names = _KEY_NAMES.get(event_type, ())
    pairs = ", ".join(f"{name}={value!r}" for name, value in zip(names, key, strict=False))
    name = EVENT_NAMES.get(event_type, str(event_type))
    return f"{name} ({pairs})" if pairs else name


_OWN_MODULES: Final = ("perdure.sdk", "asyncio")


def user_place() -> tuple[CodeType, int] | None:
    """Code and line of the nearest caller that is neither asyncio nor this package."""
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(_OWN_MODULES):
            return frame.f_code, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None
