"""A connection prepares a statement once, however often it runs it. The server is asked, not the
driver: it logs what it parses."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from pg_stage import Ledger, expected, note, order

from perdure import Client
from perdure.api.times import SECOND_NS
from perdure.service import neighbours
from perdure.service.node import Node
from perdure.service.settings import Settings
from perdure.store.postgres import PostgresStore
from postgres import PostgresServer

_PARSED = re.compile(
    r"\[(?P<session>\d+)\] LOG:  duration: \S+ ms  parse \S+ (?P<text>.*?)(?=\n\S|\Z)", re.DOTALL
)


@dataclass
class Stage:
    """A node that keeps next to no run in memory, and what the server parsed."""

    server: PostgresServer
    node: Node
    client: Client
    log_begins: int

    def parsed(self) -> Counter[tuple[str, str]]:
        """How often each session had each statement parsed; one that listens keeps none."""
        log = self.server.log()[self.log_begins :]
        found = [(entry["session"], entry["text"]) for entry in _PARSED.finditer(log)]
        return Counter(entry for entry in found if not entry[1].startswith("LISTEN"))

    async def work(self, name: str) -> None:
        """Ordinary work: runs that start, take steps, are loaded, hear signals and close."""
        ledger = await self.client.start(Ledger, id=f"ledger-{name}")
        assert await self.client.execute(order, name, id=name) == expected(name)
        for entry in ("first", "second", "close"):
            await ledger.signal(Ledger.put, entry)
        assert await ledger.result() == ["first", "second", "close"]


@pytest.fixture
async def stage(
    postgres_server: PostgresServer, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    monkeypatch.setattr(neighbours, "BEAT_S", 3600.0)  # neither beats nor alarms come between
    settings = Settings(cached_runs_max=1, default_task_timeout_ns=120 * SECOND_NS)
    name = postgres_dsn.split("/")[3].partition("?")[0]
    await postgres_server.execute(f"ALTER DATABASE {name} SET log_min_duration_statement = 0")
    log_begins = len(postgres_server.log())
    node = await Node.open(PostgresStore(postgres_dsn), settings=settings)
    client = Client(node.service)
    async with client.worker(workflows=[order, Ledger], activities=[note]):
        yield Stage(postgres_server, node, client, log_begins)
    await node.close()


async def test_work_that_was_done_before_prepares_no_further_statement(stage: Stage) -> None:
    committer = stage.node.executions.committer
    for number in range(20):
        await stage.work(f"warm-up-{number}")
    commits, known = committer.commits, stage.parsed()
    assert any("perdure.items AS i" in text for _, text in known)  # runs are loaded, too
    for number in range(50):
        await stage.work(f"order-{number}")
    parsed = stage.parsed()
    assert committer.commits - commits > 300
    assert set(parsed.values()) == {1}
    assert {text for _, text in parsed} - {text for _, text in known} == set()


async def test_commits_of_all_kinds_are_prepared_once_each(stage: Stage) -> None:
    """What comes together in a commit differs when many runs are about."""
    committer = stage.node.executions.committer
    for number in range(6):
        await asyncio.gather(*(stage.work(f"order-{number}-{n}") for n in range(20)))
    parsed = stage.parsed()
    assert committer.commits > 200
    assert set(parsed.values()) == {1}
    assert len({text for _, text in parsed}) < 100
