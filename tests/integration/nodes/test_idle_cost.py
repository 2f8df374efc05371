"""A node with nothing to do asks the database next to nothing, in skipped time on PostgreSQL."""

from __future__ import annotations

import asyncio

import pytest
import skipping_loop
from api_stage import Stage, soon, staged, timer

from driver_log import DriverLog
from perdure.store.postgres import PostgresStore

SLEEPING = 200
POLLS = 20
IDLE_S = 600
DAY_S = 86_400
SETTLED_S = 60  # the timeouts of tasks that are done have rung


async def _keep_polling(stage: Stage) -> None:
    """A worker's slot: a poll that came back empty is followed by the next one."""
    while not (await stage.poll()).task_token:
        pass


def test_an_idle_node_issues_less_than_a_statement_a_second(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skipping_loop, "_QUIET_S", 0.01)  # an echo that comes late makes it look
    usage = skipping_loop.Usage(monkeypatch)
    log = DriverLog(monkeypatch)

    async def main() -> None:
        async with staged(PostgresStore(postgres_dsn)) as stage:
            for number in range(SLEEPING):
                await stage.start(f"sleeping-{number}")
                await stage.step(timer("t", DAY_S))
            polls = [soon(_keep_polling(stage)) for _ in range(POLLS)]
            await asyncio.sleep(SETTLED_S)
            log.queries.clear()
            await asyncio.sleep(IDLE_S)
            count = len(log.queries)
            assert not any(poll.done() for poll in polls)
            for poll in polls:
                poll.cancel()
            assert IDLE_S / 10 < count < IDLE_S, count  # there are signs of life

    skipping_loop.run(main(), lambda: usage.count > 0)
