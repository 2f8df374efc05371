"""The life of a run: timers, ends, continue-as-new, cron, retries, patches, markers, metadata."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import (
    RetryPolicy,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
)
from temporalio.exceptions import ApplicationError

from referee.env import Env
from referee.program import program
from referee.raw import command, complete_workflow, failure, payloads, start_timer

QUICK = RetryPolicy(
    initial_interval=timedelta(milliseconds=20), backoff_coefficient=1.0, maximum_attempts=3
)
KEYWORD = SearchAttributeKey.for_keyword("RefKeyword")
INT = SearchAttributeKey.for_int("RefInt")


@workflow.defn
class Sleeps:
    @workflow.run
    async def run(self, seconds: float) -> str:
        await workflow.sleep(seconds, summary="a nap")
        return "awake"


@workflow.defn
class Races:
    """A timer is cancelled by its own code."""

    @workflow.run
    async def run(self) -> str:
        nap = asyncio.create_task(asyncio.sleep(3600))
        await asyncio.sleep(0.1)
        nap.cancel()
        await asyncio.wait([nap])
        return "cancelled" if nap.cancelled() else "?"


@workflow.defn
class Fails:
    @workflow.run
    async def run(self, kind: str) -> str:
        match kind:
            case "cause":
                try:
                    raise ApplicationError("inner", 1, type="Inner")
                except ApplicationError as error:
                    raise ApplicationError("outer", {"a": 1}, type="Outer") from error
            case "final":
                raise ApplicationError("never", type="Never", non_retryable=True)
            case "delay":
                delay = timedelta(milliseconds=30)
                raise ApplicationError("later", type="Later", next_retry_delay=delay)
            case "third":
                if workflow.info().attempt < 3:
                    raise ApplicationError(f"attempt {workflow.info().attempt}", type="Again")
                return f"attempt {workflow.info().attempt}"
            case _:
                raise ApplicationError("plain", type="Plain")


@workflow.defn
class Counts:
    """Continues as new until its number is 0."""

    @workflow.run
    async def run(self, number: int) -> str:
        if number:
            workflow.continue_as_new(number - 1)
        info = workflow.info()
        return f"{info.continued_run_id is not None} {info.attempt}"


@workflow.defn
class ChangesAll:
    """Continues as new with everything changed that can be."""

    @workflow.run
    async def run(self, last: bool) -> str:
        if not last:
            workflow.continue_as_new(
                args=[True],
                run_timeout=timedelta(seconds=50),
                task_timeout=timedelta(seconds=7),
                retry_policy=QUICK,
                memo={"new": "memo"},
                search_attributes=TypedSearchAttributes([SearchAttributePair(KEYWORD, "new")]),
            )
        return "last"


@workflow.defn
class Patched:
    @workflow.run
    async def run(self) -> str:
        if workflow.patched("first"):
            await asyncio.sleep(0.01)
        workflow.deprecate_patch("old")
        return str(workflow.patched("first"))


@workflow.defn
class Upserts:
    @workflow.run
    async def run(self) -> dict[str, Any]:
        workflow.upsert_search_attributes([KEYWORD.value_set("set"), INT.value_set(3)])
        workflow.upsert_memo({"new": 1, "kept": None})
        await asyncio.sleep(0.01)
        workflow.upsert_search_attributes([INT.value_unset()])
        workflow.upsert_memo({"new": 2})
        info = workflow.info()
        return {"memo": workflow.memo(), "keyword": info.typed_search_attributes[KEYWORD]}


@workflow.defn
class Cancellable:
    @workflow.run
    async def run(self, how: str) -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if how == "goes on":
                await asyncio.sleep(0.01)
                return "went on"
            if how == "fails":
                raise ApplicationError("instead", type="Instead", non_retryable=True) from None
            raise
        return "slept"


# --- timers and ends ----------------------------------------------------------------------------


@program
async def test_timer_fires(env: Env) -> None:
    env.note("result", await (await env.start(Sleeps.run, 0.1)).result())


@program
async def test_timer_is_cancelled(env: Env) -> None:
    env.note("result", await (await env.start(Races.run)).result())


@program
async def test_timers_by_hand(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(
        start_timer("long"), start_timer("short", 0.1), command("CANCEL_TIMER", timer_id="long")
    )
    await raw.step(complete_workflow())


@program
async def test_timer_fires_while_a_task_runs(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(start_timer("short", 0.3))
    await env.call(
        "SignalWorkflowExecution", workflow_execution={"workflow_id": env.id()}, signal_name="s"
    )
    task = await raw.workflow_task()
    await asyncio.sleep(0.8)
    await raw.complete(task, start_timer("other"))
    await raw.step(complete_workflow())


@program
async def test_timer_cancelled_after_it_fired_unseen(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(start_timer("short", 0.3))
    await env.call(
        "SignalWorkflowExecution", workflow_execution={"workflow_id": env.id()}, signal_name="s"
    )
    task = await raw.workflow_task()
    await asyncio.sleep(0.8)
    await raw.complete(task, command("CANCEL_TIMER", timer_id="short"))


@program
async def test_failure_with_cause_and_details(env: Env) -> None:
    await env.error("result", (await env.start(Fails.run, "cause")).result())


@program
async def test_failure_plain(env: Env) -> None:
    await env.error("result", (await env.start(Fails.run, "plain")).result())


@program
async def test_run_timeout(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start(workflow_run_timeout=timedelta(seconds=2))
    await raw.step(start_timer("t"))
    await env.error("result", env.client.get_workflow_handle(env.id()).result())


@program
async def test_execution_timeout(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start(workflow_execution_timeout=timedelta(seconds=2))
    await raw.step(start_timer("t"))
    await env.error("result", env.client.get_workflow_handle(env.id()).result())


@program
async def test_run_timeout_while_a_task_runs(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start(workflow_run_timeout=timedelta(seconds=2))
    await raw.workflow_task()
    await env.error("result", env.client.get_workflow_handle(env.id()).result())


@program
async def test_run_timeout_with_retries(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start(
        workflow_run_timeout=timedelta(seconds=1),
        retry_policy={"initial_interval": timedelta(milliseconds=20), "maximum_attempts": 2},
    )
    await env.error("result", env.client.get_workflow_handle(env.id()).result())


# --- retries ------------------------------------------------------------------------------------


@program
async def test_retry_succeeds_in_the_end(env: Env) -> None:
    handle = await env.start(
        Fails.run, "third", retry_policy=QUICK, memo={"kept": 1}, static_summary="tries"
    )
    env.note("result", await handle.result())


@program
async def test_retry_until_attempts_are_used_up(env: Env) -> None:
    handle = await env.start(Fails.run, "plain", retry_policy=QUICK)
    await env.error("result", handle.result())


@program
async def test_retry_not_of_what_is_final(env: Env) -> None:
    handle = await env.start(Fails.run, "final", retry_policy=QUICK)
    await env.error("result", handle.result())


@program
async def test_retry_after_the_failures_own_delay(env: Env) -> None:
    handle = await env.start(Fails.run, "delay", retry_policy=QUICK)
    await env.error("result", handle.result())


@program
async def test_retry_not_of_listed_types(env: Env) -> None:
    policy = RetryPolicy(
        initial_interval=timedelta(milliseconds=20), non_retryable_error_types=["Plain"]
    )
    handle = await env.start(Fails.run, "plain", retry_policy=policy)
    await env.error("result", handle.result())


# --- continue-as-new and cron -------------------------------------------------------------------


@program
async def test_continue_as_new(env: Env) -> None:
    handle = await env.start(Counts.run, 2, memo={"kept": 1}, static_summary="counts")
    env.note("result", await handle.result())


@program
async def test_continue_as_new_with_changes(env: Env) -> None:
    handle = await env.start(
        ChangesAll.run,
        False,
        memo={"old": "memo"},
        search_attributes=TypedSearchAttributes([SearchAttributePair(INT, 1)]),
        execution_timeout=timedelta(seconds=300),
    )
    env.note("result", await handle.result())


@program
async def test_continue_as_new_by_hand(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(
        command(
            "CONTINUE_AS_NEW_WORKFLOW_EXECUTION",
            workflow_type={"name": "Other"},
            task_queue={"name": raw.queue},
            input=payloads("x"),
            header={"fields": {"key": payloads("value").payloads[0]}},
            backoff_start_interval=timedelta(seconds=1),
            last_completion_result=payloads("before"),
        )
    )
    await raw.step(complete_workflow())


@program
async def test_cron_completes_and_goes_on(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start(cron_schedule="@every 2s", memo={"fields": {"kept": payloads("x").payloads[0]}})
    await raw.step(complete_workflow("first"))
    await raw.step(complete_workflow("second"))
    await env.client.get_workflow_handle(env.id()).terminate("enough")


@program
async def test_cron_fails_and_goes_on(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start(cron_schedule="@every 2s")
    await raw.step(complete_workflow("first"))
    await raw.step(command("FAIL_WORKFLOW_EXECUTION", failure=failure("this time", "Tick")))
    await env.client.get_workflow_handle(env.id()).terminate("enough")


@program
async def test_cron_bad_schedules(env: Env) -> None:
    raw = env.raw_worker()
    for schedule in ("nonsense", "* * * *", "99 * * * *", "@every", "@often"):
        await env.error(schedule, raw.start(cron_schedule=schedule))


@program
async def test_cron_backwards(env: Env) -> None:
    await env.error("start", env.raw_worker().start(cron_schedule="@every -1s"))


# --- cancellation -------------------------------------------------------------------------------


async def _cancelled(env: Env, how: str) -> None:
    handle = await env.start(Cancellable.run, how)
    await env.until_event(handle, "TIMER_STARTED")
    await handle.cancel()
    try:
        env.note("result", await handle.result())
    except Exception as error:
        await env.error("error", _raise(error))


async def _raise(error: BaseException) -> None:
    raise error


@program
async def test_cancel(env: Env) -> None:
    await _cancelled(env, "")


@program
async def test_cancel_that_is_swallowed(env: Env) -> None:
    await _cancelled(env, "goes on")


@program
async def test_cancel_that_ends_in_failure(env: Env) -> None:
    await _cancelled(env, "fails")


# --- patches, markers, attributes ---------------------------------------------------------------


@program
async def test_patches(env: Env) -> None:
    env.note("result", await (await env.start(Patched.run)).result())


@program
async def test_upserts(env: Env) -> None:
    handle = await env.start(Upserts.run, memo={"kept": "x", "other": "y"})
    env.note("result", await handle.result())
    described = await env.call("DescribeWorkflowExecution", execution={"workflow_id": env.id()})
    env.note("memo", described.workflow_execution_info.memo)
    env.note("keyword", described.workflow_execution_info.search_attributes)


@program
async def test_marker_by_hand(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(
        command(
            "RECORD_MARKER",
            marker_name="mark",
            details={"a": payloads("1"), "b": payloads("2")},
            header={"fields": {"key": payloads("value").payloads[0]}},
            failure=failure("noted"),
        ),
        complete_workflow(),
    )


@program
async def test_ends_by_hand(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start("fails")
    await raw.step(command("FAIL_WORKFLOW_EXECUTION", failure=failure("broke", "Kind")))
    await raw.start("cancels")
    await env.call(
        "RequestCancelWorkflowExecution",
        workflow_execution={"workflow_id": env.id("cancels")},
        reason="why not",
        request_id="r",
    )
    await raw.step(command("CANCEL_WORKFLOW_EXECUTION", details=payloads("bye")))
    await raw.start("cancels-unasked")
    await raw.step(command("CANCEL_WORKFLOW_EXECUTION"))
