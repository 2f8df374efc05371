"""Rates of task queues that hold over all nodes of a database."""

from __future__ import annotations

from perdure.service.clock import SystemClock
from perdure.service.matching import Matching
from perdure.service.queue import ACTIVITY
from perdure.service.rate import SharedRate
from perdure.service.settings import Settings
from perdure.store.postgres import PostgresStore


async def test_queues_of_similar_names_have_rates_of_their_own(postgres_dsn: str) -> None:
    store = PostgresStore(postgres_dsn)
    await store.open()
    matching = Matching(store, SystemClock(), Settings())
    for namespace, name in [("a/b", "c"), ("a", "b/c")]:
        rate = SharedRate(0.001, lambda: True)
        await matching._ask_for_permits(matching.queue(namespace, name, ACTIVITY), rate)
        assert not rate.must_ask, (namespace, name)
    await store.close()
