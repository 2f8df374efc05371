"""Timers and timeouts: when they ring, and many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from harness import Harness, complete_command, completion, settle, start_request, timer_command

from perdure.service.settings import Settings
from perdure.store.contract import Store


async def test_a_timer_fires_when_it_is_due(node: Harness) -> None:
    await node.start()
    await node.complete(await node.take(), timer_command("t", 30))
    poll = node.poll()
    await node.clock.advance(29)
    assert not poll.done()
    await node.clock.advance(2)
    await node.complete(await poll, complete_command())
    assert "TimerFired" in await node.events()


async def test_a_run_ends_when_its_time_is_over(node: Harness) -> None:
    request = start_request()
    request.workflow_run_timeout.FromSeconds(40)
    await node.service.start_workflow_execution(request)
    await node.clock.advance(41)
    assert (await node.events())[-1] == "WorkflowExecutionTimedOut"


async def test_many_runs_due_at_once_all_go_on(make_store: Callable[[], Store]) -> None:
    node = await Harness(make_store, Settings(alarm_batch=100, cached_runs_max=50)).open()

    def advance(task):  # type: ignore[no-untyped-def]
        fired = any(e.HasField("timer_fired_event_attributes") for e in task.history.events)
        return completion(task.task_token, complete_command() if fired else timer_command("t", 99))

    poll = node.poll(advance=advance)
    await settle()
    await asyncio.gather(*(node.start(f"wf-{n}") for n in range(400)))
    await node.clock.advance(98)
    poll.cancel()
    poll = node.poll(advance=lambda _: None)
    polls = [asyncio.ensure_future(_finish(node)) for _ in range(20)]
    poll.cancel()
    await node.clock.advance(2)
    for _ in range(500):
        ends = [(await node.events(f"wf-{n}"))[-1] for n in range(400)]
        if set(ends) == {"WorkflowExecutionCompleted"}:
            break
        await settle()
    assert ends == ["WorkflowExecutionCompleted"] * 400
    for one in polls:
        one.cancel()
    await node.close()


async def _finish(node: Harness) -> None:
    """A worker that completes whatever it gets."""
    while True:
        task = await node.poll()
        if task.task_token:
            await node.complete(task, complete_command())


async def test_an_alarm_that_comes_while_the_store_is_asked_for_the_next_one(
    node: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.start("early")
    await node.complete(await node.take(), timer_command("t", 3))
    await node.start("late")
    task = await node.take()
    has_read, may_go_on = asyncio.Event(), asyncio.Event()
    next_alarm = node.store.next_alarm

    async def slow() -> int | None:
        found = await next_alarm()
        has_read.set()
        await may_go_on.wait()
        return found

    monkeypatch.setattr(node.store, "next_alarm", slow)
    ringing = asyncio.create_task(node.clock.advance(3))
    await has_read.wait()
    await node.complete(task, timer_command("t", 2))  # the store was asked before this
    may_go_on.set()
    await ringing
    await node.clock.advance(3)
    assert "TimerFired" in await node.events("early")
    assert "TimerFired" in await node.events("late")
