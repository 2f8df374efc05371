"""The schema's version, and the way forward from older ones.

``perdure.migrations`` lists what was applied. A migration runs in one transaction under an advisory
lock, so of many nodes that start at once one migrates and the others wait. Migrations only add
(columns with a default, tables, indexes), so that nodes of the former version go on serving.
"""

from __future__ import annotations

from typing import Any, Final

from perdure.store.contract import StoreTooNew
from perdure.store.migrations import load

_LOCK: Final = 0x70657264  # "perd"

# Not to_regclass: it answers from a cache that knows nothing of what another session just made.
_IS_THERE: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'perdure' AND c.relname = 'migrations'
)
"""

MIGRATIONS: Final = load(__package__)


async def version(connection: Any) -> int:
    """How many migrations were applied; 0 for a database that perdure has not used."""
    if not await connection.fetchval(_IS_THERE):
        return 0
    return int(await connection.fetchval("SELECT coalesce(max(number), 0) FROM perdure.migrations"))


def check(found: int, name: str) -> None:
    """Raise StoreTooNew if the schema is of a later perdure."""
    if found > len(MIGRATIONS):
        raise StoreTooNew(
            f"{name} has schema version {found}, but this perdure knows versions up to "
            f"{len(MIGRATIONS)}: install the newer perdure that wrote it"
        )


async def migrate(connection: Any, name: str) -> None:
    """Bring the schema to the newest version; raises StoreTooNew."""
    found = await version(connection)
    check(found, name)
    if found == len(MIGRATIONS):
        return
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
        found = await version(connection)  # another node may have been faster
        check(found, name)
        if found == 0:
            await connection.execute("CREATE SCHEMA IF NOT EXISTS perdure")
            await connection.execute(
                "CREATE TABLE perdure.migrations ("
                "number integer PRIMARY KEY, applied timestamptz NOT NULL DEFAULT now())"
            )
        for number in range(found + 1, len(MIGRATIONS) + 1):
            await connection.execute(MIGRATIONS[number - 1])
            await connection.execute(f"INSERT INTO perdure.migrations (number) VALUES ({number})")
