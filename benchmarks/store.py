"""What the SQLite store does by itself: transitions/s by size of batch, and reads.

    uv run python benchmarks/store.py [directory for the database]

A transition writes three rows: 450 bytes of events, 500 bytes of state and an item of 200 bytes, in
runs of which 400 are under way.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from perdure.store.contract import Record, Write
from perdure.store.query import Column, Compare, Query
from perdure.store.sqlite import SqliteStore

RUNS = 400
EVENTS = os.urandom(450)
STATE = os.urandom(500)
ITEM = os.urandom(200)
ROUND_S = 2.0


def start(key: int) -> Write:
    record = Record(
        key=key,
        namespace="default",
        workflow_id=f"workflow-{key}",
        run_id=f"{key:032x}",
        workflow_type="checkout",
        task_queue="orders",
        status=1,
        start_ns=key,
        execution_ns=key,
    )
    return Write(key, 0, 1, STATE, record=record)


def step(key: int, version: int) -> Write:
    """Six events, a new state, and an item in one of three places."""
    first = version * 6 - 5
    return Write(
        key,
        version,
        version + 1,
        STATE,
        events=EVENTS,
        first_event_id=first,
        last_event_id=first + 5,
        put_items=[(version % 3, ITEM)],
    )


async def transitions(store: SqliteStore, first: int, versions: list[int], size: int) -> float:
    """Transitions per second when each commit holds `size` of them, one commit after another."""
    done, turn = 0, 0
    began = time.perf_counter()
    while time.perf_counter() - began < ROUND_S:
        units = []
        for _ in range(size):
            run = turn % RUNS
            units.append([step(first + run, versions[run])])
            versions[run] += 1
            turn += 1
        assert await store.commit(units) == []
        done += size
    return done / (time.perf_counter() - began)


async def latency_us(call: Callable[[], Awaitable[object]], times: int) -> float:
    """The median of single calls."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


async def long_run(store: SqliteStore, key: int, events: int) -> None:
    await store.commit([[start(key)]])
    for version in range(1, events // 6 + 1, 100):
        last = min(version + 100, events // 6 + 1)
        await store.commit([[step(key, v)] for v in range(version, last)])


async def main(directory: Path) -> None:
    store = SqliteStore(directory / "bench.db")
    await store.open()
    first = await store.allocate(RUNS)
    await store.commit([[start(first + n)] for n in range(RUNS)])
    versions = [1] * RUNS
    print("writes, transitions/s")
    for size in (1, 10, 100, 500):
        rates = [await transitions(store, first, versions, size) for _ in range(3)]
        print(f"  batch {size:>3}: {statistics.median(rates):>9,.0f}")
    print("reads, µs, median")
    print(f"  load: {await latency_us(lambda: store.load(first + 7), 2_000):,.0f}")
    find = lambda: store.find("default", f"workflow-{first + 7}")  # noqa: E731
    print(f"  find: {await latency_us(find, 2_000):,.0f}")
    query = Query("default", Compare(Column.STATUS, "=", 1), limit=100)
    print(f"  list, 100 of {RUNS}: {await latency_us(lambda: store.list_runs(query), 200):,.0f}")
    for events in (1_000, 50_000):
        key = await store.allocate(1)
        await long_run(store, key, events)

        async def read(key: int = key, events: int = events) -> None:
            batches = await store.history(key, 1, events, limit=events)
            assert len(batches) == events // 6

        tail = lambda key=key, last=events: store.history(key, last - 12, last, limit=9)  # noqa: E731
        print(f"  history of {events:,} events: {await latency_us(read, 20):,.0f}")
        print(f"  the last 12 of them: {await latency_us(tail, 500):,.0f}")
    await store.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as place:
        asyncio.run(main(Path(place)))
