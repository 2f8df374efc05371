"""Which way statements take to their rows: by indexes, also where tables are large, and by plans
that were made when tables were empty."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import pytest

from driver_log import DriverLog
from perdure.store.postgres import PostgresStore
from perdure.store.postgres.batch import _statement
from perdure.store.postgres.statements import PARTS, SHARED, STATEMENTS
from perdure.store.query import And, Column, Compare, Order, Query

GENERIC, CUSTOM = "force_generic_plan", "force_custom_plan"


@pytest.fixture
async def connection(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """To a database with empty tables."""
    store = PostgresStore(postgres_dsn)
    await store.open()
    connection = await asyncpg.connect(postgres_dsn)
    yield connection
    await connection.close()
    await store.close()


async def plan(connection: asyncpg.Connection, statement: str, values: dict[str, str]) -> str:
    """How a prepared statement is done.

    Args:
        values: of parameters, by their types; where a type is missing they are NULL.
    """
    await connection.execute(f"PREPARE looked_at AS {statement}")
    types = await connection.fetchval(
        "SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = 'looked_at'"
    )
    given = ", ".join(values.get(kind, "NULL") for kind in types)
    rows = await connection.fetch(f"EXPLAIN EXECUTE looked_at{f'({given})' if types else ''}")
    await connection.execute("DEALLOCATE looked_at")
    return "\n".join(row[0] for row in rows)


@pytest.mark.parametrize("statement", [STATEMENTS["find_current"], _statement(("new_records",))])
async def test_the_last_run_of_a_workflow_id_is_found_by_its_index(
    statement: str, connection: asyncpg.Connection
) -> None:
    await connection.execute(f"SET plan_cache_mode = {GENERIC}")
    found = await plan(connection, statement, {})
    assert set(re.findall(r"using (\w+) on runs", found)) == {"runs_open", "runs_by_workflow_id"}


# -- large tables ----------------------------------------------------------------------------------

LARGE: Final = {
    "runs": """
        SELECT n, 'default', 'workflow-' || n, 'run-' || n, 'flow', 'queue', 2 - (n % 20 = 0)::int,
            n, n, n * (n % 20 <> 0)::int, 3, 300, 2, '', '', 'workflow-' || n, 'run-' || n,
            'run-' || n, '{}', '', '', ''
        FROM generate_series(1, 20000) AS n""",
    "states": """
        SELECT n, 1, 4000000000000000000 + n, 0, 0, ''
        FROM generate_series(1, 20000) AS n""",
    "items": "SELECT n / 2, n % 2, '' FROM generate_series(1, 20000) AS n",
    "history": "SELECT n / 2, n % 2, n % 2, n, '' FROM generate_series(1, 20000) AS n",
    "tasks": """
        SELECT n, 'default', CASE n % 20 WHEN 0 THEN 'default' ELSE 'other' END, 1, n, 2, 1, n, n,
            '', 0
        FROM generate_series(1, 20000) AS n""",
    "messages": "SELECT n, n, '', 0 FROM generate_series(1, 20000) AS n",
    "rates": "SELECT 'rate-' || n, n FROM generate_series(1, 20000) AS n",
    "letters": """
        OVERRIDING SYSTEM VALUE SELECT n, 'address-' || n % 2000, n, ''
        FROM generate_series(1, 20000) AS n""",
}  # fmt: skip

VALUES: Final = {
    "bigint": "5", "integer": "1", "text": "'default'", "smallint": "1", "bytea": "''",
    "bigint[]": "'{3,5,17,29}'", "integer[]": "'{1,1,1,1}'", "smallint[]": "'{1,1,1,1}'",
    "text[]": "'{default,a,b,c}'", "bytea[]": "'{a,a,a,a}'", "boolean[]": "'{t,t,t,t}'",
}  # fmt: skip

READ_THROUGH: Final = {
    "backlogs": {"tasks"},  # counts them all, for who looks at all queues
    "backlogs_of_queue": {"tasks"},  # counts all of a queue, which may be most
    "beat": {"messages"},  # up to the first that waits; what waits for long is little
    "sweep_messages": {"messages"},  # all that wait, every few minutes
    "sweep_letters": {"letters"},  # of some minutes
    "sweep_rates": {"rates"},  # of some minutes
}
"""What a statement may go through from one end, and why that is no harm."""


@pytest.fixture
async def large(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A connection to a database whose tables are large, and known to be so."""
    for table, rows in LARGE.items():
        await connection.execute(f"INSERT INTO perdure.{table} {rows}")
        await connection.execute(f"ANALYZE perdure.{table}")
    return connection


async def read_through(
    connection: asyncpg.Connection, statements: dict[str, str]
) -> dict[str, set[str]]:
    """Which large tables statements go through from one end, for those that do."""
    found = {}
    for name, statement in statements.items():
        tables = set(re.findall(r"Seq Scan on (\w+)", await plan(connection, statement, VALUES)))
        if tables := tables.intersection(LARGE) - READ_THROUGH.get(name, set()):
            found[name] = tables
    return found


@pytest.mark.parametrize("mode", [GENERIC, CUSTOM])
async def test_no_statement_goes_through_a_large_table(
    mode: str, large: asyncpg.Connection
) -> None:
    await large.execute(f"SET plan_cache_mode = {mode}")
    assert await read_through(large, STATEMENTS) == {}
    assert await read_through(large, SHARED) == {}


@pytest.mark.parametrize("mode", [GENERIC, CUSTOM])
async def test_no_commit_goes_through_a_large_table(mode: str, large: asyncpg.Connection) -> None:
    known = tuple(name for name in PARTS if not name.startswith("new_"))
    new = ("new_states", "new_records", "history", "put_items", "put_tasks", "put_messages")
    commits = {"known": _statement(known), "new": _statement(new), "all": _statement(tuple(PARTS))}
    await large.execute(f"SET plan_cache_mode = {mode}")
    assert await read_through(large, commits) == {}


async def test_retention_finds_what_is_to_go_by_its_index(
    large: asyncpg.Connection, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = DriverLog(monkeypatch)
    closed = And((Compare(Column.CLOSE, ">", 0), Compare(Column.CLOSE, "<", 900)))
    store = PostgresStore(postgres_dsn, read_only=True)
    await store.open()
    await store.list_runs(Query("default", closed, (Order(Column.CLOSE),), limit=100))
    await store.close()
    [asked] = [query for query in log.queries if "FROM perdure.runs" in query.query]
    rows = await large.fetch(f"EXPLAIN {asked.query}", *asked.args)
    assert "runs_by_close" in (found := "\n".join(row[0] for row in rows))
    assert "Seq Scan" not in found
