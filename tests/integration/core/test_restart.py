"""A node that ends, by announcement or not, and another one over the same data."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from harness import (
    Harness,
    activity_command,
    complete_command,
    completion,
    event_name,
    execution,
    settle,
    timer_command,
)
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest

from perdure.api.caller import CALLER, Caller
from perdure.api.errors import NotFound
from perdure.store.contract import Store
from perdure.store.sqlite import SqliteStore
from perdure.testing.faults import Faults, FaultyStore


async def test_what_was_there_is_there_again(on_disk: Callable[[], Store]) -> None:
    CALLER.set(Caller(in_process=False))
    node = await Harness(on_disk).open()
    await node.start()
    await node.complete(await node.take(), activity_command("a"))
    await node.reopen()
    task = await node.take_activity()
    await node.reopen()
    await node.finish_activity(task)  # a worker elsewhere does not notice
    await node.reopen()
    await node.complete(await node.take(), complete_command())
    assert (await node.events())[-1] == "WorkflowExecutionCompleted"
    assert await node.store.backlogs() == []
    await node.close()


async def test_what_a_dead_worker_held_comes_behind_what_waited(
    on_disk: Callable[[], Store],
) -> None:
    node = await Harness(on_disk).open()
    for workflow_id in ("held", "first", "second"):
        await node.start(workflow_id)
    assert (await node.take()).workflow_execution.workflow_id == "held"
    await node.reopen()
    tasks = [await node.take() for _ in range(3)]
    found = [task.workflow_execution.workflow_id for task in tasks]
    assert found == ["first", "second", "held"]
    await node.close()


class Crashing:
    """Nodes over one disk, each of which dies without a word."""

    def __init__(self) -> None:
        self.disk = SqliteStore(":memory:")
        self.faulty: FaultyStore

    def store(self) -> Store:
        self.faulty = FaultyStore(self.disk, Faults(), random.Random(1))
        return self.faulty  # type: ignore[return-value]


async def test_a_worker_that_died_with_the_process_loses_nothing() -> None:
    world = Crashing()
    await world.disk.open()
    node = await Harness(world.store).open()
    await node.start("wf")
    await node.complete(await node.take(), activity_command("a"), timer_command("t", 60))
    await node.start("other")
    activity, workflow = await node.take_activity(), await node.take()
    assert workflow.workflow_execution.workflow_id == "other"
    world.faulty.crash()

    await node.open()
    again = await node.take_activity()
    assert again.attempt == 2
    task = await node.take()
    assert task.workflow_execution.workflow_id == "other"
    with pytest.raises(NotFound):
        await node.finish_activity(activity)
    await node.finish_activity(again)
    await node.complete(task, complete_command())
    await node.complete(await node.take(), complete_command())
    assert (await node.events("wf"))[-1] == "WorkflowExecutionCompleted"
    await node.close()


async def test_a_lost_last_attempt_is_a_timeout() -> None:
    world = Crashing()
    await world.disk.open()
    node = await Harness(world.store).open()
    await node.start("wf")
    await node.complete(await node.take(), activity_command("a", attempts=1))
    await node.take_activity()
    world.faulty.crash()
    await node.open()
    assert "ActivityTaskTimedOut" in await node.events("wf")
    await node.close()


async def test_tasks_on_a_dead_workers_sticky_queue_are_not_waited_for() -> None:
    world = Crashing()
    await world.disk.open()
    node = await Harness(world.store).open()
    await node.start()
    sticky = node.poll(queue="mine")
    await settle()
    await node.complete(await node.take(), timer_command("t", 60), sticky="mine")
    sticky.cancel()
    await settle()
    await node.service.signal_workflow_execution(
        SignalWorkflowExecutionRequest(
            namespace="default", workflow_execution=execution(), signal_name="poke"
        )
    )
    world.faulty.crash()
    await node.open()
    await node.complete(await node.take(), complete_command())
    assert await node.store.backlogs() == []
    await node.close()


async def test_timers_ring_after_a_restart(on_disk: Callable[[], Store]) -> None:
    node = await Harness(on_disk).open()
    for number in range(30):
        await node.start(f"wf-{number}")
        task = await node.take()
        await node.complete(task, timer_command("t", 1_000 + number))
    await node.close()
    node.clock.time_ns += 1_010 * 1_000_000_000
    await node.open()
    await settle()
    while node.node.alarms.is_ringing:
        await settle()
    fired = 0
    for number in range(30):
        fired += "TimerFired" in await node.events(f"wf-{number}")
    assert fired == 11
    await node.clock.advance(30)
    while node.node.alarms.is_ringing:
        await settle()
    assert "TimerFired" in await node.events("wf-29")
    await node.close()


async def test_a_crash_at_any_commit_of_a_fused_run_loses_nothing() -> None:
    """The process dies before or after the n-th commit, for every n; the run goes on to its end."""
    for n in range(1, 8):
        for written in (False, True):
            await _crash_at(n, written=written)


async def _crash_at(n: int, *, written: bool) -> None:
    world = Crashing()
    await world.disk.open()
    node = await Harness(world.store).open()
    inner_commit = world.disk.commit
    count = 0

    async def commit(units):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count == n:
            if written:
                await inner_commit(units)
            world.faulty.crash()
            await asyncio.get_running_loop().create_future()
        return await inner_commit(units)

    world.disk.commit = commit  # type: ignore[method-assign]
    starter = asyncio.ensure_future(node.start(request_id="r"))
    await settle()
    worker = asyncio.ensure_future(work(node))
    for _ in range(20):
        await settle()
        if world.faulty.crashed.is_set() or worker.done():
            break
    starter.cancel()
    worker.cancel()
    await node.open()
    await node.start(request_id="r")
    if "WorkflowExecutionCompleted" not in await node.events():
        await asyncio.wait_for(work(node), 10)
    events = await node.events()
    assert events[-1] == "WorkflowExecutionCompleted", (n, written)
    assert events.count("ActivityTaskCompleted") == 2, (n, written)
    await node.close()


async def work(node: Harness) -> None:
    """A worker: two activities one after the other, then the end."""

    def advance(task):  # type: ignore[no-untyped-def]
        done = [event_name(e.event_type) for e in task.history.events].count(
            "ActivityTaskCompleted"
        )
        command = complete_command() if done == 2 else activity_command(f"a{done}")
        return completion(task.task_token, command)  # not sticky: the whole history each time

    async def answer_declined() -> None:
        while True:
            task = await node.poll(advance=advance)
            if task.task_token:
                await node.service.respond_workflow_task_completed(advance(task))

    async def run_activities() -> None:
        while True:
            activity = await node.poll_activity()
            if activity.task_token:
                await node.finish_activity(activity)

    loops = [asyncio.ensure_future(loop()) for loop in (answer_declined, run_activities)]
    try:
        while "WorkflowExecutionCompleted" not in await node.events():
            await settle()
    finally:
        for loop in loops:
            loop.cancel()
