"""Does a step cost the same when there is much in the database? CPU per step, perdure alone.

    uv run python benchmarks/growth.py [--quick] [directory for the database]

The probe is always the same: workflows of ten sequential no-op activities, 50 in flight. It is
taken in a new database, beside 10,000 workflows asleep, and after 20,000 workflows have closed; and
a single workflow is measured over its first and its last thousand steps. Figures are the best of
three, but for the single workflow.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import perdure
from perdure import Client, activity, workflow

STEPS = 10
IN_FLIGHT = 50


@activity
async def nothing() -> None:
    """Costs what a step costs."""


@workflow
async def sequential(steps: int) -> None:
    for _ in range(steps):
        await nothing()


@workflow
async def sleeper() -> None:
    await asyncio.sleep(86_400)


marks: list[float] = []


@activity
async def mark() -> None:
    marks.append(time.process_time())


@workflow
async def long(steps: int) -> None:
    for _ in range(steps):
        await mark()


async def run_many(client: Client, count: int, steps: int) -> None:
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        async with gate:
            await client.execute(sequential, steps)

    await asyncio.gather(*(one() for _ in range(count)))


async def probe_us(client: Client, count: int) -> float:
    """CPU of a step, in microseconds."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        await run_many(client, count, STEPS)
        best = min(best, time.process_time() - began)
    return best / count / STEPS * 1e6


async def fall_asleep(client: Client, count: int) -> None:
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        async with gate:
            await client.start(sleeper)

    await asyncio.gather(*(one() for _ in range(count)))


async def main(folder: Path, *, quick: bool) -> None:
    scale = 20 if quick else 1
    count = 200 // (4 if quick else 1)
    table = Table("database holds", "CPU a step, µs", "to the first")
    async with perdure.connect(f"sqlite:///{folder / 'growth.db'}") as client, client.worker():
        await run_many(client, 20, STEPS)
        first = await probe_us(client, count)
        table.add_row("nothing", f"{first:.0f}", "1.00")
        await fall_asleep(client, 10_000 // scale)
        for closed in (0, 20_000 // scale):
            await run_many(client, closed, 1)
            cost = await probe_us(client, count)
            held = f"{10_000 // scale:,} asleep" + (f", {closed:,} closed" if closed else "")
            table.add_row(held, f"{cost:.0f}", f"{cost / first:.2f}")
        steps = 8_000 // scale
        await client.execute(long, steps)
        part = steps // 8
        early = (marks[part] - marks[0]) / part * 1e6
        late = (marks[-1] - marks[-1 - part]) / part * 1e6
        table.add_row(f"one workflow: steps 1 to {part:,}", f"{early:.0f}", "1.00")
        span = f"steps {steps - part:,} to {steps:,}"
        table.add_row(f"one workflow: {span}", f"{late:.0f}", f"{late / early:.2f}")
    Console().print(table)


if __name__ == "__main__":
    arguments = [one for one in sys.argv[1:] if one != "--quick"]
    with tempfile.TemporaryDirectory(dir=arguments[0] if arguments else None) as name:
        asyncio.run(main(Path(name), quick="--quick" in sys.argv))
