"""asyncio's own primitives in workflows, cached and replayed."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import Any

import pytest

from perdure import activity, workflow
from perdure.testing import Replayer
from targets import environment


@activity
async def echo(n: int) -> int:
    return n


TICK = 0.05  # seconds: also a server that cannot skip time runs these


async def _after(ticks: float, value: int) -> int:
    await asyncio.sleep(ticks * TICK)
    return await echo(value)


@workflow
async def primitives() -> dict[str, Any]:
    out: dict[str, Any] = {}
    out["gather"] = await asyncio.gather(_after(3, 1), _after(1, 2), echo(3))
    tasks = [asyncio.create_task(_after(n, n)) for n in (30, 10, 20)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    out["wait"] = [sorted(t.result() for t in done), len(pending)]
    # Sorted, because a server may let timers wait until several are due.
    out["as_completed"] = sorted([await t for t in asyncio.as_completed([*pending])])
    try:
        async with asyncio.timeout(20 * TICK):
            await asyncio.sleep(3600)
    except TimeoutError:
        out["timeout"] = True
    try:
        await asyncio.wait_for(asyncio.sleep(3600), 5 * TICK)
    except TimeoutError:
        out["wait_for"] = True
    async with asyncio.TaskGroup() as group:
        made = [group.create_task(_after(n, n)) for n in (2, 1)]
    out["group"] = [t.result() for t in made]
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_boom())
            slow = group.create_task(asyncio.sleep(3600))
    except* ValueError as errors:
        out["group_error"] = [len(errors.exceptions), slow.cancelled()]
    event, queue, lock = asyncio.Event(), asyncio.Queue[int](maxsize=1), asyncio.Lock()
    semaphore = asyncio.Semaphore(1)

    async def producer() -> None:
        await event.wait()
        for n in range(3):
            await queue.put(n)
            await asyncio.sleep(TICK)

    producing = asyncio.create_task(producer())
    event.set()
    async with lock, semaphore:
        out["queue"] = [await queue.get() for _ in range(3)]
    await producing
    shielded = asyncio.create_task(_after(5, 9))
    try:
        await asyncio.wait_for(asyncio.shield(shielded), TICK)
    except TimeoutError:
        out["shield"] = await shielded
    out["random"] = [random.random(), str(uuid.uuid4())]
    before = random.random()
    await asyncio.sleep(TICK)
    out["random"].append(before)
    return out


async def _boom() -> None:
    await asyncio.sleep(TICK)
    raise ValueError("boom")


@pytest.mark.parametrize("cached", [0, 1, 100])
async def test_primitives_of_asyncio(cached: int) -> None:
    async with (
        environment() as env,
        env.client.worker(workflows=[primitives], activities=[echo], max_cached_runs=cached),
    ):
        handle = await env.client.start(primitives)
        out = await asyncio.wait_for(handle.result(), 60)
        assert out.pop("random")
        assert out == {
            "gather": [1, 2, 3],
            "wait": [[10], 2],
            "as_completed": [20, 30],
            "timeout": True,
            "wait_for": True,
            "group": [2, 1],
            "group_error": [1, True],
            "queue": [0, 1, 2],
            "shield": 9,
        }
        Replayer(workflows=[primitives]).replay((await handle.fetch_history()).to_json())


@workflow
async def side_effects() -> list[Any]:
    first = workflow.side_effect(lambda: DRAWN.pop(), int)
    await asyncio.sleep(TICK)
    second = workflow.side_effect(lambda: DRAWN.pop(), int)
    await asyncio.sleep(TICK)
    new = workflow.patched("new-way")
    await asyncio.sleep(TICK)
    return [first, second, new, workflow.patched("new-way")]


DRAWN: list[int] = []


@pytest.mark.parametrize("cached", [0, 100])
async def test_side_effects_and_patches_are_recorded(cached: int) -> None:
    DRAWN[:] = [3, 2, 1]
    async with (
        environment() as env,
        env.client.worker(workflows=[side_effects], activities=[], max_cached_runs=cached),
    ):
        handle = await env.client.start(side_effects)
        assert await handle.result() == [1, 2, True, True]
        assert DRAWN == [3]
        markers = [
            e.marker_recorded_event_attributes.marker_name
            for e in (await handle.fetch_history()).events
            if e.HasField("marker_recorded_event_attributes")
        ]
        assert len(markers) == 3


@workflow
class Mailbox:
    def __init__(self) -> None:
        self.got: list[int] = []

    @workflow.run
    async def run(self, wanted: int) -> list[int]:
        await workflow.wait_condition(lambda: len(self.got) >= wanted)
        return self.got

    @workflow.signal
    async def put(self, n: int) -> None:
        await asyncio.sleep(0)
        self.got.append(n)

    @workflow.query
    def seen(self) -> list[int]:
        return self.got


async def test_two_runs_share_a_cache_of_one() -> None:
    async with (
        environment() as env,
        env.client.worker(workflows=[Mailbox], activities=[], max_cached_runs=1),
    ):
        one, two = [await env.client.start(Mailbox, 6) for _ in range(2)]
        for n in range(6):
            await one.signal(Mailbox.put, n)
            await two.signal(Mailbox.put, -n)
            assert await one.query(Mailbox.seen) == list(range(n + 1))
        assert await one.result() == [0, 1, 2, 3, 4, 5]
        assert await two.result() == [0, -1, -2, -3, -4, -5]
        assert await one.query(Mailbox.seen) == [0, 1, 2, 3, 4, 5]


async def test_queries_before_a_worker_wait_for_one_and_after_a_restart_replay() -> None:
    async with environment() as env:
        handle = await env.client.start(Mailbox, 3)
        await handle.signal(Mailbox.put, 1)
        early = asyncio.create_task(handle.query(Mailbox.seen))
        async with env.client.worker(workflows=[Mailbox], activities=[]):
            assert await asyncio.wait_for(early, 20) == [1]
        async with env.client.worker(workflows=[Mailbox], activities=[]):
            await handle.signal(Mailbox.put, 2)
            assert await handle.query(Mailbox.seen) == [1, 2]
            await handle.signal(Mailbox.put, 3)
            assert await handle.result() == [1, 2, 3]
        async with env.client.worker(workflows=[Mailbox], activities=[]):
            assert await handle.query(Mailbox.seen) == [1, 2, 3]


@workflow
async def more_primitives() -> dict[str, Any]:
    """Condition, Barrier, PriorityQueue, BoundedSemaphore: what else asyncio has."""
    out: dict[str, Any] = {}
    condition, ready = asyncio.Condition(), []

    async def waiter(n: int) -> int:
        async with condition:
            await condition.wait_for(lambda: len(ready) >= n)
            return n

    waiting = [asyncio.create_task(waiter(n)) for n in (1, 2)]
    for _ in range(2):
        await asyncio.sleep(2 * TICK)
        async with condition:
            ready.append(await echo(1))
            condition.notify_all()
    out["condition"] = await asyncio.gather(*waiting)
    barrier = asyncio.Barrier(3)

    async def party(n: int) -> int:
        await asyncio.sleep(n * TICK)
        await barrier.wait()
        return n

    out["barrier"] = await asyncio.gather(*[party(n) for n in (3, 1, 2)])
    queue = asyncio.PriorityQueue[int]()
    for n in (3, 1, 2):
        queue.put_nowait(await echo(n))
    out["queue"] = [await queue.get() for _ in range(3)]
    slots, most = asyncio.BoundedSemaphore(2), [0, 0]

    async def bounded(n: int) -> int:
        async with slots:
            most[0] += 1
            most[1] = max(most)
            result = await _after(1, n)
            most[0] -= 1
            return result

    out["bounded"] = [sum(await asyncio.gather(*[bounded(n) for n in range(5)])), most[1]]
    order: list[int] = []
    for first in asyncio.as_completed([_after(n, n) for n in (3, 1, 2)], timeout=60):
        order.append(await first)
    out["order"] = sorted(order)
    return out


@pytest.mark.parametrize("cached", [0, 100])
async def test_the_rest_of_asyncio(cached: int) -> None:
    async with (
        environment() as env,
        env.client.worker(workflows=[more_primitives], activities=[echo], max_cached_runs=cached),
    ):
        handle = await env.client.start(more_primitives)
        assert await asyncio.wait_for(handle.result(), 60) == {
            "condition": [1, 2],
            "barrier": [3, 1, 2],
            "queue": [1, 2, 3],
            "bounded": [10, 2],
            "order": [1, 2, 3],
        }
        Replayer(workflows=[more_primitives]).replay((await handle.fetch_history()).to_json())
