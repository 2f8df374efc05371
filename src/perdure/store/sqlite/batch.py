"""A batch of units as rows for each statement, and their execution inside an open transaction.

The usual case has no conflict, so it is tried first, for the batch as a whole: all writes are
folded into one list of rows a statement, and the counts of changed rows tell whether every version
was the stored one. Only when something does not add up is the transaction rolled back and done
again unit by unit, each in a savepoint, to find out who has to stay outside.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

import msgspec

from perdure.store.contract import NOBODY, Record, Unit
from perdure.store.folding import Conflict, Rows, attributes_json, fold
from perdure.store.sqlite import reads
from perdure.store.sqlite.statements import STATEMENTS as SQL

NextPosition = Callable[[], int]


def write_batch(
    connection: sqlite3.Connection, units: Sequence[Unit], position: NextPosition
) -> list[int]:
    """Begin a transaction and write all units but those in conflict, whose positions are returned.

    The transaction is left open for the caller to commit.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        _execute(connection, fold(units), position)
        return []
    except (Conflict, sqlite3.IntegrityError):
        connection.execute("ROLLBACK")
    connection.execute("BEGIN IMMEDIATE")
    return [
        index for index, unit in enumerate(units) if not _write_unit(connection, unit, position)
    ]


def _write_unit(connection: sqlite3.Connection, unit: Unit, position: NextPosition) -> bool:
    connection.execute("SAVEPOINT unit")
    try:
        _execute(connection, fold([unit]), position)
        return True
    except (Conflict, sqlite3.IntegrityError):
        connection.execute("ROLLBACK TO unit")
        return False
    finally:
        if connection.in_transaction:
            connection.execute("RELEASE unit")


def _execute(connection: sqlite3.Connection, rows: Rows, position: NextPosition) -> None:
    _execute_states(connection, rows)
    if rows.records:
        _execute_records(connection, rows)
    many = connection.executemany
    if rows.history:
        many(SQL["insert_history"], [(position(), *row) for row in rows.history])
    if rows.items:
        _execute_items(connection, rows.items)
    if rows.tasks:
        many(SQL["insert_task"], map(msgspec.structs.astuple, rows.tasks))
    if rows.drop_tasks:
        dropped = many(SQL["drop_task"], [(id,) for id in rows.drop_tasks]).rowcount
        if dropped != len(rows.drop_tasks):
            raise Conflict
    if rows.messages:
        many(SQL["insert_message"], map(msgspec.structs.astuple, rows.messages))
    if rows.drop_messages:
        many(SQL["drop_message"], [(id,) for id in rows.drop_messages])


def _execute_states(connection: sqlite3.Connection, rows: Rows) -> None:
    new: list[tuple[int, int, int, bool, bytes]] = []
    plain: list[tuple[int, bool, bytes, int, int]] = []
    alarmed: list[tuple[int, int, bool, bytes, int, int]] = []
    for key, entry in rows.states.items():
        w = entry.write
        in_flight = w.in_flight != NOBODY
        if entry.based_on == 0:
            wake_at_ns = w.wake_at_ns
            new.append((key, w.version, wake_at_ns, in_flight, w.state))
        elif entry.wake_changed:
            alarmed.append((w.version, w.wake_at_ns, in_flight, w.state, key, entry.based_on))
        else:
            plain.append((w.version, in_flight, w.state, key, entry.based_on))
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
    for key, follows in rows.follows.items():
        record = rows.records[key]
        if (reads.find(connection, record.namespace, record.workflow_id) or 0) != follows:
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
        r.root_run_id, r.first_run_id, attributes_json(r), r.info, r.memo, r.attributes,
    )  # fmt: skip


def _changeable(r: Record) -> tuple[object, ...]:
    return (
        r.task_queue, r.execution_ns, r.history_length, r.history_size_bytes, r.transition_count,
        attributes_json(r), r.info, r.memo, r.attributes, r.status, r.close_ns,
    )  # fmt: skip
