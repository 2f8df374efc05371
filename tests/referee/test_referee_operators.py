"""Limits, and what an operator does: activities paused and changed; what perdure has not yet."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from referee.env import Env
from referee.program import program
from referee.raw import (
    RawWorker,
    command,
    complete_workflow,
    failure,
    schedule_activity,
    start_timer,
)
from referee.servers import LIMITS


async def _signal(env: Env, name: str = "s") -> None:
    await env.call(
        "SignalWorkflowExecution", workflow_execution={"workflow_id": env.id()}, signal_name=name
    )


# --- limits -------------------------------------------------------------------------------------


@program
async def test_too_many_signals(env: Env) -> None:
    await env.raw_worker().start()
    for _ in range(LIMITS["history.maximumSignalsPerExecution"]):
        await _signal(env)
    await env.error("one more", _signal(env))


def _child(env: Env, number: int) -> Any:
    return command(
        "START_CHILD_WORKFLOW_EXECUTION",
        workflow_id=env.id(f"child-{number}"),
        workflow_type={"name": "Raw"},
        task_queue={"name": env.id("children")},
    )


@program
async def test_bad_too_many_children(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    task = await raw.workflow_task()
    await env.error("answer", raw.complete(task, *(_child(env, number) for number in range(6))))


def _external(env: Env, kind: str) -> Any:
    if kind == "signal":
        return command(
            "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION",
            namespace="default",
            execution={"workflow_id": env.id("nobody")},
            signal_name="s",
        )
    return command(
        "REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION",
        namespace="default",
        workflow_id=env.id("nobody"),
    )


@program
async def test_bad_too_many_external_signals(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    task = await raw.workflow_task()
    await env.error("answer", raw.complete(task, *(_external(env, "signal") for _ in range(6))))


@program
async def test_bad_too_many_external_cancels(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    task = await raw.workflow_task()
    await env.error("answer", raw.complete(task, *(_external(env, "cancel") for _ in range(6))))


@program
async def test_continue_as_new_is_suggested(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(*(start_timer(str(number)) for number in range(110)))
    await _signal(env)
    task = await raw.workflow_task()
    started = task.history.events[-1].workflow_task_started_event_attributes
    env.note("suggested", started.suggest_continue_as_new)
    env.note("why", list(started.suggest_continue_as_new_reasons))
    await raw.complete(task, complete_workflow())


@program
async def test_history_too_long(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    task = await raw.workflow_task()
    await env.error("answer", raw.complete(task, *(start_timer(str(n)) for n in range(160))))
    handle = env.client.get_workflow_handle(env.id())
    await env.until_event(handle, "WORKFLOW_EXECUTION_TERMINATED")
    last = (await env.events(env.id()))[-1]
    env.note("reason", last.workflow_execution_terminated_event_attributes.reason)


# --- activities ---------------------------------------------------------------------------------


async def _failed_once(env: Env) -> tuple[RawWorker, dict[str, Any]]:
    """A run whose activity waits an hour for its second attempt; and how to name that."""
    raw = env.raw_worker()
    await raw.start()
    policy = {"initial_interval": timedelta(hours=1)}
    await raw.step(schedule_activity("act", raw.queue, retry_policy=policy))
    task = await raw.activity_task()
    token = task.task_token
    await env.call("RespondActivityTaskFailed", task_token=token, failure=failure("broke"))
    return raw, {"execution": {"workflow_id": env.id()}, "id": "act"}


async def _shown(env: Env, label: str) -> None:
    described = await env.call("DescribeWorkflowExecution", execution={"workflow_id": env.id()})
    env.note(label, described.pending_activities[0])


@program
async def test_activity_paused_and_unpaused(env: Env) -> None:
    raw, which = await _failed_once(env)
    await env.call("PauseActivity", reason="wait", **which)
    await _shown(env, "paused")
    await env.call("UnpauseActivity", **which)
    task = await raw.activity_task()
    env.note("attempt", task.attempt)
    await env.call("RespondActivityTaskCompleted", task_token=task.task_token)
    await raw.step(complete_workflow())


@program
async def test_activity_reset(env: Env) -> None:
    raw, which = await _failed_once(env)
    await env.call("ResetActivity", **which)
    task = await raw.activity_task()
    env.note("attempt", task.attempt)
    await env.call("RespondActivityTaskCompleted", task_token=task.task_token)
    await raw.step(complete_workflow())


@program
async def test_activity_options_updated(env: Env) -> None:
    _raw, which = await _failed_once(env)
    response = await env.call(
        "UpdateActivityOptions",
        activity_options={"start_to_close_timeout": timedelta(seconds=33)},
        update_mask={"paths": ["start_to_close_timeout"]},
        **which,
    )
    env.note("response", response)
    await _shown(env, "pending")


@program
async def test_activity_control_of_nothing(env: Env) -> None:
    await _failed_once(env)
    which = {"execution": {"workflow_id": env.id()}, "id": "other"}
    for rpc in ("PauseActivity", "UnpauseActivity", "ResetActivity"):
        await env.error(rpc, env.call(rpc, **which))
        nobody = {"execution": {"workflow_id": env.id("nobody")}, "id": "act"}
        await env.error(f"{rpc} of nobody", env.call(rpc, **nobody))


# --- the rest -----------------------------------------------------------------------------------


@program
async def test_worker_shut_down(env: Env) -> None:
    raw = env.raw_worker(sticky="sticky")
    await raw.start()
    task = await raw.workflow_task()
    await raw.complete(task, start_timer("t"))
    await env.call("ShutdownWorker", sticky_task_queue=raw.sticky, reason="done")
    await _signal(env)
    task = await raw.workflow_task()
    env.note("events", len(task.history.events))
    await raw.complete(task, complete_workflow())


@program
async def test_what_is_not_there_yet(env: Env) -> None:
    await env.error("schedule", env.call("DescribeSchedule", schedule_id="none"))
    await env.error("batch", env.call("DescribeBatchOperation", job_id="none"))
    versioning = env.call("GetWorkerBuildIdCompatibility", task_queue="none")
    await env.error("versioning", versioning)
