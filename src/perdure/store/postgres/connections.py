"""Connections to the database: one to write, a few to read, and fewer for lists."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from perdure.store.contract import StoreBusy

CONNECT_TIMEOUT_S: Final = 10.0
STATEMENT_TIMEOUT_S: Final = 30.0
WRITE_TIMEOUT_S: Final = 30.0
READERS_MAX: Final = 4
LISTERS_MAX: Final = 2  # lists may take as long as they do: a node's life does not wait for them
LIST_PATIENCE_S: Final = 10.0

_STATEMENTS_KEPT: Final = 400
_NO_SLOT_PAUSE_S: Final = 0.05
_PLANNED: Final = "BEGIN READ ONLY; SET LOCAL plan_cache_mode = force_custom_plan"

T = TypeVar("T")


def display_name(dsn: str) -> str:
    """A connection string as messages show it: without password and options."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    user = parts.netloc.rpartition("@")[0].partition(":")[0]
    options = dict(parse_qsl(parts.query))
    where = host or options.get("host", "")
    return (
        f"postgresql://{user}@{where}{parts.path}" if user else f"postgresql://{where}{parts.path}"
    )


class Pool:
    """Connections of one kind, opened when they are first needed, and again when they broke.

    Args:
        dsn: as asyncpg takes it, and `statement_cache_size` as an option.
        size: how many at most.
        statement_timeout_s: how long a statement may take before the server is asked to cancel it;
            None: for ever.
    """

    def __init__(self, dsn: str, size: int, statement_timeout_s: float | None) -> None:
        self._dsn, self._cache_size = without_own_options(dsn)
        self._size = size
        self._statement_timeout_s = statement_timeout_s
        self._pool: Any = None

    async def open(self) -> None:
        """Get ready; the first connection is opened when it is needed."""
        self._pool = await asyncpg.create_pool(
            self._dsn,
            min_size=0,  # else the driver would itself try to keep one, and log that it cannot
            max_size=self._size,
            reset=_keep,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=self._statement_timeout_s,
            statement_cache_size=self._cache_size,
            max_cached_statement_lifetime=0,
            max_inactive_connection_lifetime=0,
        )

    async def close(self) -> None:
        """Close all; wait a moment for those in use."""
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await pool.close()
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pool.terminate()

    def connection(self) -> Any:
        """A connection to use, as an async context manager."""
        if self._pool is None:
            raise asyncpg.InterfaceError("the store is closed")
        return self._pool.acquire(timeout=CONNECT_TIMEOUT_S)

    async def fetch(self, statement: str, *parameters: object) -> list[Any]:
        """Rows of one statement."""
        return await self._run(_fetch, statement, *parameters)

    async def fetch_planned(self, statement: str, *parameters: object) -> list[Any]:
        """Rows of one statement, planned for these parameters however often it was executed."""
        return await self._run(_fetch_planned, statement, *parameters)

    async def _run(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        await _in_task()
        give_up_at = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            try:
                async with self.connection() as connection:
                    return await work(connection, *arguments)
            except asyncpg.TooManyConnectionsError:  # none more: make do with those that are open
                if not self._pool.get_size() or time.monotonic() > give_up_at:
                    raise
            await asyncio.sleep(_NO_SLOT_PAUSE_S)

    async def expire(self) -> None:
        """Replace all connections, each when it is needed next."""
        if self._pool is not None:
            await self._pool.expire_connections()


class ListTurns:
    """Lets as many lists and counts go on as there are connections for them.

    Args:
        name: of the database, as messages show it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._free = asyncio.Semaphore(LISTERS_MAX)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it. Raises StoreBusy when that takes too long."""
        await _in_task()
        try:
            async with asyncio.timeout(LIST_PATIENCE_S):
                await self._free.acquire()
        except TimeoutError:
            raise StoreBusy(
                f"{self._name}: too many lists and counts at once, each node makes {LISTERS_MAX} "
                "at a time; try again later, or ask for what an index finds"
            ) from None
        try:
            yield
        finally:
            self._free.release()


async def _in_task() -> None:
    """Have a task, as timeouts need one: who drives a coroutine by hand, as a server's door does,
    gives it one when it waits."""
    if asyncio.current_task() is None:
        await asyncio.sleep(0)


async def _fetch(connection: Any, statement: str, *parameters: object) -> list[Any]:
    rows: list[Any] = await connection.fetch(statement, *parameters)
    return rows


async def _fetch_planned(connection: Any, statement: str, *parameters: object) -> list[Any]:
    """In a transaction, so that the setting is for this statement whatever pooler is between."""
    try:
        await connection.execute(_PLANNED)
        return await _fetch(connection, statement, *parameters)
    finally:
        with suppress(asyncpg.InterfaceError, asyncpg.PostgresError, OSError):  # if it is closed
            await connection.execute("COMMIT")


async def _keep(connection: Any) -> None:
    """Nothing is set on connections that would have to be undone."""


def without_own_options(dsn: str) -> tuple[str, int]:
    """What is left for the driver, and how many prepared statements a connection keeps.

    Of several hosts the one that can be written is meant, unless the string says otherwise: the
    driver would be content with the first that answers, as a replica does.
    """
    parts = urlsplit(dsn)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    size = options.pop("statement_cache_size", str(_STATEMENTS_KEPT))
    if not size.isdigit():
        raise ValueError(f"statement_cache_size: a number, got {size!r}")
    hosts = parts.netloc.rpartition("@")[2] or options.get("host", "")
    if "," in hosts:
        options.setdefault("target_session_attrs", "read-write")
    return urlunsplit(parts._replace(query=urlencode(options, safe="/,:"))), int(size)
