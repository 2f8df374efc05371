"""Opening SQLite connections the way perdure wants them, and telling its errors apart."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from perdure.store.contract import StoreError, StoreRefused, StoreUnavailable

CACHE_KIB = 65_536
BUSY_MS = 5_000  # only readers of other processes could make us wait, and those do not block
WAL_LIMIT_PAGES = 32_000  # a safety net: the store itself checkpoints far earlier
WAL_KEEP_BYTES = 64 << 20

# No memory map: it reads no faster here, and a disk error would be a signal, not an exception.
_PRAGMAS = f"""
PRAGMA cache_size = -{CACHE_KIB};
PRAGMA mmap_size = 0;
PRAGMA temp_store = MEMORY;
"""
_WRITER_PRAGMAS = f"""
PRAGMA synchronous = FULL;
PRAGMA wal_autocheckpoint = {WAL_LIMIT_PAGES};
PRAGMA journal_size_limit = {WAL_KEEP_BYTES};
"""

MEMORY = ":memory:"


def connect(path: str, *, writable: bool) -> sqlite3.Connection:
    """A connection in autocommit mode that any thread may use, one at a time.

    Raises:
        StoreUnavailable: the file cannot be opened.
        StoreError: the file is no database.
    """
    uri = MEMORY if path == MEMORY else f"file:{quote(path)}?mode={'rwc' if writable else 'ro'}"
    try:
        connection = sqlite3.connect(
            uri,
            uri=path != MEMORY,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
            timeout=BUSY_MS / 1000,
        )
        try:
            _prepare(connection, writable)
        except sqlite3.Error:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise explain(error, path) from error
    return connection


def _prepare(connection: sqlite3.Connection, writable: bool) -> None:
    connection.executescript(_PRAGMAS)
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # reads the file's header
    if writable:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.executescript(_WRITER_PRAGMAS)
    else:
        connection.execute("PRAGMA query_only = 1")


UNFIT = (OverflowError, UnicodeError)
"""What the driver raises for a number or a text that SQLite has no place for."""


def explain(error: Exception, path: str) -> StoreError:
    """What a database error, or one of UNFIT, means for the user."""
    code = getattr(error, "sqlite_errorname", "") or ""
    if isinstance(error, UNFIT) or code.startswith("SQLITE_TOOBIG"):
        return StoreRefused(f"{path}: {error}")
    if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return StoreError(f"{path} is not a usable database: {error}")
    if code.startswith("SQLITE_FULL"):
        return StoreUnavailable(f"no space left for {path}: free some and try again")
    if code.startswith("SQLITE_READONLY"):
        return StoreUnavailable(f"{path} is read-only: check the permissions of file and directory")
    if code.startswith("SQLITE_CANTOPEN"):
        return StoreUnavailable(f"cannot open {path}: {_why_not(Path(path))}")
    return StoreUnavailable(f"{path}: {error} ({code or type(error).__name__})")


def _why_not(path: Path) -> str:
    if path.is_dir():
        return "it is a directory"
    if not path.parent.exists():
        return f"there is no directory {path.parent}"
    if not path.exists():
        return f"it does not exist, or its directory {path.parent} cannot be written"
    return "check the permissions of the file and of its directory"
