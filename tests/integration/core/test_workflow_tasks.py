"""Workflow tasks: tokens, failures, polls that end or vanish, sticky queues."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from harness import (
    QUEUE,
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
from temporalio.api.enums.v1 import WorkflowTaskFailedCause
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueRequest,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
    ShutdownWorkerRequest,
    SignalWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
)

from perdure.api.errors import InvalidArgument, NotFound, Unavailable
from perdure.service.settings import Settings
from perdure.store.contract import Store


async def _signal(node: Harness, name: str = "poke") -> None:
    await node.service.signal_workflow_execution(
        SignalWorkflowExecutionRequest(
            namespace="default",
            workflow_execution=execution(),
            signal_name=name,
            input=payloads("x"),
        )
    )


async def test_a_poll_without_a_task_is_answered_empty_after_its_time(node: Harness) -> None:
    polls = [node.poll(), node.poll_activity()]
    await settle()
    await node.clock.advance(59)
    assert not any(poll.done() for poll in polls)
    await node.clock.advance(2)
    assert [poll.result().task_token for poll in polls] == [b"", b""]


async def test_a_task_whose_history_cannot_be_read_goes_back_and_its_poll_is_answered(
    on_disk: Callable[[], Store], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = await Harness(on_disk, Settings(tail_bytes_max=0)).open()
    await node.start()
    await node.reopen()  # it is not in memory

    async def fail(*_: object, **__: object) -> Any:
        raise ZeroDivisionError("of all things")

    with monkeypatch.context() as broken:
        broken.setattr(node.store, "history", fail)
        assert (await node.take()).task_token == b""
    assert "of all things" in caplog.text
    again = node.poll()
    await settle()
    await node.clock.advance(1)
    assert (await again).history.events
    await node.close()


async def test_closing_the_node_answers_polls_empty_and_refuses_later_ones(node: Harness) -> None:
    poll = node.poll()
    await settle()
    node.node.matching.close()
    assert (await poll).task_token == b""
    with pytest.raises(Unavailable, match="closed"):
        await node.take()


@pytest.mark.parametrize("token", [b"", b"nonsense", b"\x00" * 46])
async def test_a_made_up_token_is_refused(node: Harness, token: bytes) -> None:
    with pytest.raises(InvalidArgument):
        await node.service.respond_workflow_task_completed(completion(token))


async def test_a_token_of_another_kind_is_refused(node: Harness) -> None:
    await node.start()
    await node.complete(await node.take(), activity_command("a"))
    activity = await node.take_activity()
    with pytest.raises(InvalidArgument, match="another kind"):
        await node.service.respond_workflow_task_completed(completion(activity.task_token))


async def test_a_token_serves_once_and_not_after_the_close(node: Harness) -> None:
    await node.start()
    task = await node.take()
    await node.complete(task, timer_command("t", 5))
    with pytest.raises(NotFound, match="Workflow task not found"):
        await node.complete(task, timer_command("t", 5))
    await _signal(node)
    task = await node.take()
    await node.service.terminate_workflow_execution(
        TerminateWorkflowExecutionRequest(namespace="default", workflow_execution=execution())
    )
    with pytest.raises(NotFound):
        await node.complete(task, complete_command())


async def test_a_wrong_command_fails_the_task_and_says_why(node: Harness) -> None:
    await node.start()
    with pytest.raises(InvalidArgument, match="Activity"):
        await node.complete(await node.take(), activity_command(""))
    assert (await node.events())[-1] == "WorkflowTaskFailed"
    again = await node.take()
    assert again.attempt == 2
    await node.complete(again, complete_command())
    assert (await node.events())[-4:] == [
        "WorkflowTaskScheduled",
        "WorkflowTaskStarted",
        "WorkflowTaskCompleted",
        "WorkflowExecutionCompleted",
    ]


async def test_a_failed_task_comes_again_with_its_transient_events(node: Harness) -> None:
    await node.start()
    task = await node.take()
    request = RespondWorkflowTaskFailedRequest(
        namespace="default",
        task_token=task.task_token,
        cause=WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR,
    )
    await node.service.respond_workflow_task_failed(request)
    again = await node.take()
    assert again.attempt == 2
    assert [event.event_id for event in again.history.events] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(NotFound):
        await node.service.respond_workflow_task_failed(request)


async def test_a_task_not_answered_in_time_comes_again(node: Harness) -> None:
    await node.start()
    late = await node.take()
    poll = node.poll()
    await node.clock.advance(11)
    again = await poll
    assert again.attempt == 2
    with pytest.raises(NotFound):
        await node.complete(late, complete_command())
    await node.complete(again, complete_command())


async def test_the_answer_may_bring_the_next_task(node: Harness) -> None:
    await node.start()
    task = await node.take()
    await _signal(node)
    request = RespondWorkflowTaskCompletedRequest(
        namespace="default", task_token=task.task_token, return_new_workflow_task=True
    )
    request.sticky_attributes.worker_task_queue.name = "mine"
    response = await node.service.respond_workflow_task_completed(request)
    following = response.workflow_task
    assert [event.event_id for event in following.history.events] == [4, 5, 6, 7]
    assert following.previous_started_event_id == 3
    await node.complete(following, complete_command())


async def test_a_sticky_task_brings_only_new_events(node: Harness) -> None:
    await node.start()
    poll = node.poll(queue="mine")
    await settle()
    await node.complete(await node.take(), timer_command("t", 60), sticky="mine")
    await _signal(node)
    task = await poll
    assert [event.event_id for event in task.history.events] == [4, 5, 6, 7, 8]
    assert task.workflow_execution_task_queue.name == QUEUE


async def test_a_sticky_queue_that_nobody_polled_is_passed_by(node: Harness) -> None:
    await node.start()
    await node.complete(await node.take(), sticky="gone")
    await _signal(node)
    task = await node.take()
    assert [event.event_id for event in task.history.events] == list(range(1, 8))


async def test_a_sticky_task_that_waits_too_long_goes_to_the_normal_queue(node: Harness) -> None:
    await node.start()
    dead = node.poll(queue="mine")
    await settle()
    await node.complete(await node.take(), sticky="mine")
    dead.cancel()
    await settle()
    await _signal(node)
    poll = node.poll()
    await settle()
    assert not poll.done()
    await node.clock.advance(11)
    task = await poll
    assert "WorkflowTaskTimedOut" in await node.events()
    await node.complete(task, complete_command())
    assert await node.store.backlogs() == []


async def test_a_worker_that_shuts_down_hands_its_sticky_tasks_over(node: Harness) -> None:
    await node.start()
    poll = node.poll(queue="mine")
    await settle()
    await node.complete(await node.take(), sticky="mine")
    poll.cancel()
    await settle()
    await _signal(node)
    normal = node.poll()
    await settle()
    assert not normal.done()
    await node.service.shutdown_worker(
        ShutdownWorkerRequest(namespace="default", sticky_task_queue="mine")
    )
    await node.complete(await normal, complete_command())


async def test_a_poll_that_comes_after_its_worker_left_gets_no_task(node: Harness) -> None:
    request = PollWorkflowTaskQueueRequest(namespace="default", worker_instance_key="w1")
    request.task_queue.name = QUEUE
    poll = asyncio.ensure_future(node.service.poll_workflow_task_queue(request))
    await settle()
    await node.service.shutdown_worker(
        ShutdownWorkerRequest(namespace="default", worker_instance_key="w1", task_queue=QUEUE)
    )
    assert not (await poll).task_token
    await node.start()
    async with asyncio.timeout(5):
        assert not (await node.service.poll_workflow_task_queue(request)).task_token
    await node.complete(await node.take(), complete_command())


async def test_a_poll_given_up_is_forgotten(node: Harness) -> None:
    poll = node.poll()
    await settle()
    poll.cancel()
    await settle()
    assert not node.node.matching.queue("default", QUEUE, 1).polls
    await node.start()
    await node.complete(await node.take(), complete_command())


async def test_a_task_on_its_way_to_a_vanished_poll_is_offered_again(node: Harness) -> None:
    poll = node.poll()
    await settle()
    start = asyncio.ensure_future(node.start())
    while not node.node.executions.cached_open("default", "wf"):  # noqa: ASYNC110
        await asyncio.sleep(0)
    poll.cancel()  # the task is matched, and not yet committed
    await start
    await settle()
    task = await node.take()
    assert "WorkflowTaskTimedOut" in await node.events()
    await node.complete(task, complete_command())


async def test_many_polls_park_and_vanish(node: Harness) -> None:
    polls = [node.poll() for _ in range(2_000)]
    await settle()
    for poll in polls[:1_000]:
        poll.cancel()
    await settle()
    await node.start()
    await settle()
    done = [poll for poll in polls[1_000:] if poll.done()]
    assert done == [polls[1_000]]
    for poll in polls:
        poll.cancel()
    await asyncio.gather(*polls, return_exceptions=True)


async def test_an_unknown_command_type_is_refused(node: Harness) -> None:
    await node.start()
    with pytest.raises(InvalidArgument):
        await node.complete(await node.take(), Command())
