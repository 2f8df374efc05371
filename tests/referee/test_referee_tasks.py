"""Workflow tasks: what a worker is given, failures, timeouts, bad commands, stickiness."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.api.command.v1 import Command
from temporalio.client import Client
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, Worker

from referee.env import Env
from referee.program import program
from referee.raw import (
    RawWorker,
    command,
    complete_workflow,
    failure,
    payloads,
    schedule_activity,
    start_timer,
)

SECOND = timedelta(seconds=1)


async def _started(env: Env, **fields: Any) -> tuple[RawWorker, Any]:
    raw = env.raw_worker(**({"sticky": "sticky"} if fields.pop("sticky", False) else {}))
    await raw.start(**fields)
    return raw, await raw.workflow_task()


async def _signal(env: Env, name: str = "s") -> None:
    await env.call(
        "SignalWorkflowExecution", workflow_execution={"workflow_id": env.id()}, signal_name=name
    )


def _without_history(task: Any) -> Any:
    shown = type(task)()
    shown.CopyFrom(task)
    shown.ClearField("history")
    return shown


@program
async def test_task_as_a_worker_gets_it(env: Env) -> None:
    raw, task = await _started(env)
    env.note("first", _without_history(task))
    await raw.complete(task, start_timer("t"))
    await _signal(env)
    task = await raw.workflow_task()
    env.note("second", _without_history(task))
    env.note("events", len(task.history.events))


@program
async def test_task_sticky(env: Env) -> None:
    raw, task = await _started(env, sticky=True)
    await raw.complete(task, start_timer("t"))
    poll = env.background(raw.workflow_task(sticky=True))
    await asyncio.sleep(0.3)
    await _signal(env)
    task = await poll
    env.note("task", _without_history(task))
    env.note("events", [event.event_id for event in task.history.events])
    await raw.complete(task, start_timer("u"))
    await env.call("ResetStickyTaskQueue", execution={"workflow_id": env.id()})
    await _signal(env)
    task = await raw.workflow_task()
    env.note("after the reset", [event.event_id for event in task.history.events])
    await raw.complete(task, complete_workflow())


@program
async def test_task_sticky_worker_is_gone(env: Env) -> None:
    raw, task = await _started(env, sticky=True)
    await env.call(
        "RespondWorkflowTaskCompleted",
        task_token=task.task_token,
        commands=[start_timer("t")],
        sticky_attributes={
            "worker_task_queue": {"name": raw.sticky, "kind": 2, "normal_name": raw.queue},
            "schedule_to_start_timeout": timedelta(milliseconds=500),
        },
    )
    poll = env.background(
        env.call(
            "PollWorkflowTaskQueue",
            task_queue={"name": raw.sticky, "kind": 2, "normal_name": raw.queue},
        )
    )
    await asyncio.sleep(0.2)
    poll.cancel()  # it has polled lately, so that it is waited for
    await asyncio.sleep(0.1)
    await _signal(env)
    task = await raw.workflow_task()
    env.note("events", len(task.history.events))


@program
async def test_task_fails_and_is_tried_again(env: Env) -> None:
    raw, task = await _started(env)
    await env.call(
        "RespondWorkflowTaskFailed",
        task_token=task.task_token,
        cause=24,
        failure=failure("cannot go on"),
    )
    task = await raw.workflow_task()
    env.note("attempt", task.attempt)
    env.note("events", [event.event_id for event in task.history.events])
    await env.call(
        "RespondWorkflowTaskFailed", task_token=task.task_token, failure=failure("again")
    )
    task = await raw.workflow_task()
    env.note("attempt", task.attempt)
    await raw.complete(task, complete_workflow())


@program
async def test_task_fails_then_news_come(env: Env) -> None:
    raw, task = await _started(env)
    await env.call("RespondWorkflowTaskFailed", task_token=task.task_token, failure=failure("x"))
    await _signal(env)
    task = await raw.workflow_task()
    env.note("attempt", task.attempt)
    env.note("events", [event.event_id for event in task.history.events])
    await raw.complete(task, complete_workflow())


@program
async def test_task_times_out(env: Env) -> None:
    raw, _task = await _started(env, workflow_task_timeout=SECOND)
    task = await raw.workflow_task()
    env.note("attempt", task.attempt)
    await raw.complete(task, complete_workflow())


@program
async def test_task_answered_twice(env: Env) -> None:
    raw, task = await _started(env)
    await raw.complete(task, start_timer("t"))
    await env.error("completed", raw.complete(task, complete_workflow()))
    failed = env.call("RespondWorkflowTaskFailed", task_token=task.task_token)
    await env.error("failed", failed)


@program
async def test_task_answered_after_the_run_closed(env: Env) -> None:
    raw, task = await _started(env)
    await env.call("TerminateWorkflowExecution", workflow_execution={"workflow_id": env.id()})
    await env.error("completed", raw.complete(task, complete_workflow()))
    failed = env.call("RespondWorkflowTaskFailed", task_token=task.task_token)
    await env.error("failed", failed)


@program
async def test_task_bad_tokens(env: Env) -> None:
    for name, token in (("none", b""), ("garbage", b"\xff\xfe garbage")):
        for rpc in ("RespondWorkflowTaskCompleted", "RespondWorkflowTaskFailed"):
            await env.error(f"{rpc}, {name}", env.call(rpc, task_token=token))
        query = env.call("RespondQueryTaskCompleted", task_token=token, completed_type=1)
        await env.error(f"query, {name}", query)


@program
async def test_task_returns_the_next_one(env: Env) -> None:
    raw, task = await _started(env)
    await _signal(env)
    response = await raw.complete(task, start_timer("t"), return_new_workflow_task=True)
    env.note("next", _without_history(response.workflow_task))
    env.note("events", len(response.workflow_task.history.events))


@program
async def test_task_forced(env: Env) -> None:
    raw, task = await _started(env)
    response = await raw.complete(
        task, start_timer("t"), return_new_workflow_task=True, force_create_new_workflow_task=True
    )
    env.note("next", response.workflow_task.started_event_id)
    await raw.complete(response.workflow_task, complete_workflow())


@program
async def test_task_without_commands(env: Env) -> None:
    raw, task = await _started(env)
    await raw.complete(task)


@program
async def test_activities_of_a_forced_task(env: Env) -> None:
    raw, task = await _started(env)
    await raw.complete(task, schedule_activity("a", raw.queue), force_create_new_workflow_task=True)
    await raw.step(complete_workflow())


# --- bad commands -------------------------------------------------------------------------------


async def _refused(env: Env, *commands: Command) -> None:
    """The task with these commands fails; its failure is in history."""
    raw, task = await _started(env)
    await env.error("answer", raw.complete(task, *commands))


@program
async def test_bad_timer_without_id(env: Env) -> None:
    await _refused(env, start_timer(""))


@program
async def test_timer_without_time_fires_at_once(env: Env) -> None:
    raw, task = await _started(env)
    await raw.complete(task, command("START_TIMER", timer_id="t"))
    await raw.step(complete_workflow())


@program
async def test_bad_timer_twice(env: Env) -> None:
    await _refused(env, start_timer("t"), start_timer("t"))


@program
async def test_bad_timer_cancelled_unknown(env: Env) -> None:
    await _refused(env, command("CANCEL_TIMER", timer_id="unknown"))


@program
async def test_bad_timer_id_too_long(env: Env) -> None:
    await _refused(env, start_timer("t" * 1001))


@program
async def test_bad_activity_without_id(env: Env) -> None:
    await _refused(env, schedule_activity("", "q"))


@program
async def test_bad_activity_without_type(env: Env) -> None:
    await _refused(
        env,
        command(
            "SCHEDULE_ACTIVITY_TASK",
            activity_id="a",
            task_queue={"name": "q"},
            start_to_close_timeout=SECOND,
        ),
    )


@program
async def test_bad_activity_without_timeouts(env: Env) -> None:
    await _refused(env, schedule_activity("a", "q", start_to_close_timeout=None))


@program
async def test_bad_activity_negative_timeout(env: Env) -> None:
    await _refused(env, schedule_activity("a", "q", start_to_close_timeout=-SECOND))


@program
async def test_bad_activity_twice(env: Env) -> None:
    await _refused(env, schedule_activity("a", "q"), schedule_activity("a", "q"))


@program
async def test_bad_activity_retry_policy(env: Env) -> None:
    policy = {"backoff_coefficient": 0.5, "maximum_attempts": 3}
    await _refused(env, schedule_activity("a", "q", retry_policy=policy))


@program
async def test_bad_activity_cancelled_unknown(env: Env) -> None:
    await _refused(env, command("REQUEST_CANCEL_ACTIVITY_TASK", scheduled_event_id=77))


@program
async def test_bad_marker_without_name(env: Env) -> None:
    await _refused(env, command("RECORD_MARKER"))


@program
async def test_bad_completion_without_attributes(env: Env) -> None:
    await _refused(env, Command(command_type=4))


@program
async def test_bad_child_without_id(env: Env) -> None:
    await _refused(env, command("START_CHILD_WORKFLOW_EXECUTION", workflow_type={"name": "Raw"}))


@program
async def test_bad_child_without_type(env: Env) -> None:
    await _refused(env, command("START_CHILD_WORKFLOW_EXECUTION", workflow_id=env.id("child")))


@program
async def test_bad_child_in_an_unknown_namespace(env: Env) -> None:
    await _refused(
        env,
        command(
            "START_CHILD_WORKFLOW_EXECUTION",
            namespace="nope",
            workflow_id=env.id("child"),
            workflow_type={"name": "Raw"},
        ),
    )


@program
async def test_bad_child_cron(env: Env) -> None:
    await _refused(
        env,
        command(
            "START_CHILD_WORKFLOW_EXECUTION",
            workflow_id=env.id("child"),
            workflow_type={"name": "Raw"},
            cron_schedule="nonsense",
        ),
    )


@program
async def test_bad_external_signal(env: Env) -> None:
    await _refused(
        env,
        command(
            "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", execution={"workflow_id": "x"}, signal_name=""
        ),
    )


@program
async def test_bad_external_cancel(env: Env) -> None:
    await _refused(env, command("REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION", workflow_id=""))


@program
async def test_bad_search_attribute(env: Env) -> None:
    values = {"indexed_fields": {"RefInt": payloads("no number").payloads[0]}}
    await _refused(env, command("UPSERT_WORKFLOW_SEARCH_ATTRIBUTES", search_attributes=values))


@program
async def test_bad_search_attributes_empty(env: Env) -> None:
    await _refused(env, command("UPSERT_WORKFLOW_SEARCH_ATTRIBUTES"))


@program
async def test_bad_memo_empty(env: Env) -> None:
    await _refused(env, command("MODIFY_WORKFLOW_PROPERTIES"))


@program
async def test_bad_command_after_the_end(env: Env) -> None:
    await _refused(env, complete_workflow(), start_timer("t"))


@program
async def test_bad_two_ends(env: Env) -> None:
    await _refused(env, complete_workflow(), complete_workflow())


@program
async def test_bad_command_after_good_ones(env: Env) -> None:
    await _refused(env, start_timer("good"), start_timer(""))


@program
async def test_bad_command_without_attributes(env: Env) -> None:
    await _refused(env, Command(command_type=5))


@program
async def test_large_result(env: Env) -> None:
    raw, task = await _started(env)
    await env.error("answer", raw.complete(task, complete_workflow("x" * 2_200_000)))


@program
async def test_large_activity_input(env: Env) -> None:
    raw, task = await _started(env)
    large = schedule_activity("a", raw.queue, input=payloads("x" * 2_200_000))
    await env.error("answer", raw.complete(task, large))


@program
async def test_too_many_pending_activities(env: Env) -> None:
    raw, task = await _started(env)
    many = [schedule_activity(str(number), env.id("nobody")) for number in range(21)]
    await env.error("answer", raw.complete(task, *many))


# --- code that does not fit ---------------------------------------------------------------------


@workflow.defn(name="Changes")
class Before:
    not_for_all = "its own worker runs it"

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: False, timeout=timedelta(hours=1))
        return "never"


@workflow.defn
class Broken:
    @workflow.run
    async def run(self, how: str) -> str:
        if how == "type":
            raise TypeError("a bug in the code")
        return how


@program
async def test_code_that_raises_fails_its_task(env: Env) -> None:
    handle = await env.start(Broken.run, "type")
    await env.until_event(handle, "WORKFLOW_TASK_FAILED")


@program
async def test_workflow_unknown_to_the_worker(env: Env) -> None:
    handle = await env.start("Nobody")
    await env.until_event(handle, "WORKFLOW_TASK_FAILED")


@workflow.defn(name="Changes")
class After:
    not_for_all = "its own worker runs it"

    @workflow.run
    async def run(self) -> str:
        return await workflow.execute_activity("other", start_to_close_timeout=timedelta(seconds=5))


def _other_worker(client: Client, queue: str, code: type) -> Worker:
    return Worker(
        client,
        task_queue=queue,
        workflows=[code],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_cached_workflows=0,
    )


@program
async def test_nondeterminism_fails_the_task(env: Env) -> None:
    queue = env.id("queue")
    async with _other_worker(env.client, queue, Before):
        handle = await env.start("Changes", task_queue=queue)
        await env.until_event(handle, "TIMER_STARTED")
    async with _other_worker(env.client, queue, After):
        await handle.signal("poke")
        await env.until_event(handle, "WORKFLOW_TASK_FAILED")


@program
async def test_recorded_history_replays(env: Env) -> None:
    queue = env.id("queue")
    async with _other_worker(env.client, queue, Before):
        handle = await env.start("Changes", task_queue=queue)
        await env.until_event(handle, "TIMER_STARTED")
    history = await handle.fetch_history()
    for code in (Before, After):
        replayer = Replayer(workflows=[code], workflow_runner=UnsandboxedWorkflowRunner())
        result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
        env.note(code.__name__, type(result.replay_failure).__name__)
