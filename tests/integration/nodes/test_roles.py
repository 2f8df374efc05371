"""A role that only runs nodes: what docs/scaling.md grants it is enough, and needed."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

import perdure
from perdure import activity, workflow
from perdure.store.contract import StoreError
from postgres import PostgresServer

PAGE = Path(__file__).resolve().parents[3] / "docs" / "scaling.md"


def grants(owner: str, role: str) -> list[str]:
    """The statements of the page, for these roles."""
    [block] = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    named = block.replace("perdure_owner", owner).replace("perdure_node", role)
    return [statement.strip() for statement in named.split(";") if statement.strip()]


async def execute(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@activity
async def double(n: int) -> int:
    return 2 * n


@workflow
async def doubled(n: int) -> int:
    return await double(n)


@pytest.fixture
async def roles(postgres_server: PostgresServer) -> AsyncIterator[tuple[str, str, str]]:
    """A database, its owner, and another role."""
    number = uuid.uuid4().hex
    database, owner, role = f"test_{number}", f"owner_{number}", f"node_{number}"
    for name in (owner, role):
        await postgres_server.execute(f"CREATE ROLE {name} LOGIN")
    await postgres_server.execute(f"CREATE DATABASE {database} OWNER {owner}")
    yield database, owner, role
    await postgres_server.execute(f"DROP DATABASE {database} WITH (FORCE)")
    for name in (role, owner):
        await postgres_server.execute(f"DROP ROLE {name}")


async def test_a_role_with_what_the_page_grants_runs_nodes(
    postgres_server: PostgresServer, roles: tuple[str, str, str]
) -> None:
    database, owner, role = roles
    as_owner, as_role = (postgres_server.dsn(database, name) for name in (owner, role))
    async with perdure.connect(as_owner):
        pass  # makes the tables
    with pytest.raises(StoreError, match="the user may not do that"):
        async with perdure.connect(as_role):
            pass
    await execute(as_owner, *grants(owner, role))
    async with (
        perdure.connect(as_role) as first,
        perdure.connect(as_role) as second,
        first.worker(workflows=[doubled], activities=[double]),
    ):
        assert await second.execute(doubled, 4, id="d") == 8
        assert [run.id async for run in second.list("WorkflowType = 'doubled'")] == ["d"]
        await second.handle("d").delete()
    await execute(as_owner, "CREATE TABLE perdure.later (n int)")  # as a migration does
    await execute(as_role, "INSERT INTO perdure.later VALUES (1)")


async def test_each_grant_is_needed(
    postgres_server: PostgresServer, roles: tuple[str, str, str]
) -> None:
    database, owner, role = roles
    as_owner, as_role = (postgres_server.dsn(database, name) for name in (owner, role))
    async with perdure.connect(as_owner):
        pass
    given = [statement for statement in grants(owner, role) if statement.startswith("GRANT")]
    for left_out in given:
        revoked = left_out.replace("GRANT", "REVOKE", 1).replace(" TO ", " FROM ")
        await execute(as_owner, *given, revoked)
        with pytest.raises(StoreError, match="the user may not do that"):
            async with perdure.connect(as_role):
                pass
