"""One measurement of one SDK against one server, in a process of its own.

    python benchmarks/served_side.py official|perdure CASE HOST:PORT SERVER_PID SIZE_JSON

Prints a JSON object as its last line.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import measure
import servers

Size = dict[str, int]
Facts = dict[str, float]


class Side:
    """An SDK at work: ``sdk`` is what the module's ``opened`` yields."""

    def __init__(self, sdk: Any, marks: list[float], server_pid: int, size: Size) -> None:
        self.sdk = sdk
        self.marks = marks
        self.server_pid = server_pid
        self.size = size

    async def run(self, kind: Any, argument: int) -> None:
        """Start a workflow and wait for its end."""
        handle = await self.sdk.start(kind, argument, id=uuid.uuid4().hex)
        await handle.result()

    async def warm(self) -> None:
        """Whatever happens once only."""
        await many(20, 20, lambda _: self.run(self.sdk.sequential, 2))
        self.marks.clear()


async def many(count: int, at_once: int, work: Callable[[int], Awaitable[object]]) -> None:
    """Do something so many times, some at a time."""
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(lane() for _ in range(min(count, at_once))))


async def throughput(side: Side) -> Facts:
    size = side.size
    steps = size["workflows"] * size["steps"]
    await side.warm()
    await measure.ready(size, lambda: side.run(side.sdk.sequential, 2))
    before_s = servers.cpu_s(side.server_pid)
    run = side.run
    with measure.Span() as span:
        await many(
            size["workflows"], size["in_flight"], lambda _: run(side.sdk.sequential, size["steps"])
        )
    used_s = servers.cpu_s(side.server_pid) - before_s
    facts = measure.throughput_facts(span, size)
    return facts | {
        "server_cpu_us_per_step": used_s / steps * 1e6,
        "client_cpu_us_per_step": facts["cpu_us_per_step"],
    }


async def latency(side: Side) -> Facts:
    await side.warm()
    await measure.ready(side.size, lambda: side.run(side.sdk.sequential, 2))
    side.marks.clear()
    await side.run(side.sdk.sequential, side.size["steps"])
    return measure.gaps_ms(side.marks)


async def short(side: Side) -> Facts:
    times = side.size["times"]
    sdk = side.sdk
    await side.warm()
    await measure.ready(side.size, lambda: side.run(sdk.sequential, 2))
    facts = measure.named_ms(
        "workflow", await measure.timed(lambda: side.run(sdk.sequential, 1), times)
    )

    def start() -> Awaitable[object]:
        return sdk.start(sdk.sequential, 0, id=uuid.uuid4().hex)

    facts |= measure.named_ms("start", await measure.timed(start, times))
    listener = await sdk.start(sdk.listener, times, id=uuid.uuid4().hex)
    await sdk.update(listener)
    facts |= measure.named_ms(
        "signal", await measure.timed(lambda: sdk.signal(listener), times - 1)
    )
    facts |= measure.named_ms("update", await measure.timed(lambda: sdk.update(listener), times))
    await sdk.signal(listener)
    await listener.result()
    return facts


async def fan_out(side: Side) -> Facts:
    await side.warm()
    before_s, begin = servers.cpu_s(side.server_pid), time.perf_counter()
    await side.run(side.sdk.parallel, side.size["steps"])
    taken_s = time.perf_counter() - begin
    return {"seconds": taken_s, "server_cpu_s": servers.cpu_s(side.server_pid) - before_s}


async def signals(side: Side) -> Facts:
    count = side.size["signals"]
    sdk = side.sdk
    await side.warm()
    listener = await sdk.start(sdk.listener, count, id=uuid.uuid4().hex)
    before_s, begin = servers.cpu_s(side.server_pid), time.perf_counter()
    await many(count, 100, lambda _: sdk.signal(listener))
    await listener.result()
    taken_s = time.perf_counter() - begin
    return {"seconds": taken_s, "server_cpu_s": servers.cpu_s(side.server_pid) - before_s}


async def park(side: Side) -> Facts:
    """Workflows that wait for a signal; each has had its first workflow task."""
    sdk, count = side.sdk, side.size["workflows"]

    async def one(number: int) -> None:
        listener = await sdk.start(sdk.listener, 1, id=f"parked-{number}")
        await sdk.update(listener)

    begin = time.perf_counter()
    await many(count, 100, one)
    return {"parked_per_s": count / (time.perf_counter() - begin)}


async def wake(side: Side) -> Facts:
    """After the restart: until the first of them has been woken, and ended."""
    begin = time.perf_counter()
    listener = side.sdk.handle("parked-0")
    await side.sdk.signal(listener)
    await listener.result()
    return {"first_woken_after_s": time.perf_counter() - begin}


CASES = {case.__name__: case for case in (throughput, latency, short, fan_out, signals, park, wake)}


async def measured(sdk: str, case: str, address: str, pid: int, size: Size) -> None:
    module = importlib.import_module(f"served_{sdk}")
    async with module.opened(address, size["pollers"]) as opened:
        facts = await CASES[case](Side(opened, module.marks, pid, size))
        print(json.dumps(facts), flush=True)
        if size.get("gated"):  # another side's workflows may need this worker: it ends with them
            await asyncio.to_thread(sys.stdin.read)
        os._exit(0)  # how a worker shuts down is not measured


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    sdk, case, address, pid, size = sys.argv[1:]
    asyncio.run(measured(sdk, case, address, int(pid), json.loads(size)))


if __name__ == "__main__":
    main()
