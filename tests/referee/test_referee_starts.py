"""Starting: id policies, request ids, eager start, signal-with-start, update-with-start, delay."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.client import WithStartWorkflowOperation, WorkflowUpdateStage
from temporalio.common import (
    Priority,
    RetryPolicy,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import ApplicationError

from referee.env import Env
from referee.program import program
from referee.raw import complete_workflow, payloads


@workflow.defn
class Hello:
    @workflow.run
    async def run(self, name: str) -> str:
        return f"hello {name}"


@workflow.defn
class Waits:
    """Open until it is told to finish, or to fail."""

    def __init__(self) -> None:
        self.end = ""
        self.got: list[str] = []

    @workflow.run
    async def run(self, name: str) -> list[str]:
        await workflow.wait_condition(lambda: self.end != "")
        if self.end == "fail":
            raise ApplicationError("told to fail", type="Told", non_retryable=True)
        return self.got

    @workflow.signal
    def finish(self, how: str) -> None:
        self.end = how

    @workflow.signal
    def add(self, text: str) -> None:
        self.got.append(text)

    @workflow.update
    async def put(self, text: str) -> int:
        self.got.append(text)
        return len(self.got)

    @put.validator
    def check(self, text: str) -> None:
        if text == "bad":
            raise ValueError("bad is not allowed")


@program
async def test_start_and_result(env: Env) -> None:
    handle = await env.start(Hello.run, "you")
    env.note("result", await handle.result())


@program
async def test_start_options_are_recorded(env: Env) -> None:
    handle = await env.start(
        Hello.run,
        "you",
        execution_timeout=timedelta(hours=3),
        run_timeout=timedelta(hours=2),
        task_timeout=timedelta(seconds=20),
        retry_policy=RetryPolicy(
            initial_interval=timedelta(seconds=2),
            backoff_coefficient=3,
            maximum_interval=timedelta(seconds=50),
            maximum_attempts=4,
            non_retryable_error_types=["Fatal"],
        ),
        memo={"who": "me", "n": 3},
        static_summary="a summary",
        static_details="the details",
        priority=Priority(priority_key=2),
    )
    env.note("result", await handle.result())


@program
async def test_retry_policy_defaults_are_filled_in(env: Env) -> None:
    handle = await env.start(Hello.run, "you", retry_policy=RetryPolicy(maximum_attempts=2))
    await handle.result()


@program
async def test_run_timeout_is_cut_to_execution_timeout(env: Env) -> None:
    handle = await env.start(
        Hello.run,
        "you",
        execution_timeout=timedelta(hours=1),
        run_timeout=timedelta(hours=2),
        task_timeout=timedelta(hours=3),
    )
    await handle.result()


@program
async def test_start_while_running_fails(env: Env) -> None:
    handle = await env.start(Waits.run, "a")
    await env.until_event(handle, "WORKFLOW_TASK_COMPLETED")
    await env.error("sdk", env.start(Waits.run, "b"))
    raw = env.raw_worker()
    await env.error("raw", raw.start(workflow_id=env.id()))


@program
async def test_conflict_use_existing(env: Env) -> None:
    first = await env.start(Waits.run, "a")
    await env.until_event(first, "WORKFLOW_TASK_COMPLETED")
    second = await env.start(
        Waits.run, "b", id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING
    )
    env.note("same run", first.result_run_id == second.result_run_id)


@program
async def test_conflict_use_existing_attaches_when_asked(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    again = await raw.start(
        request_id="another",
        workflow_id_conflict_policy=2,
        on_conflict_options={"attach_request_id": True, "attach_links": True},
    )
    env.note("again", again)


@program
async def test_conflict_terminate_existing(env: Env) -> None:
    first = await env.start(Waits.run, "a")
    await env.until_event(first, "WORKFLOW_TASK_COMPLETED")
    second = await env.start(
        Waits.run, "b", id_conflict_policy=WorkflowIDConflictPolicy.TERMINATE_EXISTING
    )
    env.note("same run", first.result_run_id == second.result_run_id)
    await env.until_event(second, "WORKFLOW_TASK_COMPLETED")


@program
async def test_reuse_terminate_if_running(env: Env) -> None:
    first = await env.start(Waits.run, "a")
    await env.until_event(first, "WORKFLOW_TASK_COMPLETED")
    second = await env.start(
        Waits.run, "b", id_reuse_policy=WorkflowIDReusePolicy.TERMINATE_IF_RUNNING
    )
    await env.until_event(second, "WORKFLOW_TASK_COMPLETED")


@program
async def test_reuse_allow_duplicate(env: Env) -> None:
    await (await env.start(Hello.run, "a")).result()
    second = await env.start(Hello.run, "b")
    env.note("result", await second.result())


@program
async def test_reuse_reject_duplicate(env: Env) -> None:
    await (await env.start(Hello.run, "a")).result()
    policy = WorkflowIDReusePolicy.REJECT_DUPLICATE
    await env.error("sdk", env.start(Hello.run, "b", id_reuse_policy=policy))
    raw = env.raw_worker()
    await env.error("raw", raw.start(workflow_id=env.id(), workflow_id_reuse_policy=3))


@program
async def test_reuse_failed_only_refuses_after_completion(env: Env) -> None:
    await (await env.start(Hello.run, "a")).result()
    policy = WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
    await env.error("sdk", env.start(Hello.run, "b", id_reuse_policy=policy))
    raw = env.raw_worker()
    await env.error("raw", raw.start(workflow_id=env.id(), workflow_id_reuse_policy=2))


@program
async def test_reuse_failed_only_allows_after_failure(env: Env) -> None:
    first = await env.start(Waits.run, "a")
    await env.until_event(first, "WORKFLOW_TASK_COMPLETED")
    await first.signal(Waits.finish, "fail")
    await env.error("first", first.result())
    policy = WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
    second = await env.start(Hello.run, "b", id_reuse_policy=policy)
    env.note("second", await second.result())


@program
async def test_reuse_failed_only_allows_after_termination(env: Env) -> None:
    first = await env.start(Waits.run, "a")
    await env.until_event(first, "WORKFLOW_TASK_COMPLETED")
    await first.terminate("away")
    policy = WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
    second = await env.start(Hello.run, "b", id_reuse_policy=policy)
    env.note("second", await second.result())


@program
async def test_same_request_id_is_one_start(env: Env) -> None:
    raw = env.raw_worker()
    first = await raw.start(request_id="one")
    second = await raw.start(request_id="one")
    env.note("first", first)
    env.note("second", second)
    env.note("same run", first.run_id == second.run_id)


@program
async def test_same_request_id_after_close_is_one_start(env: Env) -> None:
    raw = env.raw_worker()
    first = await raw.start(request_id="one")
    await raw.step(complete_workflow())
    second = await raw.start(request_id="one")
    env.note("second", second)
    env.note("same run", first.run_id == second.run_id)


@program
async def test_policies_that_exclude_each_other(env: Env) -> None:
    raw = env.raw_worker()
    for reuse, conflict in ((4, 1), (4, 2), (4, 3), (3, 3), (2, 3)):
        start = raw.start(workflow_id_reuse_policy=reuse, workflow_id_conflict_policy=conflict)
        await env.error(f"reuse {reuse}, conflict {conflict}", start)


@program
async def test_eager_start_gives_the_task_along(env: Env) -> None:
    raw = env.raw_worker()
    started = await raw.start(request_eager_execution=True)
    env.note("started", started.started)
    env.note("task", bool(started.eager_workflow_task.task_token))
    task = started.eager_workflow_task
    task.ClearField("history")
    env.note("eager task", task)
    await raw.complete(task, complete_workflow())


@program
async def test_eager_start_by_the_sdk(env: Env) -> None:
    handle = await env.start(Hello.run, "you", request_eager_start=True)
    env.note("result", await handle.result())


@program
async def test_start_delay(env: Env) -> None:
    handle = await env.start(Hello.run, "late", start_delay=timedelta(seconds=1))
    described = await handle.describe()
    env.note("status", described.status)
    env.note("result", await handle.result())


@program
async def test_signal_does_not_cut_a_start_delay(env: Env) -> None:
    handle = await env.start(Waits.run, "late", start_delay=timedelta(seconds=60))
    await handle.signal(Waits.add, "x")
    await asyncio.sleep(0.2)
    env.note("events", len(await env.events(handle.id)))


@program
async def test_start_delay_and_cron_exclude_each_other(env: Env) -> None:
    raw = env.raw_worker()
    delay = timedelta(seconds=60)
    start = raw.start(workflow_start_delay=delay, cron_schedule="0 0 * * *")
    await env.error("both", start)


@program
async def test_terminate_during_start_delay(env: Env) -> None:
    handle = await env.start(Hello.run, "late", start_delay=timedelta(seconds=60))
    await handle.terminate("no more", "detail")
    await env.error("result", handle.result())


@program
async def test_cancel_during_start_delay(env: Env) -> None:
    handle = await env.start(Waits.run, "late", start_delay=timedelta(seconds=60))
    await handle.cancel()
    await asyncio.sleep(0.2)
    env.note("events", len(await env.events(handle.id)))


@program
async def test_signal_with_start_starts(env: Env) -> None:
    handle = await env.start(Waits.run, "a", start_signal="add", start_signal_args=["first"])
    await env.until_event(handle, "WORKFLOW_TASK_COMPLETED")
    await handle.signal(Waits.finish, "ok")
    env.note("result", await handle.result())


@program
async def test_signal_with_start_signals_the_running(env: Env) -> None:
    handle = await env.start(Waits.run, "a")
    await env.until_event(handle, "WORKFLOW_TASK_COMPLETED")
    again = await env.start(Waits.run, "b", start_signal="add", start_signal_args=["later"])
    env.note("same", again.result_run_id == handle.result_run_id)
    await env.until_event(handle, "WORKFLOW_TASK_COMPLETED", 2)
    await handle.signal(Waits.finish, "ok")
    env.note("result", await handle.result())


def _signal_with_start(env: Env, queue: str, **fields: object) -> object:
    given: dict[str, object] = {
        "workflow_id": env.id(),
        "workflow_type": {"name": "Raw"},
        "task_queue": {"name": queue},
        "signal_name": "go",
        "signal_input": payloads("now"),
        "request_id": "one",
    }
    return env.call("SignalWithStartWorkflowExecution", **{**given, **fields})


@program
async def test_signal_with_start_twice_with_one_request_id(env: Env) -> None:
    env.note("first", await _signal_with_start(env, env.id("q")))
    env.note("second", await _signal_with_start(env, env.id("q")))


@program
async def test_signal_with_start_terminate_existing(env: Env) -> None:
    await _signal_with_start(env, env.id("q"))
    again = await _signal_with_start(
        env, env.id("q"), request_id="two", workflow_id_conflict_policy=3
    )
    env.note("again", again)


@program
async def test_signal_with_start_refuses_conflict_fail(env: Env) -> None:
    start = _signal_with_start(env, env.id("q"), workflow_id_conflict_policy=1)
    await env.error("fail", start)


@program
async def test_signal_with_start_after_completion(env: Env) -> None:
    raw = env.raw_worker("q")
    await _signal_with_start(env, raw.queue)
    await raw.step(complete_workflow())
    rejected = _signal_with_start(env, raw.queue, request_id="2", workflow_id_reuse_policy=3)
    await env.error("reject duplicate", rejected)
    again = await _signal_with_start(env, raw.queue, request_id="3")
    env.note("again", again)


@program
async def test_update_with_start_starts(env: Env) -> None:
    start = WithStartWorkflowOperation(
        Waits.run,
        "a",
        id=env.id(),
        task_queue=env.queue,
        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
    )
    result = await env.client.execute_update_with_start_workflow(
        Waits.put, "x", start_workflow_operation=start, id="update-1"
    )
    env.note("result", result)
    handle = await start.workflow_handle()
    env.watch(handle.id, handle.result_run_id or "")


@program
async def test_update_with_start_on_running(env: Env) -> None:
    handle = await env.start(Waits.run, "a")
    await env.until_event(handle, "WORKFLOW_TASK_COMPLETED")
    start = WithStartWorkflowOperation(
        Waits.run,
        "a",
        id=env.id(),
        task_queue=env.queue,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
    )
    update = await env.client.start_update_with_start_workflow(
        Waits.put,
        "x",
        start_workflow_operation=start,
        id="update-1",
        wait_for_stage=WorkflowUpdateStage.ACCEPTED,
    )
    env.note("result", await update.result())
    env.note("same", update.workflow_run_id == handle.result_run_id)


@program
async def test_update_with_start_that_must_fail_on_running(env: Env) -> None:
    handle = await env.start(Waits.run, "a")
    await env.until_event(handle, "WORKFLOW_TASK_COMPLETED")
    start = WithStartWorkflowOperation(
        Waits.run,
        "a",
        id=env.id(),
        task_queue=env.queue,
        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
    )
    update = env.client.execute_update_with_start_workflow(
        Waits.put, "x", start_workflow_operation=start, id="update-1"
    )
    await env.error("update", update)
    await env.error("start", start.workflow_handle())


@program
async def test_update_with_start_rejected(env: Env) -> None:
    start = WithStartWorkflowOperation(
        Waits.run,
        "a",
        id=env.id(),
        task_queue=env.queue,
        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
    )
    update = env.client.execute_update_with_start_workflow(
        Waits.put, "bad", start_workflow_operation=start, id="update-1"
    )
    await env.error("update", update)
    handle = await start.workflow_handle()
    env.watch(handle.id, handle.result_run_id or "")


@program
async def test_multi_operation_bad_requests(env: Env) -> None:
    start = {
        "namespace": "default",
        "workflow_id": env.id(),
        "workflow_type": {"name": "Raw"},
        "task_queue": {"name": env.id("q")},
        "request_id": "one",
    }
    update = {
        "namespace": "default",
        "workflow_execution": {"workflow_id": env.id()},
        "request": {"meta": {"update_id": "u"}, "input": {"name": "put"}},
        "wait_policy": {"lifecycle_stage": 3},
    }
    other = {**update, "workflow_execution": {"workflow_id": "someone-else"}}
    rpc = "ExecuteMultiOperation"
    one = {"start_workflow": start}
    two = {"update_workflow": update}
    await env.error("none", env.call(rpc, operations=[]))
    await env.error("one", env.call(rpc, operations=[one]))
    await env.error("two starts", env.call(rpc, operations=[one, one]))
    await env.error("update first", env.call(rpc, operations=[two, one]))
    await env.error("two ids", env.call(rpc, operations=[one, {"update_workflow": other}]))
    cron = {"start_workflow": {**start, "cron_schedule": "* * * * *"}}
    await env.error("cron", env.call(rpc, operations=[cron, two]))
    eager = {"start_workflow": {**start, "request_eager_execution": True}}
    await env.error("eager", env.call(rpc, operations=[eager, two]))
    unnamed = {**update, "request": {"meta": {"update_id": "u"}, "input": {}}}
    await env.error("no name", env.call(rpc, operations=[one, {"update_workflow": unnamed}]))
