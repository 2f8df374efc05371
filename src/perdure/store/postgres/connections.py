"""Connections to the database: one to write, a few to read, some that must not wait for these."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urlencode

import asyncpg

from perdure.store.contract import StoreBusy
from perdure.store.postgres.dsn import taken_apart

CONNECT_TIMEOUT_S: Final = 10.0
STATEMENT_TIMEOUT_S: Final = 30.0
WRITE_TIMEOUT_S: Final = 30.0
READERS_MAX: Final = 4
LISTERS_MAX: Final = 2  # lists may take as long as they do: a node's life does not wait for them
LIST_PATIENCE_S: Final = 10.0
BEAT_TIMEOUT_S: Final = 4.0  # two of them, and a pause, are less than a silent node lives

_STATEMENTS_KEPT: Final = 400
_NO_SLOT_PAUSE_S: Final = 0.05
_PLANNED: Final = "BEGIN READ ONLY; SET LOCAL plan_cache_mode = force_custom_plan"

T = TypeVar("T")


class Pool:
    """Connections of one kind, opened when they are first needed, and again when they broke.

    Args:
        dsn: as asyncpg takes it, and `statement_cache_size` and `connect_timeout` as options.
        size: how many at most.
        statement_timeout_s: how long a statement may take before the server is asked to cancel it;
            None: for ever.
    """

    def __init__(self, dsn: str, size: int, statement_timeout_s: float | None) -> None:
        self._dsn, self._cache_size, self._connect_timeout_s = without_own_options(dsn)
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
            connect=connect,
            timeout=self._connect_timeout_s,
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

    def connection(self, within_s: float | None = None) -> Any:
        """A connection to use, as an async context manager; it may take so long to have one."""
        if self._pool is None:
            raise asyncpg.InterfaceError("the store is closed")
        timeout_s = within_s or max(CONNECT_TIMEOUT_S, self._connect_timeout_s)
        return self._pool.acquire(timeout=timeout_s)

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


async def connect(dsn: str, **options: Any) -> Any:
    """A connection of the driver's. Raises what the driver raises, but in other words where its own
    say less than is known, or might show a password."""
    try:
        return await asyncpg.connect(dsn, **options)
    except TimeoutError:
        raise
    except asyncpg.TargetServerAttributeNotMatched:
        raise _none_wanted(dsn) from None
    except (asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError) as error:
        raise asyncpg.ClientConfigurationError(str(error)) from error  # no setting of the server's
    except OSError as error:  # of one host; the driver does not tell of those that answered
        if _wanted(dsn) and await _answers(of_any_server(dsn), options):
            raise _none_wanted(dsn, f"; of another: {error}") from error
        raise
    except (LookupError, TypeError, ValueError, OverflowError) as error:  # while it parses
        if isinstance(error, asyncpg.InterfaceError):
            raise
        raise asyncpg.ClientConfigurationError(
            "an environment variable PG… or the service file is not usable"
        ) from None


def _wanted(dsn: str) -> str:
    """The kind of server that is wanted of several; "" for any."""
    parts, options = taken_apart(dsn)
    kind = options.get("target_session_attrs", "any")
    return kind if _is_several(parts, options) and kind != "any" else ""


def _none_wanted(dsn: str, more: str = "") -> asyncpg.TargetServerAttributeNotMatched:
    kind = taken_apart(dsn)[1].get("target_session_attrs", "")
    return asyncpg.TargetServerAttributeNotMatched(
        f"a server answers, but none that is {kind} (target_session_attrs): replicas, and servers "
        f"with default_transaction_read_only, only read{more}"
    )


async def _answers(dsn: str, options: dict[str, Any]) -> bool:
    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        (await asyncpg.connect(dsn, **options)).terminate()
        return True
    return False


def without_own_options(dsn: str) -> tuple[str, int, float]:
    """What is left for the driver, how many prepared statements a connection keeps, and how long it
    may take to connect.

    Of several hosts the one that can be written is meant, unless the string says otherwise: the
    driver would be content with the first that answers, as a replica does. Raises StoreMisnamed.
    """
    parts, options = taken_apart(dsn)
    size = int(options.pop("statement_cache_size", "") or _STATEMENTS_KEPT)
    timeout_s = int(options.pop("connect_timeout", "") or 0)
    if _is_several(parts, options):
        options.setdefault("target_session_attrs", "read-write")
    return _joined(parts, options), size, timeout_s or CONNECT_TIMEOUT_S


def of_any_server(dsn: str) -> str:
    """The same database on whichever of its servers answers, a replica as well."""
    parts, options = taken_apart(dsn)
    return _joined(parts, options | {"target_session_attrs": "any"})


def _is_several(parts: SplitResult, options: Mapping[str, str]) -> bool:
    return "," in (parts.netloc.rpartition("@")[2] or options.get("host", ""))


def _joined(parts: SplitResult, options: Mapping[str, str]) -> str:
    query = urlencode(options, safe="/,:")
    return f"{parts.scheme}://{parts.netloc}{parts.path}" + (f"?{query}" if query else "")
