"""A batch of units as rows for each statement, and their execution inside an open transaction.

The usual case has no conflict, so it is tried first, for the batch as a whole: all writes are
folded into one list of rows a statement, and the counts of changed rows tell whether every version
was the stored one. Only when something does not add up is the transaction rolled back and done
again unit by unit, each in a savepoint, to find out who has to stay outside.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from perdure.store.contract import Record, Unit, Write
from perdure.store.sqlite.statements import STATEMENTS as SQL

ITEM_BITS = 24
MAX_ITEM_ID = (1 << ITEM_BITS) - 1
MAX_KEY = (1 << (63 - ITEM_BITS)) - 1

_encode = msgspec.json.Encoder().encode


class Conflict(Exception):
    """A unit cannot be written because the database holds something else than it assumes."""


def item_row_id(key: int, item_id: int) -> int:
    """The row of a run's item."""
    assert 0 < key <= MAX_KEY, key
    assert 0 <= item_id <= MAX_ITEM_ID, item_id
    return key << ITEM_BITS | item_id


@dataclass(slots=True)
class _State:
    """Several writes to one run, folded into one."""

    based_on: int
    write: Write
    wake_changed: bool


@dataclass(slots=True)
class Rows:
    """What a batch writes, folded per row: the last write of a row wins."""

    states: dict[int, _State] = field(default_factory=dict)
    records: dict[int, Record] = field(default_factory=dict)
    history: list[tuple[int, int, int, int, bytes]] = field(default_factory=list)
    items: dict[int, bytes | None] = field(default_factory=dict)
    tasks: list[tuple[object, ...]] = field(default_factory=list)
    drop_tasks: list[tuple[int]] = field(default_factory=list)
    messages: list[tuple[int, int, bytes]] = field(default_factory=list)
    drop_messages: list[tuple[int]] = field(default_factory=list)

    def add(self, write: Write, position: Callable[[], int]) -> None:
        """Take one write in; raises Conflict when it does not follow the run's former one here."""
        key = write.key
        self._add_state(write)
        if write.record is not None:
            assert write.record.key == key, (write.record.key, key)
            self.records[key] = write.record
        if write.events:
            assert 0 < write.first_event_id <= write.last_event_id, key
            self.history.append(
                (position(), key, write.first_event_id, write.last_event_id, write.events)
            )
        for item_id in write.drop_items:
            self.items[item_row_id(key, item_id)] = None
        for item_id, body in write.put_items:
            self.items[item_row_id(key, item_id)] = body
        for task in write.put_tasks:
            self.tasks.append(msgspec.structs.astuple(task))
        for task_id in write.drop_tasks:
            self.drop_tasks.append((task_id,))
        for message in write.put_messages:
            self.messages.append((message.id, message.key, message.body))
        for message_id in write.drop_messages:
            self.drop_messages.append((message_id,))

    def _add_state(self, write: Write) -> None:
        assert write.version > write.based_on >= 0, write.key
        former = self.states.get(write.key)
        if former is None:
            assert 0 < write.key <= MAX_KEY, write.key
            assert write.based_on or write.record is not None, "a new run needs its record"
            self.states[write.key] = _State(write.based_on, write, write.wake_changed)
            return
        if former.write.version != write.based_on:
            raise Conflict
        if former.wake_changed and not write.wake_changed:
            write = msgspec.structs.replace(write, wake_at_ns=former.write.wake_at_ns)
        self.states[write.key] = _State(
            former.based_on, write, former.wake_changed or write.wake_changed
        )


def write_batch(
    connection: sqlite3.Connection, units: Sequence[Unit], position: Callable[[], int]
) -> list[int]:
    """Begin a transaction and write all units but those in conflict, whose positions are returned.

    The transaction is left open for the caller to commit.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        rows = Rows()
        for unit in units:
            for write in unit:
                rows.add(write, position)
        _execute(connection, rows)
        return []
    except (Conflict, sqlite3.IntegrityError):
        connection.execute("ROLLBACK")
    connection.execute("BEGIN IMMEDIATE")
    return [
        index for index, unit in enumerate(units) if not _write_unit(connection, unit, position)
    ]


def _write_unit(connection: sqlite3.Connection, unit: Unit, position: Callable[[], int]) -> bool:
    connection.execute("SAVEPOINT unit")
    try:
        rows = Rows()
        for write in unit:
            rows.add(write, position)
        _execute(connection, rows)
        return True
    except (Conflict, sqlite3.IntegrityError):
        connection.execute("ROLLBACK TO unit")
        return False
    finally:
        if connection.in_transaction:
            connection.execute("RELEASE unit")


def _execute(connection: sqlite3.Connection, rows: Rows) -> None:
    _execute_states(connection, rows)
    if rows.records:
        _execute_records(connection, rows)
    many = connection.executemany
    if rows.history:
        many(SQL["insert_history"], rows.history)
    if rows.items:
        _execute_items(connection, rows.items)
    if rows.tasks:
        many(SQL["insert_task"], rows.tasks)
    if rows.drop_tasks:
        dropped = many(SQL["drop_task"], rows.drop_tasks).rowcount
        if dropped != len(rows.drop_tasks):
            raise Conflict
    if rows.messages:
        many(SQL["insert_message"], rows.messages)
    if rows.drop_messages:
        many(SQL["drop_message"], rows.drop_messages)


def _execute_states(connection: sqlite3.Connection, rows: Rows) -> None:
    new: list[tuple[int, int, int, bool, bytes]] = []
    plain: list[tuple[int, bool, bytes, int, int]] = []
    alarmed: list[tuple[int, int, bool, bytes, int, int]] = []
    for key, entry in rows.states.items():
        w = entry.write
        if entry.based_on == 0:
            wake_at_ns = w.wake_at_ns
            new.append((key, w.version, wake_at_ns, w.in_flight, w.state))
        elif entry.wake_changed:
            alarmed.append((w.version, w.wake_at_ns, w.in_flight, w.state, key, entry.based_on))
        else:
            plain.append((w.version, w.in_flight, w.state, key, entry.based_on))
    changed = 0
    if plain:
        changed += connection.executemany(SQL["update_state"], plain).rowcount
    if alarmed:
        changed += connection.executemany(SQL["update_state_and_alarm"], alarmed).rowcount
    if changed != len(plain) + len(alarmed):
        raise Conflict
    if new:
        connection.executemany(SQL["insert_state"], new)


def _execute_records(connection: sqlite3.Connection, rows: Rows) -> None:
    """Closing runs come before new ones, which may bear the same workflow id."""
    known: list[tuple[object, ...]] = []
    new: list[tuple[object, ...]] = []
    for key, record in rows.records.items():
        if rows.states[key].based_on == 0:
            new.append(_record_row(record))
        else:
            known.append((*_changeable(record), key))
    if known and connection.executemany(SQL["update_record"], known).rowcount != len(known):
        raise Conflict
    if new:
        connection.executemany(SQL["insert_record"], new)


def _execute_items(connection: sqlite3.Connection, items: dict[int, bytes | None]) -> None:
    puts = [(row_id, body) for row_id, body in items.items() if body is not None]
    drops = [(row_id,) for row_id, body in items.items() if body is None]
    if drops:
        connection.executemany(SQL["drop_item"], drops)
    if puts:
        connection.executemany(SQL["put_item"], puts)


def _record_row(r: Record) -> tuple[object, ...]:
    return (
        r.key, r.namespace, r.workflow_id, r.run_id, r.workflow_type, r.task_queue, r.status,
        r.start_ns, r.execution_ns, r.close_ns, r.history_length, r.history_size_bytes,
        r.transition_count, r.parent_workflow_id, r.parent_run_id, r.root_workflow_id,
        r.root_run_id, r.first_run_id, _attributes(r), r.info, r.memo, r.attributes,
    )  # fmt: skip


def _changeable(r: Record) -> tuple[object, ...]:
    return (
        r.task_queue, r.execution_ns, r.history_length, r.history_size_bytes, r.transition_count,
        _attributes(r), r.info, r.memo, r.attributes, r.status, r.close_ns,
    )  # fmt: skip


def _attributes(record: Record) -> str:
    return _encode(record.search_attributes).decode() if record.search_attributes else "{}"
