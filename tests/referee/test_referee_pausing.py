"""Runs that are held: what comes is recorded, and no worker is given anything until they go on."""

from __future__ import annotations

import asyncio
from typing import Any

from referee.env import Env
from referee.program import program
from referee.raw import complete_workflow, schedule_activity, start_timer


async def _hold(env: Env, rpc: str = "PauseWorkflowExecution", **fields: Any) -> Any:
    fields.setdefault("workflow_id", env.id())
    return await env.call(rpc, identity="me", reason="an audit", request_id=rpc, **fields)


@program
async def test_paused_and_unpaused(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(start_timer("t"))
    await _hold(env)
    await env.call(
        "SignalWorkflowExecution", workflow_execution={"workflow_id": env.id()}, signal_name="s"
    )
    seen = await env.call("DescribeWorkflowExecution", execution={"workflow_id": env.id()})
    env.note("status", seen.workflow_execution_info.status)
    env.note("paused", seen.workflow_extended_info.pause_info.identity)
    await _hold(env, "UnpauseWorkflowExecution")
    await raw.step(complete_workflow())


@program
async def test_paused_twice(env: Env) -> None:
    await env.raw_worker().start()
    await _hold(env)
    await _hold(env)
    other = env.call(
        "PauseWorkflowExecution", workflow_id=env.id(), identity="me", request_id="another"
    )
    await env.error("again", other)
    await _hold(env, "UnpauseWorkflowExecution")
    await env.error("not paused", _hold(env, "UnpauseWorkflowExecution"))


@program
async def test_paused_with_an_activity_under_way(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(schedule_activity("a", raw.queue))
    task = await raw.activity_task()
    await _hold(env)
    await env.call("RespondActivityTaskCompleted", task_token=task.task_token)
    await _hold(env, "UnpauseWorkflowExecution")
    await raw.step(complete_workflow())


@program
async def test_paused_and_terminated(env: Env) -> None:
    await env.raw_worker().start()
    await _hold(env)
    await env.call("TerminateWorkflowExecution", workflow_execution={"workflow_id": env.id()})
    await env.error("closed", _hold(env))


@program
async def test_paused_refuses_updates_and_queries(env: Env) -> None:
    await env.raw_worker().start()
    await _hold(env)
    which = {"workflow_id": env.id()}
    update = {"meta": {"update_id": "u"}, "input": {"name": "u"}}
    await env.error(
        "update", env.call("UpdateWorkflowExecution", workflow_execution=which, request=update)
    )
    rejected = await env.call("QueryWorkflow", execution=which, query={"query_type": "q"})
    env.note("query", rejected.query_rejected.status)


@program
async def test_paused_nobody(env: Env) -> None:
    await env.error("pause", _hold(env, workflow_id=env.id("nobody")))
    await env.error("unpause", _hold(env, "UnpauseWorkflowExecution", workflow_id=""))


@program
async def test_pauses_found_by_a_filter(env: Env) -> None:
    """A run says what of it is paused in a search attribute."""
    raw = env.raw_worker()
    await raw.start()
    await raw.step(schedule_activity("a", raw.queue))
    await env.call("PauseActivity", execution={"workflow_id": env.id()}, id="a", reason="wait")
    await _found(env, "property:activityType=Act", 1)
    await env.call("UnpauseActivity", execution={"workflow_id": env.id()}, id="a")
    await _found(env, "property:activityType=Act", 0)
    await _hold(env)
    for told in (f"Workflow:{env.id()}", "Reason:an audit"):
        await _found(env, told, 1)
    await _hold(env, "UnpauseWorkflowExecution")
    await _found(env, f"Workflow:{env.id()}", 0)
    task = await raw.activity_task()
    await env.call("RespondActivityTaskCompleted", task_token=task.task_token)
    await raw.step(complete_workflow())


async def _found(env: Env, told: str, count: int) -> None:
    """Temporal's list lags behind."""
    query = f"TemporalPauseInfo = '{told}' AND WorkflowId = '{env.id()}'"
    for _ in range(200):
        counted = await env.call("CountWorkflowExecutions", query=query)
        if counted.count == count:
            break
        await asyncio.sleep(0.05)
    env.note(told, counted.count)
