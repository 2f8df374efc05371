"""The connection breaks in the middle of a commit: nobody can know at first whether it was done."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from pg_proxy import Proxy, proxy_of
from pg_stage import Ledger, Traffic, expected, impatient, order, until, working
from test_locks import idle_in_transaction, lock_of

from perdure import Client
from perdure.api.errors import Unavailable
from postgres import PostgresServer


@dataclass
class Stage:
    client: Client
    proxy: Proxy


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="perdure-way-"))  # short: a socket's path has a limit
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
async def stage(
    postgres_server: PostgresServer, postgres_dsn: str, directory: Path
) -> AsyncIterator[Stage]:
    dsn = postgres_dsn.replace(str(postgres_server.directory), str(directory))
    async with proxy_of(postgres_server.directory, directory) as proxy, working(dsn) as client:
        yield Stage(client, proxy)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_signal(stage: Stage, after: bool) -> None:
    handle = await stage.client.start(Ledger, id="ledger")
    await handle.signal("put", "first")
    stage.proxy.cut_at("second-entry", after=after)
    await handle.signal("put", "second-entry")
    assert stage.proxy.cuts == 1
    await handle.signal("put", "close")
    assert await handle.result() == ["first", "second-entry", "close"]


async def test_a_signal_that_was_written_needs_no_second_attempt(stage: Stage) -> None:
    handle = await stage.client.start(Ledger, id="ledger")
    stage.proxy.cut_at("the-entry", after=True)
    await impatient(stage.client).handle("ledger").signal("put", "the-entry")
    assert stage.proxy.cuts == 1
    await handle.signal("put", "close")
    assert await handle.result() == ["the-entry", "close"]


async def test_a_signal_that_was_not_written_is_refused(stage: Stage) -> None:
    handle = await stage.client.start(Ledger, id="ledger")
    stage.proxy.cut_at("the-entry", after=False)
    with pytest.raises(Unavailable, match="cannot be written"):
        await impatient(stage.client).handle("ledger").signal("put", "the-entry")
    await handle.signal("put", "close")
    assert await handle.result() == ["close"]


async def test_a_database_that_stays_away_after_the_cut(stage: Stage) -> None:
    """Whether it was written cannot be looked up: the caller asks again, and it is done once."""
    handle = await stage.client.start(Ledger, id="ledger")
    stage.proxy.cut_at("the-entry", after=True, closed_for_s=1.0)
    await handle.signal("put", "the-entry")
    assert stage.proxy.cuts == 1
    await handle.signal("put", "close")
    assert await handle.result() == ["the-entry", "close"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("word", ["the-order", "COMMIT"])
async def test_a_start(stage: Stage, word: str, after: bool) -> None:
    """A start is a transaction of several statements: cut at its first, and at its end."""
    await stage.client.execute(order, "before", id="before")
    stage.proxy.cut_at(word, after=after)
    handle = await stage.client.start(order, "the-order", id="the-order")
    assert await handle.result() == expected("the-order")
    assert stage.proxy.cuts == 1


async def test_a_step(stage: Stage) -> None:
    """The result of an activity, and the end of a workflow, are written once, whatever happens."""
    for number in range(4):
        name = f"order-{number}"
        stage.proxy.cut_at(f"{name}-a", after=number % 2 == 0)
        assert await stage.client.execute(order, name, id=name) == expected(name)
        assert stage.proxy.cuts == number + 1
        events = [event async for event in stage.client.handle(name).history()]
        assert [event.event_id for event in events] == list(range(1, len(events) + 1))


async def test_a_backend_that_is_ended_while_it_writes(postgres_dsn: str) -> None:
    async with working(postgres_dsn) as client:
        handle = await client.start(Ledger, id="held")
        async with idle_in_transaction(postgres_dsn, lock_of("held")) as other:
            signal = impatient(client).handle("held").signal("put", "lost")
            waiting = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )

            async def ended() -> bool:
                return bool(await other.fetch(waiting))

            refused = asyncio.create_task(_refusal(signal))
            await until(ended)
            assert "terminating connection due to administrator command" in await refused
        await handle.signal("put", "close")
        assert await handle.result() == ["close"]


async def _refusal(call: Awaitable[None]) -> str:
    with pytest.raises(Unavailable) as error:
        await call
    return error.value.message


async def test_all_connections_are_ended_again_and_again(postgres_dsn: str) -> None:
    other = await asyncpg.connect(postgres_dsn)
    async with Traffic.on(postgres_dsn) as traffic:
        for _ in range(5):
            await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await traffic.more(10)
    await other.close()
