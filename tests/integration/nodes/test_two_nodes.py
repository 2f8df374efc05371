"""Two nodes on one PostgreSQL database: what is asked of one concerns the other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import DescribeTaskQueueMode
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.worker.v1 import WorkerHeartbeat
from temporalio.api.workflowservice.v1 import (
    CountWorkersRequest,
    DescribeTaskQueueRequest,
    DescribeWorkerRequest,
    ListWorkersRequest,
    RecordWorkerHeartbeatRequest,
)

import perdure
from perdure import Client, activity, workflow
from perdure.api.errors import NamespaceAlreadyExists, NamespaceNotFound, NotFound
from perdure.sdk.errors import QueryFailedError, UpdateFailedError, WorkflowFailedError
from perdure.service import neighbours
from perdure.store.sharing import Awaited

CALLS: Counter[str] = Counter()
WITHIN_S = 30


@activity(start_to_close_timeout=timedelta(seconds=20))
async def note(word: str) -> str:
    CALLS[word] += 1
    return word


@workflow
async def chain(name: str, steps: int) -> int:
    for number in range(steps):
        await note(f"{name}-{number}")
    return steps


@workflow
class Ledger:
    def __init__(self) -> None:
        self.entries: list[int] = []
        self.closed = False

    @workflow.run
    async def run(self) -> list[int]:
        await workflow.wait_condition(lambda: self.closed)
        return self.entries

    @workflow.signal
    def put(self, entry: int) -> None:
        self.entries.append(entry)

    @workflow.signal
    def close(self) -> None:
        self.closed = True

    @workflow.query
    def total(self) -> int:
        return sum(self.entries)

    @workflow.update
    async def add(self, entry: int) -> int:
        await note(f"add-{entry}")
        self.entries.append(entry)
        return sum(self.entries)

    @add.validator
    def check(self, entry: int) -> None:
        if entry < 0:
            raise ValueError("no negative entries")


@workflow
async def nap(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"


WORKFLOWS = [chain, Ledger, nap]


class Two:
    """Clients of two nodes; workers are the test's to start."""

    def __init__(self, first: Client, second: Client) -> None:
        self.first, self.second = first, second

    async def work(self, stack: AsyncExitStack, *clients: Client) -> None:
        for client in clients:
            await stack.enter_async_context(client.worker(workflows=WORKFLOWS, activities=[note]))


@pytest.fixture
async def two(postgres_dsn: str) -> AsyncIterator[Two]:
    CALLS.clear()
    async with (
        perdure.connect(postgres_dsn, identity="at the first") as first,
        perdure.connect(postgres_dsn, identity="at the second") as second,
    ):
        yield Two(first, second)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as made:
        yield made


async def test_a_worker_on_one_node_serves_starts_on_the_other(
    two: Two, stack: AsyncExitStack
) -> None:
    await two.work(stack, two.first)
    results = await asyncio.gather(
        *(two.second.execute(chain, f"w{n}", 3, id=f"w{n}") for n in range(20))
    )
    assert results == [3] * 20
    assert set(CALLS.values()) == {1}
    assert len(CALLS) == 60


@pytest.fixture
def _no_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not told of news never hears of them."""
    monkeypatch.setattr(neighbours, "BEAT_S", 3600.0)


@pytest.mark.usefixtures("_no_beats")
async def test_nodes_are_told_of_tasks_and_of_what_they_wait_for(
    postgres_dsn: str, stack: AsyncExitStack
) -> None:
    async with perdure.connect(postgres_dsn) as first, perdure.connect(postgres_dsn) as second:
        await Two(first, second).work(stack, first)
        async with asyncio.timeout(WITHIN_S):
            assert await second.execute(chain, "told", 3, id="told") == 3
            handle = await second.start(Ledger, id="ledger")
            await handle.signal(Ledger.put, 5)
            assert await handle.update(Ledger.add, 2) == 7
            assert await handle.query(Ledger.total) == 7
            await handle.signal(Ledger.close)
            assert await handle.result() == [5, 2]


async def test_both_nodes_have_workers_and_no_step_runs_twice(
    two: Two, stack: AsyncExitStack
) -> None:
    await two.work(stack, two.first, two.second)
    clients = [two.first, two.second]
    results = await asyncio.gather(
        *(clients[n % 2].execute(chain, f"w{n}", 5, id=f"w{n}") for n in range(30))
    )
    assert results == [5] * 30
    assert set(CALLS.values()) == {1}


async def test_signals_queries_and_updates_on_the_node_without_the_worker(
    two: Two, stack: AsyncExitStack
) -> None:
    await two.work(stack, two.first)
    handle = await two.second.start(Ledger, id="ledger")
    await handle.signal(Ledger.put, 1)
    assert await handle.query(Ledger.total) == 1
    assert await handle.update(Ledger.add, 10) == 11
    with pytest.raises(UpdateFailedError):
        await handle.update(Ledger.add, -1)
    assert await handle.query(Ledger.total) == 11
    here = two.first.handle("ledger", result_type=list[int])
    assert await here.query("total") == 11
    assert await here.update("add", 5) == 16
    assert await handle.query(Ledger.total) == 16
    await handle.signal(Ledger.close)
    assert await handle.result() == [1, 10, 5]
    assert await here.query("total") == 16
    assert await handle.query(Ledger.total) == 16
    with pytest.raises(QueryFailedError):
        await handle.query("nothing")


class Split:
    """A load balancer that sends every answer to another node than the polls."""

    def __init__(self, polled: Client, answered: Client) -> None:
        self._polled, self._answered = polled.service, answered.service

    def __getattr__(self, name: str) -> Any:
        return getattr(self._answered if name.startswith("respond_") else self._polled, name)


@pytest.mark.parametrize("asked", ["first", "second"])
async def test_answers_that_reach_another_node_than_the_one_that_asked(
    two: Two, stack: AsyncExitStack, asked: str
) -> None:
    await two.work(stack, Client(Split(two.first, two.second)))
    client = getattr(two, asked)
    handle = await client.start(Ledger, id="ledger")
    for entry in range(5):
        await handle.signal(Ledger.put, entry)
        totals = await asyncio.gather(*(handle.query(Ledger.total) for _ in range(4)))
        assert totals == [sum(range(entry + 1))] * 4
    with pytest.raises(UpdateFailedError):
        await handle.update(Ledger.add, -1)
    assert await handle.update(Ledger.add, 10) == 20
    await handle.signal(Ledger.close)
    assert await handle.result() == [0, 1, 2, 3, 4, 10]
    assert await handle.query(Ledger.total) == 20


async def test_each_node_sees_at_once_what_the_other_did(two: Two, stack: AsyncExitStack) -> None:
    for number in range(10):
        there = await two.first.start(Ledger, id=f"w{number}")
        here = two.second.handle(f"w{number}")
        assert (await here.describe()).run_id == there.first_run_id
        await here.terminate("enough")
        assert (await there.describe()).status.name == "TERMINATED"
        again = await two.first.start(Ledger, id=f"w{number}")
        assert (await here.describe()).run_id == again.first_run_id != there.first_run_id
        await here.terminate("enough")
        with pytest.raises(WorkflowFailedError):
            await there.result()


async def test_signals_from_both_sides_all_arrive(two: Two, stack: AsyncExitStack) -> None:
    await two.work(stack, two.second)
    handle = await two.first.start(Ledger, id="ledger")
    other = two.second.handle("ledger")
    await asyncio.gather(
        *(handle.signal(Ledger.put, n) for n in range(50)),
        *(other.signal("put", n) for n in range(50, 100)),
    )
    await handle.signal(Ledger.close)
    assert sorted(await handle.result()) == list(range(100))


async def test_a_node_reads_no_run_that_only_the_other_waits_for(
    two: Two, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two.work(stack, two.second)
    store: Any = two.first.service.node.store  # type: ignore[attr-defined]
    load, loaded = store.load, set()

    async def noting(key: int) -> Any:
        loaded.add(key)
        return await load(key)

    monkeypatch.setattr(store, "load", noting)
    for name in ("theirs", "ours"):
        await two.second.start(Ledger, id=name)
    theirs = await store.find("default", "theirs")
    await store.sharing.watch([(theirs, Awaited.CLOSE)])  # as the second does for who waits there
    result = asyncio.create_task(two.first.handle("ours").result())
    for name in ("theirs", "ours"):
        await two.second.handle(name).signal("close")
        await two.second.handle(name).result()
    assert await result == []  # notices come in order: it heard of all that went before
    assert theirs not in loaded


async def test_a_node_that_leaves_takes_no_timer_and_no_task_with_it(postgres_dsn: str) -> None:
    CALLS.clear()
    async with perdure.connect(postgres_dsn) as first:
        async with perdure.connect(postgres_dsn) as second:
            async with second.worker(workflows=WORKFLOWS, activities=[note]):
                handle = await second.start(nap, 0.5, id="nap")
                ledger = await second.start(Ledger, id="ledger")
                assert await ledger.query(Ledger.total) == 0
            await second.start(chain, "left", 2, id="left")
        async with first.worker(workflows=WORKFLOWS, activities=[note]):
            assert await first.handle("nap").result() == "rested"
            assert await first.handle("left").result() == 2
            assert await first.handle("ledger").update("add", 2) == 2
    assert handle.id == "nap"


async def test_a_namespace_made_on_one_node_is_known_on_the_other(two: Two) -> None:
    from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest

    request = RegisterNamespaceRequest(namespace="sales")
    request.workflow_execution_retention_period.FromSeconds(86_400)
    await two.first.calls.service.register_namespace(request)
    for _ in range(500):
        with suppress(NamespaceNotFound):
            await _runs(two.second, "sales")
            break
        await asyncio.sleep(0.01)
    assert await _runs(two.second, "sales") == []
    with pytest.raises(NamespaceAlreadyExists):
        await two.second.calls.service.register_namespace(request)


async def _runs(client: Client, namespace: str) -> list[str]:
    from temporalio.api.workflowservice.v1 import ListWorkflowExecutionsRequest

    answer = await client.calls.service.list_workflow_executions(
        ListWorkflowExecutionsRequest(namespace=namespace)
    )
    return [found.execution.workflow_id for found in answer.executions]


async def test_each_node_shows_the_polls_and_workers_of_both(
    two: Two, stack: AsyncExitStack
) -> None:
    await two.work(stack, two.first, two.second)
    await two.first.execute(chain, "w", 1, id="w")
    beats = [WorkerHeartbeat(worker_instance_key=key, task_queue="default") for key in "abc"]
    for number, beat in enumerate(beats):
        beat.heartbeat_time.FromSeconds(1_000 + number)
    older = WorkerHeartbeat(worker_instance_key="b", task_queue="former")
    older.heartbeat_time.FromSeconds(1)
    for client, known in ((two.first, [beats[0], older]), (two.second, beats[1:])):
        await client.service.record_worker_heartbeat(
            RecordWorkerHeartbeatRequest(namespace="default", worker_heartbeat=known)
        )
    polls = DescribeTaskQueueRequest(namespace="default", task_queue=TaskQueue(name="default"))
    enhanced = DescribeTaskQueueRequest(
        namespace="default",
        task_queue=TaskQueue(name="default"),
        api_mode=DescribeTaskQueueMode.DESCRIBE_TASK_QUEUE_MODE_ENHANCED,
    )
    identities = {two.first.identity, two.second.identity}
    for client in (two.first, two.second):
        service = client.service
        found = await service.describe_task_queue(polls)
        assert {poller.identity for poller in found.pollers} == identities
        types = (await service.describe_task_queue(enhanced)).versions_info[""].types_info
        assert {poller.identity for poller in types[1].pollers} == identities
        count = await service.count_workers(CountWorkersRequest(namespace="default"))
        assert count.count == 3
        page = await service.list_workers(ListWorkersRequest(namespace="default", page_size=2))
        rest = await service.list_workers(
            ListWorkersRequest(
                namespace="default", page_size=2, next_page_token=page.next_page_token
            )
        )
        listed = [*page.workers, *rest.workers]
        assert [(w.worker_instance_key, w.task_queue) for w in listed] == [
            (key, "default") for key in "abc"
        ]
        one = await service.describe_worker(
            DescribeWorkerRequest(namespace="default", worker_instance_key="c")
        )
        assert one.worker_info.worker_heartbeat == beats[2]
        with pytest.raises(NotFound):
            await service.describe_worker(
                DescribeWorkerRequest(namespace="default", worker_instance_key="d")
            )


async def test_what_waited_at_a_node_alone_is_taken_by_one_that_joins(
    postgres_dsn: str, stack: AsyncExitStack
) -> None:
    CALLS.clear()
    async with perdure.connect(postgres_dsn) as first:
        handles = [await first.start(chain, f"w{n}", 2, id=f"w{n}") for n in range(20)]
        async with (
            perdure.connect(postgres_dsn) as second,
            second.worker(workflows=WORKFLOWS, activities=[note]),
        ):
            assert await asyncio.gather(*(h.result() for h in handles)) == [2] * 20
        # the second has left: the first is alone again, and looks at what others left behind
        late = [await first.start(chain, f"x{n}", 2, id=f"x{n}") for n in range(20)]
        async with first.worker(workflows=WORKFLOWS, activities=[note]):
            assert await asyncio.gather(*(h.result() for h in late)) == [2] * 20
    assert set(CALLS.values()) == {1}


async def test_what_an_earlier_process_left_waiting_is_found(
    postgres_dsn: str,
) -> None:
    CALLS.clear()
    async with perdure.connect(postgres_dsn) as client:
        before = [await client.start(chain, f"b{n:02}", 1, id=f"b{n}") for n in range(10)]
    async with perdure.connect(postgres_dsn) as client:
        after = [await client.start(chain, f"c{n:02}", 1, id=f"c{n}") for n in range(10)]
        handles = [client.handle(h.id) for h in (*before, *after)]
        async with client.worker(
            workflows=WORKFLOWS, activities=[note], max_concurrent_workflow_tasks=1
        ):
            await asyncio.gather(*(h.result() for h in handles))
    assert set(CALLS.values()) == {1}
    assert len(CALLS) == 20
