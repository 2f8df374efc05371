"""One step of a run: what an operation changed, gathered for one atomic write.

The service makes a ``Transition`` over a cached ``Execution``, calls operations of the engine on
it, hands out the tasks they made, and turns it into one ``store.Write``. An event is serialised
once, here, already framed as the field ``events`` of a ``History`` message, so that a history
response is nothing but stored blobs joined.
"""

from __future__ import annotations

import random
import uuid
from typing import Any

import msgspec
from google.protobuf.message import Message
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from perdure.api import wire
from perdure.engine.execution import Execution
from perdure.engine.limits import DEFAULT
from perdure.engine.state import AnyItem, BufferedEvent

_FRAME = wire.tag(1, wire.LENGTH_DELIMITED)  # History.events
_EVENT_ID = wire.tag(1, wire.VARINT)
_EVENT_TIME = wire.tag(2, wire.LENGTH_DELIMITED)
_EVENT_TYPE = wire.tag(3, wire.VARINT)


def _attribute_tags() -> dict[int, bytes]:
    """EventType number → the tag of its attributes' field in HistoryEvent."""
    oneof = HistoryEvent.DESCRIPTOR.oneofs_by_name["attributes"]
    by_name = {field.name: field.number for field in oneof.fields}
    tags = {}
    for name, event_type in EventType.items():
        field = name.removeprefix("EVENT_TYPE_").lower() + "_event_attributes"
        if field in by_name:
            tags[int(event_type)] = wire.tag(by_name[field], wire.LENGTH_DELIMITED)
    return tags


_ATTRIBUTES = _attribute_tags()
_TYPE_AND_ATTRIBUTES = {
    number: _EVENT_TYPE + wire.varint(number) + key for number, key in _ATTRIBUTES.items()
}


def frame(event_id: int, time_field: bytes, event_type: int, body: bytes, extra: bytes) -> bytes:
    """One event, framed as the field ``events`` of a History message."""
    varints = wire.VARINTS
    key = _TYPE_AND_ATTRIBUTES[event_type]
    event = _EVENT_ID + varints[event_id] + time_field + key + varints[len(body)] + body + extra
    return _FRAME + varints[len(event)] + event


def unwritten(event_id: int, time_ns: int, event_type: int, body: bytes) -> bytes:
    """An event that a worker is shown though history does not hold it (yet)."""
    return frame(event_id, wire.block(_EVENT_TIME, wire.time_body(time_ns)), event_type, body, b"")


class TaskRef(msgspec.Struct, gc=False):
    """A task that became ready: kind 1 workflow, 2 activity (TaskQueueType).

    ``rank`` is its place in the queue if it has waited there already.
    """

    kind: int
    queue: str
    scheduled_event_id: int
    stamp: int
    rank: int = 0


class Transition:
    """The changes of one or more operations on one run, made at one moment.

    Attributes:
        run: the execution, changed in place; if the write fails the service drops it and reloads.
        now_ns: the moment, for all events of the transition.
        random: where ids and jitter come from.
        parts: the new events, one framed blob each, in order of event id from first_event_id.
        tasks: tasks that became ready, for the service to match or store.
        handed_out: tasks that workers took: (kind, scheduled event id, request id).
        messages: work for other runs (engine.outbox structs), stored in the same transaction.
        successor: how to start the run that follows (continue-as-new, retry, cron), or None.
        closed: the run closed in this transition.
        visible: the record that list shows has changed.
        answering: the commands of a workflow task are being applied; a task that one of them makes
            necessary waits until all are (`wants_task`).
        update_results: (update id, stage, outcome) for callers that wait.
    """

    __slots__ = (
        "_first_event_id",
        "_time_field",
        "answering",
        "based_on",
        "changed",
        "closed",
        "dropped",
        "handed_out",
        "limits",
        "messages",
        "messages_done",
        "now_ns",
        "parts",
        "random",
        "run",
        "successor",
        "tasks",
        "update_results",
        "visible",
        "wake_changed",
        "wants_task",
    )

    def __init__(self, run: Execution, now_ns: int, rng: random.Random) -> None:
        self.run = run
        self.now_ns = now_ns
        self.random = rng
        self.limits = DEFAULT
        self.based_on = run.state.version
        self._first_event_id = run.state.next_event_id
        self.parts: list[bytes] = []
        time_body = wire.time_body(now_ns)
        self._time_field = _EVENT_TIME + wire.VARINTS[len(time_body)] + time_body
        self.changed: dict[int, AnyItem] = {}
        self.dropped: dict[int, None] = {}
        self.tasks: list[TaskRef] = []
        self.handed_out: list[tuple[int, int, str]] = []
        self.messages: list[Any] = []
        self.messages_done: list[int] = []
        self.successor: Any = None
        self.closed = False
        self.visible = False
        self.wake_changed = False
        self.answering = False
        self.wants_task = False
        self.update_results: list[tuple[str, int, bytes]] = []

    # -- events ------------------------------------------------------------------------------------

    def append(self, event_type: int, attributes: Message | bytes, extra: bytes = b"") -> int:
        """Add an event to history and return its id. `extra`: serialised HistoryEvent fields."""
        body = attributes if isinstance(attributes, bytes) else attributes.SerializeToString()
        state = self.run.state
        event_id = state.next_event_id
        assert event_id > 0
        state.next_event_id = event_id + 1
        framed = frame(event_id, self._time_field, event_type, body, extra)
        state.history_size_bytes += len(framed)
        self.parts.append(framed)
        return event_id

    def record(
        self,
        event_type: int,
        attributes: Message | bytes,
        *,
        answers: int = 0,
        extra: bytes = b"",
    ) -> int:
        """Add an event from outside: buffered (and 0 returned) while a workflow task runs.

        What a command of an answer brings about comes after the events of all its commands, so it
        is buffered too. `answers`: the scheduled or initiated event that this one answers, if any.
        """
        task = self.run.state.workflow_task
        if (task is None or not task.started_ns) and not self.answering:
            return self.append(event_type, attributes, extra)
        body = attributes if isinstance(attributes, bytes) else attributes.SerializeToString()
        self.put(BufferedEvent(self.item_id(), event_type, body, self.now_ns, answers, extra))
        return 0

    def append_buffered(self, event: BufferedEvent, attributes: bytes) -> int:
        """Move a buffered event into history, under the time at which it arrived."""
        self.drop(event)
        now_field = self._time_field
        self._time_field = wire.block(_EVENT_TIME, wire.time_body(event.time_ns))
        try:
            return self.append(event.event_type, attributes, event.extra)
        finally:
            self._time_field = now_field

    def precede(self, parts: list[bytes]) -> None:
        """Begin with events made elsewhere: the kept history, framed one by one, of a reset run."""
        assert not self.parts, "history comes before what the transition adds"
        self._first_event_id = 1
        self.parts.extend(parts)

    @property
    def first_event_id(self) -> int:
        """The id of the first event this transition appended (or would)."""
        return self._first_event_id

    @property
    def events(self) -> bytes:
        """The new events, framed as a History message."""
        return b"".join(self.parts)

    @property
    def has_events(self) -> bool:
        return bool(self.parts)

    # -- items -------------------------------------------------------------------------------------

    def item_id(self) -> int:
        """A fresh item id."""
        state = self.run.state
        state.next_item_id += 1
        return state.next_item_id - 1

    def freed_item_id(self) -> int:
        """The id of an item that this transition dropped, so that its row is written over.

        A fresh one if there is none. Not for items whose ids tell their order.
        """
        return self.dropped.popitem()[0] if self.dropped else self.item_id()

    def put(self, item: AnyItem) -> None:
        """Add an item, or note that one has changed."""
        if item.id not in self.run.items:
            self.run.index(item)
        self.changed[item.id] = item

    def drop(self, item: AnyItem) -> None:
        """Remove an item."""
        self.run.forget(item)
        self.changed.pop(item.id, None)
        self.dropped[item.id] = None  # a delete of a row that was never written costs nothing

    # -- time and chance ---------------------------------------------------------------------------

    def wake_at(self, time_ns: int) -> None:
        """Make sure that the run is looked at by then. 0 is ignored."""
        state = self.run.state
        if time_ns and (not state.wake_at_ns or time_ns < state.wake_at_ns):
            state.wake_at_ns = time_ns
            self.wake_changed = True

    def new_id(self) -> str:
        """A fresh UUID from the transition's own randomness."""
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))
