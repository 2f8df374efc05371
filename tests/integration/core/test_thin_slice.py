"""From start to result through the RPCs alone."""

from __future__ import annotations

from harness import Harness, activity_command, complete_command, completion, settle

STEP = [
    "WorkflowExecutionStarted",
    "WorkflowTaskScheduled",
    "WorkflowTaskStarted",
    "WorkflowTaskCompleted",
    "ActivityTaskScheduled",
    "ActivityTaskStarted",
    "ActivityTaskCompleted",
    "WorkflowTaskScheduled",
    "WorkflowTaskStarted",
    "WorkflowTaskCompleted",
    "WorkflowExecutionCompleted",
]


async def test_a_run_goes_from_start_to_result(node: Harness) -> None:
    started = await node.start()
    assert started.started
    task = await node.take()
    assert task.workflow_execution.run_id == started.run_id
    assert [e.event_id for e in task.history.events] == [1, 2, 3]
    await node.complete(task, activity_command("a"))
    activity = await node.take_activity()
    assert activity.activity_id == "a"
    assert activity.input.payloads[0].data == b'"a"'
    await node.finish_activity(activity)
    task = await node.take()
    assert len(task.history.events) == 9
    await node.complete(task, complete_command())
    assert await node.events() == STEP


async def test_polls_that_wait_get_their_task_in_the_transition_that_made_it(node: Harness) -> None:
    poll, activity_poll = node.poll(), node.poll_activity()
    await settle()
    await node.start()
    task = await poll
    poll = node.poll()
    await node.complete(task, activity_command("a"))
    await node.finish_activity(await activity_poll)
    await node.complete(await poll, complete_command())
    assert await node.events() == STEP
    assert await node.store.backlogs() == []
    assert node.node.executions.committer.units == 4


async def test_a_worker_in_the_process_answers_before_the_commit(node: Harness) -> None:
    seen = []

    def advance(task):  # type: ignore[no-untyped-def]
        seen.append([e.event_id for e in task.history.events])
        command = complete_command() if len(seen) == 2 else activity_command("a")
        return completion(task.task_token, command, sticky="mine")

    normal = node.poll(advance=advance)
    sticky = node.poll(advance=advance, queue="mine")
    activity_poll = node.poll_activity()
    await settle()
    await node.start()
    await node.finish_activity(await activity_poll)
    assert seen == [[1, 2, 3], [4, 5, 6, 7, 8, 9]]
    assert await node.events() == STEP
    assert node.node.executions.committer.units == 2
    assert not normal.done()
    assert not sticky.done()
    normal.cancel()
    sticky.cancel()
