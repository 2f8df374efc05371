"""The connection breaks, and the server goes on with a commit of which nobody hears any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from pg_proxy import proxy_of
from pg_stage import WITHIN_S, impatient, until
from test_locks import idle_in_transaction, lock_of
from test_lost_answers import Stage, directory

import perdure
from perdure import activity, workflow
from perdure.api.errors import Unavailable
from postgres import PostgresServer

__all__ = ["directory"]

TURNS = 4


@activity(start_to_close_timeout=timedelta(hours=1))
async def long(word: str) -> str:
    return word


@workflow
class Waits:
    def __init__(self) -> None:
        self.word = ""

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: bool(self.word))
        return await long(self.word)

    @workflow.signal
    def proceed(self, word: str) -> None:
        self.word = self.word or word


@workflow
async def at_once(word: str) -> str:
    return await long(word)


@pytest.fixture
async def stage(
    postgres_server: PostgresServer, postgres_dsn: str, directory: Path
) -> AsyncIterator[Stage]:
    name = postgres_dsn.split("/")[3].partition("?")[0]
    await postgres_server.execute(f"ALTER DATABASE {name} SET commit_delay = 50000")  # µs
    await postgres_server.execute(f"ALTER DATABASE {name} SET commit_siblings = 0")
    dsn = postgres_dsn.replace(str(postgres_server.directory), str(directory))
    async with (
        proxy_of(postgres_server.directory, directory) as proxy,
        perdure.connect(dsn) as client,
        client.worker(workflows=[Waits, at_once], activities=[long]),
    ):
        yield Stage(client, proxy)


async def test_steps(stage: Stage) -> None:
    """A step hands out an activity; what the server did with it is found out."""
    for number in range(TURNS):
        name = f"waits-{number}"
        handle = await stage.client.start(Waits, id=name)
        stage.proxy.leave_at(f"word-{number}")
        await handle.signal("proceed", f"word-{number}")
        assert await asyncio.wait_for(handle.result(), WITHIN_S) == f"word-{number}"
        assert stage.proxy.cuts == number + 1


async def test_starts(stage: Stage) -> None:
    for number in range(TURNS):
        name = f"order-{number}"
        stage.proxy.leave_at("COMMIT" if number % 2 else name)
        handle = await stage.client.start(at_once, name, id=name)
        assert await asyncio.wait_for(handle.result(), WITHIN_S) == name
        assert stage.proxy.cuts == number + 1


async def test_a_commit_that_waits_when_it_is_given_up(stage: Stage, postgres_dsn: str) -> None:
    """Nobody can know what becomes of it; when it is done, its activity gets a worker."""
    handle = await stage.client.start(Waits, id="held")
    async with idle_in_transaction(postgres_dsn, lock_of("held")) as other:
        stage.proxy.leave_at("the-word")
        with pytest.raises(Unavailable, match="cannot be written"):
            await impatient(stage.client).handle("held").signal("proceed", "the-word")
        waits = (
            "SELECT count(*) > 0 FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )

        async def is_waited_for() -> bool:
            return bool(await other.fetchval(waits))

        await until(is_waited_for)
    # Usually the commit is first when the lock is free; else it was made sure that it never comes.
    await handle.signal("proceed", "the-word")
    assert await asyncio.wait_for(handle.result(), WITHIN_S) == "the-word"
