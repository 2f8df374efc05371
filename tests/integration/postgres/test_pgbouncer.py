"""Nodes behind PgBouncer in transaction mode, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import pytest
from pg_stage import Ledger, Traffic, expected, order, until, working

import postgres
from perdure.store.contract import StoreUnavailable
from perdure.store.postgres import PostgresStore
from postgres import PostgresServer

PORT = 6432
SERVER_CONNECTIONS = 4
BINARY = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/bin:/usr/bin")

pytestmark = pytest.mark.skipif(BINARY is None, reason="PgBouncer is not installed")


@contextmanager
def bouncer(server: PostgresServer, connections: int) -> Iterator[Path]:
    """The directory with its socket."""
    assert BINARY is not None
    directory = Path(tempfile.mkdtemp(prefix="perdure-bouncer-"))
    config = directory / "pgbouncer.ini"
    said = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True).stdout
    can_keep = tuple(map(int, said.split()[1].split(".")[:2])) >= (1, 21)
    config.write_text(
        f"""
[databases]
* = host={server.directory} user={postgres.SUPERUSER}
[pgbouncer]
listen_port = {PORT}
unix_socket_dir = {directory}
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
ignore_startup_parameters = extra_float_digits
{"max_prepared_statements = 0" if can_keep else ""}
"""
    )
    user = postgres._other_user()
    if user is not None:
        shutil.chown(directory, user)
        shutil.chown(config, user)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([BINARY, config], user=user, stdout=log, stderr=log)
    try:
        yield directory
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory)


@asynccontextmanager
async def through_bouncer(server: PostgresServer, dsn: str, connections: int) -> AsyncIterator[str]:
    """The connection string of a database through PgBouncer, which has so many connections."""
    with bouncer(server, connections) as directory:
        place = f"host={directory}&port={PORT}"
        through = dsn.replace(f"host={server.directory}", place)

        async def answers() -> bool:
            try:
                connection = await asyncpg.connect(through, statement_cache_size=0)
            except OSError:
                return False
            await connection.close()
            return True

        await until(answers, (directory / "log").read_text)
        yield through


@pytest.fixture
async def dsn(postgres_server: PostgresServer, postgres_dsn: str) -> AsyncIterator[str]:
    """Of the test's database, through PgBouncer; nothing is prepared."""
    async with through_bouncer(postgres_server, postgres_dsn, SERVER_CONNECTIONS) as through:
        yield f"{through}&statement_cache_size=0"


async def test_prepared_statements_that_get_lost_are_explained(
    postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    """PgBouncer 1.21 or newer can take them along; here it is not told to."""
    async with through_bouncer(postgres_server, postgres_dsn, 2) as through:
        store, holder = PostgresStore(through), await asyncpg.connect(through)
        try:
            await store.open()
            await store.sharing.beat([], [])
            await holder.execute("BEGIN")  # PgBouncer gives it the connection that was used last
            with pytest.raises(StoreUnavailable, match=r"add \?statement_cache_size=0"):
                await store.sharing.beat([], [])
        finally:
            await holder.close()
            await store.close()


async def test_two_nodes_work_together(dsn: str) -> None:
    async with working(dsn) as first, working(dsn) as second:
        for number, client in enumerate((first, second) * 5):
            name = f"order-{number}"
            assert await client.execute(order, name, id=name) == expected(name)
        ledger = await first.start(Ledger, id="ledger")
        there = second.handle_of(Ledger, "ledger")
        await there.signal(Ledger.put, "one")
        await ledger.signal(Ledger.put, "close")
        assert await there.result() == ["one", "close"]
        assert (await second.count()).count == 11


async def test_connections_that_break_beneath_it(
    dsn: str, postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    """What was acknowledged is there, and commits that nobody heard of are found out."""
    name = postgres_dsn.split("/")[3].partition("?")[0]
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    async with Traffic.on(dsn) as traffic:
        for _ in range(10):
            await postgres_server.execute(end)
            await traffic.more(3)
