"""Runs: updates, children, continue-as-new, retry, cron and reset."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest

from perdure import (
    ApplicationError,
    ParentClosePolicy,
    RetryPolicy,
    UpdateFailedError,
    WorkflowFailedError,
    WorkflowStatus,
    workflow,
)
from targets import environment


@workflow
class Counter:
    def __init__(self) -> None:
        self.total = 0
        self.closed = False

    @workflow.run
    async def run(self) -> int:
        await workflow.wait_condition(lambda: self.closed)
        return self.total

    @workflow.signal
    def close(self) -> None:
        self.closed = True

    @workflow.update
    async def add(self, n: int) -> int:
        self.total += n
        return self.total

    @add.validator
    def check(self, n: int) -> None:
        if n < 0:
            raise ValueError("negative")


async def test_updates_are_validated_and_done_once() -> None:
    async with environment() as env, env.client.worker(workflows=[Counter], activities=[]):
        handle = await env.client.start(Counter)
        assert await handle.update(Counter.add, 2) == 2
        with pytest.raises(UpdateFailedError) as caught:
            await handle.update(Counter.add, -1)
        assert isinstance(caught.value.cause, ApplicationError)
        assert await handle.update(Counter.add, 3, id="once") == 5
        assert await handle.update(Counter.add, 3, id="once") == 5


async def test_updates_are_applied_again_after_a_reset() -> None:
    async with environment() as env, env.client.worker(workflows=[Counter], activities=[]):
        handle = await env.client.start(Counter)
        assert await handle.update(Counter.add, 2) == 2
        assert await handle.update(Counter.add, 3) == 5
        again = await handle.reset(to="first")
        await again.signal(Counter.close)
        assert await again.result() == 5


@workflow
async def long_child() -> None:
    await asyncio.sleep(1)


@workflow
async def parent(policy: int) -> None:
    await long_child.options(id="child", parent_close_policy=ParentClosePolicy(policy)).start()


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        (ParentClosePolicy.TERMINATE, WorkflowStatus.TERMINATED),
        (ParentClosePolicy.REQUEST_CANCEL, WorkflowStatus.CANCELED),
        (ParentClosePolicy.ABANDON, WorkflowStatus.COMPLETED),
    ],
)
async def test_parent_close_policies(policy: int, status: WorkflowStatus) -> None:
    async with (
        environment() as env,
        env.client.worker(workflows=[parent, long_child], activities=[]),
    ):
        await env.client.execute(parent, int(policy))
        child = env.client.handle("child")
        with suppress(WorkflowFailedError):
            await child.result()
        assert (await child.describe()).status is status


@workflow
async def counts_down(n: int) -> str:
    if n:
        workflow.continue_as_new(n - 1)
    return "zero"


@workflow
async def fails_twice() -> int:
    if workflow.info().attempt < 3:
        raise ApplicationError("again")
    return workflow.info().attempt


async def test_runs_follow_each_other() -> None:
    async with (
        environment() as env,
        env.client.worker(workflows=[counts_down, fails_twice], activities=[]),
    ):
        assert await env.client.execute(counts_down, 3) == "zero"
        before = env.now()
        retry = RetryPolicy(initial_interval=timedelta(seconds=0.2))
        assert await env.client.execute(fails_twice, retry=retry) == 3
        assert env.now() - before >= timedelta(seconds=0.6)
        with pytest.raises(WorkflowFailedError):
            await env.client.execute(fails_twice)
