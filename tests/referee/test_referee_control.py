"""Terminate, cancel, reset, delete, describe, read history; and requests that are wrong."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow

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

RUN_ID = "11111111-2222-4333-8444-555555555555"  # of no run


@workflow.defn
class Steps:
    def __init__(self) -> None:
        self.got: list[str] = []

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait_condition(lambda: "end" in self.got)
        return self.got

    @workflow.signal
    def add(self, text: str) -> None:
        self.got.append(text)


def _here(env: Env, **fields: Any) -> dict[str, Any]:
    return {"workflow_execution": {"workflow_id": env.id()}, **fields}


async def _signal(env: Env, name: str = "s") -> None:
    await env.call("SignalWorkflowExecution", **_here(env, signal_name=name))


# --- terminate and cancel -----------------------------------------------------------------------


@program
async def test_terminate(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    terminate = _here(env, reason="because", details=payloads("a", "b"))
    await env.call("TerminateWorkflowExecution", **terminate)
    await env.error("again", env.call("TerminateWorkflowExecution", **terminate))
    handle = env.client.get_workflow_handle(env.id())
    await env.error("result", handle.result())


@program
async def test_terminate_while_a_task_runs(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.workflow_task()
    await _signal(env)
    await env.call("TerminateWorkflowExecution", **_here(env))


@program
async def test_terminate_with_an_activity_running(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(schedule_activity("a", raw.queue), start_timer("t"))
    await raw.activity_task()
    await env.call("TerminateWorkflowExecution", **_here(env))


@program
async def test_terminate_bad_requests(env: Env) -> None:
    rpc = "TerminateWorkflowExecution"
    await env.raw_worker().start()
    await env.error("no execution", env.call(rpc))
    await env.error("no id", env.call(rpc, workflow_execution={}))
    await env.error("nobody", env.call(rpc, workflow_execution={"workflow_id": env.id("no")}))
    wrong = {"workflow_id": env.id(), "run_id": RUN_ID}
    await env.error("no such run", env.call(rpc, workflow_execution=wrong))
    await env.error("chain", env.call(rpc, **_here(env, first_execution_run_id=RUN_ID)))
    bad = {"workflow_id": env.id(), "run_id": "abc"}
    await env.error("bad run id", env.call(rpc, workflow_execution=bad))


@program
async def test_terminate_long_id(env: Env) -> None:
    long = {"workflow_id": "w" * 1001}
    await env.error("long id", env.call("TerminateWorkflowExecution", workflow_execution=long))


@program
async def test_cancel_requested_twice(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    rpc = "RequestCancelWorkflowExecution"
    await env.call(rpc, **_here(env, reason="first", request_id="a"))
    await env.call(rpc, **_here(env, reason="first", request_id="a"))
    await env.error("second", env.call(rpc, **_here(env, reason="second", request_id="b")))


@program
async def test_cancel_of_closed(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(complete_workflow())
    await env.error("cancel", env.call("RequestCancelWorkflowExecution", **_here(env)))


@program
async def test_cancel_bad_requests(env: Env) -> None:
    rpc = "RequestCancelWorkflowExecution"
    await env.raw_worker().start()
    await env.error("no execution", env.call(rpc))
    await env.error("no id", env.call(rpc, workflow_execution={}))
    await env.error("nobody", env.call(rpc, workflow_execution={"workflow_id": env.id("no")}))
    await env.error("chain", env.call(rpc, **_here(env, first_execution_run_id=RUN_ID)))
    bad = {"workflow_id": env.id(), "run_id": "abc"}
    await env.error("bad run id", env.call(rpc, workflow_execution=bad))


# --- reset --------------------------------------------------------------------------------------


async def _with_signals(env: Env) -> RawWorker:
    """A run of two workflow tasks, with signals between and after."""
    raw = env.raw_worker()
    await raw.start()
    await raw.step(start_timer("t"))
    await _signal(env, "one")
    await raw.step(start_timer("u"))
    await _signal(env, "two")
    return raw


async def _reset(env: Env, event_id: int, **fields: Any) -> Any:
    fields.setdefault("request_id", "reset-1")
    return await env.call(
        "ResetWorkflowExecution",
        reason="try again",
        workflow_task_finish_event_id=event_id,
        **{**_here(env), **fields},
    )


def _watch_reset(env: Env, response: Any) -> None:
    env.watch(env.id(), response.run_id)


@program
async def test_reset_to_the_first_task(env: Env) -> None:
    raw = await _with_signals(env)
    _watch_reset(env, await _reset(env, 4))
    await raw.step(complete_workflow())


@program
async def test_reset_without_signals(env: Env) -> None:
    raw = await _with_signals(env)
    _watch_reset(env, await _reset(env, 4, reset_reapply_type=2))
    await raw.step(complete_workflow())


@program
async def test_reset_excluding_signals(env: Env) -> None:
    raw = await _with_signals(env)
    _watch_reset(env, await _reset(env, 4, reset_reapply_exclude_types=[1]))
    await raw.step(complete_workflow())


@program
async def test_reset_of_a_closed_run(env: Env) -> None:
    raw = await _with_signals(env)
    await raw.step(complete_workflow())
    _watch_reset(env, await _reset(env, 8))
    await raw.step(complete_workflow())


@program
async def test_reset_twice_with_one_request_id(env: Env) -> None:
    await _with_signals(env)
    first = await _reset(env, 4)
    _watch_reset(env, first)
    again = await _reset(env, 4)
    env.note("same", again.run_id == first.run_id)


@program
async def test_reset_with_pending_activity(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(schedule_activity("a", raw.queue), start_timer("t"))
    await raw.activity_task()
    await _signal(env, "one")
    await raw.step(start_timer("u"))
    _watch_reset(env, await _reset(env, 9))
    await raw.step(complete_workflow())


@program
async def test_reset_to_the_started_event(env: Env) -> None:
    raw = await _with_signals(env)
    _watch_reset(env, await _reset(env, 3))
    await raw.step(complete_workflow())


@program
async def test_reset_bad_requests(env: Env) -> None:
    await _with_signals(env)
    rpc = "ResetWorkflowExecution"
    for event_id in (0, 1, 2, 5, 99):
        await env.error(f"event {event_id}", _reset(env, event_id))
    await env.error("no request id", _reset(env, 4, request_id=""))
    nobody = {"workflow_id": env.id("nobody")}
    await env.error("nobody", _reset(env, 4, workflow_execution=nobody))
    unnamed = env.call(rpc, workflow_task_finish_event_id=4, request_id="r")
    await env.error("no execution", unnamed)
    bad = {"workflow_id": env.id(), "run_id": "abc"}
    await env.error("bad run id", _reset(env, 4, workflow_execution=bad))


@program
async def test_reset_by_the_sdk_goes_on(env: Env) -> None:
    handle = await env.start(Steps.run)
    await env.until_event(handle, "WORKFLOW_TASK_COMPLETED")
    await handle.signal(Steps.add, "a")
    await env.until_event(handle, "WORKFLOW_TASK_COMPLETED", 2)
    _watch_reset(env, await _reset(env, 4))
    latest = env.client.get_workflow_handle(env.id())
    await env.until_event(latest, "WORKFLOW_TASK_COMPLETED", 1)
    await latest.signal(Steps.add, "end")
    env.note("result", await latest.result())


# --- delete -------------------------------------------------------------------------------------


async def _gone(env: Env) -> None:
    async def check() -> bool:
        try:
            await env.call("DescribeWorkflowExecution", execution={"workflow_id": env.id()})
        except Exception:
            return True
        return False

    await env.until(check)


@program
async def test_delete_closed(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(complete_workflow())
    await env.call("DeleteWorkflowExecution", **_here(env))
    await _gone(env)
    describe = env.call("DescribeWorkflowExecution", execution={"workflow_id": env.id()})
    await env.error("describe", describe)
    await env.error("signal", _signal(env))
    await env.error("delete again", env.call("DeleteWorkflowExecution", **_here(env)))


@program
async def test_delete_open(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await env.call("DeleteWorkflowExecution", **_here(env))
    await _gone(env)
    started = await raw.start(request_id="another")
    env.note("started", started.started)


@program
async def test_delete_bad_requests(env: Env) -> None:
    rpc = "DeleteWorkflowExecution"
    await env.error("no execution", env.call(rpc))
    await env.error("no id", env.call(rpc, workflow_execution={}))
    await env.error("nobody", env.call(rpc, **_here(env)))
    bad = {"workflow_id": env.id(), "run_id": "abc"}
    await env.error("bad run id", env.call(rpc, workflow_execution=bad))


# --- describe and history -----------------------------------------------------------------------


async def _describe(env: Env) -> Any:
    response = await env.call("DescribeWorkflowExecution", execution={"workflow_id": env.id()})
    response.workflow_execution_info.ClearField("history_size_bytes")
    response.workflow_execution_info.ClearField("state_transition_count")
    return response


@program
async def test_describe_open(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start(
        workflow_execution_timeout=timedelta(hours=2),
        memo={"fields": {"who": payloads("me").payloads[0]}},
        search_attributes={"indexed_fields": {"RefKeyword": payloads("k").payloads[0]}},
        user_metadata={"summary": payloads("sum").payloads[0]},
        priority={"priority_key": 2},
    )
    env.note("at first", await _describe(env))
    task = await raw.workflow_task()
    env.note("with a task", await _describe(env))
    child = command(
        "START_CHILD_WORKFLOW_EXECUTION",
        workflow_id=env.id("child"),
        workflow_type={"name": "Raw"},
        task_queue={"name": env.id("child")},
    )
    await raw.complete(task, schedule_activity("a", env.id("nobody")), start_timer("t"), child)
    handle = env.client.get_workflow_handle(env.id())
    await env.until_event(handle, "CHILD_WORKFLOW_EXECUTION_STARTED")
    env.note("with an activity and a child", await _describe(env))


@program
async def test_describe_completed(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(complete_workflow())
    env.note("completed", await _describe(env))


@program
async def test_describe_failed(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(command("FAIL_WORKFLOW_EXECUTION", failure=failure("broke", "Kind")))
    env.note("failed", await _describe(env))


@program
async def test_describe_cancel_requested(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(start_timer("t"))
    await env.call("RequestCancelWorkflowExecution", **_here(env, reason="why"))
    env.note("asked", await _describe(env))


@program
async def test_describe_bad_requests(env: Env) -> None:
    rpc = "DescribeWorkflowExecution"
    await env.error("no execution", env.call(rpc))
    await env.error("no id", env.call(rpc, execution={}))
    await env.error("nobody", env.call(rpc, execution={"workflow_id": env.id()}))
    run = {"workflow_id": env.id(), "run_id": RUN_ID}
    await env.error("no such run", env.call(rpc, execution=run))
    bad = {"workflow_id": env.id(), "run_id": "abc"}
    await env.error("bad run id", env.call(rpc, execution=bad))
    await env.error("namespace", env.call(rpc, namespace="nope", execution=run))
    await env.error("no namespace", env.call(rpc, namespace="", execution=run))


def _numbers(response: Any) -> list[int]:
    return [event.event_id for event in response.history.events]


@program
async def test_history_by_pages(env: Env) -> None:
    await _with_signals(env)
    rpc, execution = "GetWorkflowExecutionHistory", {"workflow_id": env.id()}
    page = await env.call(rpc, execution=execution, maximum_page_size=3)
    token = page.next_page_token
    rest = await env.call(rpc, execution=execution, maximum_page_size=99, next_page_token=token)
    env.note("more than one page", 0 < len(rest.history.events) < rest.history.events[-1].event_id)
    env.note("all", _numbers(page) + _numbers(rest))
    other = {"workflow_id": env.id("other")}
    await env.error("for another", env.call(rpc, execution=other, next_page_token=token))
    await env.error("garbage", env.call(rpc, execution=execution, next_page_token=b"garbage"))


@program
async def test_history_in_reverse(env: Env) -> None:
    await _with_signals(env)
    rpc, execution = "GetWorkflowExecutionHistoryReverse", {"workflow_id": env.id()}
    page = await env.call(rpc, execution=execution, maximum_page_size=4)
    token = page.next_page_token
    rest = await env.call(rpc, execution=execution, maximum_page_size=99, next_page_token=token)
    env.note("more than one page", len(rest.history.events) > 0)
    env.note("all", _numbers(page) + _numbers(rest))


@program
async def test_history_waits_for_the_close(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    wait = env.background(
        env.call(
            "GetWorkflowExecutionHistory",
            execution={"workflow_id": env.id()},
            wait_new_event=True,
            history_event_filter_type=2,
        )
    )
    await raw.step(complete_workflow("at last"))
    env.note("last", _numbers(await wait))


@program
async def test_history_waits_for_events(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    rpc, execution = "GetWorkflowExecutionHistory", {"workflow_id": env.id()}
    page = await env.call(rpc, execution=execution, wait_new_event=True)
    env.note("there", _numbers(page))
    wait = env.background(
        env.call(
            rpc, execution=execution, wait_new_event=True, next_page_token=page.next_page_token
        )
    )
    await asyncio.sleep(0.1)
    await _signal(env)
    env.note("new", _numbers(await wait))


@program
async def test_history_bad_requests(env: Env) -> None:
    rpc = "GetWorkflowExecutionHistory"
    await env.error("no execution", env.call(rpc))
    await env.error("no id", env.call(rpc, execution={}))
    await env.error("nobody", env.call(rpc, execution={"workflow_id": env.id()}))
    bad = {"workflow_id": env.id(), "run_id": "abc"}
    await env.error("bad run id", env.call(rpc, execution=bad))


# --- starts that are wrong ----------------------------------------------------------------------


@program
async def test_start_bad_requests(env: Env) -> None:
    raw = env.raw_worker()
    negative = timedelta(seconds=-1)
    for name, fields in (
        ("no id", {"workflow_id": ""}),
        ("long id", {"workflow_id": "w" * 1001}),
        ("no type", {"workflow_type": None}),
        ("empty type", {"workflow_type": {"name": ""}}),
        ("long type", {"workflow_type": {"name": "t" * 1001}}),
        ("no queue", {"task_queue": None}),
        ("empty queue", {"task_queue": {"name": ""}}),
        ("long queue", {"task_queue": {"name": "q" * 1001}}),
        ("reserved queue", {"task_queue": {"name": "/_sys/queue"}}),
        ("long request id", {"request_id": "r" * 1001}),
        ("execution timeout", {"workflow_execution_timeout": negative}),
        ("run timeout", {"workflow_run_timeout": negative}),
        ("task timeout", {"workflow_task_timeout": negative}),
        ("start delay", {"workflow_start_delay": negative}),
        ("large input", {"input": payloads("x" * 2_200_000)}),
        ("retry interval", {"retry_policy": {"initial_interval": negative}}),
        ("retry coefficient", {"retry_policy": {"backoff_coefficient": 0.1}}),
        ("retry maximum", {"retry_policy": {"maximum_interval": negative}}),
        ("retry attempts", {"retry_policy": {"maximum_attempts": -1}}),
        ("namespace", {"namespace": "nope"}),
        ("no namespace", {"namespace": ""}),
        ("eager cron", {"request_eager_execution": True, "cron_schedule": "@every 1h"}),
    ):
        await env.error(name, raw.start(**fields))


@program
async def test_start_long_identity(env: Env) -> None:
    await env.error("start", env.raw_worker().start(identity="i" * 1001))


@program
async def test_start_without_request_id(env: Env) -> None:
    await env.raw_worker().start(request_id="")


@program
async def test_poll_bad_requests(env: Env) -> None:
    for rpc in ("PollWorkflowTaskQueue", "PollActivityTaskQueue"):
        await env.error(f"{rpc}: no queue", env.call(rpc))
        await env.error(f"{rpc}: empty queue", env.call(rpc, task_queue={"name": ""}))
        await env.error(f"{rpc}: long queue", env.call(rpc, task_queue={"name": "q" * 1001}))
        nowhere = env.call(rpc, task_queue={"name": "q"}, namespace="nope")
        await env.error(f"{rpc}: namespace", nowhere)
        long = env.call(rpc, task_queue={"name": "q"}, identity="i" * 1001)
        await env.error(f"{rpc}: long identity", long)
