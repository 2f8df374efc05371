"""Two nodes, and a worker whose calls a balancer sends to either of them, one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from harness import QUEUE, SECOND_NS, Harness, activity_command, settle
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.workflowservice.v1 import (
    ListWorkersRequest,
    PollWorkflowTaskQueueRequest,
    QueryWorkflowRequest,
    RegisterNamespaceRequest,
    RespondQueryTaskCompletedRequest,
    ShutdownWorkerRequest,
    SignalWorkflowExecutionRequest,
)

from perdure.api.errors import Unavailable
from perdure.service.queries import ANSWERED
from perdure.service.queue import WORKFLOW
from perdure.store.postgres import PostgresStore

QUERY = QueryWorkflowRequest(
    namespace="default",
    execution=WorkflowExecution(workflow_id="wf"),
    query=WorkflowQuery(query_type="state"),
)


@pytest.fixture
async def two(postgres_dsn: str) -> AsyncIterator[tuple[Harness, Harness]]:
    first = await Harness(lambda: PostgresStore(postgres_dsn)).open()
    second = await Harness(lambda: PostgresStore(postgres_dsn)).open()
    for node in (first, second):
        assert node.node.neighbours is not None
        await node.node.neighbours._beat()
        assert node.node.neighbours.has_company
    yield first, second
    await first.close()
    await second.close()


def signal(node: Harness) -> asyncio.Task[Any]:
    request = SignalWorkflowExecutionRequest(namespace="default", signal_name="s")
    request.workflow_execution.workflow_id = "wf"
    return asyncio.create_task(node.service.signal_workflow_execution(request))


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_over", [False, True])
async def test_a_call_that_came_meanwhile_makes_no_refusal_right(
    two: tuple[Harness, Harness], monkeypatch: pytest.MonkeyPatch, is_over: bool
) -> None:
    """Whether its change is still under way, or was lost already to the other node's."""
    behind, other = two
    await behind.start()
    task = await behind.take()
    await other.complete(task, activity_command("a"))
    activity = await other.take_activity()
    sharing = behind.store.sharing
    assert sharing is not None
    version = sharing.version
    signals: list[asyncio.Task[Any]] = []

    async def slow(key: int) -> int | None:
        found = await version(key)
        signals.append(signal(behind))
        async with asyncio.timeout(5):
            while behind.node.executions._unit_of(key) is None:  # noqa: ASYNC110
                await asyncio.sleep(0)
            while is_over and behind.node.executions._unit_of(key):  # noqa: ASYNC110
                await asyncio.sleep(0)
        return found

    monkeypatch.setattr(sharing, "version", slow)
    # This node knows nothing of the activity yet, and a change on what it knows is under way.
    answer = asyncio.create_task(behind.finish_activity(activity))
    await settle()
    monkeypatch.undo()
    await answer
    await asyncio.gather(*signals)
    assert "ActivityTaskCompleted" in await other.events()


async def test_what_was_on_its_way_before_a_call_makes_no_refusal_right(
    two: tuple[Harness, Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    behind, other = two
    await behind.start()
    task = await behind.take()
    is_stored, may_go_on = asyncio.Event(), asyncio.Event()
    commit = behind.store.commit

    async def slow(batch: Any) -> Any:
        answer = await commit(batch)
        is_stored.set()
        await may_go_on.wait()
        return answer

    monkeypatch.setattr(behind.store, "commit", slow)
    early = signal(behind)
    try:
        await asyncio.wait_for(is_stored.wait(), 5)
        await other.complete(task, activity_command("a"))
        activity = await other.take_activity()
        answer = asyncio.create_task(behind.finish_activity(activity))
        await asyncio.sleep(0.05)
    finally:
        may_go_on.set()
    await early
    await answer
    assert "ActivityTaskCompleted" in await other.events()


# -- polls that come to the other node ------------------------------------------------------------


async def test_tasks_that_were_leased_for_polls_that_left_are_given_back(
    two: tuple[Harness, Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    poll = first.poll()
    await settle()
    sharing = first.store.sharing
    assert sharing is not None
    lease = sharing.lease_tasks

    async def slow(queue: Any, limit: int) -> Any:
        found = await lease(queue, limit)
        poll.cancel()
        await asyncio.wait([poll])
        return found

    monkeypatch.setattr(sharing, "lease_tasks", slow)
    await second.start()
    async with asyncio.timeout(5):
        while not poll.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await settle()
    taken = second.poll()
    await settle()
    assert not taken.done()
    await first.clock.advance(0.1)
    async with asyncio.timeout(5):
        assert (await taken).task_token


async def test_a_query_goes_where_the_worker_polls_next(two: tuple[Harness, Harness]) -> None:
    former, present = two
    await former.start()
    task = await former.take()  # it was there just now
    await former.complete(task)
    await settle()
    query = asyncio.create_task(former.service.query_workflow(QUERY))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        asked = await present.take()
        assert asked.query.query_type == "state"
        await present.service.respond_query_task_completed(
            RespondQueryTaskCompletedRequest(task_token=asked.task_token, completed_type=ANSWERED)
        )
        await query


@pytest.mark.parametrize("ahead_s", [3_600, -3_600])
async def test_a_query_goes_to_a_node_whose_clock_is_another(
    two: tuple[Harness, Harness], ahead_s: int
) -> None:
    """As it is for a while after a fail-over to a server whose clock is behind."""
    asking, asked = two
    await asking.start()
    await asking.complete(await asking.take())
    asked.clock.time_ns += ahead_s * SECOND_NS
    poll = asked.poll()
    await settle()
    query = asyncio.create_task(asking.service.query_workflow(QUERY))
    async with asyncio.timeout(5):
        task = await poll
        assert task.query.query_type == "state"
        await asked.service.respond_query_task_completed(
            RespondQueryTaskCompletedRequest(task_token=task.task_token, completed_type=ANSWERED)
        )
        await query


async def test_a_worker_that_leaves_is_answered_by_every_node(two: tuple[Harness, Harness]) -> None:
    polls = []
    for node in two:
        request = PollWorkflowTaskQueueRequest(namespace="default", worker_instance_key="w1")
        request.task_queue.name = QUEUE
        polls.append(asyncio.create_task(node.service.poll_workflow_task_queue(request)))
    await settle()
    request = ShutdownWorkerRequest(
        namespace="default", worker_instance_key="w1", task_queue=QUEUE, sticky_task_queue="s1"
    )
    await two[0].service.shutdown_worker(request)
    async with asyncio.timeout(5):
        assert [poll.task_token for poll in await asyncio.gather(*polls)] == [b"", b""]


async def test_a_namespace_is_known_everywhere_when_it_was_made(
    two: tuple[Harness, Harness],
) -> None:
    request = RegisterNamespaceRequest(namespace="new")
    request.workflow_execution_retention_period.FromSeconds(86_400)
    await two[0].service.register_namespace(request)
    assert two[1].node.namespaces.get("new").name == "new"


async def test_a_query_whose_worker_is_at_a_node_that_leaves_goes_elsewhere(
    postgres_dsn: str,
) -> None:
    staying, leaving = [await Harness(lambda: PostgresStore(postgres_dsn)).open() for _ in range(2)]
    assert staying.node.neighbours is not None
    await staying.node.neighbours._beat()
    await staying.start()
    await staying.complete(await staying.take())
    request = QueryWorkflowRequest(
        namespace="default",
        execution=WorkflowExecution(workflow_id="wf"),
        query=WorkflowQuery(query_type="state"),
    )
    query = asyncio.create_task(staying.service.query_workflow(request))
    async with asyncio.timeout(10):
        assert (await leaving.take()).query.query_type == "state"  # and never answers it
        await leaving.close()
        asked = await staying.take()
        assert asked.query.query_type == "state"
        await staying.service.respond_query_task_completed(
            RespondQueryTaskCompletedRequest(task_token=asked.task_token, completed_type=ANSWERED)
        )
        await query
    await staying.close()


async def test_a_node_that_gets_a_poll_does_not_ask_itself(
    two: tuple[Harness, Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, _ = two
    await node.start()
    await node.complete(await node.take())
    request = QueryWorkflowRequest(
        namespace="default",
        execution=WorkflowExecution(workflow_id="wf"),
        query=WorkflowQuery(query_type="state"),
    )
    assert node.node.neighbours is not None
    relay, sharing = node.node.neighbours.relay, node.store.sharing
    assert sharing is not None
    take_back, served = sharing.take_back_letter, []

    async def beaten(letter: int) -> bool:
        """The look for letters is faster."""
        await relay._collect()
        return await take_back(letter)

    monkeypatch.setattr(sharing, "take_back_letter", beaten)
    monkeypatch.setattr(relay, "_serve", served.append)
    query = asyncio.create_task(node.service.query_workflow(request))
    async with asyncio.timeout(20):
        while not relay._lying:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        task = await node.take()
        await node.service.respond_query_task_completed(
            RespondQueryTaskCompletedRequest(task_token=task.task_token, completed_type=ANSWERED)
        )
        await query
    assert served == []


async def test_an_answer_for_a_node_that_leaves_is_not_waited_for(
    two: tuple[Harness, Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    staying, leaving = two
    began = asyncio.Event()

    async def slow(_request: Any) -> Any:
        began.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(leaving.service, "list_workers", slow, raising=False)
    monkeypatch.setattr(leaving.service, "respond_query_task_completed", slow, raising=False)
    neighbours = staying.node.neighbours
    assert neighbours is not None
    answer = RespondQueryTaskCompletedRequest(namespace="default", completed_type=ANSWERED)
    asked = [
        asyncio.create_task(
            neighbours.ask_holder(leaving.store.node, "respond_query_task_completed", answer)
        ),
        asyncio.create_task(neighbours.ask_others("list_workers", ListWorkersRequest())),
    ]
    async with asyncio.timeout(5):
        await began.wait()
        await settle()
        await leaving.node.neighbours._background.close()  # type: ignore[union-attr]
        assert await asyncio.gather(*asked) == [None, []]


async def test_that_no_worker_is_there_is_not_said_while_a_node_does_not_answer(
    two: tuple[Harness, Harness],
) -> None:
    asked, _ = two
    neighbours = asked.node.neighbours
    assert neighbours is not None
    neighbours._living |= {1 << 40}  # it lives, and is slow
    queue = asked.node.matching.queue("default", QUEUE, WORKFLOW)
    question = asyncio.create_task(asked.service._polled_elsewhere(queue))
    async with asyncio.timeout(20):
        while not question.done():
            await asked.clock.advance(0.5)
            await asyncio.sleep(0.05)
    with pytest.raises(Unavailable, match="Not all nodes"):
        await question
