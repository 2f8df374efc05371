"""Nodes that change the same runs at once, in any order, never wait for each other in a ring."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import asyncpg
import pytest
from store_rows import closed, start, step, task

from perdure.store.contract import MessageRow, StoreUndelivered, Unit, Write
from perdure.store.postgres import PostgresStore
from perdure.store.sharing import Awaited

NODES = 3
ROUNDS = 80
RUNS = 12
NAMES = 6
QUEUE = ("default", "orders", 1)
FAR_NS = 1 << 60


class Known:
    """What all nodes of a test know of the database.

    Attributes:
        names: the workflow ids of the runs that there are, by key.
        tasks, messages: ids of what waits, or did, by the key of the run.
    """

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.tasks: dict[int, list[int]] = defaultdict(list)
        self.messages: dict[int, list[int]] = defaultdict(list)


class Hammer:
    """One node of several, and random work on the runs of all of them."""

    def __init__(self, store: PostgresStore, known: Known, rng: random.Random) -> None:
        self.store = store
        self.known = known
        self.rng = rng

    async def write(self) -> None:
        """Change and start runs, and now and then delete some."""
        for _ in range(ROUNDS):
            await self._commit(await self._units())
            if self.rng.random() < 0.2:
                await self._delete()

    async def read(self) -> None:
        """Lease, watch and sweep, all of which lock rows, too."""
        sharing, rng = self.store.sharing, self.rng
        assert sharing is not None
        for _ in range(ROUNDS):
            tasks = [row.id for row in await sharing.lease_tasks(QUEUE, 9)]
            await sharing.lease_due(FAR_NS, rng.randint(1, RUNS))
            messages = [row.id for row in await sharing.lease_messages(9)]
            await sharing.watch([(key, Awaited.ANY) for key in self._some()])
            await sharing.release_tasks(tasks)
            await sharing.release_messages(messages)
            await sharing.drop_tasks([row_id for row_id in tasks if rng.random() < 0.3])
            await sharing.sweep()
            await sharing.beat([QUEUE], [])
            await self.store.settle(await self._units())

    def _some(self) -> list[int]:
        """Runs, in any order."""
        keys = list(self.known.names)
        return self.rng.sample(keys, self.rng.randint(0, len(keys)))

    async def _units(self) -> list[Unit]:
        """Changes of one or two runs each, among them starts of the same few workflow ids."""
        sharing, rng = self.store.sharing, self.rng
        assert sharing is not None
        keys = self._some()
        versions = await asyncio.gather(*(sharing.version(key) for key in keys))
        writes = [
            await self._step(key, version)
            for key, version in zip(keys, versions, strict=True)
            if version is not None
        ]
        for name in rng.sample(range(NAMES), rng.randint(0, 3)):
            key = await self.store.allocate(1)
            writes.append(start(key, workflow_id=f"name-{name}"))
        rng.shuffle(writes)
        units = []
        while writes:
            count = rng.randint(1, 2)
            units.append(writes[:count])
            del writes[:count]
        return units

    async def _step(self, key: int, version: int) -> Write:
        rng, known = self.rng, self.known
        number = await self.store.allocate(2)
        changes: dict[str, Any] = {"put_items": [(rng.randint(1, 3), b"item")]}
        if rng.random() < 0.5:
            changes |= {"wake_changed": True, "wake_at_ns": rng.randint(1, 1_000)}
        if rng.random() < 0.3:
            changes["put_tasks"] = [task(number, key)]
        if rng.random() < 0.3:
            changes["put_messages"] = [MessageRow(number + 1, key, b"message")]
        if rng.random() < 0.5:
            changes |= {"drop_tasks": known.tasks.get(key, [])[:1]}
            changes |= {"drop_messages": known.messages.get(key, [])}
        if rng.random() < 0.3 and key in known.names:
            changes["record"] = closed(key, workflow_id=known.names[key])
        return step(key, version, **changes)

    async def _commit(self, units: list[Unit]) -> None:
        left_out = await self.store.commit(units)
        for place, unit in enumerate(units):
            for write in unit if place not in left_out else ():
                self._learn(write)

    def _learn(self, write: Write) -> None:
        known, key = self.known, write.key
        if not write.based_on:
            assert write.record is not None
            known.names[key] = write.record.workflow_id
        known.tasks[key] += [row.id for row in write.put_tasks]
        known.messages[key] += [row.id for row in write.put_messages]
        for kept, gone in (
            (known.tasks[key], write.drop_tasks), (known.messages[key], write.drop_messages),
        ):  # fmt: skip
            kept[:] = [row_id for row_id in kept if row_id not in gone]

    async def _delete(self) -> None:
        keys = self._some()[: self.rng.randint(1, 3)]
        with suppress(StoreUndelivered):
            await self.store.delete(*keys)
            for key in keys:
                self.known.names.pop(key, None)


@pytest.fixture
async def look(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A way to look below. The server looks for deadlocks long before it gives up a lock."""
    connection = await asyncpg.connect(postgres_dsn)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '20ms'")
    yield connection
    await connection.close()


@pytest.fixture
async def hammers(postgres_dsn: str, look: asyncpg.Connection) -> AsyncIterator[list[Hammer]]:
    known = Known()
    made = [Hammer(PostgresStore(postgres_dsn), known, random.Random(n)) for n in range(NODES)]
    for hammer in made:
        await hammer.store.open()
    yield made
    for hammer in made:
        await hammer.store.close()


async def test_nodes_that_hammer_the_same_runs_never_deadlock(
    hammers: list[Hammer], look: asyncpg.Connection
) -> None:
    works = [work() for hammer in hammers for work in (hammer.write, hammer.read, hammer.read)]
    results = await asyncio.gather(*works, return_exceptions=True)
    for hammer in hammers:
        await hammer.store.close()  # a session that ends reports what it met
    errors = [result for result in results if result is not None]
    # A machine may be so busy that somebody waits for too long.
    assert [e for e in errors if not isinstance(e.__cause__, asyncpg.LockNotAvailableError)] == []
    count = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert await look.fetchval(count) == 0
