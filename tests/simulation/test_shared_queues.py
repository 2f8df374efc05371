"""Rate limits, priority and fairness of a task queue hold over all nodes, on virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from perdure import Client, Priority, activity, workflow
from perdure.service.clock import SystemClock
from perdure.service.node import Node
from perdure.store.sqlite import SqliteStore
from perdure.testing import VirtualLoop
from perdure.testing.faults import Faults

from .late import Late
from .shared import Database, Network, SharedStore
from .simulate import deterministic, end

BEGUN: list[tuple[float, str, str]] = []  # when, where, which


@activity(start_to_close_timeout=timedelta(minutes=50))
async def note(word: str) -> None:
    BEGUN.append((asyncio.get_running_loop().time(), activity.info().task_queue, word))


@workflow
async def many(word: str, count: int, queue: str, priority: Priority) -> None:
    task = note.options(task_queue=queue, priority=priority)
    await asyncio.gather(*(task(f"{word}{number}") for number in range(count)))


@asynccontextmanager
async def two_clients() -> AsyncIterator[list[Client]]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    rows = SqliteStore(":memory:")
    await rows.open()
    database = Database(Network(delay_s=0.001), rows, Late())
    nodes = []
    for number in range(2):
        rng = random.Random(number)
        store = SharedStore(database, Faults(), rng)
        nodes.append(await Node.open(store, clock=SystemClock(loop.now_ns, loop.now_ns), rng=rng))
    await asyncio.sleep(6)  # they know of each other
    yield [Client(node.service, identity=f"node {n}") for n, node in enumerate(nodes)]
    for node in nodes:
        await node.close()


def play(main: Callable[[], Awaitable[None]]) -> None:
    BEGUN.clear()
    loop = VirtualLoop()
    with deterministic(1, loop):
        try:
            loop.run_until_complete(main())
        finally:
            end(loop)


def test_a_rate_holds_over_all_nodes() -> None:
    async def main() -> None:
        async with two_clients() as (first, second):
            options = {"task_queue": "slow", "max_activities_per_second": 5}
            workers = [
                client.worker(workflows=[many], activities=[note], **options)  # type: ignore[arg-type]
                for client in (first, second)
            ]
            async with workers[0], workers[1]:
                runs = [
                    await client.start(
                        many, word, 40, "slow", Priority(), task_queue="slow", id=word
                    )
                    for client, word in ((first, "a"), (second, "b"))
                ]
                for run in runs:
                    await run.result()

    play(main)
    times = [when for when, _, _ in BEGUN]
    assert len(times) == 80
    for begin in times:
        within = [when for when in times if begin <= when < begin + 2]
        assert len(within) <= 5 + 2 * 5, f"{len(within)} within two seconds"
    assert max(times) - min(times) < 80 / 5 * 1.5, "slower than allowed"


def test_priority_and_fairness_go_over_all_nodes() -> None:
    async def main() -> None:
        async with two_clients() as (first, second):
            slow = {"max_activities_per_second": 5, "max_concurrent_activities": 1}
            async with (
                first.worker(workflows=[many], activities=[], task_queue="flow"),
                second.worker(workflows=[many], activities=[], task_queue="flow"),
                first.worker(workflows=[], activities=[note], task_queue="fair", **slow),  # type: ignore[arg-type]
                second.worker(workflows=[], activities=[note], task_queue="fair", **slow),  # type: ignore[arg-type]
            ):

                async def add(client: Client, word: str, count: int, priority: Priority) -> None:
                    await client.start(
                        many, word, count, "fair", priority, task_queue="flow", id=word
                    )

                await add(first, "a", 60, Priority(fairness_key="a"))
                await asyncio.sleep(6)  # half of them are done
                await add(second, "b", 1, Priority(fairness_key="b"))
                await asyncio.sleep(1.5)  # the second node looks where the others are
                await add(second, "B", 20, Priority(fairness_key="b"))
                await add(second, "u", 3, Priority(key=1))
                BEGUN.append((0.0, "", "here"))
                await asyncio.sleep(40)

    play(main)
    words = [word for _, _, word in BEGUN]
    later = words[words.index("here") + 1 :]
    assert len(words) == 60 + 1 + 20 + 3 + 1
    assert {"u0", "u1", "u2"} <= set(later[:10]), later
    shares = [word[0] for word in later[:20]]
    assert shares.count("a") >= 6, shares
    assert shares.count("B") >= 6, shares
