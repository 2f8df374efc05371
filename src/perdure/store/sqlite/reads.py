"""What can be asked of a database: functions of a connection, for any thread."""

from __future__ import annotations

import sqlite3

from perdure.store.contract import (
    Backlog,
    HistoryBatch,
    Loaded,
    MessageRow,
    NamespaceRow,
    Place,
    Record,
    TaskRow,
)
from perdure.store.folding import ITEM_BITS, MAX_ITEM_ID, attributes_of
from perdure.store.query import Query
from perdure.store.sqlite import render
from perdure.store.sqlite.statements import STATEMENTS as SQL

_ATTRIBUTES_AT = Record.__struct_fields__.index("search_attributes")


def find(db: sqlite3.Connection, namespace: str, workflow_id: str, run_id: str = "") -> int | None:
    """The key of a run: the one named, or the open one, or the last one."""
    if run_id:
        row = db.execute(SQL["find_run"], (namespace, run_id, workflow_id)).fetchone()
    else:
        row = (
            db.execute(SQL["find_open"], (namespace, workflow_id)).fetchone()
            or db.execute(SQL["find_last"], (namespace, workflow_id)).fetchone()
        )
    return None if row is None else int(row[0])


def load(db: sqlite3.Connection, key: int) -> Loaded | None:
    """A run but its history."""
    state = db.execute(SQL["load_state"], (key,)).fetchone()
    if state is None:
        return None
    record = db.execute(SQL["load_record"], (key,)).fetchone()
    low = key << ITEM_BITS
    items = db.execute(SQL["load_items"], (low, low | MAX_ITEM_ID)).fetchall()
    return Loaded(
        record=to_record(record),
        version=state[0],
        wake_at_ns=state[1],
        state=state[2],
        items=[(row_id & MAX_ITEM_ID, body) for row_id, body in items],
    )


def to_record(row: tuple[object, ...]) -> Record:
    """A row of `runs`: the fields of Record in their order."""
    values = list(row)
    text = values[_ATTRIBUTES_AT]
    assert isinstance(text, str)
    values[_ATTRIBUTES_AT] = attributes_of(text)
    return Record(*values)  # type: ignore[arg-type]


def history(
    db: sqlite3.Connection,
    key: int,
    first: int,
    last: int,
    limit: int,
    max_bytes: int,
    reverse: bool,
) -> list[HistoryBatch]:
    """Batches that overlap a range of event ids."""
    statement = SQL["history_reversed" if reverse else "history"]
    named = {"key": key, "first": first, "last": last, "limit": limit}
    found: list[HistoryBatch] = []
    rows = db.execute(statement, named)
    for row in rows:
        found.append(HistoryBatch(*row))
        max_bytes -= len(found[-1].events)
        if max_bytes <= 0:
            break
    rows.close()  # a statement under way would hold on to what it saw
    return found


def changes(db: sqlite3.Connection, after: int, limit: int) -> list[tuple[int, int, HistoryBatch]]:
    """History in commit order."""
    rows = db.execute(SQL["changes"], (after, limit)).fetchall()
    return [(row[0], row[1], HistoryBatch(*row[2:])) for row in rows]


def list_runs(db: sqlite3.Connection, query: Query) -> list[Record]:
    """A page of runs."""
    return [to_record(row) for row in db.execute(*render.select(query))]


def count_runs(db: sqlite3.Connection, query: Query) -> list[tuple[list[object], int]]:
    """Groups and their sizes."""
    return [(list(row[:-1]), row[-1]) for row in db.execute(*render.count(query))]


def due(db: sqlite3.Connection, until_ns: int, limit: int) -> list[tuple[int, int]]:
    """Alarms that have rung."""
    return db.execute(SQL["due"], (until_ns, limit)).fetchall()


def next_alarm(db: sqlite3.Connection) -> int | None:
    """The earliest alarm."""
    found: int | None = db.execute(SQL["next_alarm"]).fetchone()[0]
    return found


def in_flight(db: sqlite3.Connection) -> list[int]:
    """Open runs marked as in flight."""
    return [key for (key,) in db.execute(SQL["in_flight"])]


def tasks(
    db: sqlite3.Connection, namespace: str, queue: str, kind: int, after: Place, limit: int
) -> list[TaskRow]:
    """Waiting tasks of a queue."""
    rows = db.execute(SQL["tasks"], (namespace, queue, kind, *after, limit))
    return [TaskRow(*row) for row in rows]


def backlogs(db: sqlite3.Connection, namespace: str, queue: str, kind: int) -> list[Backlog]:
    """Waiting tasks, counted."""
    if queue:
        rows = db.execute(SQL["backlogs_of_queue"], (namespace, queue, kind))
    else:
        rows = db.execute(SQL["backlogs"])
    return [Backlog(*row) for row in rows]


def messages(db: sqlite3.Connection, after_id: int, limit: int) -> list[MessageRow]:
    """Undelivered messages."""
    return [MessageRow(*row) for row in db.execute(SQL["messages"], (after_id, limit))]


def namespaces(db: sqlite3.Connection) -> list[NamespaceRow]:
    """All namespaces."""
    return [NamespaceRow(*row) for row in db.execute(SQL["namespaces"])]


def namespace(db: sqlite3.Connection, name: str) -> NamespaceRow | None:
    """One namespace."""
    row = db.execute(SQL["namespace"], (name,)).fetchone()
    return None if row is None else NamespaceRow(*row)
