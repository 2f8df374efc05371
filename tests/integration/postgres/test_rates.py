"""Rates of task queues that hold over all nodes of a database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from perdure.service.clock import SystemClock
from perdure.service.matching import Matching
from perdure.service.queue import ACTIVITY
from perdure.service.rate import SharedRate
from perdure.service.settings import Settings
from perdure.store.postgres import PostgresStore


@pytest.fixture
async def matching(postgres_dsn: str) -> AsyncIterator[Matching]:
    store = PostgresStore(postgres_dsn)
    await store.open()
    yield Matching(store, SystemClock(), Settings())
    await store.close()


async def test_queues_of_similar_names_have_rates_of_their_own(matching: Matching) -> None:
    for namespace, name in [("a/b", "c"), ("a", "b/c")]:
        rate = SharedRate(0.001, lambda: True)
        await matching._ask_for_permits(matching.queue(namespace, name, ACTIVITY), rate)
        assert not rate.must_ask, (namespace, name)


async def test_a_rate_that_is_out_of_force_does_not_put_the_queue_off(matching: Matching) -> None:
    """It was refused after another one had come into force."""
    queue = matching.queue("default", "orders", ACTIVITY)
    slow = SharedRate(0.001, lambda: True)
    queue.rate = slow
    await matching._ask_for_permits(queue, slow)
    queue.set_rate(100.0)
    await matching._ask_for_permits(queue, slow)
    assert queue.rate_alarm is None
