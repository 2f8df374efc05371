"""The benchmark's work on DBOS, on SQLite as durable as perdure's: WAL, synchronous=FULL."""

from __future__ import annotations

import asyncio
import time
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


def launch(folder: Path) -> None:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": f"sqlite:///{folder / 'dbos.db'}",
        "log_level": "ERROR",
        "application_version": "1",
        "executor_id": "bench",
        "run_migrations": True,
    }
    DBOS(config=config)
    DBOS.launch()


async def throughput(folder: Path, size: dict[str, int]) -> dict[str, float]:
    launch(folder)
    gate = asyncio.Semaphore(size["in_flight"])

    async def one() -> None:
        async with gate:
            handle = await DBOS.start_workflow_async(sequential, size["steps"])
            await handle.get_result()

    with measure.Span() as span:
        await asyncio.gather(*(one() for _ in range(size["workflows"])))
    steps = size["workflows"] * size["steps"]
    return {"steps_per_s": steps / span.wall_s, "cpu_us_per_step": span.cpu_s / steps * 1e6}


async def latency(folder: Path, size: dict[str, int]) -> dict[str, float]:
    launch(folder)
    with measure.Span() as span:
        await (await DBOS.start_workflow_async(marked, size["steps"])).get_result()
    return measure.gaps_ms(marks) | {"cpu_us_per_step": span.cpu_s / size["steps"] * 1e6}


async def short(folder: Path, size: dict[str, int]) -> dict[str, float]:
    launch(folder)
    taken: list[float] = []
    for _ in range(size["workflows"]):
        begin = time.perf_counter()
        await (await DBOS.start_workflow_async(sequential, 1)).get_result()
        taken.append(time.perf_counter() - begin)
    return measure.percentiles_ms(taken)


async def fan_out(folder: Path, size: dict[str, int]) -> dict[str, float]:
    launch(folder)
    with measure.Span() as span:
        await (await DBOS.start_workflow_async(parallel, size["steps"])).get_result()
    return {"seconds": span.wall_s, "cpu_s": span.cpu_s}


async def asleep(folder: Path, size: dict[str, int]) -> dict[str, float]:
    """First half of (e): start the sleepers, say what they cost, and wait to be killed."""
    launch(folder)
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
        while await _timers(folder) < size["workflows"]:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    return measure.asleep_facts(folder, before, span, due, size["workflows"])


async def _timers(folder: Path) -> int:
    """How many sleepers have recorded their sleep."""
    import sqlite3

    with sqlite3.connect(folder / "dbos.db") as database:
        query = "SELECT count(*) FROM operation_outputs WHERE function_name = 'DBOS.sleep'"
        return int(database.execute(query).fetchone()[0])


async def awake(folder: Path, size: dict[str, int]) -> dict[str, float]:
    """Second half of (e): restart, and note when all have finished."""
    begin = time.time()
    launch(folder)
    return await measure.wait_for_done(done, size, begin)


async def grow(folder: Path, size: dict[str, int]) -> dict[str, float]:
    """First half of (f): a workflow with that many recorded steps."""
    launch(folder)
    with SetWorkflowID("long"):
        await DBOS.start_workflow_async(long, size["steps"])
    with measure.Span() as span:
        while not done:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return {"build_s": span.wall_s}


async def replay(folder: Path, size: dict[str, int]) -> dict[str, float]:
    """Second half of (f): the restarted process replays it."""
    launch(folder)
    while not done:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return {"replay_s": done[0], "steps_per_s": size["steps"] / done[0]}
