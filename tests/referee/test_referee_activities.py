"""Activities: results, failures, retries, the four timeouts, heartbeats, cancels, completion."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ApplicationErrorCategory,
    FailureError,
)
from temporalio.workflow import ActivityCancellationType

from referee.env import Env
from referee.program import program
from referee.raw import (
    RawWorker,
    command,
    complete_workflow,
    failure,
    payloads,
    schedule_activity,
)

LONG = timedelta(seconds=30)
ONCE = RetryPolicy(maximum_attempts=1)
QUICK = RetryPolicy(
    initial_interval=timedelta(milliseconds=20), backoff_coefficient=1.0, maximum_attempts=3
)


@activity.defn
async def greet(name: str) -> str:
    return f"hello {name}"


@activity.defn
async def fail_with(kind: str) -> str:
    match kind:
        case "retryable":
            raise ApplicationError("no luck", 7, type="Luck")
        case "final":
            raise ApplicationError("never", type="Never", non_retryable=True)
        case "plain":
            raise ValueError("plain Python")
        case "chain":
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise RuntimeError("outer") from error
        case "benign":
            raise ApplicationError("calm", category=ApplicationErrorCategory.BENIGN)
        case "delayed":
            delay = timedelta(milliseconds=50)
            raise ApplicationError("a little later", next_retry_delay=delay)
    return kind


@activity.defn
async def third_time() -> int:
    attempt = activity.info().attempt
    if attempt < 3:
        activity.heartbeat(f"attempt {attempt}")
        raise ApplicationError(f"attempt {attempt}", type="Again")
    assert list(activity.info().heartbeat_details) == ["attempt 2"]
    return attempt


@activity.defn
async def beats_until_cancelled() -> str:
    try:
        while True:
            activity.heartbeat("alive")
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        if activity.info().activity_id == "swallows":
            return "went on"
        raise


@activity.defn
async def beats_once_then_hangs() -> None:
    activity.heartbeat("last words")
    await asyncio.sleep(3)


@activity.defn
async def hangs() -> None:
    await asyncio.sleep(1.5)


@workflow.defn
class Calls:
    """Calls one activity with the options that it is given."""

    @workflow.run
    async def run(self, name: str, args: list[Any], options: dict[str, Any]) -> Any:
        for key, value in options.items():
            if key.endswith(("timeout", "interval")):
                options[key] = timedelta(seconds=value)
        retry = options.pop("retry", None)
        policy = {"once": ONCE, "quick": QUICK, None: None}[retry]
        if "non_retryable" in options:
            policy = RetryPolicy(
                initial_interval=timedelta(milliseconds=20),
                non_retryable_error_types=options.pop("non_retryable"),
            )
        return await workflow.execute_activity(name, args=args, retry_policy=policy, **options)


async def _call(env: Env, name: str, *args: Any, **options: Any) -> None:
    options.setdefault("start_to_close_timeout", 10)
    handle = await env.start(Calls.run, name, list(args), options)
    try:
        env.note("result", await handle.result())
    except Exception as error:
        await env.error("error", _raise(error))


async def _raise(error: BaseException) -> None:
    raise error


@program
async def test_activity_completes(env: Env) -> None:
    await _call(env, "greet", "you")


@program
async def test_activity_options_are_recorded(env: Env) -> None:
    await _call(
        env,
        "greet",
        "you",
        activity_id="mine",
        schedule_to_close_timeout=40,
        schedule_to_start_timeout=30,
        start_to_close_timeout=20,
        heartbeat_timeout=10,
        retry="quick",
        summary="what it is for",
    )


@program
async def test_activity_timeouts_are_cut(env: Env) -> None:
    await _call(
        env,
        "greet",
        "you",
        schedule_to_close_timeout=5,
        schedule_to_start_timeout=30,
        start_to_close_timeout=20,
        heartbeat_timeout=10,
    )


@program
async def test_activity_with_schedule_to_close_only(env: Env) -> None:
    handle = await env.start(Calls.run, "greet", ["you"], {"schedule_to_close_timeout": 5})
    env.note("result", await handle.result())


@program
async def test_activity_timeouts_are_cut_to_the_run(env: Env) -> None:
    options = {"start_to_close_timeout": 500}
    handle = await env.start(
        Calls.run, "greet", ["you"], options, run_timeout=timedelta(seconds=60)
    )
    env.note("result", await handle.result())


@program
async def test_activity_fails_for_good(env: Env) -> None:
    await _call(env, "fail_with", "final")


@program
async def test_activity_fails_on_last_attempt(env: Env) -> None:
    await _call(env, "fail_with", "retryable", retry="quick")


@program
async def test_activity_fails_with_one_attempt(env: Env) -> None:
    await _call(env, "fail_with", "plain", retry="once")


@program
async def test_activity_failure_keeps_its_cause(env: Env) -> None:
    await _call(env, "fail_with", "chain", retry="once")


@program
async def test_activity_failure_that_is_benign(env: Env) -> None:
    await _call(env, "fail_with", "benign", retry="once")


@program
async def test_activity_failure_sets_the_next_delay(env: Env) -> None:
    await _call(env, "fail_with", "delayed", retry="quick")


@program
async def test_activity_failure_type_that_is_not_retried(env: Env) -> None:
    await _call(env, "fail_with", "retryable", non_retryable=["Luck"])


@program
async def test_activity_succeeds_in_the_end(env: Env) -> None:
    await _call(env, "third_time", retry="quick", heartbeat_timeout=10)


@program
async def test_activity_unknown_to_the_worker(env: Env) -> None:
    await _call(env, "nobody", retry="once")


@program
async def test_activity_start_to_close_timeout(env: Env) -> None:
    await _call(env, "hangs", start_to_close_timeout=0.3, retry="once")


@program
async def test_activity_schedule_to_close_timeout_ends_retries(env: Env) -> None:
    options = {"schedule_to_close_timeout": 0.7, "start_to_close_timeout": 0.2}
    handle = await env.start(Calls.run, "hangs", [], options)
    await env.error("error", handle.result())


@program
async def test_activity_schedule_to_start_timeout(env: Env) -> None:
    await _call(env, "greet", "x", schedule_to_start_timeout=0.3, task_queue=env.id("nobody"))


@program
async def test_activity_schedule_to_close_timeout_before_start(env: Env) -> None:
    await _call(env, "greet", "x", schedule_to_close_timeout=0.3, task_queue=env.id("nobody"))


@program
async def test_activity_heartbeat_timeout(env: Env) -> None:
    await _call(env, "beats_once_then_hangs", heartbeat_timeout=0.4, retry="once")


@workflow.defn
class Cancels:
    """Cancels an activity in its own code."""

    @workflow.run
    async def run(self, how: str, activity_id: str) -> str:
        handle = workflow.start_activity(
            beats_until_cancelled,
            activity_id=activity_id,
            start_to_close_timeout=LONG,
            heartbeat_timeout=timedelta(seconds=5),
            cancellation_type=ActivityCancellationType[how],
            retry_policy=ONCE,
        )
        await asyncio.sleep(0.3)
        handle.cancel()
        try:
            return await handle
        except ActivityError as error:
            await workflow.wait_condition(lambda: True)
            return f"{type(error).__name__} <- {type(error.cause).__name__}"


@program
async def test_cancel_activity_and_wait(env: Env) -> None:
    handle = await env.start(Cancels.run, "WAIT_CANCELLATION_COMPLETED", "a")
    env.note("result", await handle.result())


@program
async def test_cancel_activity_that_goes_on(env: Env) -> None:
    handle = await env.start(Cancels.run, "WAIT_CANCELLATION_COMPLETED", "swallows")
    env.note("result", await handle.result())


@program
async def test_cancel_activity_and_try(env: Env) -> None:
    handle = await env.start(Cancels.run, "TRY_CANCEL", "a")
    env.note("result", await handle.result())


@program
async def test_cancel_activity_and_abandon(env: Env) -> None:
    handle = await env.start(Cancels.run, "ABANDON", "a")
    env.note("result", await handle.result())


# --- by hand ------------------------------------------------------------------------------------


async def _scheduled(env: Env, *, start: bool = True, **attributes: Any) -> tuple[RawWorker, Any]:
    """A run with one activity, and its task if it is to be started."""
    raw = env.raw_worker()
    await raw.start()
    await raw.step(schedule_activity("act", raw.queue, **attributes))
    return raw, await raw.activity_task() if start else None


@program
async def test_activity_task_as_a_worker_gets_it(env: Env) -> None:
    raw, task = await _scheduled(
        env,
        input=payloads("in"),
        header={"fields": {"key": payloads("value").payloads[0]}},
        heartbeat_timeout=timedelta(seconds=7),
        priority={"priority_key": 3},
    )
    env.note("task", task)
    await env.call(
        "RespondActivityTaskCompleted", task_token=task.task_token, result=payloads("out")
    )
    await raw.step(complete_workflow())


@program
async def test_activity_answered_twice(env: Env) -> None:
    _raw, task = await _scheduled(env)
    token = {"task_token": task.task_token}
    await env.call("RespondActivityTaskCompleted", **token)
    await env.error("completed", env.call("RespondActivityTaskCompleted", **token))
    await env.error("failed", env.call("RespondActivityTaskFailed", failure=failure("x"), **token))
    await env.error("canceled", env.call("RespondActivityTaskCanceled", **token))
    await env.error("heartbeat", env.call("RecordActivityTaskHeartbeat", **token))


@program
async def test_activity_answered_after_the_run_closed(env: Env) -> None:
    _raw, task = await _scheduled(env)
    await env.call("TerminateWorkflowExecution", workflow_execution={"workflow_id": env.id()})
    token = {"task_token": task.task_token}
    await env.error("completed", env.call("RespondActivityTaskCompleted", **token))
    await env.error("failed", env.call("RespondActivityTaskFailed", failure=failure("x"), **token))
    await env.error("canceled", env.call("RespondActivityTaskCanceled", **token))
    await env.error("heartbeat", env.call("RecordActivityTaskHeartbeat", **token))
    by_id = {"workflow_id": env.id(), "activity_id": "act"}
    await env.error("by id", env.call("RespondActivityTaskCompletedById", **by_id))


@program
async def test_activity_with_bad_tokens(env: Env) -> None:
    for name, token in (("none", b""), ("garbage", b"\xff\xfe garbage"), ("zeros", bytes(40))):
        completed = env.call("RespondActivityTaskCompleted", task_token=token)
        await env.error(f"completed, {name}", completed)
        failed = env.call("RespondActivityTaskFailed", task_token=token)
        await env.error(f"failed, {name}", failed)
        beat = env.call("RecordActivityTaskHeartbeat", task_token=token)
        await env.error(f"heartbeat, {name}", beat)


@program
async def test_activity_completed_by_id(env: Env) -> None:
    raw, _task = await _scheduled(env)
    by_id = {"workflow_id": env.id(), "activity_id": "act"}
    env.note("beat", await env.call("RecordActivityTaskHeartbeatById", **by_id))
    await env.call("RespondActivityTaskCompletedById", result=payloads("by id"), **by_id)
    await raw.step(complete_workflow())


@program
async def test_activity_failed_by_id(env: Env) -> None:
    raw, _task = await _scheduled(env)
    by_id = {"workflow_id": env.id(), "activity_id": "act"}
    await env.call("RespondActivityTaskFailedById", failure=failure("by id"), **by_id)
    await raw.step(complete_workflow())


@program
async def test_activity_canceled_by_id_unasked(env: Env) -> None:
    await _scheduled(env)
    by_id = {"workflow_id": env.id(), "activity_id": "act"}
    await env.error("canceled", env.call("RespondActivityTaskCanceledById", **by_id))


@program
async def test_activity_by_id_that_is_not_there(env: Env) -> None:
    await _scheduled(env)
    for name, fields in (
        ("no such activity", {"workflow_id": env.id(), "activity_id": "other"}),
        ("no such workflow", {"workflow_id": env.id("other"), "activity_id": "act"}),
        ("no activity id", {"workflow_id": env.id()}),
        ("bad run id", {"workflow_id": env.id(), "run_id": "abc", "activity_id": "act"}),
    ):
        completed = env.call("RespondActivityTaskCompletedById", **fields)
        await env.error(f"completed, {name}", completed)
        failed = env.call("RespondActivityTaskFailedById", **fields)
        await env.error(f"failed, {name}", failed)
        beat = env.call("RecordActivityTaskHeartbeatById", **fields)
        await env.error(f"heartbeat, {name}", beat)


@program
async def test_activity_by_id_without_a_workflow_id(env: Env) -> None:
    await env.error("completed", env.call("RespondActivityTaskCompletedById", activity_id="act"))


@program
async def test_activity_completed_by_id_before_it_starts(env: Env) -> None:
    await _scheduled(env, start=False)
    by_id = {"workflow_id": env.id(), "activity_id": "act"}
    await env.error(
        "completed", env.call("RespondActivityTaskCompletedById", result=payloads("x"), **by_id)
    )


@program
async def test_activity_cancel_requested_and_confirmed(env: Env) -> None:
    raw, task = await _scheduled(env)
    token = {"task_token": task.task_token}
    env.note("beat before", await env.call("RecordActivityTaskHeartbeat", **token))
    await env.call(
        "SignalWorkflowExecution", workflow_execution={"workflow_id": env.id()}, signal_name="s"
    )
    await raw.step(command("REQUEST_CANCEL_ACTIVITY_TASK", scheduled_event_id=5))
    env.note("beat after", await env.call("RecordActivityTaskHeartbeat", **token))
    await env.call("RespondActivityTaskCanceled", details=payloads("bye"), **token)
    await raw.step(complete_workflow())


@program
async def test_activity_cancelled_before_it_starts(env: Env) -> None:
    raw, _ = await _scheduled(env, start=False)
    await env.call(
        "SignalWorkflowExecution", workflow_execution={"workflow_id": env.id()}, signal_name="s"
    )
    await raw.step(command("REQUEST_CANCEL_ACTIVITY_TASK", scheduled_event_id=5))
    await raw.step(complete_workflow())


@program
async def test_activity_scheduled_and_cancelled_at_once(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(
        schedule_activity("act", raw.queue),
        command("REQUEST_CANCEL_ACTIVITY_TASK", scheduled_event_id=5),
    )
    await raw.step(complete_workflow())


@program
async def test_activity_completed_though_cancel_was_requested(env: Env) -> None:
    raw, task = await _scheduled(env)
    await env.call(
        "SignalWorkflowExecution", workflow_execution={"workflow_id": env.id()}, signal_name="s"
    )
    await raw.step(command("REQUEST_CANCEL_ACTIVITY_TASK", scheduled_event_id=5))
    await env.call("RespondActivityTaskCompleted", task_token=task.task_token)
    await raw.step(complete_workflow())


@program
async def test_activity_failed_after_cancel_is_not_retried(env: Env) -> None:
    raw, task = await _scheduled(env, retry_policy={"maximum_attempts": 5})
    await env.call(
        "SignalWorkflowExecution", workflow_execution={"workflow_id": env.id()}, signal_name="s"
    )
    await raw.step(command("REQUEST_CANCEL_ACTIVITY_TASK", scheduled_event_id=5))
    await env.call(
        "RespondActivityTaskFailed", task_token=task.task_token, failure=failure("broke")
    )
    await raw.step(complete_workflow())


@program
async def test_activity_eager(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    task = await raw.workflow_task()
    asked = schedule_activity("act", raw.queue, request_eager_execution=True)
    other = schedule_activity("other", raw.queue)
    response = await raw.complete(task, asked, other)
    env.note("eager tasks", [each.activity_id for each in response.activity_tasks])
    env.note("eager task", response.activity_tasks[0])
    token = response.activity_tasks[0].task_token
    await env.call("RespondActivityTaskCompleted", task_token=token)
    await raw.step(complete_workflow())


@program
async def test_activity_attempts_as_described(env: Env) -> None:
    policy = {"initial_interval": timedelta(seconds=3600), "maximum_attempts": 4}
    _raw, task = await _scheduled(env, retry_policy=policy)
    await env.call(
        "RecordActivityTaskHeartbeat", task_token=task.task_token, details=payloads("half")
    )
    described = await env.call("DescribeWorkflowExecution", execution={"workflow_id": env.id()})
    env.note("while it runs", described.pending_activities[0])
    await env.call(
        "RespondActivityTaskFailed", task_token=task.task_token, failure=failure("broke")
    )
    described = await env.call("DescribeWorkflowExecution", execution={"workflow_id": env.id()})
    env.note("between attempts", described.pending_activities[0])


@program
async def test_activity_failure_with_last_heartbeat(env: Env) -> None:
    policy = {"initial_interval": timedelta(milliseconds=10), "maximum_attempts": 2}
    raw, task = await _scheduled(env, retry_policy=policy)
    await env.call(
        "RespondActivityTaskFailed",
        task_token=task.task_token,
        failure=failure("broke"),
        last_heartbeat_details=payloads("page 3"),
    )
    task = await raw.activity_task()
    env.note("second attempt", task)
    await env.call("RespondActivityTaskFailed", task_token=task.task_token, failure=failure("two"))
    await raw.step(complete_workflow())


# --- local activities ---------------------------------------------------------------------------


@workflow.defn
class Local:
    @workflow.run
    async def run(self, kind: str) -> str:
        if kind == "ok":
            return await workflow.execute_local_activity(
                greet, "local", start_to_close_timeout=LONG, summary="here"
            )
        try:
            return await workflow.execute_local_activity(
                fail_with, kind, start_to_close_timeout=LONG, retry_policy=QUICK
            )
        except FailureError as error:
            return f"{type(error).__name__} {error.message} <- {error.cause}"


@program
async def test_local_activity(env: Env) -> None:
    env.note("result", await (await env.start(Local.run, "ok")).result())


@program
async def test_local_activity_fails(env: Env) -> None:
    env.note("result", await (await env.start(Local.run, "final")).result())


@program
async def test_local_activity_retries_and_fails(env: Env) -> None:
    env.note("result", await (await env.start(Local.run, "retryable")).result())


# --- completion from elsewhere ------------------------------------------------------------------


@activity.defn
async def answered_elsewhere() -> str:
    activity.raise_complete_async()


@program
async def test_async_completion_by_handle(env: Env) -> None:
    options = {"start_to_close_timeout": 20, "activity_id": "act", "heartbeat_timeout": 10}
    handle = await env.start(Calls.run, "answered_elsewhere", [], options)

    async def started() -> bool:
        return any(
            each.state == 2 for each in (await handle.describe()).raw_description.pending_activities
        )

    await env.until(started)
    outside = env.client.get_async_activity_handle(
        workflow_id=handle.id, run_id=None, activity_id="act"
    )
    await outside.heartbeat("outside")
    await outside.complete("from outside")
    env.note("result", await handle.result())
    await env.error("again", outside.complete("twice"))
    await env.error("beat", outside.heartbeat("late"))


@program
async def test_async_failure_by_handle(env: Env) -> None:
    options = {"start_to_close_timeout": 20, "activity_id": "act", "retry": "once"}
    handle = await env.start(Calls.run, "answered_elsewhere", [], options)

    async def started() -> bool:
        return any(
            each.state == 2 for each in (await handle.describe()).raw_description.pending_activities
        )

    await env.until(started)
    outside = env.client.get_async_activity_handle(
        workflow_id=handle.id, run_id=None, activity_id="act"
    )
    await env.error("not asked", outside.report_cancellation())
    await outside.fail(ApplicationError("outside broke", type="Outside"))
    await env.error("error", handle.result())
