"""The store on one SQLite file (write-ahead log, every commit synced to disk), or in memory.

Rows are written on the event loop's thread, and only the commit, which waits for the disk, may go
to a writer thread. Small batches commit in line as well, for as long as the disk is quick: nothing
else waits then, and two changes of thread cost more than the disk does.

Measured (2 cores shared with other work, fsync about 0.2 ms, three rows a transition, 50 µs of
Python beside each, which bounds all to 20,000/s; medians of five noisy rounds), transitions/s:

    rows written on …, commit on …             100 a batch   300 a batch
    loop, thread                                     9,600        13,900
    thread, thread, with executemany                11,400        11,700
    thread, thread, multi-row statements            11,200        10,700
    loop, loop                                      11,500        11,700

So throughput does not decide. Latency does: one transition on an idle node takes 0.37 ms in line,
0.6 ms and more with a thread; beside a thread that never rests (a user's activity), every change of
thread waits for switch intervals of 5 ms: 0.6 ms in line, 23 to 27 ms with a thread.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from perdure.store.contract import (
    ANY_SIZE,
    Backlog,
    HistoryBatch,
    Loaded,
    MessageRow,
    NamespaceRow,
    Place,
    Record,
    StoreError,
    StoreUnavailable,
    StoreUndelivered,
    TaskRow,
    Unit,
)
from perdure.store.folding import ITEM_BITS, MAX_ITEM_ID
from perdure.store.query import Custom, Query
from perdure.store.sqlite import reads, schema
from perdure.store.sqlite.batch import write_batch
from perdure.store.sqlite.connections import MEMORY, UNFIT, connect, explain
from perdure.store.sqlite.hold import Hold
from perdure.store.sqlite.statements import STATEMENTS as SQL
from perdure.store.sqlite.writer import Writer

T = TypeVar("T")

ID_BLOCK = 65_536  # ids are reserved on disk in blocks: a crash loses at most one
MAX_ID = (1 << (63 - ITEM_BITS)) - 1  # of a key, for which the rows of items leave so much room
INLINE_WRITES = 8  # batches up to this size may commit on the event loop's thread
INLINE_COMMIT_S = 0.002  # … while a commit takes less than this on average
CHECKPOINT_PAGES = 4_000  # written (by estimate) between two checkpoints
CHANGES_PAGE = 500


class SqliteStore:
    """The contract of `perdure.store.contract.Store` on SQLite.

    Args:
        path: the database file, created when missing; ``":memory:"`` for a database that lives as
            long as this object.
        read_only: look at a database that another process may hold; commits raise.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = str(path)
        self._in_memory = self.path == MEMORY
        self._read_only = read_only
        self._hold: Hold | None = None
        self._write_db: sqlite3.Connection | None = None
        self._read_db: sqlite3.Connection | None = None
        self._scan_db: sqlite3.Connection | None = None
        self._scanner: ThreadPoolExecutor | None = None
        self._writer: Writer | None = None
        self._turn = asyncio.Lock()
        self._position = 0
        self._next_id = 0
        self._reserved = 0
        self._node = 0
        self._commit_s = 0.0  # moving average
        self._guessed_pages = 0.0  # in the log since the last checkpoint
        self._pages_per_row = 1.0  # learnt at each checkpoint

    # ---- life ----

    @property
    def name(self) -> str:
        """What messages call the database."""
        return "memory" if self._in_memory else str(Path(self.path).resolve())

    async def open(self) -> None:
        """Connect, hold and migrate; see Store.open.

        Raises:
            StoreHeld: another process has the file open.
            StoreTooNew: the file was written by a later perdure.
            StoreUnavailable: file or directory cannot be read or written.
            StoreError: the file is no database, or another program's.
        """
        assert self._read_db is None, "already open"
        try:
            self._open()
        except sqlite3.Error as error:
            self._let_go()
            raise explain(error, self.path) from error
        except BaseException:
            self._let_go()
            raise

    def _open(self) -> None:
        if self._in_memory:
            self._write_db = self._read_db = self._scan_db = connect(MEMORY, writable=True)
            schema.migrate(self._write_db, MEMORY)
        elif self._read_only:
            self._read_db = connect(self.path, writable=False)
            if schema.check(self._read_db, self.path) < len(schema.migrations()):
                raise StoreError(f"{self.path} has an older schema: open it once for writing")
        else:
            if Path(self.path).is_dir():
                raise StoreUnavailable(f"cannot open {self.path}: it is a directory")
            if _may(self.path, os.R_OK) and not _may(self.path, os.W_OK):
                # SQLite would make its side files read-only as well, and leave them there.
                raise StoreUnavailable(
                    f"{self.path} is read-only: check the permissions of file and directory"
                )
            self._hold = Hold(Path(self.path).absolute())
            self._write_db = connect(self.path, writable=True)
            schema.migrate(self._write_db, self.path)
            self._read_db = connect(self.path, writable=False)
            self._writer = Writer("perdure-sqlite-writer")
        if not self._in_memory:
            self._scan_db = connect(self.path, writable=False)
            self._scanner = ThreadPoolExecutor(1, "perdure-sqlite-reader")
        if self._write_db is not None:
            self._restore_counters(self._write_db)

    def _restore_counters(self, db: sqlite3.Connection) -> None:
        self._node = self._next_id = self._reserved = max(1, self._meta(db, "reserved_id"))
        last: int | None = db.execute(SQL["last_position"]).fetchone()[0]
        self._position = max(last or 0, self._meta(db, "position"))

    @staticmethod
    def _meta(db: sqlite3.Connection, name: str) -> int:
        row = db.execute(SQL["get_meta"], (name,)).fetchone()
        return 0 if row is None else int(row[0])

    async def close(self) -> None:
        """Finish what is under way, write the log back into the file, and let go of it."""
        async with self._turn:
            self._let_go()

    def _let_go(self) -> None:
        if self._writer is not None:
            self._writer.stop()
        if self._scanner is not None:
            self._scanner.shutdown(wait=True)
        for db in (self._scan_db, self._read_db, self._write_db):
            if db is not None:
                db.close()
        self._scan_db = self._read_db = self._write_db = None
        self._writer = self._scanner = None
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    @property
    def node(self) -> int:
        """The number of this process: an id, so that no earlier one had it."""
        return self._node

    @property
    def sharing(self) -> None:
        """Nobody shares a file."""
        return None

    # ---- writing ----

    async def commit(self, units: Sequence[Unit]) -> list[int]:
        """Write all units but those in conflict, in one transaction; see Store.commit."""
        writes = sum(map(len, units))
        return await self._transact(writes, lambda db: write_batch(db, units, self._next_position))

    async def settle(self, units: Sequence[Unit]) -> list[int]:
        """Nothing is to be done: a commit is over when it says that it failed."""
        return []

    async def allocate(self, count: int) -> int:
        """The first of `count` fresh ids."""
        assert 0 < count <= ID_BLOCK, count
        while self._next_id + count > self._reserved:
            reserved = max(self._next_id, self._reserved) + ID_BLOCK
            if reserved > MAX_ID:
                raise StoreError(f"{self.name} has used up its ids, {MAX_ID}: begin a new database")
            await self._transact(1, _statement("put_meta", "reserved_id", reserved))
            self._reserved = max(self._reserved, reserved)
        first = self._next_id
        self._next_id += count
        return first

    async def delete(self, *keys: int) -> int:
        """Remove runs and everything of them but waiting tasks, which are stale by then."""

        def work(db: sqlite3.Connection) -> int:
            db.execute("BEGIN IMMEDIATE")
            found = sum(_delete(db, key) for key in keys)
            db.execute(SQL["put_meta"], ("position", self._position))
            return found

        return await self._transact(INLINE_WRITES + 1, work)

    async def shorten(self, key: int, count: int) -> bool:
        """Remove the first batches of a long history; see Store.shorten."""

        def work(db: sqlite3.Connection) -> bool:
            db.execute("BEGIN IMMEDIATE")
            _check_delivered(db, key)
            return db.execute(SQL["shorten"], {"key": key, "count": count}).rowcount > 0

        return await self._transact(INLINE_WRITES + 1, work)

    async def put_namespace(self, row: NamespaceRow, former: bytes | None = None) -> bool:
        """Insert a namespace, or replace the one with the body `former`; see the contract."""
        work = _statement("put_namespace", row.name, row.id, row.body, former)
        return await self._transact(1, work) == 1

    def _next_position(self) -> int:
        self._position += 1
        return self._position

    async def _transact(self, writes: int, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work`, which begins a transaction, and commit it. One at a time."""
        await self._turn.acquire()
        try:
            db = self._writable()
            try:
                result = work(db)
                if self._writer is None or self._is_quick(writes):
                    self._commit(db)
                else:
                    await self._on_writer(self._writer, lambda: self._commit(db))
            except (sqlite3.Error, *UNFIT) as error:
                raise explain(error, self.path) from error
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
            self._guessed_pages += (2 + 4 * writes) * self._pages_per_row
            return result
        finally:
            if self._guessed_pages >= CHECKPOINT_PAGES and self._writer is not None:
                self._checkpoint(self._writer)
            else:
                self._turn.release()

    def _writable(self) -> sqlite3.Connection:
        if self._write_db is None:
            raise StoreUnavailable(
                f"{self.path} is open for reading only"
                if self._read_only
                else f"{self.path} is closed"
            )
        return self._write_db

    def _is_quick(self, writes: int) -> bool:
        return writes <= INLINE_WRITES and self._commit_s < INLINE_COMMIT_S

    def _commit(self, db: sqlite3.Connection) -> None:
        started = time.perf_counter()
        db.execute("COMMIT")
        self._commit_s += 0.1 * (time.perf_counter() - started - self._commit_s)

    @staticmethod
    async def _on_writer(writer: Writer, work: Callable[[], None]) -> None:
        """Wait for the thread even when cancelled: the connection is not free before."""
        future = writer.submit(work)
        cancelled = False
        while not future.done():
            try:
                await asyncio.shield(future)
            except asyncio.CancelledError:
                cancelled = True
            except sqlite3.Error:
                break
        future.result()
        if cancelled:
            raise asyncio.CancelledError

    def _checkpoint(self, writer: Writer) -> None:
        """Write the log back on the thread, after the answer; the next commit waits for it.

        On the writing connection, never beside it: before SQLite 3.51.3 a checkpoint that meets a
        commit of another connection can damage the database.
        """
        db = self._writable()

        def work() -> None:
            pages = _checkpoint(db)
            if pages > 0:
                learnt = self._pages_per_row * pages / self._guessed_pages
                self._pages_per_row = min(max(learnt, 0.05), 1.0)
            self._guessed_pages = 0.0

        future = writer.submit(work)
        future.add_done_callback(lambda _: self._turn.release())

    # ---- reading ----

    def _reader(self) -> sqlite3.Connection:
        if self._read_db is None:
            raise StoreUnavailable(f"{self.path} is closed")
        return self._read_db

    def _read(self, question: Callable[..., T], *arguments: object) -> T:
        try:
            return question(self._reader(), *arguments)
        except sqlite3.Error as error:
            raise explain(error, self.path) from error

    async def _scan(self, question: Callable[..., T], *arguments: object) -> T:
        """A read that may take long: on its own connection and thread."""
        if self._scanner is None:
            return self._read(question, *arguments)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._scanner, question, self._scan_db, *arguments)
        except sqlite3.Error as error:
            raise explain(error, self.path) from error

    async def find(self, namespace: str, workflow_id: str, run_id: str = "") -> int | None:
        """The key of a run; without `run_id` the open one, else the one that started last."""
        return self._read(reads.find, namespace, workflow_id, run_id)

    async def load(self, key: int) -> Loaded | None:
        """All of one run but its history."""
        return self._read(reads.load, key)

    async def history(
        self,
        key: int,
        first_event_id: int,
        last_event_id: int,
        *,
        limit: int,
        max_bytes: int = ANY_SIZE,
        reverse: bool = False,
    ) -> list[HistoryBatch]:
        """Batches of events that overlap a range; see Store.history."""
        wanted = (key, first_event_id, last_event_id)
        return self._read(reads.history, *wanted, limit, max_bytes, reverse)

    async def list_runs(self, query: Query) -> list[Record]:
        """A page of runs; see Query."""
        return await self._scan(reads.list_runs, query)

    async def count_runs(self, query: Query) -> list[tuple[list[object], int]]:
        """The number of runs, per group."""
        return await self._scan(reads.count_runs, query)

    def index_attributes(self, attributes: Sequence[Custom], limit: int) -> None:
        """Nothing: a list looks through the runs of its namespace."""

    async def due(self, until_ns: int, limit: int) -> list[tuple[int, int]]:
        """(key, wake_at_ns) of alarms that have rung, earliest first."""
        return self._read(reads.due, until_ns, limit)

    async def next_alarm(self) -> int | None:
        """The earliest alarm of all runs."""
        return self._read(reads.next_alarm)

    async def in_flight(self) -> list[int]:
        """Keys of open runs that were last written with `in_flight`."""
        return await self._scan(reads.in_flight)

    async def tasks(
        self, namespace: str, queue: str, kind: int, after: Place, limit: int
    ) -> list[TaskRow]:
        """Waiting tasks of one queue behind a place, in order of place."""
        return self._read(reads.tasks, namespace, queue, kind, after, limit)

    async def backlogs(self, namespace: str = "", queue: str = "", kind: int = 0) -> list[Backlog]:
        """What waits, counted."""
        return await self._scan(reads.backlogs, namespace, queue, kind)

    async def messages(self, after_id: int, limit: int) -> list[MessageRow]:
        """Undelivered outbox messages, oldest first."""
        return self._read(reads.messages, after_id, limit)

    async def namespaces(self) -> list[NamespaceRow]:
        """All namespaces, by name."""
        return self._read(reads.namespaces)

    async def namespace(self, name: str) -> NamespaceRow | None:
        """One namespace."""
        return self._read(reads.namespace, name)

    async def changes(self, after: int, limit: int) -> AsyncIterator[tuple[int, int, HistoryBatch]]:
        """(position, key, batch) in commit order, at most `limit` of them."""
        while limit > 0:
            page = await self._scan(reads.changes, after, min(limit, CHANGES_PAGE))
            for change in page:
                yield change
            if not page:
                return
            after = page[-1][0]
            limit -= len(page)


def open_read_only(path: str | Path) -> SqliteStore:
    """A store, still to be opened, to look into a file that another process may hold."""
    return SqliteStore(path, read_only=True)


def _delete(db: sqlite3.Connection, key: int) -> bool:
    _check_delivered(db, key)
    low = key << ITEM_BITS
    found = db.execute(SQL["delete_record"], (key,)).rowcount > 0
    db.execute(SQL["delete_state"], (key,))
    db.execute(SQL["delete_items"], (low, low | MAX_ITEM_ID))
    db.execute(SQL["delete_history"], (key,))
    return found


def _check_delivered(db: sqlite3.Connection, key: int) -> None:
    if db.execute(SQL["has_messages"], (key,)).fetchone()[0]:
        raise StoreUndelivered(f"run {key} has messages that are not delivered yet")


def _statement(name: str, *parameters: object) -> Callable[[sqlite3.Connection], int]:
    """A transaction of one statement; gives the number of rows that it changed."""

    def work(db: sqlite3.Connection) -> int:
        db.execute("BEGIN IMMEDIATE")
        return db.execute(SQL[name], parameters).rowcount

    return work


def _checkpoint(db: sqlite3.Connection) -> int:
    """Write the log back into the file; returns the pages that the log held, 0 when it failed."""
    try:
        _busy, pages, _written = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return int(pages)
    except sqlite3.Error:
        return 0  # e.g. a full disk: the log keeps everything, and a later checkpoint tries again


def _may(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
