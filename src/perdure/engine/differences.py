"""State equals replay: where a run is not what its history says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from google.protobuf.message import Message
from temporalio.api.common.v1 import Memo, SearchAttributes
from temporalio.api.enums.v1 import EventType

from perdure.engine.execution import Execution
from perdure.engine.state import (
    Activity,
    AnyItem,
    Child,
    ExternalCancel,
    ExternalSignal,
    Timer,
    Update,
    WorkflowTask,
)

_SIGNALED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
_CANCEL_REQUESTED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED
_STATE_FIELDS: Final = (
    "status", "next_event_id", "close_event_id", "close_ns", "successor_run_id",
    "last_task_started_event_id", "last_task_completed_event_id", "update_count",
    "first_task_backoff_until_ns", "history_size_bytes",
)  # fmt: skip
_TASK_FIELDS: Final = ("scheduled_event_id", "started_event_id", "attempt", "queue", "sticky")
_ITEM_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "activities": (
        "activity_id", "activity_type", "queue", "input", "header", "schedule_to_close_ns",
        "schedule_to_start_ns", "start_to_close_ns", "heartbeat_ns", "cancel_requested",
        "workflow_task_completed_event_id",
    ),
    "timers": ("started_event_id", "due_ns"),
    "children": (
        "namespace", "workflow_id", "workflow_type", "parent_close_policy", "started_event_id",
    ),
    "signals": (),
    "cancels": (),
    "updates": ("accepted_event_id", "completed_event_id", "outcome"),
}  # fmt: skip


def differences(run: Execution, rebuilt: Execution) -> list[str]:
    """Where a run is not what its history says, one sentence each; [] when all agrees.

    Left out is what history does not hold. Items of a closed run, which nobody reads any more, are
    compared only where they have a lasting meaning (updates).
    """
    found = _compare("state", _STATE_FIELDS, run.state, rebuilt.state)
    found += _input_differences(run, rebuilt)
    found += _task_differences(run.state.workflow_task, rebuilt.state.workflow_task)
    kinds = _ITEM_FIELDS if run.is_open else {"updates": _ITEM_FIELDS["updates"]}
    for kind, fields in kinds.items():
        found += _item_differences(run, rebuilt, kind, fields)
    found += _map_differences("memo", Memo, run.memo, rebuilt.memo)
    found += _map_differences(
        "search attributes", SearchAttributes, run.attributes, rebuilt.attributes
    )
    return found


def _input_differences(run: Execution, rebuilt: Execution) -> list[str]:
    """Signals and cancel requests count when they arrive, though they may still be buffered."""
    arrived = [event.event_type for event in run.buffered.values()]
    signals = rebuilt.state.signal_count + arrived.count(_SIGNALED)
    cancelled = rebuilt.state.cancel_requested or _CANCEL_REQUESTED in arrived
    found = []
    if run.state.signal_count != signals:
        found.append(f"state.signal_count is {run.state.signal_count}, by history {signals}")
    if run.state.cancel_requested != cancelled:
        found.append(f"state.cancel_requested is not {cancelled}, as by history")
    return found


def _compare(what: str, fields: Iterable[str], left: msgspec.Struct, right: Any) -> list[str]:
    return [
        f"{what}.{field} is {getattr(left, field)!r}, by history {getattr(right, field)!r}"
        for field in fields
        if getattr(left, field) != getattr(right, field)
    ]


def _task_differences(task: WorkflowTask | None, by_history: WorkflowTask | None) -> list[str]:
    """A transient or speculative task is not in history, and hides nothing that is."""
    if task is not None and by_history is None and (task.attempt > 1 or task.speculative):
        return []
    if task is None or by_history is None:
        if task is by_history:
            return []
        return [f"workflow task is {task!r}, by history {by_history!r}"]
    fields: Iterable[str] = _TASK_FIELDS
    if by_history.sticky and not task.sticky:  # its worker is gone; that leaves no event
        fields = [field for field in fields if field not in ("queue", "sticky")]
    return _compare("workflow task", fields, task, by_history)


def _item_differences(
    run: Execution, rebuilt: Execution, kind: str, fields: tuple[str, ...]
) -> list[str]:
    left: dict[Any, Any] = getattr(run, kind)
    right: dict[Any, Any] = getattr(rebuilt, kind)
    found = [f"{kind}: {name!r} is pending, by history it is not" for name in left.keys() - right]
    answered = {e.initiated_event_id for e in run.buffered.values() if e.initiated_event_id}
    for name, item in right.items():
        if name in left:
            found += _compare(f"{kind}[{name!r}]", fields, left[name], item)
        elif not _may_be_gone(item, answered):
            found.append(f"{kind}: {name!r} is not pending, by history it is")
    return found


def _may_be_gone(item: AnyItem, answered: set[int]) -> bool:
    """Whether an item that history shows pending may have ended without an event.

    Its last event may be buffered; and a rejected update leaves none.
    """
    match item:
        case Activity():
            return item.scheduled_event_id in answered
        case Timer():
            return item.started_event_id in answered
        case Child() | ExternalSignal() | ExternalCancel():
            return item.initiated_event_id in answered
        case Update():
            return not item.accepted_event_id
        case _:
            return False


def _map_differences(what: str, kind: type[Message], left: bytes, right: bytes) -> list[str]:
    if left == right or kind.FromString(left) == kind.FromString(right):
        return []
    return [f"{what}: {kind.FromString(left)!r}, by history {kind.FromString(right)!r}"]
