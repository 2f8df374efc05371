"""The database loses commits that nodes have seen: with a server that waits for no disk, or with a
replica that was behind. What is lost is lost; runs go on from what is left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from pg_stage import Ledger

import perdure
from perdure import Client
from perdure.service.node import Node
from perdure.store.contract import Write
from postgres import PostgresServer, running_server

QUIET = {"wal_writer_delay": "10s", "bgwriter_lru_maxpages": "0"}
"""Nothing but commits that wait for the disk writes the log."""


@dataclass
class Stage:
    """A server, and two nodes."""

    server: PostgresServer
    one: Client
    two: Client

    @property
    def node(self) -> Node:
        """The first node."""
        node = self.one.calls.service.node
        assert isinstance(node, Node)
        return node

    async def key(self) -> int:
        key = await self.node.store.find("default", "ledger")
        assert key is not None
        return key

    async def version(self) -> int:
        """What is stored."""
        [[version]] = await self.server.fetch("SELECT version FROM perdure.states")
        assert isinstance(version, int)
        return version

    async def crash(self) -> None:
        """The server loses what is not on disk, and comes back; the nodes find it."""
        self.server.stop()
        self.server.start()
        for client in (self.one, self.two):
            await client.count()


async def stage_on(settings: dict[str, str]) -> AsyncIterator[Stage]:
    with running_server(QUIET | settings) as server:
        async with perdure.connect(server.dsn()) as one, perdure.connect(server.dsn()) as two:
            await one.start(Ledger, id="ledger")
            yield Stage(server, one, two)


@pytest.fixture
async def durable() -> AsyncIterator[Stage]:
    async for stage in stage_on({}):
        yield stage


async def test_a_commit_that_was_made_to_be_over_is_so_after_a_crash(durable: Stage) -> None:
    key = await durable.key()
    based_on = await durable.version()
    late = Write(key=key, based_on=based_on, version=based_on + 1, state=b"")
    assert await durable.node.store.settle([[late]]) == [0]
    fenced = await durable.version()
    assert fenced > based_on
    await durable.crash()
    assert await durable.version() == fenced
