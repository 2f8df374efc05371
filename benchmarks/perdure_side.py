"""The benchmark's work on perdure, embedded: SQLite (WAL, synchronous=FULL) or PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import measure
import perdure
from perdure import Client, activity, workflow

marks: list[float] = []
done: list[float] = []
blocked = asyncio.Event()


@activity
async def nothing() -> None:
    """An activity that does nothing."""


@activity
async def mark() -> None:
    """An activity that notes when it ran."""
    marks.append(time.perf_counter())


@activity
async def note_done() -> None:
    """An activity that notes the wall-clock time."""
    done.append(time.time())


@activity
async def note_blocked() -> None:
    """An activity that tells that all steps before it are done, and never returns."""
    blocked.set()
    await asyncio.sleep(3600)


@workflow
async def sequential(steps: int) -> int:
    for _ in range(steps):
        await nothing()
    return steps


@workflow
async def marked(steps: int) -> int:
    for _ in range(steps):
        await mark()
    return steps


@workflow
async def parallel(steps: int) -> int:
    await asyncio.gather(*(nothing() for _ in range(steps)))
    return steps


@workflow
async def sleeper(delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    await note_done()


@workflow
async def long(steps: int) -> None:
    for _ in range(steps):
        await nothing()
    await note_blocked()


@workflow
class Listener:
    """Waits for so many signals."""

    def __init__(self) -> None:
        self.heard = 0

    @workflow.run
    async def run(self, count: int) -> int:
        await workflow.wait_condition(lambda: self.heard >= count)
        return self.heard

    @workflow.signal
    def hear(self) -> None:
        self.heard += 1


@asynccontextmanager
async def opened(place: str) -> AsyncIterator[Client]:
    async with perdure.connect(target(place)) as client, client.worker():
        yield client


def target(place: str) -> str:
    """Where the database is."""
    return place if "://" in place else f"sqlite:///{Path(place) / 'perdure.db'}"


async def throughput(place: str, size: dict[str, int]) -> dict[str, float]:
    gate = asyncio.Semaphore(size["in_flight"])
    async with opened(place) as client:

        async def one() -> None:
            async with gate:
                await client.execute(sequential, size["steps"])

        await measure.ready(size, lambda: client.execute(sequential, 2))
        with measure.Span() as span:
            await asyncio.gather(*(one() for _ in range(size["workflows"])))
        return measure.throughput_facts(span, size)


async def latency(place: str, size: dict[str, int]) -> dict[str, float]:
    async with opened(place) as client:
        await measure.ready(size, lambda: client.execute(sequential, 2))
        with measure.Span() as span:
            await client.execute(marked, size["steps"])
        return measure.gaps_ms(marks) | {"cpu_us_per_step": span.cpu_s / size["steps"] * 1e6}


async def short(place: str, size: dict[str, int]) -> dict[str, float]:
    taken: list[float] = []
    async with opened(place) as client:
        for _ in range(size["workflows"]):
            begin = time.perf_counter()
            await client.execute(sequential, 1)
            taken.append(time.perf_counter() - begin)
        return measure.percentiles_ms(taken)


async def calls(place: str, size: dict[str, int]) -> dict[str, float]:
    """Starts, signals and short workflows, one after the other."""
    times = size["times"]
    async with opened(place) as client:
        await measure.ready(size, lambda: client.execute(sequential, 2))
        facts = measure.named_ms(
            "start", await measure.timed(lambda: client.start(sequential, 0), times)
        )
        listener = await client.start(Listener, times)
        facts |= measure.named_ms(
            "signal", await measure.timed(lambda: listener.signal(Listener.hear), times)
        )
        await listener.result()
        taken = await measure.timed(lambda: client.execute(sequential, 1), times)
        return facts | measure.named_ms("workflow", taken)


async def across(place: str, size: dict[str, int]) -> dict[str, float]:
    """Workflows without steps: first with the worker at the client's node, then at another."""
    facts: dict[str, float] = {}
    async with perdure.connect(target(place)) as client, perdure.connect(target(place)) as other:

        async def one() -> None:
            await client.execute(sequential, 0)

        for name, node in (("here", client), ("across", other)):
            async with node.worker():
                if not facts:
                    await measure.ready(size, one)
                await measure.timed(one, 20)
                facts |= measure.named_ms(name, await measure.timed(one, size["times"]))
    return facts


async def fan_out(place: str, size: dict[str, int]) -> dict[str, float]:
    async with opened(place) as client:
        with measure.Span() as span:
            await client.execute(parallel, size["steps"])
        return {"seconds": span.wall_s, "cpu_s": span.cpu_s}


async def asleep(place: str, size: dict[str, int]) -> dict[str, float]:
    """First half of (e): start the sleepers, and say what they cost."""
    async with opened(place) as client:
        due = measure.Due.after(size)
        before = measure.rss_bytes()
        gate = asyncio.Semaphore(200)

        async def one(n: int) -> None:
            async with gate:
                await client.start(sleeper, due.delay_s(n), id=f"sleeper-{n}")

        with measure.Span() as span:
            await asyncio.gather(*(one(n) for n in range(size["workflows"])))
            while await _without_timer(client):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return measure.asleep_facts(place, before, span, due, size["workflows"])


async def _without_timer(client: Client) -> int:
    """How many sleepers have not got as far as their timer, which is event 5."""
    filter = "WorkflowType = 'sleeper' AND ExecutionStatus = 'Running'"
    last = [run.id async for run in client.list(filter, limit=1)]
    description = await client.handle(last[0]).describe()
    return max(0, 5 - description.history_length)


async def awake(place: str, size: dict[str, int]) -> dict[str, float]:
    """Second half of (e): restart, and note when all have finished."""
    begin = time.time()
    async with opened(place):
        return await measure.wait_for_done(done, size, begin)


async def grow(place: str, size: dict[str, int]) -> dict[str, float]:
    """First half of (f): a workflow with that many recorded steps."""
    async with opened(place) as client:
        with measure.Span() as span:
            await client.start(long, size["steps"], id="long")
            await blocked.wait()
        return {"build_s": span.wall_s}


async def replay(place: str, size: dict[str, int]) -> dict[str, float]:
    """Second half of (f): read the history back and replay it, and nothing else."""
    from temporalio.api.history.v1 import History

    from perdure.testing import Replayer

    async with perdure.connect(target(place)) as client:
        history = await client.handle("long").fetch_history()
        replayer = Replayer([long])
        with measure.Span() as span:
            replayer.replay(History(events=history.events))
    return {
        "replay_s": span.wall_s,
        "steps_per_s": size["steps"] / span.wall_s,
        "events_per_s": len(history.events) / span.wall_s,
        "events": len(history.events),
    }
