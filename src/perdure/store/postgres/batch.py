"""A batch of units as one statement, and what is done when something in it does not add up.

The usual batch has no conflict. It is one statement, made of the parts that it needs: everything is
written if every version is the stored one and every task row to drop is there; if not, the
statement divides by zero, which undoes it. One trip to the database and one fsync, with no
transaction left open however a node dies. Starts need one lock more, before the statement looks.

Only when that fails are the rows locked and looked at, to find out which units stay outside. In
which order locks are taken, and why nothing deadlocks, is said in `statements`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any, Final, NamedTuple

import asyncpg

from perdure.store.contract import (
    THIS_NODE,
    MessageRow,
    Record,
    StoreUndelivered,
    TaskRow,
    Unit,
    Write,
)
from perdure.store.folding import (
    ITEM_BITS,
    MAX_ITEM_ID,
    Conflict,
    FoldedState,
    Rows,
    attributes_json,
    fold,
)
from perdure.store.postgres.choice import Choice, Current, choose, lock_number
from perdure.store.postgres.leases import MESSAGE_LEASE_NS
from perdure.store.postgres.statements import LOCK_TIMEOUT, PARTS
from perdure.store.postgres.statements import STATEMENTS as SQL

_BEGIN: Final = (
    "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '10s'; "
    f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"
)

Part = tuple[str, list[Any]]

_COUNTED: Final = {"states": "s", "records": "r", "new_records": "nr", "drop_tasks": "dt"}
"""The parts that must concern as many rows as they were given, and what they call those."""

_MISMATCH: Final = (asyncpg.DivisionByZeroError, asyncpg.UniqueViolationError)


class Written(NamedTuple):
    """What became of a batch.

    Attributes:
        left_out: the positions of units in conflict.
        awaited: the keys of runs with a commit that other nodes wait for; they will not be told
            again.
    """

    left_out: list[int]
    awaited: list[int]


async def write_batch(connection: Any, units: Sequence[Unit], node: int) -> Written:
    """Write all units but those in conflict, in one transaction.

    Args:
        connection: of asyncpg, with no transaction open.
        units: the batch.
        node: this node's number.
    """
    try:
        return await _write_batch(connection, units, node)
    finally:
        await _leave_transaction(connection)


async def locked_units(connection: Any, units: Sequence[Unit]) -> list[int]:
    """The positions of units that another session keeps from being written: it has locked a run of
    theirs, or a workflow id that they start."""
    writes = [write for unit in units for write in unit]
    numbers = sorted({_lock_of(write) for write in writes if not write.based_on})
    keys = sorted({write.key for write in writes if write.based_on})
    try:
        await connection.execute(_BEGIN)
        starts = {row[0] for row in await connection.fetch(SQL["locked_starts"], numbers)}
        runs = {row[0] for row in await connection.fetch(SQL["locked_states"], keys)}
    finally:
        await _leave_transaction(connection)

    def is_locked(write: Write) -> bool:
        return write.key in runs if write.based_on else _lock_of(write) in starts

    return [place for place, unit in enumerate(units) if any(map(is_locked, unit))]


def _lock_of(start: Write) -> int:
    assert start.record is not None
    return lock_number((start.record.namespace, start.record.workflow_id))


async def delete_runs(connection: Any, keys: Sequence[int]) -> int:
    """Remove runs but their waiting tasks; how many there were. See Store.delete."""
    async with _locked(connection, keys) as found:
        await connection.fetch(SQL["delete"], found)
        return len(found)


async def shorten_history(connection: Any, key: int, count: int) -> bool:
    """Remove the first batches of a long history; see Store.shorten."""
    async with _locked(connection, [key]):
        return bool(await connection.fetchval(SQL["shorten"], key, count))


@asynccontextmanager
async def _locked(connection: Any, keys: Sequence[int]) -> AsyncIterator[list[int]]:
    """A transaction that has runs for itself; those that there are. Raises StoreUndelivered."""
    try:
        await _begin(connection, ())
        found = [row[0] for row in await connection.fetch(SQL["lock_runs"], keys)]
        if sender := await connection.fetchval(SQL["has_messages"], found):
            raise StoreUndelivered(f"run {sender} has messages that are not delivered yet")
        yield found
        await connection.execute("COMMIT")
    finally:
        await _leave_transaction(connection)


async def _leave_transaction(connection: Any) -> None:
    """Undo what failed half-way, so that the connection can be used again."""
    with suppress(asyncpg.InterfaceError, asyncpg.PostgresError, OSError):  # if it is closed
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK")


async def _write_batch(connection: Any, units: Sequence[Unit], node: int) -> Written:
    try:
        rows = fold(units)
        if not rows.states:
            return Written([], [])
        starts = new_records(rows)
        if starts:
            await _begin(connection, starts)
            awaited = await _write(connection, rows, starts, node)
            await connection.execute("COMMIT")
        else:
            awaited = await _write(connection, rows, starts, node)
        return Written([], awaited)
    except (Conflict, *_MISMATCH):
        await _leave_transaction(connection)
    return await _write_chosen(connection, units, node)


async def _write_chosen(connection: Any, units: Sequence[Unit], node: int) -> Written:
    starts = [write.record for unit in units for write in unit if not write.based_on]
    await _begin(connection, [record for record in starts if record is not None])
    chosen, left_out = choose(await _facts(connection, units), units)
    awaited: list[int] = []
    if chosen:
        rows = fold(chosen)
        rows.follows.clear()  # they do: it was looked at
        awaited = await _write(connection, rows, new_records(rows), node)
    await connection.execute("COMMIT")
    return Written(left_out, awaited)


async def _begin(connection: Any, starts: Sequence[Record]) -> None:
    """Open a transaction that holds the locks of the workflow ids to be started."""
    numbers = sorted({lock_number((record.namespace, record.workflow_id)) for record in starts})
    locks = [f"SELECT pg_advisory_xact_lock({number})" for number in numbers]
    await connection.execute("; ".join([_BEGIN, *locks]))


async def _facts(connection: Any, units: Sequence[Unit]) -> Choice:
    """Lock the runs of a batch, and read what its units depend on."""
    writes = [write for unit in units for write in unit]
    keys = sorted({write.key for write in writes})
    records = [write.record for write in writes if write.record is not None]
    drops = [task_id for write in writes for task_id in write.drop_tasks]
    versions = await connection.fetch(SQL["lock_states"], keys)
    namespaces = [record.namespace for record in records]
    workflow_ids = [record.workflow_id for record in records]
    run_ids = [record.run_id for record in records]
    current = await connection.fetch(SQL["find_current"], namespaces, workflow_ids)
    taken = await connection.fetch(SQL["taken_run_ids"], namespaces, run_ids)
    tasks = await connection.fetch(SQL["present_tasks"], drops) if drops else []
    return Choice(
        versions=dict(map(tuple, versions)),
        current={(row[0], row[1]): Current(row[2], row[3] == 0) for row in current},
        run_ids=set(map(tuple, taken)),
        tasks={row[0] for row in tasks},
    )


def new_records(rows: Rows) -> list[Record]:
    """The records of runs that start."""
    return [record for key, record in rows.records.items() if not rows.states[key].based_on]


async def _write(connection: Any, rows: Rows, starts: Sequence[Record], node: int) -> list[int]:
    """Write everything; the keys of runs that are awaited.

    Raises one of _MISMATCH when it is not as the batch assumes.
    """
    parts = _parts(rows, node)
    table = [(*_record_row(record), rows.follows.get(record.key)) for record in starts]
    started = [("new_records", _columns(table))] if starts else []
    if not _follow(starts, rows):
        return await _execute(connection, parts + started)
    awaited = await _execute(connection, parts)
    await _execute(connection, started)  # now that their workflow ids are free
    return awaited


def _follow(starts: Sequence[Record], rows: Rows) -> bool:
    """Whether a run that starts may have a predecessor that the same batch closes."""
    ids = {(record.namespace, record.workflow_id) for record in starts}
    return any(
        (record.namespace, record.workflow_id) in ids and rows.states[key].based_on
        for key, record in rows.records.items()
    )


async def _execute(connection: Any, parts: Sequence[Part]) -> list[int]:
    names = tuple(name for name, _ in parts)
    parameters = [parameter for _, own in parts for parameter in own]
    counts = [len(own[0]) for name, own in parts if name in _COUNTED]
    [(awaited, *_)] = await connection.fetch(_statement(names), *parameters, *counts)
    return list(awaited)


@cache
def _statement(names: tuple[str, ...]) -> str:
    """The statement that is made of these parts."""
    count = 0
    parts = []
    # A row of a run may be changed only by who has the run's own row locked.
    locked = "(SELECT count(*) FROM s) >= 0" if "states" in names else "true"
    for name in names:
        text = PARTS[name].replace("{locked}", locked)
        places = {int(place) for place in re.findall(r"\{(\d+)\}", text)}
        for place in places:
            text = text.replace(f"{{{place}}}", f"${count + place}")
        count += len(places)
        parts.append(text)
    columns = ["ARRAY(SELECT key FROM s WHERE awaited)" if "states" in names else "'{}'::bigint[]"]
    checks = []
    for name in names:
        if name in _COUNTED:
            count += 1
            checks.append(f"(SELECT count(*) FROM {_COUNTED[name]}) = ${count}::bigint")
    if checks:
        columns.append(f"1 / (CASE WHEN {' AND '.join(checks)} THEN 1 ELSE 0 END)")
    return f"WITH {', '.join(parts)} SELECT {', '.join(columns)}"


def _parts(rows: Rows, node: int) -> list[Part]:
    """The parts that a batch needs, but for the records of new runs, with their parameters."""
    known = [(key, state) for key, state in rows.states.items() if state.based_on]
    new = [(key, state) for key, state in rows.states.items() if not state.based_on]
    records = [(key, r) for key, r in rows.records.items() if rows.states[key].based_on]
    puts = [(*_item(row_id), body) for row_id, body in rows.items.items() if body is not None]
    drops = [_item(row_id) for row_id, body in rows.items.items() if body is None]
    put_tasks, drop_tasks = _settle(rows.tasks, rows.drop_tasks)
    parts: list[Part] = []

    def add(name: str, table: Sequence[Sequence[Any]], *more: Any) -> None:
        if table:
            parts.append((name, [*_columns(table), *more]))

    add("states", [_known_state(key, state, rows) for key, state in known], node)
    add("new_states", [_new_state(key, state, node) for key, state in new])
    add("records", [_changeable(record) for _, record in records])
    add("history", rows.history)
    add("drop_items", drops)
    add("put_items", puts)
    add("drop_tasks", [(task_id,) for task_id in drop_tasks])
    add("put_tasks", [_task_row(task) for task in put_tasks])
    put_messages, drop_messages = _settle(rows.messages, rows.drop_messages)
    add("drop_messages", [(message_id,) for message_id in drop_messages])
    add("put_messages", [(m.id, m.key, m.body) for m in put_messages], MESSAGE_LEASE_NS)
    return parts


def _settle(puts: list[Any], drops: list[int]) -> tuple[list[Any], list[int]]:
    """Rows that come and go within a batch are never written."""
    if len(set(drops)) < len(drops):
        raise Conflict
    if not puts or not drops:
        return puts, drops
    both = {row.id for row in puts}.intersection(drops)
    if not both:
        return puts, drops
    kept: list[TaskRow | MessageRow] = [row for row in puts if row.id not in both]
    return kept, [row_id for row_id in drops if row_id not in both]


def _columns(table: Any) -> list[list[Any]]:
    return [list(column) for column in zip(*table, strict=True)]


def _item(row_id: int) -> tuple[int, int]:
    return row_id >> ITEM_BITS, row_id & MAX_ITEM_ID


def _known_state(key: int, state: FoldedState, rows: Rows) -> tuple[Any, ...]:
    write = state.write
    record = rows.records.get(key)
    closes = record is not None and record.close_ns > 0
    wake_at_ns = write.wake_at_ns if state.wake_changed else None
    return key, state.based_on, write.version, wake_at_ns, write.in_flight, closes, write.state


def _new_state(key: int, state: FoldedState, node: int) -> tuple[Any, ...]:
    write = state.write
    held_by = node if write.in_flight == THIS_NODE else 0
    return key, write.version, write.wake_at_ns, held_by, write.state


def _task_row(t: TaskRow) -> tuple[Any, ...]:
    return (
        t.id, t.namespace, t.queue, t.kind, t.key, t.scheduled_event_id, t.stamp, t.created_ns,
        t.rank, t.fairness_key,
    )  # fmt: skip


def _changeable(r: Record) -> tuple[Any, ...]:
    return (
        r.key, r.task_queue, r.execution_ns, r.history_length, r.history_size_bytes,
        r.transition_count, attributes_json(r), r.info, r.memo, r.attributes, r.status, r.close_ns,
    )  # fmt: skip


def _record_row(r: Record) -> tuple[Any, ...]:
    return (
        r.key, r.namespace, r.workflow_id, r.run_id, r.workflow_type, r.task_queue, r.status,
        r.start_ns, r.execution_ns, r.close_ns, r.history_length, r.history_size_bytes,
        r.transition_count, r.parent_workflow_id, r.parent_run_id, r.root_workflow_id,
        r.root_run_id, r.first_run_id, attributes_json(r), r.info, r.memo, r.attributes,
    )  # fmt: skip
