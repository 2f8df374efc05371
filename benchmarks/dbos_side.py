"""The benchmark's work on DBOS: on SQLite as durable as perdure's, or on the same PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID
from sqlalchemy import Engine, event

import measure

marks: list[float] = []
done: list[float] = []


@event.listens_for(Engine, "connect")
def _durable(connection: Any, _record: Any) -> None:
    """DBOS leaves the journal mode at SQLite's default, which is slower than what we set here."""
    if not isinstance(connection, sqlite3.Connection):
        return
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    assert cursor.execute("PRAGMA synchronous").fetchone() == (2,)
    assert cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    cursor.close()


@DBOS.step()
async def nothing() -> None:
    """A step that does nothing."""


@DBOS.step()
async def mark() -> None:
    """A step that notes when it ran."""
    marks.append(time.perf_counter())


@DBOS.step()
async def note_done() -> None:
    """A step that notes the wall-clock time."""
    done.append(time.time())


@DBOS.workflow()
async def sequential(steps: int) -> int:
    for _ in range(steps):
        await nothing()
    return steps


@DBOS.workflow()
async def marked(steps: int) -> int:
    for _ in range(steps):
        await mark()
    return steps


@DBOS.workflow()
async def parallel(steps: int) -> int:
    await asyncio.gather(*(nothing() for _ in range(steps)))
    return steps


@DBOS.workflow()
async def listener(count: int) -> int:
    for _ in range(count):
        assert await DBOS.recv_async("heard", 60) is not None
    return count


@DBOS.workflow()
async def sleeper(delay_s: float) -> None:
    await DBOS.sleep_async(delay_s)
    await note_done()


@DBOS.workflow()
async def long(steps: int) -> float:
    """Takes its own time over the steps: in a recovered run, that is the time of the replay."""
    begin = time.perf_counter()
    for _ in range(steps):
        await nothing()
    replay_s = time.perf_counter() - begin
    done.append(replay_s)
    await DBOS.sleep_async(3600)
    return replay_s


def launch(place: str, executor_id: str = "bench") -> None:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": place if "://" in place else f"sqlite:///{Path(place) / 'dbos.db'}",
        "log_level": "ERROR",
        "application_version": "1",
        "executor_id": executor_id,
        "run_migrations": True,
    }
    DBOS(config=config)
    DBOS.launch()


async def warm() -> None:
    await (await DBOS.start_workflow_async(sequential, 2)).get_result()


async def throughput(place: str, size: dict[str, int]) -> dict[str, float]:
    launch(place, f"bench-{size.get('number', 0)}")
    gate = asyncio.Semaphore(size["in_flight"])

    async def one() -> None:
        async with gate:
            handle = await DBOS.start_workflow_async(sequential, size["steps"])
            await handle.get_result()

    await measure.ready(size, warm)
    with measure.Span() as span:
        await asyncio.gather(*(one() for _ in range(size["workflows"])))
    return measure.throughput_facts(span, size)


async def latency(place: str, size: dict[str, int]) -> dict[str, float]:
    launch(place)
    await measure.ready(size, warm)
    with measure.Span() as span:
        await (await DBOS.start_workflow_async(marked, size["steps"])).get_result()
    return measure.gaps_ms(marks) | {"cpu_us_per_step": span.cpu_s / size["steps"] * 1e6}


async def short(place: str, size: dict[str, int]) -> dict[str, float]:
    launch(place)
    taken: list[float] = []
    for _ in range(size["workflows"]):
        begin = time.perf_counter()
        await (await DBOS.start_workflow_async(sequential, 1)).get_result()
        taken.append(time.perf_counter() - begin)
    return measure.percentiles_ms(taken)


async def calls(place: str, size: dict[str, int]) -> dict[str, float]:
    """Starts, signals (messages) and short workflows, one after the other."""
    launch(place)
    times = size["times"]
    await measure.ready(size, warm)
    handles = []  # a caller that holds no handle would let the tasks be collected

    async def start() -> None:
        handles.append(await DBOS.start_workflow_async(sequential, 0))

    facts = measure.named_ms("start", await measure.timed(start, times))
    name = uuid.uuid4().hex
    with SetWorkflowID(name):
        handle = await DBOS.start_workflow_async(listener, times)

    async def send() -> None:
        await DBOS.send_async(name, "heard", topic="heard")

    facts |= measure.named_ms("signal", await measure.timed(send, times))
    await handle.get_result()

    async def short_one() -> None:
        await (await DBOS.start_workflow_async(sequential, 1)).get_result()

    return facts | measure.named_ms("workflow", await measure.timed(short_one, times))


async def fan_out(place: str, size: dict[str, int]) -> dict[str, float]:
    launch(place)
    with measure.Span() as span:
        await (await DBOS.start_workflow_async(parallel, size["steps"])).get_result()
    return {"seconds": span.wall_s, "cpu_s": span.cpu_s}


async def asleep(place: str, size: dict[str, int]) -> dict[str, float]:
    """First half of (e): start the sleepers, say what they cost, and wait to be killed."""
    launch(place)
    due = measure.Due.after(size)
    before = measure.rss_bytes()
    gate = asyncio.Semaphore(200)
    handles = []  # a caller that holds no handle would let the tasks be collected

    async def one(n: int) -> None:
        async with gate:
            with SetWorkflowID(f"sleeper-{n}"):
                handles.append(await DBOS.start_workflow_async(sleeper, due.delay_s(n)))

    with measure.Span() as span:
        await asyncio.gather(*(one(n) for n in range(size["workflows"])))
        while await _timers(place) < size["workflows"]:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    return measure.asleep_facts(place, before, span, due, size["workflows"])


async def _timers(place: str) -> int:
    """How many sleepers have recorded their sleep."""
    with sqlite3.connect(Path(place) / "dbos.db") as database:
        query = "SELECT count(*) FROM operation_outputs WHERE function_name = 'DBOS.sleep'"
        return int(database.execute(query).fetchone()[0])


async def awake(place: str, size: dict[str, int]) -> dict[str, float]:
    """Second half of (e): restart, and note when all have finished."""
    begin = time.time()
    launch(place)
    return await measure.wait_for_done(done, size, begin)


async def grow(place: str, size: dict[str, int]) -> dict[str, float]:
    """First half of (f): a workflow with that many recorded steps."""
    launch(place)
    with SetWorkflowID("long"):
        await DBOS.start_workflow_async(long, size["steps"])
    with measure.Span() as span:
        while not done:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return {"build_s": span.wall_s}


async def replay(place: str, size: dict[str, int]) -> dict[str, float]:
    """Second half of (f): the restarted process replays it."""
    launch(place)
    while not done:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return {"replay_s": done[0], "steps_per_s": size["steps"] / done[0]}
