"""The database file's identity and schema version, and the way forward from older ones.

The version is SQLite's ``user_version``, the number of migrations that were applied; the
``application_id`` tells a perdure database from any other.
"""

from __future__ import annotations

import sqlite3

from perdure.store.contract import StoreError, StoreTooNew
from perdure.store.migrations import load

APPLICATION_ID = 0x70657264  # "perd"


def migrations() -> tuple[str, ...]:
    """The migrations' SQL, in order; the n-th (from 1) leads to version n."""
    return load(__package__)


def check(connection: sqlite3.Connection, name: str) -> int:
    """The schema version of a database, 0 for an empty one.

    Raises:
        StoreTooNew: it was written by a later perdure.
        StoreError: it belongs to another program.
    """
    application_id = _pragma(connection, "application_id")
    version = _pragma(connection, "user_version")
    if application_id != APPLICATION_ID:
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application_id or version or tables:
            raise StoreError(
                f"{name} is a database of another program; give perdure a file of its own"
            )
        return 0
    known = len(migrations())
    if version > known:
        raise StoreTooNew(
            f"{name} has schema version {version}, but this perdure knows versions up to "
            f"{known}: install the newer perdure that wrote it"
        )
    return version


def migrate(connection: sqlite3.Connection, name: str) -> None:
    """Bring the schema to the newest version; each step is a transaction of its own."""
    for number in range(check(connection, name), len(migrations())):
        script = (
            f"BEGIN IMMEDIATE;\n{migrations()[number]}\n"
            f"PRAGMA application_id = {APPLICATION_ID};\n"
            f"PRAGMA user_version = {number + 1};\nCOMMIT;"
        )
        try:
            connection.executescript(script)
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value = connection.execute(f"PRAGMA {name}").fetchone()[0]
    assert isinstance(value, int)
    return value
