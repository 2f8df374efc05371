"""Commits that fail, before or after they are written, and races between nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from harness import (
    SECOND_NS,
    Harness,
    activity_command,
    complete_command,
    completion,
    execution,
    payloads,
    settle,
    timer_command,
)
from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType
from temporalio.api.workflowservice.v1 import (
    ResetStickyTaskQueueRequest,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
)

from perdure.api.errors import Cancelled, FailedPrecondition, NotFound, Unavailable
from perdure.service.node import Node
from perdure.store.contract import Store, StoreUnavailable, Unit
from perdure.store.sqlite import SqliteStore

BEFORE, AFTER, BLIND = "before", "after", "blind"


class Shaky:
    """A store that fails the next commits as it is told: before or after they are written.

    BLIND: after, and it cannot be read until the next commit either.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.plan: list[str] = []
        self.sent: list[Unit] = []
        self.held: asyncio.Event | None = None
        self.blind = False

    async def load(self, key: int) -> Any:
        if self.blind:
            raise StoreUnavailable("out of reach")
        return await self.inner.load(key)

    async def commit(self, units: Sequence[Unit]) -> list[int]:
        self.sent += units
        if self.held is not None:
            await self.held.wait()
        step = self.plan.pop(0) if self.plan else ""
        self.blind = step == BLIND
        if step == BEFORE:
            raise StoreUnavailable("the disk is full")
        conflicts = await self.inner.commit(units)
        if step in (AFTER, BLIND):
            raise StoreUnavailable("the answer was lost")
        return conflicts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.fixture
async def shaky(make_store: Callable[[], Store]) -> AsyncIterator[Harness]:
    harness = await Harness(lambda: Shaky(make_store())).open()  # type: ignore[arg-type,return-value]
    yield harness
    await harness.close()


def fail(node: Harness, *plan: str) -> None:
    node.store.plan = list(plan)  # type: ignore[attr-defined]


def signal(name: str, request_id: str = "") -> SignalWorkflowExecutionRequest:
    return SignalWorkflowExecutionRequest(
        namespace="default",
        workflow_execution=execution(),
        signal_name=name,
        input=payloads(name),
        request_id=request_id,
    )


def update_request() -> UpdateWorkflowExecutionRequest:
    made = UpdateWorkflowExecutionRequest(namespace="default", workflow_execution=execution())
    made.request.meta.update_id = "u"
    made.request.input.name = "change"
    return made


@pytest.mark.parametrize("when", [BEFORE, BLIND])
async def test_a_start_that_failed_can_be_repeated(shaky: Harness, when: str) -> None:
    fail(shaky, when)
    with pytest.raises(Unavailable):
        await shaky.start(request_id="r1")
    shaky.store.blind = False  # type: ignore[attr-defined]
    started = await shaky.start(request_id="r1")
    assert started.started
    assert await shaky.events() == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]
    await shaky.complete(await shaky.take(), complete_command())


@pytest.mark.parametrize("when", [BEFORE, BLIND])
async def test_a_lost_activity_answer_is_not_acknowledged(shaky: Harness, when: str) -> None:
    await shaky.start()
    await shaky.complete(await shaky.take(), activity_command("a"))
    task = await shaky.take_activity()
    fail(shaky, when)
    with pytest.raises(Unavailable):
        await shaky.finish_activity(task)
    shaky.store.blind = False  # type: ignore[attr-defined]
    if when == BEFORE:
        await shaky.finish_activity(task)
    else:
        with pytest.raises(NotFound):
            await shaky.finish_activity(task)
    await shaky.complete(await shaky.take(), complete_command())
    assert (await shaky.events()).count("ActivityTaskCompleted") == 1


@pytest.mark.parametrize("when", [BEFORE, BLIND])
async def test_polls_matched_in_a_lost_commit_wait_again(shaky: Harness, when: str) -> None:
    poll = shaky.poll()
    await settle()
    fail(shaky, when)
    with pytest.raises(Unavailable):
        await shaky.start(request_id="r1")
    await settle()
    assert not poll.done()
    shaky.store.blind = False  # type: ignore[attr-defined]
    await shaky.start(request_id="r1")
    if when == BLIND:  # the lost commit counts: the task that nobody has is taken back
        await shaky.clock.advance(1)
    await shaky.complete(await poll, complete_command())


async def test_an_activity_of_a_commit_that_nobody_heard_of_is_taken_back(shaky: Harness) -> None:
    await shaky.start()
    task = await shaky.take()
    poll = shaky.poll_activity()
    await settle()
    fail(shaky, BLIND)
    with pytest.raises(Unavailable):
        await shaky.complete(task, activity_command("a"))
    shaky.store.blind = False  # type: ignore[attr-defined]
    await shaky.clock.advance(1)
    await shaky.finish_activity(await asyncio.wait_for(poll, 5))
    await shaky.complete(await shaky.take(), complete_command())


async def test_an_unforeseen_error_of_a_look_up_ends_nothing(
    shaky: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unforeseen(_: object) -> None:
        raise TypeError("unforeseen")

    await shaky.start()
    fail(shaky, AFTER)
    with monkeypatch.context() as patch:
        patch.setattr(shaky.store, "settle", unforeseen, raising=False)
        with pytest.raises(Unavailable):
            await shaky.service.signal_workflow_execution(signal("one", "r1"))
    await shaky.service.signal_workflow_execution(signal("one", "r1"))
    await shaky.service.signal_workflow_execution(signal("two"))
    await shaky.complete(await shaky.take(), complete_command())
    assert (await shaky.events()).count("WorkflowExecutionSignaled") == 2


async def test_a_node_that_cannot_commit_any_more_ends(
    shaky: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unforeseen() -> None:
        raise TypeError("unforeseen")

    await shaky.start()
    monkeypatch.setattr(shaky.node.executions.committer, "_write", unforeseen)
    for name in ("one", "two"):
        with pytest.raises(FailedPrecondition, match="This node stopped: its commits ended"):
            await shaky.service.signal_workflow_execution(signal(name))
    assert shaky.node.ended.is_set()


async def test_a_commit_of_which_only_the_answer_was_lost_counts(shaky: Harness) -> None:
    poll = shaky.poll()
    await settle()
    fail(shaky, AFTER)
    await shaky.start()
    await shaky.complete(await poll, complete_command())


async def test_tasks_of_a_commit_that_nobody_heard_of_are_found(shaky: Harness) -> None:
    await shaky.start("other")
    fail(shaky, BLIND)
    with pytest.raises(Unavailable):
        await shaky.start("wf")
    shaky.store.blind = False  # type: ignore[attr-defined]
    await shaky.start("third")
    names = {(await shaky.take()).workflow_execution.workflow_id for _ in range(3)}
    assert names == {"other", "wf", "third"}


async def test_a_worker_in_the_process_hears_of_lost_answers(shaky: Harness) -> None:
    evicted: list[str] = []
    calls = 0

    def advance(task: Any) -> Any:
        nonlocal calls
        calls += 1
        return completion(task.task_token, timer_command("t", 60), sticky="mine")

    poll = shaky.poll(advance=advance, evict=evicted.append)
    await settle()
    fail(shaky, BEFORE)
    with pytest.raises(Unavailable):
        await shaky.start()
    await settle()
    assert (calls, len(evicted)) == (1, 1)
    started = await shaky.start()
    assert calls == 2
    assert evicted != [started.run_id]
    assert not poll.done()
    assert (await shaky.events())[-1] == "TimerStarted"
    poll.cancel()


async def test_what_was_stacked_on_a_lost_write_is_redone(shaky: Harness) -> None:
    await shaky.start()
    gate = shaky.store.held = asyncio.Event()  # type: ignore[attr-defined]
    fail(shaky, BEFORE)
    service = shaky.service
    first = asyncio.ensure_future(service.signal_workflow_execution(signal("one")))
    await settle()  # its commit is under way
    second = asyncio.ensure_future(service.signal_workflow_execution(signal("two")))
    third = asyncio.ensure_future(service.signal_workflow_execution(signal("three")))
    await settle()
    gate.set()
    with pytest.raises(Unavailable):
        await first
    await asyncio.gather(second, third)
    names = [
        event.workflow_execution_signaled_event_attributes.signal_name
        for event in (await shaky.history()).events[2:]
    ]
    assert names == ["two", "three"]


@pytest.mark.parametrize("eager", [False, True])
async def test_an_activity_whose_time_passed_while_it_was_written_is_not_handed_out(
    shaky: Harness, eager: bool
) -> None:
    await shaky.start()
    task = await shaky.take()
    poll = shaky.poll_activity()
    await settle()
    gate = shaky.store.held = asyncio.Event()  # type: ignore[attr-defined]
    command = activity_command("a", start_to_close_s=10, eager=eager)
    answer = asyncio.ensure_future(shaky.complete(task, command))
    await settle()
    shaky.clock.time_ns += 11 * SECOND_NS
    gate.set()
    assert not (await answer).activity_tasks
    await settle()
    assert not poll.done()
    await shaky.clock.advance(2)  # it times out, and is tried again after a second
    assert (await asyncio.wait_for(poll, 5)).attempt == 2


async def test_reads_wait_for_what_they_show(shaky: Harness) -> None:
    await shaky.start()
    gate = shaky.store.held = asyncio.Event()  # type: ignore[attr-defined]
    key = await shaky.node.executions.resolve("default", "wf")
    write = asyncio.ensure_future(shaky.service.signal_workflow_execution(signal("one")))
    await settle()
    read = asyncio.ensure_future(shaky.node.executions.read(key))
    await settle()
    assert not read.done()
    gate.set()
    assert (await read).run.state.signal_count == 1
    await write


async def test_a_refusal_that_rests_on_a_lost_write_is_reconsidered(shaky: Harness) -> None:
    await shaky.start()
    task = await shaky.take()
    gate = shaky.store.held = asyncio.Event()  # type: ignore[attr-defined]
    fail(shaky, BEFORE)
    close = asyncio.ensure_future(shaky.complete(task, complete_command()))
    await settle()
    late = asyncio.ensure_future(shaky.service.signal_workflow_execution(signal("late")))
    await settle()
    assert not late.done()  # "already completed" is not known to be true yet
    gate.set()
    with pytest.raises(Unavailable):
        await close
    with pytest.raises(Unavailable):
        await late
    await shaky.service.signal_workflow_execution(signal("late"))
    key = await shaky.node.executions.resolve("default", "wf")
    assert (await shaky.node.executions.read(key)).run.state.signal_count == 1


async def test_a_view_shows_nothing_that_may_still_be_lost(shaky: Harness) -> None:
    """Though newer changes stack up on those that it waits for."""
    await shaky.start()
    gate = shaky.store.held = asyncio.Event()  # type: ignore[attr-defined]
    fail(shaky, "", BEFORE)
    key = await shaky.node.executions.resolve("default", "wf")
    first = asyncio.ensure_future(shaky.service.signal_workflow_execution(signal("one")))
    await settle()
    count = asyncio.ensure_future(
        shaky.node.executions.view(key, lambda entry: entry.run.state.signal_count)
    )
    await settle()
    second = asyncio.ensure_future(shaky.service.signal_workflow_execution(signal("two")))
    await settle()
    gate.set()
    with pytest.raises(Unavailable):
        await second
    with suppress(Unavailable):  # where other nodes may be, it has to look again
        assert await count == 1
    await first


async def test_an_update_is_not_refused_for_an_end_that_is_lost(shaky: Harness) -> None:
    await shaky.start()
    task = await shaky.take()
    gate = shaky.store.held = asyncio.Event()  # type: ignore[attr-defined]
    fail(shaky, "", BEFORE)
    reset = ResetStickyTaskQueueRequest(namespace="default", execution=execution())
    first = asyncio.ensure_future(shaky.service.reset_sticky_task_queue(reset))
    await settle()
    update = asyncio.ensure_future(shaky.service.update_workflow_execution(update_request()))
    await settle()
    close = asyncio.ensure_future(shaky.complete(task, complete_command()))
    await settle()
    gate.set()
    gate = shaky.store.held = asyncio.Event()  # type: ignore[attr-defined]
    await first
    await settle()
    assert not update.done()  # "already completed" is not known to be true yet
    gate.set()
    with pytest.raises(Unavailable):
        await close
    await asyncio.wait([update], timeout=0.1)
    assert not update.done() or isinstance(update.exception(), Unavailable)
    update.cancel()


async def test_an_update_follows_a_run_that_continued_as_new_meanwhile(shaky: Harness) -> None:
    await shaky.start()
    task = await shaky.take()
    gate = shaky.store.held = asyncio.Event()  # type: ignore[attr-defined]
    reset = ResetStickyTaskQueueRequest(namespace="default", execution=execution())
    first = asyncio.ensure_future(shaky.service.reset_sticky_task_queue(reset))
    await settle()
    update = asyncio.ensure_future(shaky.service.update_workflow_execution(update_request()))
    await settle()
    command = Command(command_type=CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION)
    command.continue_as_new_workflow_execution_command_attributes.workflow_type.name = "flow"
    ending = asyncio.ensure_future(shaky.complete(task, command))
    await settle()
    gate.set()
    await asyncio.gather(first, ending)
    task = await shaky.take()
    if not task.messages:
        await shaky.complete(task)
        task = await shaky.take()
    assert task.messages[0].protocol_instance_id == "u"
    update.cancel()


async def test_a_write_of_another_node_is_a_conflict_and_is_redone(shaky: Harness) -> None:
    """Another node, played by hand: it writes a run that this node has in its cache."""
    await shaky.start()
    key = await shaky.node.executions.resolve("default", "wf")
    await shaky.service.signal_workflow_execution(signal("one"))
    entry = await shaky.node.executions.read(key)
    entry.run.state.version -= 1  # as if the stored run had moved on without this node
    await shaky.service.signal_workflow_execution(signal("two"))
    names = [
        event.workflow_execution_signaled_event_attributes.signal_name
        for event in (await shaky.history()).events[2:]
    ]
    assert names == ["one", "two"]
    assert shaky.node.executions.cached(key) is not entry


async def test_no_two_writes_of_a_run_lead_to_one_version(shaky: Harness) -> None:
    """Not even two on the same version, the first of which was lost."""
    await shaky.start()
    for name in ("one", "two", "three"):
        fail(shaky, BEFORE)
        with pytest.raises(Unavailable):
            await shaky.service.signal_workflow_execution(signal(name))
        await shaky.service.signal_workflow_execution(signal(name))
    sent = shaky.store.sent  # type: ignore[attr-defined]
    versions = [write.version for unit in sent for write in unit]
    assert len(versions) == 7
    assert len(set(versions)) == 7


async def test_a_version_in_memory_that_the_store_lost_is_looked_at_again(shaky: Harness) -> None:
    await shaky.start()
    executions = shaky.node.executions
    key = await executions.resolve("default", "wf")
    stored = (await executions.read(key)).run.state.version
    assert not executions.is_behind(key, stored)
    assert executions.is_behind(key, stored + 1)
    assert executions.is_behind(key, stored - 1)
    gate = shaky.store.held = asyncio.Event()  # type: ignore[attr-defined]
    writing = asyncio.ensure_future(shaky.service.signal_workflow_execution(signal("one")))
    await settle()
    assert not executions.is_behind(key, stored)  # not yet stored
    gate.set()
    await writing


async def test_a_dead_store_holds_up_nobody_forever(shaky: Harness) -> None:
    fail(shaky, *[BEFORE] * 4)
    for _ in range(4):
        with pytest.raises(Unavailable, match="disk is full"):
            await shaky.start()
    await shaky.start()
    await shaky.complete(await shaky.take(), complete_command())


async def test_a_lost_claim_gives_row_and_poll_back(shaky: Harness) -> None:
    await shaky.start()
    poll = shaky.poll()
    fail(shaky, BEFORE, BEFORE)
    await settle()
    assert not poll.done()
    for _ in range(5):
        await shaky.clock.advance(0.2)
    await shaky.complete(await poll, complete_command())
    assert await shaky.store.backlogs() == []


async def test_a_defect_in_an_operation_leaves_the_run_as_it_was(shaky: Harness) -> None:
    await shaky.start()
    key = await shaky.node.executions.resolve("default", "wf")
    await shaky.service.signal_workflow_execution(signal("one"))

    def broken(tx: Any) -> None:
        tx.run.state.signal_count = 99
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await shaky.node.executions.transact(key, broken)
    assert (await shaky.node.executions.read(key)).run.state.signal_count == 1


async def test_a_node_whose_loop_is_torn_down_still_closes() -> None:
    """asyncio cancels every task when a program is interrupted twice; nobody may wait for ever."""
    node = await Node.open(SqliteStore(":memory:"))
    request = StartWorkflowExecutionRequest(namespace="default", workflow_id="w", request_id="r")
    request.workflow_type.name = "flow"
    request.task_queue.name = "queue"
    await node.service.start_workflow_execution(request)
    request.workflow_id = "x"
    assert node.executions.committer._task is not None
    node.executions.committer._task.cancel()
    with pytest.raises(Cancelled, match="stopped"):
        await asyncio.wait_for(node.service.start_workflow_execution(request), 10)
    await asyncio.wait_for(node.close(), 10)
