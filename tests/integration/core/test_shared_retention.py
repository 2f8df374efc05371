"""Two nodes, and closed runs that a namespace keeps for a while only."""

from __future__ import annotations

import asyncio

from harness import Harness, complete_command
from temporalio.api.workflowservice.v1 import UpdateNamespaceRequest

from perdure.store.postgres import PostgresStore
from perdure.store.query import Query

HOUR_S = 3_600
DAY_S = 24 * HOUR_S
WITHIN_S = 20


async def test_one_node_lets_closed_runs_go_though_another_was_told_of_the_retention(
    postgres_dsn: str,
) -> None:
    eldest, younger = [await Harness(lambda: PostgresStore(postgres_dsn)).open() for _ in range(2)]
    assert eldest.node.neighbours is not None
    await eldest.node.neighbours._beat()
    await younger.start()
    await younger.complete(await younger.take(), complete_command())
    request = UpdateNamespaceRequest(namespace="default")
    request.config.workflow_execution_retention_ttl.FromSeconds(DAY_S)
    await younger.service.update_namespace(request)
    async with asyncio.timeout(WITHIN_S):  # on a busy machine it hears of it with its next beat
        while not eldest.node.namespaces.get("default").retention_ns:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await younger.clock.advance(2 * DAY_S)
    assert await younger.store.list_runs(Query("default"))  # one node is enough
    await eldest.clock.advance(2 * DAY_S)
    async with asyncio.timeout(WITHIN_S):
        while await eldest.store.list_runs(Query("default")):
            await eldest.clock.advance(HOUR_S)  # the sweep before may have begun long ago
    await younger.close()
    await eldest.close()
