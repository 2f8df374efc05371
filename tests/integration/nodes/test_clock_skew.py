"""Two nodes whose machines' clocks are far apart go by the clock of their database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest
from temporalio.api.enums.v1 import EventType

from perdure import Client, workflow
from perdure.service.clock import SystemClock
from perdure.service.node import Node
from perdure.service.queue import WORKFLOW
from perdure.store.postgres import PostgresStore, sharing
from perdure.store.sharing import Queue

HOUR_NS = 3_600 * 1_000_000_000
WITHIN_S = 60
NAP_S = 1.0


@workflow
async def nap(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"


class Skewed:
    """A node on a machine with a wrong clock, and a client of it."""

    def __init__(self, store: PostgresStore, node: Node) -> None:
        self.store, self.node = store, node
        self.client = Client(node.service)

    @classmethod
    async def open(cls, dsn: str, ahead_ns: int) -> Skewed:
        store = PostgresStore(dsn)
        clock = SystemClock(lambda: time.time_ns() + ahead_ns)
        return cls(store, await Node.open(store, clock=clock))

    def work(self) -> AbstractAsyncContextManager[object]:
        return self.client.worker(workflows=[nap], activities=[])

    async def begin_nap(self, workflow_id: str) -> None:
        """Start a nap, and wait until its timer runs."""
        handle = await self.client.start(nap, NAP_S, id=workflow_id)
        async for event in handle.history(wait=True):
            if event.event_type == EventType.EVENT_TYPE_TIMER_STARTED:
                return


@pytest.fixture(params=[1, -1], ids=["ahead first", "behind first"])
async def skewed(postgres_dsn: str, request: pytest.FixtureRequest) -> AsyncIterator[list[Skewed]]:
    """One is an hour ahead, one an hour behind."""
    made = [await Skewed.open(postgres_dsn, request.param * ns) for ns in (HOUR_NS, -HOUR_NS)]
    yield made
    for one in made:
        await one.node.close()


async def rested(client: Client, workflow_id: str) -> None:
    """A nap ends in time, and its events have the database's times."""
    handle = client.handle(workflow_id, result_type=str)
    async with asyncio.timeout(WITHIN_S):
        assert await handle.result() == "rested"
    times_ns = {
        event.event_type: event.event_time.ToNanoseconds() async for event in handle.history()
    }
    started_ns = times_ns[EventType.EVENT_TYPE_TIMER_STARTED]
    fired_ns = times_ns[EventType.EVENT_TYPE_TIMER_FIRED]
    assert abs(started_ns - time.time_ns()) < HOUR_NS / 2
    assert 0.9 * NAP_S <= (fired_ns - started_ns) / 1e9 < WITHIN_S


async def test_a_timer_fires_in_time_wherever_it_was_started(skewed: list[Skewed]) -> None:
    first, second = skewed
    async with first.work(), second.work():
        for number, one in enumerate(skewed):
            await one.begin_nap(f"nap-{number}")
        await rested(second.client, "nap-0")
        await rested(first.client, "nap-1")


async def test_a_timer_fires_in_time_at_a_node_that_did_not_start_it(skewed: list[Skewed]) -> None:
    first, second = skewed
    async with first.work():
        await first.begin_nap("nap")
    await first.node.close()
    async with second.work():
        await rested(second.client, "nap")


async def test_what_one_leased_the_other_does_not_get(skewed: list[Skewed]) -> None:
    queue: Queue = ("default", "default", WORKFLOW)
    for one, other in (skewed, skewed[::-1]):
        await one.client.start(nap, NAP_S)
        assert len(await one.store.sharing.lease_tasks(queue, 9)) == 1
        assert await other.store.sharing.lease_tasks(queue, 9) == []


async def test_neither_is_taken_for_dead(skewed: list[Skewed]) -> None:
    both = {one.store.node for one in skewed}
    for one in skewed:
        now_ns = (await one.store.sharing.beat([], [])).now_ns
        one.store.sharing._judges_ns = 0, now_ns + sharing.BEATS_APART_NS  # as after a while
    for one in skewed:
        beat = await one.store.sharing.beat([], [])
        assert (beat.nodes, beat.died) == (both, frozenset())
        assert await one.store.sharing.dead(both) == frozenset()
