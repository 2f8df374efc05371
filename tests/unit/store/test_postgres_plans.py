"""Plans that are made when tables are empty, and kept while they grow."""

from __future__ import annotations

import re

import asyncpg
import pytest

from perdure.store.postgres import PostgresStore
from perdure.store.postgres.batch import _statement
from perdure.store.postgres.statements import STATEMENTS


@pytest.mark.parametrize("statement", [STATEMENTS["find_current"], _statement(("new_records",))])
async def test_the_last_run_of_a_workflow_id_is_found_by_its_index(
    statement: str, postgres_dsn: str
) -> None:
    store = PostgresStore(postgres_dsn)
    await store.open()
    connection = await asyncpg.connect(postgres_dsn)
    try:
        count = max(int(place) for place in re.findall(r"\$(\d+)", statement))
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE looked_at AS {statement}")
        nothing = ", ".join(["NULL"] * count)
        rows = await connection.fetch(f"EXPLAIN EXECUTE looked_at({nothing})")
    finally:
        await connection.close()
        await store.close()
    indexes = set(re.findall(r"using (\w+) on runs", "\n".join(row[0] for row in rows)))
    assert indexes == {"runs_open", "runs_by_workflow_id"}
