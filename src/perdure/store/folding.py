"""A batch of units as rows for each statement of a store, folded: the last write of a row wins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from perdure.store.contract import MessageRow, Record, TaskRow, Unit, Write

ITEM_BITS = 24
MAX_ITEM_ID = (1 << ITEM_BITS) - 1

WorkflowId = tuple[str, str]  # namespace, workflow id

encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder(dict[str, str | int | float | bool | list[str] | None]).decode


class Conflict(Exception):
    """A unit cannot be written because the database holds something else than it assumes."""


def item_row_id(key: int, item_id: int) -> int:
    """The row of a run's item, as one number."""
    assert key > 0, key
    assert 0 <= item_id <= MAX_ITEM_ID, item_id
    return key << ITEM_BITS | item_id


@dataclass(slots=True)
class FoldedState:
    """Several writes to one run, folded into one."""

    based_on: int
    write: Write
    wake_changed: bool


@dataclass(slots=True)
class Rows:
    """What a batch writes. Items are by `item_row_id`; None stands for one to drop.

    ``follows`` has the new runs of which the store must see whether they follow its last one; those
    that follow a run of the batch are not among them.
    """

    states: dict[int, FoldedState] = field(default_factory=dict)
    records: dict[int, Record] = field(default_factory=dict)
    history: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    items: dict[int, bytes | None] = field(default_factory=dict)
    tasks: list[TaskRow] = field(default_factory=list)
    drop_tasks: list[int] = field(default_factory=list)
    messages: list[MessageRow] = field(default_factory=list)
    drop_messages: list[int] = field(default_factory=list)
    follows: dict[int, int] = field(default_factory=dict)
    _started: dict[WorkflowId, int] = field(default_factory=dict)

    def add(self, write: Write) -> None:
        """Take one write in; raises Conflict when it does not follow the run's former one here."""
        key = write.key
        self._add_state(write)
        if write.record is not None:
            assert write.record.key == key, (write.record.key, key)
            self.records[key] = write.record
        if write.events:
            assert 0 < write.first_event_id <= write.last_event_id, key
            self.history.append((key, write.first_event_id, write.last_event_id, write.events))
        for item_id in write.drop_items:
            self.items[item_row_id(key, item_id)] = None
        for item_id, body in write.put_items:
            self.items[item_row_id(key, item_id)] = body
        self.tasks += write.put_tasks
        self.drop_tasks += write.drop_tasks
        self.messages += write.put_messages
        self.drop_messages += write.drop_messages

    def _add_state(self, write: Write) -> None:
        assert write.version > write.based_on >= 0, write.key
        former = self.states.get(write.key)
        if former is None:
            assert write.key > 0, write.key
            if not write.based_on:
                self._add_start(write)
            self.states[write.key] = FoldedState(write.based_on, write, write.wake_changed)
            return
        if former.write.version != write.based_on:
            raise Conflict
        if former.wake_changed and not write.wake_changed:
            write = msgspec.structs.replace(write, wake_at_ns=former.write.wake_at_ns)
        self.states[write.key] = FoldedState(
            former.based_on, write, former.wake_changed or write.wake_changed
        )

    def _add_start(self, write: Write) -> None:
        record = write.record
        assert record is not None, "a new run needs its record"
        workflow = (record.namespace, record.workflow_id)
        last = self._started.get(workflow)
        self._started[workflow] = write.key
        if write.follows is None:
            return
        if last is None:
            self.follows[write.key] = write.follows
        elif last != write.follows:
            raise Conflict


def fold(units: Iterable[Unit]) -> Rows:
    """All writes of all units; raises Conflict when they do not follow each other."""
    rows = Rows()
    for unit in units:
        for write in unit:
            rows.add(write)
    return rows


def attributes_json(record: Record) -> str:
    """A record's search attributes as stores keep them."""
    return encode_json(record.search_attributes).decode() if record.search_attributes else "{}"


def attributes_of(text: str) -> dict[str, str | int | float | bool | list[str]]:
    """Search attributes from what stores keep.

    A null counts as no value: former versions let numbers pass that are not finite, which JSON does
    not have.
    """
    if text == "{}":
        return {}
    return {name: value for name, value in _decode_json(text).items() if value is not None}
