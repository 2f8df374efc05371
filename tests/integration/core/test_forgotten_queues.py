"""What a node keeps of task queues that nobody polls there, and what it has leased for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from harness import QUEUE, Harness, settle

from perdure.service.queue import WORKFLOW
from perdure.store.contract import Store
from perdure.store.postgres import PostgresStore


@pytest.fixture
async def two(postgres_dsn: str) -> AsyncIterator[tuple[Harness, Harness]]:
    first = await Harness(lambda: PostgresStore(postgres_dsn)).open()
    second = await Harness(lambda: PostgresStore(postgres_dsn)).open()
    await beat(first)
    yield first, second
    await first.close()
    await second.close()


async def beat(node: Harness) -> None:
    assert node.node.neighbours is not None
    await node.node.neighbours._beat()


@pytest.mark.parametrize("has_company", [False, True])
async def test_queues_that_nobody_polls_here_are_forgotten(
    postgres_dsn: str, has_company: bool
) -> None:
    node = await Harness(lambda: PostgresStore(postgres_dsn)).open()
    other = await Harness(lambda: PostgresStore(postgres_dsn)).open() if has_company else None
    await beat(node)
    matching = node.node.matching
    for number in range(3_000):  # sticky queues of workers that poll elsewhere
        matching.queue("default", f"sticky-{number}", WORKFLOW)
        node.clock.time_ns += node.node.settings.queue_idle_ns
    assert len(matching._queues) < 2_000
    for harness in (node, other):
        if harness is not None:
            await harness.close()


async def test_a_queue_that_was_just_made_or_is_polled_is_kept(
    make_store: Callable[[], Store],
) -> None:
    node = await Harness(make_store).open()
    poll = node.poll()
    await settle()
    await node.clock.advance(1)
    matching = node.node.matching
    made = matching.queue("default", "made", WORKFLOW)
    node.clock.time_ns += node.node.settings.queue_idle_ns
    matching._purge()
    assert matching.known("default", QUEUE, WORKFLOW) is not None
    assert matching.known("default", "made", WORKFLOW) is made
    poll.cancel()
    await node.close()


async def test_a_forgotten_queue_keeps_its_tasks_and_their_order(postgres_dsn: str) -> None:
    node = await Harness(lambda: PostgresStore(postgres_dsn)).open()
    await node.start("old")
    await settle()
    matching = node.node.matching
    node.clock.time_ns += 2 * node.node.settings.queue_idle_ns
    matching._purge()
    assert matching.known("default", QUEUE, WORKFLOW) is None
    await node.start("first after that")  # its place is not known to be behind the others
    await settle()
    await node.start("new")
    found = [(await node.take()).workflow_execution.workflow_id for _ in range(3)]
    assert set(found) == {"old", "first after that", "new"}
    assert found.index("old") < found.index("new")
    await node.close()


@pytest.mark.parametrize("how", ["company changes", "the node is closed"])
async def test_rows_that_are_leased_go_back(two: tuple[Harness, Harness], how: str) -> None:
    first, second = two
    await first.start()
    await settle()
    matching, sharing = first.node.matching, first.store.sharing
    assert sharing is not None
    queue = matching.queue("default", QUEUE, WORKFLOW)
    queue.rows.loaded(await sharing.lease_tasks(queue.key, 1), more=False)
    assert queue.rows
    if how == "company changes":
        matching.company_changed()
    else:
        await first.close()
    await settle()
    assert (await second.take()).workflow_execution.workflow_id == "wf"


async def test_rows_that_come_after_company_changed_go_back(
    two: tuple[Harness, Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    await first.start()
    await settle()
    matching, sharing = first.node.matching, first.store.sharing
    assert sharing is not None
    has_leased, may_go_on, lease = asyncio.Event(), asyncio.Event(), sharing.lease_tasks

    async def slow(*arguments: object) -> object:
        rows = await lease(*arguments)  # type: ignore[arg-type]
        has_leased.set()
        await may_go_on.wait()
        return rows

    monkeypatch.setattr(sharing, "lease_tasks", slow)
    poll = first.poll()
    await has_leased.wait()
    poll.cancel()
    matching.company_changed()
    monkeypatch.undo()
    may_go_on.set()
    await settle()
    assert (await second.take()).workflow_execution.workflow_id == "wf"
