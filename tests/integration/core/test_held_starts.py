"""Starts at two nodes, of which one commits when the run that the other started has closed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from harness import QUEUE, Harness, complete_command, execution
from temporalio.api.enums.v1 import WorkflowIdReusePolicy
from temporalio.api.workflowservice.v1 import (
    ResetWorkflowExecutionRequest,
    SignalWithStartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
)

from perdure.api.errors import WorkflowAlreadyStarted
from perdure.store.contract import Unit
from perdure.store.postgres import PostgresStore
from perdure.store.query import Query

REJECT_DUPLICATE = WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE
Ask = Callable[[Harness], Awaitable[Any]]


class Nodes:
    """Two nodes on one database."""

    def __init__(self, quick: Harness, slow: Harness) -> None:
        self.quick, self.slow = quick, slow

    @asynccontextmanager
    async def held(
        self, ask: Ask, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[asyncio.Future[Any]]:
        """Ask the slow node; its commit is sent after the block, which begins when it could be."""
        commit, is_decided, go = self.slow.store.commit, asyncio.Event(), asyncio.Event()

        async def commit_later(units: list[Unit]) -> list[int]:
            is_decided.set()
            await go.wait()
            return await commit(units)

        monkeypatch.setattr(self.slow.store, "commit", commit_later)
        answer = asyncio.ensure_future(ask(self.slow))
        await is_decided.wait()
        yield answer
        go.set()
        await asyncio.wait([answer])

    async def complete(self) -> None:
        await self.quick.complete(await self.quick.take(), complete_command())

    async def runs(self) -> int:
        return len(await self.quick.store.list_runs(Query("default")))


@pytest.fixture
async def nodes(postgres_dsn: str) -> AsyncIterator[Nodes]:
    quick, slow = (Harness(lambda: PostgresStore(postgres_dsn)) for _ in range(2))
    slow.rng = random.Random(8)  # run ids of its own
    for harness in (quick, slow):
        await harness.open()
    yield Nodes(quick, slow)
    for harness in (slow, quick):
        await harness.close()


async def start(node: Harness) -> Any:
    return await node.start(request_id="r1")


async def start_once(node: Harness) -> Any:
    return await node.start(request_id="r1", workflow_id_reuse_policy=REJECT_DUPLICATE)


async def signal_with_start(node: Harness) -> Any:
    request = SignalWithStartWorkflowExecutionRequest(
        namespace="default", workflow_id="wf", request_id="r1", signal_name="go"
    )
    request.workflow_type.name, request.task_queue.name = "flow", QUEUE
    return await node.service.signal_with_start_workflow_execution(request)


async def reset(node: Harness) -> Any:
    request = ResetWorkflowExecutionRequest(
        namespace="default", workflow_execution=execution(), request_id="r1",
        reason="again", workflow_task_finish_event_id=4,
    )  # fmt: skip
    return await node.service.reset_workflow_execution(request)


@pytest.mark.parametrize("ask", [start, start_once, signal_with_start])
async def test_a_request_at_two_nodes_is_one_run(
    nodes: Nodes, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes.held(ask, monkeypatch) as late:
        first = await ask(nodes.quick)
        await nodes.complete()
    assert late.result().run_id == first.run_id
    assert await nodes.runs() == 1


async def test_a_request_at_two_nodes_is_one_run_though_another_came_before(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nodes.quick.start(request_id="r0")
    await nodes.complete()
    async with nodes.held(start, monkeypatch) as late:
        first = await start(nodes.quick)
        await nodes.complete()
    assert late.result().run_id == first.run_id
    assert await nodes.runs() == 2


async def test_the_reuse_policy_looks_at_what_another_node_ran_meanwhile(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes.held(start_once, monkeypatch) as late:
        first = await nodes.quick.start(request_id="r2")
        await nodes.complete()
    refused = late.exception()
    assert isinstance(refused, WorkflowAlreadyStarted)
    assert refused.run_id == first.run_id
    assert await nodes.runs() == 1


async def test_a_reset_at_two_nodes_is_one_run(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nodes.quick.start()
    await nodes.complete()
    async with nodes.held(reset, monkeypatch) as late:
        first = await reset(nodes.quick)
        await nodes.quick.service.terminate_workflow_execution(
            TerminateWorkflowExecutionRequest(namespace="default", workflow_execution=execution())
        )
    assert late.result().run_id == first.run_id
    assert await nodes.runs() == 2
