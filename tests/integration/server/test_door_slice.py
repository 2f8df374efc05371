"""An official SDK's client and worker against a perdure server, over the network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from perdure.serve import Plan, Server, serving
from perdure.server.transports import NAMES


@activity.defn
async def greet(name: str) -> str:
    return f"hello {name}"


@workflow.defn
class Greeter:
    def __init__(self) -> None:
        self.signs: list[str] = []

    @workflow.run
    async def run(self, name: str) -> str:
        said = await workflow.execute_activity(
            greet, name, start_to_close_timeout=timedelta(seconds=10)
        )
        await asyncio.sleep(0.01)
        await workflow.wait_condition(lambda: bool(self.signs))
        return said + self.signs[0]

    @workflow.signal
    def sign(self, mark: str) -> None:
        self.signs.append(mark)

    @workflow.query
    def count(self) -> int:
        return len(self.signs)

    @workflow.update
    def add(self, number: int) -> int:
        return number + 1


@pytest.fixture(params=NAMES)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    plan = Plan(db=f"sqlite:///{tmp_path}/perdure.db", port=0, transport=request.param)
    async with serving(plan) as running:
        yield running


async def test_an_official_client_and_worker_run_a_workflow(server: Server) -> None:
    client = await Client.connect(server.address)
    async with Worker(
        client,
        task_queue="queue",
        workflows=[Greeter],
        activities=[greet],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        handle = await client.start_workflow(Greeter.run, "you", id="greeter", task_queue="queue")
        assert await handle.query(Greeter.count) == 0
        assert await handle.execute_update(Greeter.add, 4) == 5
        with pytest.raises(WorkflowAlreadyStartedError) as taken:
            await client.start_workflow(Greeter.run, "you", id="greeter", task_queue="queue")
        assert taken.value.run_id == handle.first_execution_run_id
        await handle.signal(Greeter.sign, "!")
        assert await handle.result() == "hello you!"
        assert await handle.query(Greeter.count) == 1  # of a closed run
        with pytest.raises(WorkflowQueryFailedError, match="'nothing' expected but not found"):
            await handle.query("nothing")
