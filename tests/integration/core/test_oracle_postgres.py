"""The oracle's random operations, on a node over PostgreSQL.

It lives in real time as far as the database goes; its own time stands still until a rule moves it.
A restart is an announced one: what a node on PostgreSQL held that died is taken over by others,
which the simulation of three nodes is about.
"""

from __future__ import annotations

import asyncio
import uuid

from harness import Harness, settle
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.simulation.driver import Driver
from tests.simulation.test_oracle import NodeAgainstOracle

from perdure.store.postgres import PostgresStore
from postgres import PostgresServer

PATIENCE_S = 20.0
NO_TASK_WITHIN_S = 0.02


def test_a_node_on_postgresql_against_the_oracle(postgres_server: PostgresServer) -> None:
    class Machine(NodeOnPostgresAgainstOracle):
        server = postgres_server

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=10,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
            derandomize=True,
        ),
    )


class NodeOnPostgresAgainstOracle(NodeAgainstOracle):
    """A node on a database of its own."""

    server: PostgresServer

    def open(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.name = f"oracle_{uuid.uuid4().hex}"
        self.run(self.server.execute(f"CREATE DATABASE {self.name}"))
        self.harness = Harness(lambda: PostgresStore(self.server.dsn(self.name)))
        self.began_ns = self.harness.clock.now_ns()
        self.run(self.harness.open())
        self.driver = Driver(self.harness.service, self.patience_s)

    def reopen(self) -> None:
        self.run(self._reopen())
        self.driver = Driver(self.harness.service, self.patience_s)

    async def _reopen(self) -> None:
        await self.harness.reopen()
        async with asyncio.timeout(PATIENCE_S):  # what the former process held is offered again
            while await self.harness.node.store.in_flight():  # noqa: ASYNC110, beside the calls
                await asyncio.sleep(0.01)
        await settle()

    def close(self) -> None:
        self.run(self.harness.close())
        self.run(self.server.execute(f"DROP DATABASE {self.name} WITH (FORCE)"))

    def elapsed_ms(self) -> int:
        return (self.harness.clock.now_ns() - self.began_ns) // 1_000_000

    async def pass_time(self, length_ms: int) -> None:
        await self.harness.clock.advance(length_ms / 1000)

    def patience_s(self, kind: str) -> float:
        """As long as a task takes that must come; for one that must not, just a moment."""
        is_due = self.model.ready_activities() if kind == "activity" else self.expected
        return PATIENCE_S if is_due else NO_TASK_WITHIN_S
