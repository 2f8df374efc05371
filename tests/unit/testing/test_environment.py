"""Time is skipped while nothing happens, and only then."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from perdure import RetryPolicy, WorkflowFailedError, activity, workflow
from perdure.testing import environment

MONTH = timedelta(days=30)
attempts: list[int] = []


@activity
async def double(number: int) -> int:
    return number * 2


@activity(retry=RetryPolicy(initial_interval=timedelta(hours=1), maximum_attempts=5))
async def flaky() -> int:
    attempts.append(activity.info().attempt)
    if len(attempts) < 5:
        raise RuntimeError("not yet")
    return len(attempts)


@workflow
async def sleeper(days: int) -> float:
    begun = workflow.now()
    await asyncio.sleep(days * 86_400)
    await double(days)
    return (workflow.now() - begun).total_seconds()


@workflow
async def patient() -> int:
    return await flaky()


@workflow
class Door:
    def __init__(self) -> None:
        self.opened = False

    @workflow.run
    async def run(self) -> str:
        timeout = timedelta(days=7)
        arrived = await workflow.wait_condition(lambda: self.opened, timeout=timeout)
        return "open" if self.opened and arrived is not False else "expired"

    @workflow.signal
    def open(self) -> None:
        self.opened = True


async def test_a_month_passes_while_its_result_is_awaited() -> None:
    async with environment() as env, env.client.worker(workflows=[sleeper], activities=[double]):
        before = env.now()
        assert await env.client.execute(sleeper, 30) >= MONTH.total_seconds()
        assert env.now() - before >= MONTH


async def test_the_pauses_between_attempts_are_skipped() -> None:
    attempts.clear()
    async with environment() as env, env.client.worker(workflows=[patient], activities=[flaky]):
        before = env.now()
        assert await env.client.execute(patient) == 5
        assert attempts == [1, 2, 3, 4, 5]
        assert env.now() - before >= timedelta(hours=1 + 2 + 4 + 8)


async def test_time_stands_still_while_nobody_waits() -> None:
    async with environment() as env, env.client.worker(workflows=[Door], activities=[]):
        handle = await env.client.start(Door)
        await asyncio.sleep(0.05)
        await handle.signal(Door.open)
        assert await handle.result() == "open"


async def test_sleeping_lets_everything_due_on_the_way_happen() -> None:
    async with (
        environment() as env,
        env.client.worker(workflows=[Door, sleeper], activities=[double]),
    ):
        door = await env.client.start(Door)
        await env.sleep(timedelta(days=6))
        assert (await door.describe()).status.name == "RUNNING"
        await env.sleep(timedelta(days=2))
        assert await door.result() == "expired"


async def test_a_run_timeout_comes_when_it_is_due() -> None:
    async with environment() as env, env.client.worker(workflows=[sleeper], activities=[double]):
        before = env.now()
        with pytest.raises(WorkflowFailedError):
            await env.client.execute(sleeper, 30, run_timeout=timedelta(days=3))
        assert timedelta(days=3) <= env.now() - before < timedelta(days=4)


async def test_backwards_is_no_direction() -> None:
    async with environment() as env:
        with pytest.raises(ValueError, match="negative"):
            await env.sleep(timedelta(seconds=-1))
