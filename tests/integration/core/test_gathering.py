"""What happens at one time is written at one time, and one workflow task serves for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from harness import (
    Harness,
    activity_command,
    complete_command,
    completion,
    event_name,
    settle,
    timer_command,
)
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueRequest,
    RespondActivityTaskCompletedRequest,
)

from perdure.service.settings import Settings
from perdure.store.contract import Store


async def test_activities_that_end_together_share_a_workflow_task(node: Harness) -> None:
    tasks = 0

    def advance(task: Any) -> Any:
        nonlocal tasks
        tasks += 1
        names = [event_name(event.event_type) for event in task.history.events]
        if tasks == 1:
            return completion(task.task_token, *(activity_command(f"a{n}") for n in range(10)))
        done = names.count("ActivityTaskCompleted") == 10
        return completion(task.task_token, *([complete_command()] if done else []))

    poll = node.poll(advance=advance)
    polls = [node.poll_activity() for _ in range(10)]
    await settle()
    await node.start()
    activities = await asyncio.gather(*polls)
    await asyncio.gather(*(node.finish_activity(activity) for activity in activities))
    await settle()
    events = await node.events()
    assert events[-1] == "WorkflowExecutionCompleted"
    assert events.count("ActivityTaskCompleted") == 10
    assert tasks <= 3  # the first, one for nine of them at most, one for the last
    poll.cancel()


async def test_a_full_queue_of_transitions_holds_callers_up_and_lets_them_go_on(
    make_store: Callable[[], Store],
) -> None:
    settings = Settings(commit_queue_max=3, commit_units_max=2)
    node = await Harness(make_store, settings).open()
    await asyncio.gather(*(node.start(f"wf-{n}") for n in range(100)))
    for n in range(100):
        assert await node.events(f"wf-{n}") == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]
    await node.close()


async def test_a_run_loaded_from_the_store_is_advanced_within_its_alarm(
    on_disk: Callable[[], Store],
) -> None:
    node = await Harness(on_disk).open()
    await node.start()
    await node.complete(await node.take(), timer_command("t", 30))
    await node.reopen()
    seen = []

    def advance(task: Any) -> Any:
        seen.append([event.event_id for event in task.history.events])
        return completion(task.task_token, complete_command())

    poll = node.poll(advance=advance)
    await settle()
    before = node.node.executions.committer.units
    await node.clock.advance(31)
    assert (await node.events())[-1] == "WorkflowExecutionCompleted"
    assert seen == [[1, 2, 3, 4, 5, 6, 7, 8]]
    # One for the alarm that the first workflow task had set, one for all that the timer led to.
    assert node.node.executions.committer.units == before + 2
    poll.cancel()
    await node.close()


async def test_a_poll_parked_before_the_answer_gets_what_the_answer_leads_to(
    node: Harness,
) -> None:
    def advance(task: Any) -> Any:
        names = [event_name(event.event_type) for event in task.history.events]
        done = names.count("ActivityTaskCompleted")
        return completion(
            task.task_token, complete_command() if done == 2 else activity_command(f"a{done}")
        )

    poll = node.poll(advance=advance)
    request = PollActivityTaskQueueRequest(namespace="default", identity="slot")
    request.task_queue.name = "work"
    parked = node.service.park_activity_poll(request)
    await settle()
    await node.start()
    for _ in range(2):
        task = await parked.response()
        parked = node.service.park_activity_poll(request)
        await node.service.respond_activity_task_completed(
            RespondActivityTaskCompletedRequest(namespace="default", task_token=task.task_token)
        )
    await settle()
    assert node.node.executions.committer.units == 3
    parked.cancel()
    poll.cancel()
    assert (await node.events())[-1] == "WorkflowExecutionCompleted"
