"""What comes together in one workflow task: cancellations with a replay, an end, or a timer."""

from __future__ import annotations

import asyncio
from typing import Any

from stage import Stage

from perdure import activity, workflow


@activity
async def work(number: int) -> int:
    return number


@workflow
async def working() -> int:
    return await work(1)


@workflow
async def in_time() -> Any:
    async with asyncio.timeout(5):
        return await work(1)


def test_a_cancellation_that_a_new_worker_hears_of_makes_its_commands() -> None:
    stage = Stage(working)
    stage.task()
    stage.cancel()
    stage.handler = stage.new_handler()
    answer = stage.handler.advance(stage.begin_task(whole=True))
    stage.finish_task(answer)
    assert stage.commands == ["request_cancel_activity_task", "cancel_workflow_execution"]
    stage.replay()


def test_an_activity_that_ended_with_the_cancellation_is_not_asked_to_stop() -> None:
    stage = Stage(working)
    stage.task()
    stage.cancel()
    stage.complete_activity("1", 1)
    stage.task()
    assert stage.commands == ["cancel_workflow_execution"]
    stage.replay()


def test_a_timeout_that_fires_with_the_cancellation_is_too_late() -> None:
    stage = Stage(in_time)
    stage.task()
    stage.cancel()
    stage.fire_timer("1")
    stage.task()
    assert stage.commands == ["request_cancel_activity_task", "cancel_workflow_execution"]
    stage.replay()


@workflow
class Relay:
    def __init__(self) -> None:
        self.names: list[str] = []

    @workflow.run
    async def run(self) -> list[str]:
        await work(1)
        return self.names

    @workflow.signal
    def add(self, name: str) -> None:
        self.names.append(name)


def test_a_signal_that_came_after_the_last_result_is_heard() -> None:
    stage = Stage(Relay)
    stage.task()
    stage.complete_activity("1", 1)
    stage.signal("add", "late")
    stage.task()
    assert stage.result == ["late"]
    stage.replay()
