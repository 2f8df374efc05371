"""The workflows that the simulation runs, and the world that their activities change."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from datetime import timedelta

from perdure import ApplicationError, RetryPolicy, activity, workflow


@dataclass
class World:
    """What exists outside of perdure: it survives every crash.

    Attributes:
        runs: (run id, activity id) → when each execution of that activity began, in ns.
    """

    rng: random.Random
    now_ns: object = None
    runs: dict[tuple[str, str], list[int]] = field(default_factory=dict)


world = World(random.Random(0))
RETRY = RetryPolicy(initial_interval=timedelta(milliseconds=50), backoff_coefficient=1.5)


@activity(start_to_close_timeout=timedelta(seconds=30), retry=RETRY)
async def work(number: int) -> int:
    """Takes its time, fails now and then, and leaves a trace in the world."""
    info = activity.info()
    began = asyncio.get_running_loop().now_ns()  # type: ignore[attr-defined]
    world.runs.setdefault((info.workflow_run_id, info.activity_id), []).append(began)
    if world.rng.random() < 0.5:
        await asyncio.sleep(world.rng.random() * 0.05)
    if world.rng.random() < 0.15:
        raise RuntimeError("the service is not there")
    return number * 2


@activity(start_to_close_timeout=timedelta(seconds=30), retry=RETRY)
async def quick(number: int) -> int:
    """A local activity: fast, and fails now and then."""
    if world.rng.random() < 0.2:
        raise RuntimeError("not this time")
    return number + 1


@workflow
async def chain(length: int) -> int:
    """One step after the other."""
    total = 0
    for number in range(length):
        total += await work(number)
    return total


@workflow
async def fan(width: int) -> int:
    """All steps at once, with a timer beside them."""
    results = asyncio.gather(*(work(number) for number in range(width)))
    await asyncio.sleep(0.2)
    local = await quick.local(width)
    return sum(await results) + local


@workflow
async def relay(left: int, total: int) -> int:
    """Continues as new until nothing is left."""
    total += await work(left)
    if left:
        workflow.continue_as_new(left - 1, total)
    return total


@workflow
async def family(children: int) -> int:
    """Its work is done by children."""
    results = await asyncio.gather(*(chain(2 + number % 2) for number in range(children)))
    return sum(results)


@workflow
async def patient(seconds: float) -> str:
    """Waits until it is cancelled, and tidies up."""
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        await work(1)
        return "tidied up"
    return "slept"


@workflow
class Box:
    """Collects what it is sent, until it has enough."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.updates: list[int] = []

    @workflow.run
    async def run(self, signals: int, updates: int) -> tuple[list[int], list[int]]:
        await workflow.wait_condition(
            lambda: len(self.signals) >= signals and len(self.updates) >= updates
        )
        await workflow.wait_condition(workflow.all_handlers_finished)
        return sorted(self.signals), sorted(self.updates)

    @workflow.signal
    def put(self, number: int) -> None:
        self.signals.append(number)

    @workflow.update
    async def add(self, number: int) -> int:
        self.updates.append(number)
        return await work(number)

    @workflow.query
    def size(self) -> int:
        return len(self.signals) + len(self.updates)


@workflow
async def sender(box: str, number: int) -> str:
    """Signals another workflow."""
    while True:
        try:
            await workflow.external(box).signal(Box.put, number)
            return "sent"
        except ApplicationError:
            await asyncio.sleep(1)  # it is not there yet


WORKFLOWS = [chain, fan, relay, family, patient, Box, sender]
ACTIVITIES = [work, quick]
