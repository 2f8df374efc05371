"""Indexes of what only some runs have, made and dropped in the background while the node serves.

That are custom attributes, and built-in ones that are known of closed runs, or of children. Which
there are is for the database to say, and nothing depends on them: a query means the same without.
Each holds only the runs that have the attribute.

One session at a time makes them, over all nodes: two that wait for each other's snapshots would be
a deadlock. It cannot do so within a transaction, so its right to is a lock in another one, which
goes with its node. (Behind a pooler a session's own lock would stay.) A statement may outlive the
node that sent it: an index that cannot be used is a leftover only once nobody works on the table.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, NamedTuple

import asyncpg

from perdure.store.contract import StoreError
from perdure.store.paging import NULL_WHEN_OPEN
from perdure.store.postgres import custom
from perdure.store.postgres.connections import CONNECT_TIMEOUT_S, without_own_options
from perdure.store.postgres.errors import explained
from perdure.store.postgres.parts import OWN, has_order, is_not_own
from perdure.store.postgres.statements import INDEXES as SQL
from perdure.store.query import Column, Custom, Field
from perdure.store.rendering import when_closed

log = logging.getLogger("perdure.store")

PREFIX: Final = "runs_custom_"
PAUSE_S: Final = 10.0  # while another node is at it
LATER_S: Final = 300.0  # when it failed, or the table is small

SMALL_BYTES: Final = 16 * 1024 * 1024
"""Of the table, some 15,000 runs: lists are quick anyway. And an index tells the planner how large
a table was when it was made: of a tiny one that grows fast it would read all for minutes."""

_LOCK: Final = 0x70657269  # "peri"
# A transaction that keeps a snapshot would be waited for by the very index that it guards: one does
# that looks at more than one moment, or whose last statement was not sent as plain text.
_GUARD: Final = f"""
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL lock_timeout = '10ms';
SELECT set_config(name, '0', true) FROM pg_settings WHERE name = 'transaction_timeout';
SELECT pg_advisory_xact_lock({_LOCK})
"""
# What limits the role's other statements: an index takes as long as it does, and waits for others.
_UNLIMITED: Final = """
SELECT set_config(name, '0', false) FROM pg_settings
WHERE name IN ('statement_timeout', 'lock_timeout', 'transaction_timeout')
"""
_DROP: Final = (
    "DROP INDEX CONCURRENTLY IF EXISTS perdure.%1$I",
    "DROP STATISTICS IF EXISTS perdure.%1$I",
)


BUILT_IN: Final[tuple[Field, ...]] = (
    *sorted(NULL_WHEN_OPEN),
    Column.ROOT_WORKFLOW_ID,
    Column.ROOT_RUN_ID,
    Column.PARENT_RUN_ID,
)
"""Those that are always wanted."""


def _make(field: Field) -> tuple[str, str]:
    """How statistics and an index for a field are made: with places for the name that both have and
    for that of a custom attribute. What an index gathers itself is not used where it is partial."""
    value = _value(field)
    where = f"{value} IS NOT NULL"
    if has_order(field):
        columns = f"({value}) NULLS FIRST, key"
    elif isinstance(field, Custom):
        columns = "start_ns, key"
    else:
        columns = f"{field}, start_ns, key"
        where = is_not_own(field) if field in OWN else f"{field} > ''"
    return (
        f"CREATE STATISTICS IF NOT EXISTS perdure.%1$I ON ({value}) FROM perdure.runs",
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS %1$I "
        f"ON perdure.runs (namespace, {columns}) WHERE {where}",
    )


def _value(field: Field) -> str:
    """A field as conditions have it."""
    if isinstance(field, Custom):
        return custom.ordered(field.kind, custom.json("%2$L::text"))
    return when_closed(field) if field in NULL_WHEN_OPEN else f"nullif({field}, '')"


def name_of(field: Field) -> str:
    """The name of a field's index; in a version that makes it otherwise, another one."""
    text = " ".join([*_make(field), field.name if isinstance(field, Custom) else ""])
    return PREFIX + hashlib.sha256(text.encode()).hexdigest()[:24]


class Plan(NamedTuple):
    """What is to be done.

    Attributes:
        ready: fields whose index is there.
        make: fields that need one.
        drop: names of indexes that nobody needs, and of leftovers.
        left_out: how many fields are too many.
        is_early: there is something to make, once the table is larger.
    """

    ready: frozenset[Field]
    make: tuple[Field, ...]
    drop: tuple[str, ...]
    left_out: int
    is_early: bool = False


def plan(
    wanted: Sequence[Field], limit: int, found: dict[str, bool], *, is_small: bool = False
) -> Plan:
    """What is to be done, where these indexes are there, whole or not.

    What is there stays as long as it is wanted, also beyond the limit, which may be another one at
    other nodes: so nodes never undo each other's work.
    """
    names = {field: name_of(field) for field in wanted}
    ready = [one for one in wanted if found.get(names[one])]
    missing = [one for one in wanted if not found.get(names[one])]
    make = missing[: max(0, limit - len(ready))]
    kept = {names[one] for one in ready}
    return Plan(
        ready=frozenset(ready),
        make=() if is_small else tuple(make),
        drop=tuple(sorted(found.keys() - kept)),
        left_out=len(wanted) - len(ready) - len(make),
        is_early=is_small and bool(make),
    )


class Indexes:
    """Keeps the indexes as they are wanted.

    Args:
        dsn: of the database.
        name: of the database, as messages show it.
        read: runs a statement and returns its rows.

    Attributes:
        ready: the fields that have one, as far as this node knows.
    """

    def __init__(self, dsn: str, name: str, read: Callable[..., Awaitable[list[Any]]]) -> None:
        self._dsn = without_own_options(dsn)[0]
        self._name = name
        self._read = read
        self._wanted: tuple[Field, ...] = ()
        self._limit = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._told: set[str] = set()
        self.ready: frozenset[Field] = frozenset()

    def want(self, attributes: Sequence[Custom], limit: int) -> None:
        """From now on these are wanted, at most so many of them, and the built-in ones."""
        self._wanted = (*BUILT_IN, *attributes)
        self._limit = len(BUILT_IN) + limit
        self._changed.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="perdure-indexes")

    async def close(self) -> None:
        """Stop. What the server is at it may finish by itself."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            pause_s = await self._try()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()

    async def _try(self) -> float | None:
        """Bring the indexes nearer to what is wanted; when to go on, None if nothing is left."""
        try:
            found = await self._look()
            if found.make or found.drop:
                with explained(self._name):
                    async with self._alone() as session:
                        if session is not None:
                            await self._work(session)
                found = await self._look()
        except StoreError as error:
            with suppress(StoreError):
                await self._look()  # the others may be there
            self._tell(f"some attributes are not indexed, lists by them may be slow: {error}")
            return LATER_S
        if found.make or found.drop:
            return PAUSE_S
        return LATER_S if found.is_early else None

    async def _look(self) -> Plan:
        rows = await self._read(SQL["listed"], PREFIX)
        size_bytes = (await self._read(SQL["size"]))[0][0]
        there = {row[0]: row[1] for row in rows}
        found = plan(self._wanted, self._limit, there, is_small=size_bytes < SMALL_BYTES)
        self.ready = found.ready
        if found.left_out:
            self._tell(
                f"{found.left_out} custom attributes are not indexed, as more than "
                f"{self._limit - len(BUILT_IN)}, the limit (perdure.searchAttributes.maxIndexed), "
                "are registered: lists by them may be slow"
            )
        return found

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.warning("%s", text)

    async def _work(self, session: Any) -> None:
        found = await self._look()
        rows = await self._read(SQL["listed"], PREFIX)
        if not all(row[1] for row in rows) and (await self._read(SQL["is_busy"]))[0][0]:
            return  # a statement of a node that is gone
        failure: asyncpg.PostgresError | None = None
        for work in (
            *(partial(self._drop, session, name) for name in found.drop),
            *(partial(self._make, session, field) for field in found.make),
        ):
            try:
                await work()
            except asyncpg.PostgresError as error:  # the next ones are none the worse
                failure = error
        if found.make:
            await session.execute("ANALYZE perdure.runs")
        if failure is not None:
            raise failure

    async def _make(self, session: Any, field: Field) -> None:
        name = name_of(field)
        attribute = field.name if isinstance(field, Custom) else ""
        try:
            for form in _make(field):
                await self._execute(session, form, name, attribute)
        except asyncpg.PostgresError:
            with suppress(asyncpg.PostgresError):  # an unfinished one would cost and serve nobody
                await self._drop(session, name)
            raise

    async def _drop(self, session: Any, name: str) -> None:
        for form in _DROP:
            await self._execute(session, form, name)

    async def _execute(self, session: Any, form: str, name: str, attribute: str = "") -> None:
        statement = (await self._read(SQL["quoted"], form, name, attribute))[0][0]
        await session.execute(statement)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[Any | None]:
        """A session to make indexes with; None while another node has one."""
        async with self._connected() as guard:
            try:
                await guard.execute(_GUARD)
            except asyncpg.LockNotAvailableError:
                yield None
                return
            async with self._connected() as session:
                await _lift_limits(session)
                yield session

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        connection = await asyncpg.connect(
            self._dsn, timeout=CONNECT_TIMEOUT_S, statement_cache_size=0
        )
        try:
            yield connection
        finally:
            connection.terminate()


async def _lift_limits(session: Any) -> None:
    """But not behind a pooler, which another process answers for than the one that it shows: what
    is set for a session may come to somebody else's there."""
    if await session.fetchval("SELECT pg_backend_pid()") == session.get_server_pid():
        await session.execute(_UNLIMITED)
