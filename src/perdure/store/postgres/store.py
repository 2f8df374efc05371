"""The store on one PostgreSQL database, which any number of nodes may use at once.

Every commit is on disk (the server's ``synchronous_commit``) before anybody hears of it. A node
keeps one connection to write, a few to read, and two for lists and counts, which may take long; a
broken one is replaced when it is next needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Final

import asyncpg

from perdure.api.trouble import Trouble
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
    StoreLocked,
    StoreUnavailable,
    TaskRow,
    Unit,
)
from perdure.store.postgres import connections, listing, reads, render, schema
from perdure.store.postgres.batch import (
    Written,
    delete_runs,
    locked_units,
    shorten_history,
    write_batch,
)
from perdure.store.postgres.connections import (
    LISTERS_MAX,
    READERS_MAX,
    ListTurns,
    Pool,
    of_any_server,
)
from perdure.store.postgres.errors import explained
from perdure.store.postgres.gathering import Gathering
from perdure.store.postgres.indexes import Indexes
from perdure.store.postgres.settling import settle
from perdure.store.postgres.sharing import PostgresSharing
from perdure.store.postgres.statements import STATEMENTS as SQL
from perdure.store.query import Custom, Query
from perdure.store.redacting import redacted
from perdure.store.sharing import FIRST_RUN, NAMESPACES, Queue, Sharing

log = logging.getLogger("perdure.store")

ID_BLOCK: Final = 65_536  # what nextval('perdure.ids') hands out
CHANGES_PAGE: Final = 500


class PostgresStore:
    """The contract of `perdure.store.contract.Store` on PostgreSQL 14 or newer.

    Args:
        dsn: ``postgresql://user:password@host:5432/database``. Of several hosts, separated by
            commas, the one that can be written is found, also after a fail-over.
        read_only: look into a database without joining the nodes that share it, on whichever of its
            servers answers; nothing is migrated, and commits raise.

    Raises StoreMisnamed if the connection string makes no sense.
    """

    def __init__(self, dsn: str, *, read_only: bool = False) -> None:
        self._name = redacted(dsn)
        self._read_only = read_only
        if read_only:
            dsn = of_any_server(dsn)
        self._writer = Pool(dsn, 1, statement_timeout_s=None)  # see _in_time
        self._readers = Pool(dsn, READERS_MAX, connections.STATEMENT_TIMEOUT_S)
        self._listers = Pool(dsn, LISTERS_MAX, connections.STATEMENT_TIMEOUT_S)
        self._heart = Pool(dsn, 1, statement_timeout_s=None)
        self._pools = (self._writer, self._readers, self._listers, self._heart)
        self._lists = ListTurns(self.name)
        self._turn = asyncio.Lock()
        self._locks = Trouble(log, "changes wait for another session")
        self._next_id = 0
        self._last_id = 0
        self._current = Gathering(self._find_current)
        self._sharing = PostgresSharing(dsn, self.name, self._read, self._beat, self.allocate)
        self._indexes = Indexes(dsn, self.name, self._read)

    # ---- life ----

    @property
    def name(self) -> str:
        """What messages call the database: without the password."""
        return self._name

    async def open(self) -> None:
        """Connect and migrate; see Store.open.

        Raises:
            StoreTooNew: the database was written by a later perdure.
            StoreMisnamed: the connection string asks for what the server does not know.
            StoreUnavailable: the database cannot be reached or written.
            StoreError: it refuses the user, or cannot be used.
        """
        try:
            with explained(self.name):
                for pool in self._pools:
                    await pool.open()
                async with self._writer.connection() as connection:
                    await self._check(connection)
                    if self._read_only:
                        await self._check_schema(connection)
                        return
                    await schema.migrate(connection, self.name)
                await self._sharing.open(await self.allocate(1))
        except BaseException:
            await self.close()
            raise

    async def _check_schema(self, connection: Any) -> None:
        """Raise StoreError if there is nothing that could be looked into as it is."""
        found = await schema.version(connection)
        found.check(self.name)
        if found.number == 0:
            raise StoreError(
                f"perdure has no tables in {self.name}: start a server or a worker first"
            )
        if found.number < len(schema.MIGRATIONS):
            raise StoreError(
                f"{self.name} has the schema of an older perdure: the first server or worker of "
                "this version migrates it"
            )

    async def _check(self, connection: Any) -> None:
        server = connection.get_server_version()
        if server.major < 14:
            raise StoreError(f"{self.name} is PostgreSQL {server.major}; perdure needs 14 or newer")
        encoding = await connection.fetchval("SHOW server_encoding")
        if encoding != "UTF8":
            raise StoreError(
                f"{self.name} is encoded in {encoding}; perdure needs UTF8: "
                "createdb --encoding UTF8 --template template0"
            )
        isolation = await connection.fetchval("SHOW default_transaction_isolation")
        if isolation != "read committed":
            raise StoreError(
                f"{self.name}: transactions are {isolation} by default, where nodes would be in "
                "each other's way; perdure needs read committed: ALTER ROLE ... SET "
                "default_transaction_isolation = 'read committed', or add "
                "?default_transaction_isolation=read%20committed to the connection string"
            )

    async def close(self) -> None:
        """Finish what is under way, and disconnect."""
        await self._indexes.close()
        await self._sharing.close()
        async with self._turn:
            for pool in self._pools:
                await pool.close()

    @property
    def node(self) -> int:
        """The number of this node."""
        return self._sharing.node

    @property
    def sharing(self) -> Sharing | None:
        """How nodes share the database; None for one that only looks."""
        return None if self._read_only else self._sharing

    # ---- writing ----

    async def commit(self, units: Sequence[Unit]) -> list[int]:
        """Write all units but those in conflict, in one transaction; see Store.commit."""
        try:
            written: Written = await self._write(write_batch, units, self.node)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, asyncpg.LockNotAvailableError):
                raise
            self._locks.met(error)
            locked = await self._write(locked_units, units)
            if not locked:
                raise
            raise StoreLocked(str(error), locked) from error.__cause__
        self._locks.over()
        queues = _queues(units) if self._sharing.has_company else ()
        self._sharing.news.add(queues, written.awaited)
        return written.left_out

    async def settle(self, units: Sequence[Unit]) -> list[int]:
        """Wait for a commit that failed, and make it fail if it did not begin; see Store.settle."""
        return await settle(self._read, units)

    async def allocate(self, count: int) -> int:
        """The first of `count` fresh ids."""
        assert 0 < count <= ID_BLOCK, count
        self._check_writable()
        if self._next_id + count > self._last_id:
            block = (await self._read(SQL["next_ids"]))[0][0]
            if self._next_id + count > self._last_id:  # nobody else was faster
                self._next_id, self._last_id = block, block + ID_BLOCK
        first = self._next_id
        self._next_id += count
        return first

    async def delete(self, *keys: int) -> int:
        """Remove runs and everything of them but waiting tasks, which are stale by then."""
        return int(await self._write(delete_runs, keys))

    async def shorten(self, key: int, count: int) -> bool:
        """Remove the first batches of a long history; see Store.shorten."""
        return bool(await self._write(shorten_history, key, count))

    async def put_namespace(self, row: NamespaceRow, former: bytes | None = None) -> bool:
        """Insert a namespace, or replace the one with the body `former`; tells the other nodes."""
        values = (row.name, row.id, row.body, former)
        written = await self._write(_fetch, SQL["put_namespace"], *values)
        if written:
            self._sharing.news.add_notice(NAMESPACES)
        return bool(written)

    async def _write(self, work: Any, *arguments: Any) -> Any:
        """Do something on the writing connection, to its end even when the caller is cancelled."""
        task = asyncio.ensure_future(self._write_now(work, *arguments))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()
            raise

    async def _write_now(self, work: Any, *arguments: Any) -> Any:
        self._check_writable()
        is_sent = False
        try:
            with explained(self.name):
                async with self._turn, self._writer.connection() as connection:
                    is_sent = True
                    result = work(connection, *arguments)
                    return await _in_time(connection, result, connections.WRITE_TIMEOUT_S)
        except StoreError as error:
            error.refused |= not is_sent
            if isinstance(error.__cause__, asyncpg.ReadOnlySQLTransactionError):
                await self._reconnect()
            raise

    def _check_writable(self) -> None:
        if self._read_only:
            raise StoreUnavailable(f"{self.name} is open for reading only")

    async def _reconnect(self) -> None:
        """Who connects anew may be let write, or find another server that can be written."""
        for pool in self._pools:
            await pool.expire()
        self._sharing.reconnect()

    # ---- reading ----

    async def _beat(self, statement: str, *parameters: object) -> list[Any]:
        """A statement on which the life of this node depends: it waits for no others, and what
        stands in its way is tried another way at once."""
        try:
            return await self._beat_once(statement, *parameters)
        except StoreUnavailable as error:
            cause = error.__cause__
        if isinstance(cause, asyncpg.TooManyConnectionsError):
            return await self._read(statement, *parameters)  # on one of those that are open
        if isinstance(cause, _Silent | asyncpg.ReadOnlySQLTransactionError):
            await self._reconnect()  # the others may have fallen silent, too, or only read
        return await self._beat_once(statement, *parameters)

    async def _beat_once(self, statement: str, *parameters: object) -> list[Any]:
        within_s = connections.BEAT_TIMEOUT_S
        with explained(self.name):
            async with self._heart.connection(within_s) as connection:
                rows: list[Any] = await _in_time(
                    connection, _fetch(connection, statement, *parameters), within_s
                )
                return rows

    async def _read(self, statement: str, *parameters: object) -> list[Any]:
        return await self._read_by(self._readers.fetch, statement, *parameters)

    async def _read_planned(self, statement: str, *parameters: object) -> list[Any]:
        return await self._read_by(self._listers.fetch_planned, statement, *parameters)

    async def _read_by(self, fetch: Any, statement: str, *parameters: object) -> list[Any]:
        with explained(self.name):
            try:
                rows: list[Any] = await fetch(statement, *parameters)
                return rows
            except asyncpg.ReadOnlySQLTransactionError:
                await self._reconnect()
                raise

    async def find(self, namespace: str, workflow_id: str, run_id: str = "") -> int | None:
        """The key of a run; without `run_id` the open one, else the one that started last."""
        if run_id:
            rows = await self._read(SQL["find_run"], namespace, run_id, workflow_id)
            return rows[0][0] if rows else None
        return await self._current.get((namespace, workflow_id))

    async def _find_current(self, wanted: list[tuple[str, str]]) -> dict[tuple[str, str], int]:
        columns = [list(column) for column in zip(*wanted, strict=True)]
        rows = await self._read(SQL["find_current"], *columns)
        return {(row[0], row[1]): row[2] for row in rows}

    async def load(self, key: int) -> Loaded | None:
        """All of one run but its history."""
        rows = await self._read(SQL["load"], key)
        return reads.to_loaded(rows[0]) if rows else None

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
        statement = SQL["history_reversed" if reverse else "history"]
        rows = await self._read(statement, key, first_event_id, last_event_id, limit, max_bytes)
        return [HistoryBatch(*row) for row in rows]

    async def list_runs(self, query: Query) -> list[Record]:
        """A page of runs; see Query."""
        async with self._lists.turn():
            rows = await listing.page(self._read_planned, query, self._indexes.ready)
        return [reads.to_record(row) for row in rows]

    async def count_runs(self, query: Query) -> list[tuple[list[object], int]]:
        """The number of runs, per group."""
        statement, parameters = render.count(query)
        async with self._lists.turn():
            rows = await self._read_planned(statement, *parameters)
        return [(render.group(query, row), row[-1]) for row in rows]

    def index_attributes(self, attributes: Sequence[Custom], limit: int) -> None:
        """Make and keep indexes of these custom attributes, in the background."""
        if not self._read_only:
            self._indexes.want(attributes, limit)

    async def due(self, until_ns: int, limit: int) -> list[tuple[int, int]]:
        """(key, wake_at_ns) of alarms that have rung, earliest first."""
        return [(row[0], row[1]) for row in await self._read(SQL["due"], until_ns, limit)]

    async def next_alarm(self) -> int | None:
        """The earliest alarm of all runs."""
        rows = await self._read(SQL["next_alarm"])
        return rows[0][0] if rows else None

    async def in_flight(self) -> list[int]:
        """Keys of open runs whose tasks are held by workers of a node that is gone."""
        keys: list[int] = []
        after: tuple[str, str] | None = FIRST_RUN
        while after is not None:
            page = await self._sharing.orphans(after)
            keys += page.keys
            after = page.last
        return keys

    async def tasks(
        self, namespace: str, queue: str, kind: int, after: Place, limit: int
    ) -> list[TaskRow]:
        """Waiting tasks of one queue behind a place, in order of place."""
        rows = await self._read(SQL["tasks"], namespace, queue, kind, *after, limit)
        return [TaskRow(*row) for row in rows]

    async def backlogs(self, namespace: str = "", queue: str = "", kind: int = 0) -> list[Backlog]:
        """What waits, counted."""
        if queue:
            rows = await self._read(SQL["backlogs_of_queue"], namespace, queue, kind)
        else:
            rows = await self._read(SQL["backlogs"])
        return [Backlog(*row) for row in rows]

    async def messages(self, after_id: int, limit: int) -> list[MessageRow]:
        """Undelivered outbox messages, oldest first."""
        return [MessageRow(*row) for row in await self._read(SQL["messages"], after_id, limit)]

    async def namespaces(self) -> list[NamespaceRow]:
        """All namespaces, by name."""
        return [NamespaceRow(*row) for row in await self._read(SQL["namespaces"])]

    async def namespace(self, name: str) -> NamespaceRow | None:
        """One namespace."""
        rows = await self._read(SQL["namespace"], name)
        return NamespaceRow(*rows[0]) if rows else None

    async def changes(self, after: int, limit: int) -> AsyncIterator[tuple[int, int, HistoryBatch]]:
        """(position, key, batch) in commit order, at most `limit` of them."""
        while limit > 0:
            page = await self._read(SQL["changes"], after, min(limit, CHANGES_PAGE))
            for row in page:
                yield row[0], row[1], HistoryBatch(*row[2:])
            if not page:
                return
            after = page[-1][0]
            limit -= len(page)


class _Silent(TimeoutError):
    """What was sent on an open connection is not answered."""


async def _in_time(connection: Any, work: Coroutine[Any, Any, Any], within_s: float) -> Any:
    """Do something on a connection; give both up when it takes too long.

    Not by cancelling it, as the driver would: a commit that waits for a replica and is cancelled
    stays, can be seen, and is lost when the replica takes over. Left alone it is seen by nobody
    before the replica has it.
    """
    loop = asyncio.get_running_loop()
    expiry = loop.call_later(within_s, connection.terminate)
    try:
        return await work
    except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
        if loop.time() >= expiry.when():
            raise _Silent from None
        raise
    finally:
        expiry.cancel()


async def _fetch(connection: Any, statement: str, *parameters: object) -> list[Any]:
    rows: list[Any] = await connection.fetch(statement, *parameters)
    return rows


def _queues(units: Sequence[Unit]) -> set[Queue]:
    """The queues that have new tasks."""
    return {
        (task.namespace, task.queue, task.kind)
        for unit in units
        for write in unit
        for task in write.put_tasks
    }
