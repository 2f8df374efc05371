"""The PostgreSQL server that tests bring along."""

from __future__ import annotations

import os

import asyncpg

from postgres import PostgresServer, running_server


async def test_a_test_has_a_database_of_its_own(postgres_dsn: str) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    try:
        assert await connection.fetchval("SHOW fsync") == "on"
        assert int(await connection.fetchval("SHOW server_version_num")) >= 140_000
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert await connection.fetchval(tables) == 0
        await connection.execute("CREATE TABLE public.left_behind (n int)")
    finally:
        await connection.close()


async def test_databases_go_with_their_tests(postgres_server: PostgresServer) -> None:
    connection = await asyncpg.connect(postgres_server.dsn())
    try:
        names = "SELECT count(*) FROM pg_database WHERE datname LIKE 'test_%'"
        assert await connection.fetchval(names) == 0
    finally:
        await connection.close()


def test_a_server_is_stopped_and_removed() -> None:
    with running_server() as server:
        pid = int((server.directory / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, 0)
    assert not server.directory.exists()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return
    raise AssertionError(f"PostgreSQL {pid} still runs")
