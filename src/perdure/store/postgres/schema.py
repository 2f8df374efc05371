"""The schema's version, and the way forward from older ones.

``perdure.migrations`` lists what was applied. A migration runs in one transaction under an advisory
lock, so of many nodes that start at once one migrates and the others wait.

Nodes of the former version go on serving where that is right. A migration says so in its first
line: ``-- oldest: 3`` when nodes that know versions up to 3 may go on, because it only adds
(columns with a default, tables, indexes). Without that line they must not: they stop, and say why.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, NamedTuple

import asyncpg

from perdure.store.contract import StoreTooNew
from perdure.store.migrations import load

_LOCK: Final = 0x70657264  # "perd"
_LOCK_TIMEOUT: Final = "2s"  # of a table; who asks for one and waits keeps all others waiting
_TRIES: Final = 5
_PAUSE_S: Final = 1.0
_OLDEST: Final = re.compile(r"-- oldest: (\d+)\n")

# Not to_regclass: it answers from a cache that knows nothing of what another session just made.
_IS_THERE: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'perdure' AND c.relname = 'migrations'
)
"""

_HAS_SCHEMA: Final = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'perdure')"

MIGRATIONS: Final = load(__package__)


class Version(NamedTuple):
    """Of a schema.

    Attributes:
        number: how many migrations were applied; 0 for a database that perdure has not used.
        oldest: which version a node has to know, at least, to use it.
    """

    number: int
    oldest: int

    def check(self, name: str) -> None:
        """Raise StoreTooNew if the schema is of a later perdure that leaves no room for this."""
        if self.oldest > len(MIGRATIONS):
            raise StoreTooNew(
                f"{name} has schema version {self.number}, but this perdure knows versions up to "
                f"{len(MIGRATIONS)}: install the newer perdure that wrote it"
            )


async def version(connection: Any) -> Version:
    """The version of a database's schema."""
    if not await connection.fetchval(_IS_THERE):
        return Version(0, 0)
    numbers = [row[0] for row in await connection.fetch("SELECT number FROM perdure.migrations")]
    if max(numbers, default=0) < 2:  # the column came with the second migration
        return Version(max(numbers, default=0), 0)
    query = "SELECT max(number), max(oldest) FROM perdure.migrations"
    return Version(*await connection.fetchrow(query))


async def migrate(connection: Any, name: str) -> None:
    """Bring the schema to the newest version.

    Raises StoreTooNew, and what the driver raises, as when others keep a table locked.
    """
    tries_left = _TRIES
    while tries_left:
        tries_left -= 1
        try:
            await _migrate(connection, name)
            break
        except asyncpg.LockNotAvailableError:
            if not tries_left:
                raise
        await asyncio.sleep(_PAUSE_S)


async def _migrate(connection: Any, name: str) -> None:
    found = await version(connection)
    found.check(name)
    if found.number >= len(MIGRATIONS):
        return
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
        await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        found = await version(connection)  # another node may have been faster
        found.check(name)
        if found.number == 0:
            # "IF NOT EXISTS" would need the right to create one even where it is there.
            if not await connection.fetchval(_HAS_SCHEMA):
                await connection.execute("CREATE SCHEMA perdure")
            await connection.execute(
                "CREATE TABLE perdure.migrations ("
                "number integer PRIMARY KEY, applied timestamptz NOT NULL DEFAULT now())"
            )
        for number in range(found.number + 1, len(MIGRATIONS) + 1):
            await connection.execute(MIGRATIONS[number - 1])
            await connection.execute(_noted(number))


def _noted(number: int) -> str:
    """The statement that notes a migration."""
    if number == 1:
        return "INSERT INTO perdure.migrations (number) VALUES (1)"
    given = _OLDEST.match(MIGRATIONS[number - 1])
    oldest = int(given[1]) if given else number
    return f"INSERT INTO perdure.migrations (number, oldest) VALUES ({number}, {oldest})"
