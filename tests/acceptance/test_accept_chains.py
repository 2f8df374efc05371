"""Runs that follow each other: continue-as-new, retries, cron; and the timeouts over them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from accept_stage import attributes, chain, events, find, story
from temporalio.api.enums.v1 import ContinueAsNewInitiator, RetryState

from perdure import (
    ApplicationError,
    Client,
    RetryPolicy,
    RPCError,
    TimeoutError,
    TimeoutType,
    WorkflowContinuedAsNewError,
    WorkflowFailedError,
    WorkflowHandle,
    WorkflowNotFoundError,
    WorkflowStatus,
    workflow,
)
from targets import environment

SECOND = timedelta(seconds=1)
INITIATOR = ContinueAsNewInitiator


async def _runs(client: Client, id: str) -> list[WorkflowHandle[Any]]:
    """All runs of a workflow id, the first one first."""
    found = [run async for run in client.list(f"WorkflowId = '{id}'")]
    found.sort(key=lambda run: run.start_time)  # type: ignore[arg-type,return-value]
    return [client.handle(id, run_id=run.run_id) for run in found]


async def _statuses(client: Client, id: str) -> list[str]:
    return [(await run.describe()).status.name for run in await _runs(client, id)]


async def _failure(handle: WorkflowHandle[Any]) -> WorkflowFailedError:
    with pytest.raises(WorkflowFailedError) as caught:
        await handle.result()
    return caught.value


# --- continue-as-new ------------------------------------------------------------------------------


@workflow
async def counts(n: int, seen: list[Any]) -> list[Any]:
    info = workflow.info()
    facts = [
        workflow.memo().get("note"),
        info.search_attributes.by_name().get("CustomKeywordField"),
        info.run_timeout and info.run_timeout.total_seconds(),
        info.task_timeout and info.task_timeout.total_seconds(),
        info.retry and info.retry.maximum_attempts,
        info.attempt,
    ]
    if n > 0:
        workflow.continue_as_new(n - 1, [*seen, facts])
    return [*seen, facts]


async def test_a_continued_run_keeps_what_is_not_changed() -> None:
    async with environment() as env, env.client.worker(workflows=[counts], activities=[]):
        handle = await env.client.start(
            counts,
            2,
            [],
            id="kept",
            memo={"note": "n"},
            search_attributes={"CustomKeywordField": "k"},
            run_timeout=60 * SECOND,
            task_timeout=5 * SECOND,
            retry=RetryPolicy(maximum_attempts=7),
        )
        facts = ["n", "k", 60.0, 5.0, 7, 1]
        assert await handle.result() == [facts, facts, facts]
        runs = await _runs(env.client, "kept")
        assert await _statuses(env.client, "kept") == [
            "CONTINUED_AS_NEW",
            "CONTINUED_AS_NEW",
            "COMPLETED",
        ]
        assert await story(runs[0]) == ["Started", "Task", "ContinuedAsNew"]
        first, second, last = [await find(run, "WorkflowExecutionStarted") for run in runs]
        assert first.continued_execution_run_id == ""
        assert second.continued_execution_run_id == runs[0].run_id
        assert last.continued_execution_run_id == runs[1].run_id
        assert last.first_execution_run_id == runs[0].run_id
        assert second.initiator == INITIATOR.CONTINUE_AS_NEW_INITIATOR_WORKFLOW
        ended = await find(runs[0], "WorkflowExecutionContinuedAsNew")
        assert ended.new_execution_run_id == runs[1].run_id
        with pytest.raises(WorkflowContinuedAsNewError) as caught:
            await runs[0].result(follow_runs=False)
        assert caught.value.new_run_id == runs[1].run_id


@workflow
async def changes(done: bool) -> list[Any]:
    if not done:
        workflow.continue_as_new(
            True,
            memo={"note": "later"},
            search_attributes={"CustomKeywordField": "later"},
            run_timeout=33 * SECOND,
            task_timeout=3 * SECOND,
            retry=RetryPolicy(maximum_attempts=3),
        )
    info = workflow.info()
    assert info.run_timeout
    assert info.task_timeout
    assert info.retry
    return [
        dict(workflow.memo()),
        info.search_attributes.by_name()["CustomKeywordField"],
        info.run_timeout.total_seconds(),
        info.task_timeout.total_seconds(),
        info.retry.maximum_attempts,
    ]


async def test_a_continued_run_with_other_options() -> None:
    async with environment() as env, env.client.worker(workflows=[changes], activities=[]):
        handle = await env.client.start(
            changes,
            False,
            id="changed",
            memo={"note": "n", "old": 1},
            search_attributes={"CustomKeywordField": "k"},
            run_timeout=60 * SECOND,
        )
        assert await handle.result() == [{"note": "later"}, "later", 33.0, 3.0, 3]


@workflow
async def becomes(seconds: int) -> str:
    workflow.continue_as_new(seconds, workflow=other)


@workflow
async def other(seconds: int) -> str:
    await asyncio.sleep(seconds)
    return f"{workflow.info().workflow_type} after {seconds}"


async def test_a_run_may_continue_as_another_workflow() -> None:
    async with environment() as env, env.client.worker(workflows=[becomes, other], activities=[]):
        handle = await env.client.start(becomes, 1, id="became")
        assert await handle.result() == "other after 1"
        kinds = [(await run.describe()).workflow_type for run in await _runs(env.client, "became")]
        assert kinds == ["becomes", "other"]


@workflow
class Grows:
    """Looks at its history while it grows."""

    def __init__(self) -> None:
        self.poked = 0
        self.waiting = False

    @workflow.run
    async def run(self) -> int:
        assert not workflow.info().continue_as_new_suggested
        while not workflow.info().continue_as_new_suggested:
            self.waiting = True
            await workflow.wait_condition(lambda: not self.waiting)
        return self.poked

    @workflow.update
    def poke(self, payload: str) -> None:
        self.poked += 1
        self.waiting = False


async def test_continue_as_new_is_suggested_when_the_history_has_grown() -> None:
    async with environment() as env, env.client.worker(workflows=[Grows], activities=[]):
        handle = await env.client.start(Grows, id="grown")
        for _ in range(20):  # by size: a few large updates are quicker than 4,096 events
            try:
                await handle.update(Grows.poke, "x" * 500_000)
            except WorkflowNotFoundError:
                break
        assert 8 < await handle.result() < 12
        info = await handle.describe()
        assert info.history_size_bytes > 4 * 1024 * 1024
        started = [
            attributes(event)
            for event in await events(handle)
            if event.HasField("workflow_task_started_event_attributes")
        ]
        assert [a.suggest_continue_as_new for a in started[-2:]] == [False, True]
        assert started[-1].history_size_bytes > 4 * 1024 * 1024


# --- retry ----------------------------------------------------------------------------------------


@workflow
async def fails(times: int, how: str = "again") -> list[Any]:
    info = workflow.info()
    if info.attempt <= times:
        raise ApplicationError(f"attempt {info.attempt}", type=how, non_retryable=how == "never")
    return [info.attempt, str(info.last_failure)]


async def test_a_failed_run_is_retried() -> None:
    retry = RetryPolicy(initial_interval=SECOND, backoff_coefficient=2)
    async with environment() as env, env.client.worker(workflows=[fails], activities=[]):
        handle = await env.client.start(fails, 2, id="retried", retry=retry)
        assert await handle.result() == [3, "again: attempt 2"]
        runs = await _runs(env.client, "retried")
        assert await _statuses(env.client, "retried") == ["FAILED", "FAILED", "COMPLETED"]
        started = [await find(run, "WorkflowExecutionStarted") for run in runs]
        assert [a.attempt for a in started] == [1, 2, 3]
        backoff = [a.first_workflow_task_backoff.ToTimedelta() / SECOND for a in started]
        assert backoff == [0, 1, 2]
        assert [a.initiator for a in started] == [
            INITIATOR.CONTINUE_AS_NEW_INITIATOR_UNSPECIFIED,
            INITIATOR.CONTINUE_AS_NEW_INITIATOR_RETRY,
            INITIATOR.CONTINUE_AS_NEW_INITIATOR_RETRY,
        ]
        assert started[1].continued_failure.message == "attempt 1"
        assert {a.first_execution_run_id for a in started} == {runs[0].run_id}
        ended = await find(runs[0], "WorkflowExecutionFailed")
        assert ended.new_execution_run_id == runs[1].run_id
        assert ended.retry_state == RetryState.RETRY_STATE_IN_PROGRESS
        assert await story(runs[0]) == ["Started", "Task", "Failed"]


@pytest.mark.parametrize(
    ("how", "retry", "attempts", "state"),
    [
        ("again", None, 1, RetryState.RETRY_STATE_RETRY_POLICY_NOT_SET),
        (
            "again",
            RetryPolicy(initial_interval=SECOND, maximum_attempts=2),
            2,
            RetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED,
        ),
        ("never", RetryPolicy(), 1, RetryState.RETRY_STATE_NON_RETRYABLE_FAILURE),
        (
            "listed",
            RetryPolicy(non_retryable_error_types=["listed"]),
            1,
            RetryState.RETRY_STATE_NON_RETRYABLE_FAILURE,
        ),
    ],
)
async def test_what_is_not_retried(
    how: str, retry: RetryPolicy | None, attempts: int, state: int
) -> None:
    id = f"given-up-{how}-{attempts}-{state}"
    async with environment() as env, env.client.worker(workflows=[fails], activities=[]):
        handle = await env.client.start(fails, 9, how, id=id, retry=retry)
        failure = await _failure(handle)
        assert chain(failure)[1:] == [f"ApplicationError: attempt {attempts}"]
        runs = await _runs(env.client, id)
        assert len(runs) == attempts
        ended = await find(runs[-1], "WorkflowExecutionFailed")
        assert (ended.retry_state, ended.new_execution_run_id) == (state, "")


# --- timeouts -------------------------------------------------------------------------------------


@workflow
async def sleeps(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


async def test_the_run_timeout() -> None:
    async with environment() as env, env.client.worker(workflows=[sleeps], activities=[]):
        handle = await env.client.start(sleeps, 3600, id="run-timeout", run_timeout=2 * SECOND)
        failure = await _failure(handle)
        assert str(failure) == "Workflow run-timeout timed out: Workflow timed out"
        assert isinstance(failure.cause, TimeoutError)
        assert failure.cause.type is TimeoutType.START_TO_CLOSE
        assert (await handle.describe()).status is WorkflowStatus.TIMED_OUT
        assert await story(handle) == ["Started", "Task", "TimerStarted", "TimedOut"]
        ended = await find(handle, "WorkflowExecutionTimedOut")
        assert ended.retry_state == RetryState.RETRY_STATE_RETRY_POLICY_NOT_SET


async def test_a_run_that_times_out_is_retried_within_the_execution_timeout() -> None:
    retry = RetryPolicy(initial_interval=SECOND, backoff_coefficient=1)
    async with environment() as env, env.client.worker(workflows=[sleeps], activities=[]):
        handle = await env.client.start(
            sleeps,
            3600,
            id="all-timeouts",
            retry=retry,
            run_timeout=2 * SECOND,
            execution_timeout=7 * SECOND,
        )
        failure = await _failure(handle)
        assert isinstance(failure.cause, TimeoutError)
        # from 0 to 2, from 3 to 5, from 6 to 7: the whole is over
        assert await _statuses(env.client, "all-timeouts") == ["TIMED_OUT"] * 3
        runs = await _runs(env.client, "all-timeouts")
        ended = [await find(run, "WorkflowExecutionTimedOut") for run in runs]
        assert [a.new_execution_run_id for a in ended] == [runs[1].run_id, runs[2].run_id, ""]
        assert [a.retry_state for a in ended] == [
            RetryState.RETRY_STATE_IN_PROGRESS,
            RetryState.RETRY_STATE_IN_PROGRESS,
            RetryState.RETRY_STATE_TIMEOUT,
        ]
        started = [await find(run, "WorkflowExecutionStarted") for run in runs]
        expiry = {a.workflow_execution_expiration_time.ToNanoseconds() for a in started}
        assert len(expiry) == 1  # the whole chain has one deadline
        assert [await story(run) for run in runs] == [
            ["Started", "Task", "TimerStarted", "TimedOut"]
        ] * 3


@workflow
async def goes_on() -> None:
    await asyncio.sleep(1.5)
    workflow.continue_as_new()


async def test_the_execution_timeout_is_not_renewed_by_continuing() -> None:
    async with environment() as env, env.client.worker(workflows=[goes_on], activities=[]):
        handle = await env.client.start(goes_on, id="on-and-on", execution_timeout=5 * SECOND)
        failure = await _failure(handle)
        assert isinstance(failure.cause, TimeoutError)
        statuses = await _statuses(env.client, "on-and-on")
        assert statuses == ["CONTINUED_AS_NEW"] * 3 + ["TIMED_OUT"]


async def test_a_run_timeout_is_cut_to_the_execution_timeout() -> None:
    async with environment() as env:
        handle = await env.client.start(
            sleeps, 1, id="cut", run_timeout=60 * SECOND, execution_timeout=2 * SECOND
        )
        started = await find(handle, "WorkflowExecutionStarted")
        assert started.workflow_run_timeout.ToTimedelta() == 2 * SECOND
        await handle.terminate()


# --- cron -----------------------------------------------------------------------------------------


@workflow
async def ticks(how: str = "") -> list[Any]:
    info = workflow.info()
    last, failure = info.last_result(list), info.last_failure
    n = (last[0] if last else 0) + 1
    if how == "fails" and n == 2 and failure is None:
        raise ApplicationError("second time", type="Second")
    return [n, str(failure) if failure else ""]


async def _closed_runs(env: Any, id: str, number: int) -> list[WorkflowHandle[Any]]:
    """The first runs of a cron workflow, once so many have closed."""
    while True:
        runs = await _runs(env.client, id)
        open_ = [run for run in runs if (await run.describe()).status is WorkflowStatus.RUNNING]
        if len(runs) - len(open_) >= number:
            return runs[:number]
        await env.sleep(SECOND / 2)


async def _value(client: Client, run: WorkflowHandle[Any]) -> Any:
    ended = await find(run, "WorkflowExecutionCompleted")
    return client.converter.decode_all(ended.result)[0]


async def test_cron_runs_again_and_again_with_the_last_result() -> None:
    async with environment() as env, env.client.worker(workflows=[ticks], activities=[]):
        handle = await env.client.start(ticks, id="cron", cron="@every 2s")
        runs = await _closed_runs(env, "cron", 3)
        assert [await _value(env.client, run) for run in runs] == [[1, ""], [2, ""], [3, ""]]
        started = [await find(run, "WorkflowExecutionStarted") for run in runs]
        assert [a.cron_schedule for a in started] == ["@every 2s"] * 3
        assert [a.initiator for a in started[1:]] == [
            INITIATOR.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE
        ] * 2
        assert [a.attempt for a in started] == [1, 1, 1]
        for run, follower in pairwise(runs):
            ended = await find(run, "WorkflowExecutionCompleted")
            assert ended.new_execution_run_id == follower.run_id
            first, second = await run.describe(), await follower.describe()
            assert first.execution_time is not None
            assert second.execution_time is not None
            gap = second.execution_time - first.execution_time
            # A busy server that begins a run late counts on from its plan, so that gap is shorter.
            assert SECOND / 2 < gap < 2 * SECOND + SECOND / 4
        await handle.terminate()  # the chain that the handle began, wherever it is
        assert (await env.client.handle("cron").describe()).status is WorkflowStatus.TERMINATED


async def test_cron_carries_a_failure_and_the_result_before_it() -> None:
    async with environment() as env, env.client.worker(workflows=[ticks], activities=[]):
        handle = await env.client.start(ticks, "fails", id="cron-fails", cron="@every 1s")
        runs = await _closed_runs(env, "cron-fails", 3)
        assert [(await run.describe()).status.name for run in runs] == [
            "COMPLETED",
            "FAILED",
            "COMPLETED",
        ]
        assert await _value(env.client, runs[2]) == [2, "Second: second time"]
        ended = await find(runs[1], "WorkflowExecutionFailed")
        assert ended.new_execution_run_id == runs[2].run_id
        started = await find(runs[2], "WorkflowExecutionStarted")
        assert started.continued_failure.message == "second time"
        assert env.client.converter.decode_all(started.last_completion_result) == [[1, ""]]
        await handle.terminate()


async def test_cancelling_ends_cron() -> None:
    async with environment() as env, env.client.worker(workflows=[sleeps], activities=[]):
        handle = await env.client.start(sleeps, 3600, id="cron-cancelled", cron="@every 1s")
        while "TimerStarted" not in await story(handle):
            await env.sleep(SECOND / 4)
        await handle.cancel()
        failure = await _failure(handle)
        assert str(failure).startswith("Workflow cron-cancelled was cancelled")
        await env.sleep(2 * SECOND)
        assert await _statuses(env.client, "cron-cancelled") == ["CANCELED"]


@pytest.mark.only_on("embedded", reason="several seconds are skipped")
async def test_cancelling_ends_cron_between_two_runs() -> None:
    async with environment() as env, env.client.worker(workflows=[sleeps], activities=[]):
        handle = await env.client.start(sleeps, 0.1, id="cron-between", cron="@every 3s")
        await _closed_runs(env, "cron-between", 1)
        await handle.cancel()
        with pytest.raises(WorkflowFailedError, match="was cancelled"):
            await handle.result()
        await env.sleep(4 * SECOND)
        assert await _statuses(env.client, "cron-between") == ["COMPLETED", "CANCELED"]


async def test_cron_goes_on_after_a_run_timed_out() -> None:
    async with environment() as env, env.client.worker(workflows=[sleeps], activities=[]):
        handle = await env.client.start(
            sleeps, 3600, id="cron-timeouts", cron="@every 2s", run_timeout=SECOND
        )
        runs = await _closed_runs(env, "cron-timeouts", 2)
        assert [(await run.describe()).status.name for run in runs] == ["TIMED_OUT"] * 2
        await handle.terminate()


@pytest.mark.parametrize("cron", ["nonsense", "61 * * * *", "@every x"])
async def test_a_cron_that_is_none_is_refused(cron: str) -> None:
    async with environment() as env:
        with pytest.raises(RPCError, match=r"(?i)cron"):
            await env.client.start(ticks, id="cron-none", cron=cron)
        assert (await env.client.count("WorkflowId = 'cron-none'")).count == 0
