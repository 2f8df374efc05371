"""One run in memory: its immutable info, its hot state, its items and indexes over them."""

from __future__ import annotations

from collections.abc import Iterable

from temporalio.api.enums.v1 import WorkflowExecutionStatus

from perdure.engine.state import (
    Activity,
    AnyItem,
    BufferedEvent,
    Child,
    ExternalCancel,
    ExternalSignal,
    Pause,
    RunInfo,
    RunState,
    SeenRequest,
    StartAttributes,
    Timer,
    Update,
)

_PAUSED = int(WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED)
_OPEN = frozenset(
    int(status)
    for status in (
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING,
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED,
    )
)


class Execution:
    """A run's present. Changed only by operations, through a ``Transition``.

    Attributes:
        key: the store's number of this run.
        info: what the start decided.
        state: the hot part.
        memo, attributes: serialised Memo and SearchAttributes, as last upserted.
    """

    __slots__ = (
        "activities",
        "activity_ids",
        "attributes",
        "buffered",
        "cancels",
        "children",
        "info",
        "items",
        "key",
        "memo",
        "pause",
        "requests",
        "signals",
        "start_attributes",
        "state",
        "timers",
        "updates",
    )

    def __init__(
        self,
        key: int,
        info: RunInfo,
        state: RunState,
        items: Iterable[AnyItem] = (),
        *,
        memo: bytes = b"",
        attributes: bytes = b"",
    ) -> None:
        self.key = key
        self.info = info
        self.state = state
        self.memo = memo
        self.attributes = attributes
        self.items: dict[int, AnyItem] = {}
        self.activities: dict[int, Activity] = {}  # by scheduled event id
        self.activity_ids: dict[str, Activity] = {}
        self.timers: dict[str, Timer] = {}
        self.children: dict[int, Child] = {}  # by initiated event id
        self.signals: dict[int, ExternalSignal] = {}  # by initiated event id
        self.cancels: dict[int, ExternalCancel] = {}  # by initiated event id
        self.updates: dict[str, Update] = {}
        self.buffered: dict[int, BufferedEvent] = {}  # by item id: in order of arrival
        self.requests: dict[str, SeenRequest] = {}
        self.start_attributes: StartAttributes | None = None
        self.pause: Pause | None = None
        for item in items:
            self.index(item)

    @property
    def is_open(self) -> bool:
        return self.state.status in _OPEN

    @property
    def is_held(self) -> bool:
        """Paused: no worker gets a task of it."""
        return self.state.status == _PAUSED

    @property
    def in_flight(self) -> bool:
        """Whether a worker that dies with a node's process holds a task of the run."""
        task = self.state.workflow_task
        if task is not None and task.in_process and task.started_ns:
            return True
        return self.state.in_process_activities > 0

    def is_in_flight_at(self, node: int) -> bool:
        """The same for workers of one node."""
        task = self.state.workflow_task
        if task is not None and task.in_process and task.started_ns and task.holder == node:
            return True
        return any(
            activity.in_process and activity.holder == node for activity in self.activities.values()
        )

    def index(self, item: AnyItem) -> None:
        """Take an item in."""
        self.items[item.id] = item
        match item:
            case Activity():
                self.activities[item.scheduled_event_id] = item
                self.activity_ids[item.activity_id] = item
            case Timer():
                self.timers[item.timer_id] = item
            case Child():
                self.children[item.initiated_event_id] = item
            case ExternalSignal():
                self.signals[item.initiated_event_id] = item
            case ExternalCancel():
                self.cancels[item.initiated_event_id] = item
            case Update():
                self.updates[item.update_id] = item
            case BufferedEvent():
                self.buffered[item.id] = item
            case SeenRequest():
                self.requests[item.request_id] = item
            case StartAttributes():
                self.start_attributes = item
            case Pause():
                self.pause = item

    def forget(self, item: AnyItem) -> None:
        """Take an item out."""
        del self.items[item.id]
        match item:
            case Activity():
                del self.activities[item.scheduled_event_id]
                del self.activity_ids[item.activity_id]
            case Timer():
                del self.timers[item.timer_id]
            case Child():
                del self.children[item.initiated_event_id]
            case ExternalSignal():
                del self.signals[item.initiated_event_id]
            case ExternalCancel():
                del self.cancels[item.initiated_event_id]
            case Update():
                del self.updates[item.update_id]
            case BufferedEvent():
                del self.buffered[item.id]
            case SeenRequest():
                del self.requests[item.request_id]
            case StartAttributes():
                self.start_attributes = None
            case Pause():
                self.pause = None
