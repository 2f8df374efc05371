"""What workflow code can do, and what becomes of it: on the small server of ``stage.py``."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from stage import Stage
from temporalio.api.enums.v1 import WorkflowTaskFailedCause

from perdure.sdk.activity import activity
from perdure.sdk.converter import RawValue
from perdure.sdk.errors import (
    ActivityError,
    ApplicationError,
    NotInWorkflowError,
)
from perdure.sdk.options import ActivityCancellationType
from perdure.sdk.workflow import workflow


@activity
async def work(n: int) -> int:
    return n


# --- the run's end --------------------------------------------------------------------------------


def test_a_sequence_of_activities() -> None:
    @workflow
    async def sequence(count: int) -> int:
        return sum([await work(n) for n in range(count)])

    stage = Stage(sequence, 3)
    for number in range(3):
        stage.task()
        assert stage.commands == ["schedule_activity_task"]
        stage.complete_activity(str(number + 1), number)
    stage.task()
    assert stage.commands == ["complete_workflow_execution"]
    assert stage.result == 3
    stage.replay()


def test_a_failure_of_the_platform_fails_the_run() -> None:
    @workflow
    async def failing() -> int:
        return await work(1)

    stage = Stage(failing)
    stage.task()
    stage.fail_activity("1", ApplicationError("no", type="No"))
    stage.task()
    assert stage.commands == ["fail_workflow_execution"]
    attributes = stage.answer.commands[0].fail_workflow_execution_command_attributes
    assert attributes.failure.cause.application_failure_info.type == "No"
    stage.replay()


def test_any_other_exception_fails_the_task_and_mended_code_goes_on() -> None:
    mended = False

    @workflow
    async def buggy() -> int:
        if not mended:
            raise KeyError("oops")
        return await work(1)

    stage = Stage(buggy)
    stage.task()
    assert stage.answer.cause == (
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE
    )
    assert "oops" in stage.error
    assert len(stage.handler.cache) == 0
    mended = True
    stage.task()
    assert stage.commands == ["schedule_activity_task"]
    stage.replay()


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, BaseException])
def test_nothing_that_code_raises_ends_the_worker(kind: type[BaseException]) -> None:
    @workflow
    async def exits() -> None:
        raise kind("stop")

    @workflow
    async def exits_in_a_task() -> None:
        async def inner() -> None:
            raise kind("stop")

        await asyncio.create_task(inner())

    for program in (exits, exits_in_a_task):
        stage = Stage(program)
        stage.task()
        assert f"workflow code raised {kind.__name__}: stop" in stage.error


def test_exception_types_can_be_declared_failures() -> None:
    @workflow(failure_exception_types=[KeyError])
    async def declared() -> None:
        raise KeyError("oops")

    @workflow
    async def of_the_worker() -> None:
        raise IndexError("oops")

    stage = Stage(declared)
    stage.task()
    assert stage.commands == ["fail_workflow_execution"]
    stage = Stage(of_the_worker, failure_exception_types=(LookupError,))
    stage.task()
    assert stage.commands == ["fail_workflow_execution"]


def test_a_task_group_of_failures_fails_the_run() -> None:
    @workflow
    async def grouped() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(work(1))

    stage = Stage(grouped)
    stage.task()
    stage.fail_activity("1", ApplicationError("no"))
    stage.task()
    assert stage.commands == ["fail_workflow_execution"]


def test_an_expired_timeout_fails_the_run() -> None:
    @workflow
    async def late() -> None:
        async with asyncio.timeout(5):
            await work(1)

    stage = Stage(late)
    stage.task()
    stage.fire_timer("1")
    stage.task()
    assert stage.commands == ["request_cancel_activity_task", "fail_workflow_execution"]
    stage.replay()


def test_except_exception_does_not_swallow_continue_as_new() -> None:
    @workflow
    async def again(count: int) -> None:
        try:
            workflow.continue_as_new(count + 1)
        except Exception:
            raise AssertionError("swallowed") from None

    stage = Stage(again, 4)
    stage.task()
    attributes = stage.answer.commands[0].continue_as_new_workflow_execution_command_attributes
    assert stage.converter.decode_all(attributes.input) == [5]
    assert attributes.workflow_type.name == "again"
    assert attributes.task_queue.name == "q"
    stage.replay()


def test_commands_after_the_end_are_dropped() -> None:
    @workflow
    async def ends() -> int:
        async def more() -> None:
            await asyncio.sleep(0)
            await work(9)

        task = asyncio.create_task(more())
        assert task is not None
        return 1

    stage = Stage(ends)
    stage.task()
    assert stage.commands == ["complete_workflow_execution"]
    stage.replay()


# --- cancellation ---------------------------------------------------------------------------------


def test_cancelling_a_run_lets_it_clean_up() -> None:
    @workflow
    async def careful() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await work(1)

    stage = Stage(careful)
    stage.task()
    stage.cancel()
    stage.task()
    assert stage.commands == ["cancel_timer", "schedule_activity_task"]
    stage.complete_activity("1", 1)
    stage.task()
    assert stage.commands == ["cancel_workflow_execution"]
    stage.replay()


@pytest.mark.parametrize(
    ("kind", "commands"),
    [
        (
            ActivityCancellationType.TRY_CANCEL,
            ["request_cancel_activity_task", "cancel_workflow_execution"],
        ),
        (ActivityCancellationType.WAIT_CANCELLATION_COMPLETED, ["request_cancel_activity_task"]),
        (ActivityCancellationType.ABANDON, ["cancel_workflow_execution"]),
    ],
)
def test_activity_cancellation_types(kind: ActivityCancellationType, commands: list[str]) -> None:
    @workflow
    async def calls() -> int:
        return await work.options(cancellation_type=kind)(1)

    stage = Stage(calls)
    stage.task()
    stage.cancel()
    stage.task()
    assert stage.commands == commands
    if len(commands) == 1 and kind is not ActivityCancellationType.ABANDON:
        attributes = stage.event("activity_task_canceled")
        attributes.scheduled_event_id = stage.find("activity_task_scheduled").event_id
        stage.task()
        assert stage.commands == ["cancel_workflow_execution"]
    stage.replay()


def test_what_was_not_sent_is_taken_back() -> None:
    @workflow
    async def hasty() -> int:
        pending = [asyncio.create_task(asyncio.sleep(9)), asyncio.create_task(work(1))]
        await asyncio.sleep(0)
        for task in pending:
            task.cancel()
        await asyncio.wait(pending)
        return await work(2)

    stage = Stage(hasty)
    stage.task()
    assert stage.commands == ["schedule_activity_task"]
    stage.replay()


# --- waiting --------------------------------------------------------------------------------------


def test_wait_condition_tells_whether_it_holds() -> None:
    @workflow
    class Waits:
        def __init__(self) -> None:
            self.flag = False

        @workflow.run
        async def run(self) -> list[bool]:
            met = await workflow.wait_condition(lambda: self.flag, timeout=timedelta(hours=1))
            expired = await workflow.wait_condition(lambda: False, timeout=5)
            return [met, expired]

        @workflow.signal
        def raise_flag(self) -> None:
            self.flag = True

    stage = Stage(Waits)
    stage.task()
    stage.signal("raise_flag")
    stage.task()
    assert stage.commands == ["cancel_timer", "start_timer"]
    stage.fire_timer("2")
    stage.task()
    assert stage.result == [True, False]
    stage.replay()


def test_each_waiter_finds_its_condition_still_holding() -> None:
    @workflow
    async def tokens() -> list[int]:
        free, got = 0, []

        async def take(number: int) -> None:
            nonlocal free
            await workflow.wait_condition(lambda: free > 0)
            assert free > 0
            free -= 1
            got.append(number)

        tasks = [asyncio.create_task(take(n)) for n in range(3)]
        await asyncio.sleep(0)
        free = 2
        await asyncio.wait(tasks, timeout=1)
        return got

    stage = Stage(tokens)
    stage.task()
    stage.fire_timer("1")
    stage.task()
    assert stage.result == [0, 1]


def test_a_condition_that_schedules_is_refused() -> None:
    @workflow
    async def bad() -> None:
        def condition() -> bool:
            workflow.upsert_memo({"a": 1})
            return False

        await workflow.wait_condition(lambda: False, timeout=1)
        await workflow.wait_condition(condition)

    stage = Stage(bad)
    stage.task()
    stage.fire_timer("1")
    stage.task()
    assert "upsert_memo() in the function given to workflow.wait_condition()" in stage.error


def test_map_keeps_a_window_of_calls_open() -> None:
    @workflow
    async def mapped() -> list[int]:
        return await workflow.map(work, [5, 6, 7, 8], concurrency=2)

    stage = Stage(mapped)
    stage.task()
    assert stage.commands == ["schedule_activity_task"] * 2
    stage.complete_activity("2", 6)
    stage.task()
    assert stage.commands == ["schedule_activity_task"]
    stage.complete_activity("3", 7)
    stage.complete_activity("1", 5)
    stage.task()
    assert stage.commands == ["schedule_activity_task"]
    stage.complete_activity("4", 8)
    stage.task()
    assert stage.result == [5, 6, 7, 8]
    stage.replay()


def test_map_stops_at_the_first_failure() -> None:
    @workflow
    async def mapped() -> list[int]:
        try:
            return await workflow.map(work, range(9), concurrency=3)
        except ActivityError:
            return []

    stage = Stage(mapped)
    stage.task()
    stage.fail_activity("2", ApplicationError("no"))
    stage.task()
    assert stage.commands == ["request_cancel_activity_task"] * 2 + ["complete_workflow_execution"]
    stage.replay()


def test_zero_delays_are_no_timers() -> None:
    @workflow
    async def quick() -> bool:
        await asyncio.sleep(0)
        await workflow.sleep(0)
        await workflow.sleep(timedelta(0))
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(1)
        except TimeoutError:
            return True
        return False

    stage = Stage(quick)
    stage.task()
    assert stage.commands == ["complete_workflow_execution"]
    assert stage.result is True
    stage.replay()


# --- other things ---------------------------------------------------------------------------------


def test_side_effects_are_read_from_history() -> None:
    values = iter([7, 8, 9])

    @workflow
    async def effects() -> int:
        value = workflow.side_effect(lambda: next(values))
        await asyncio.sleep(1)
        return value

    stage = Stage(effects)
    stage.task()
    assert stage.commands == ["record_marker", "start_timer"]
    stage.fire_timer("1")
    stage.handler.cache.clear()
    stage._delivered = 0
    stage.task()
    assert stage.result == 7
    stage.replay()


def test_memo_and_search_attributes() -> None:
    @workflow
    async def tagged() -> list[Any]:
        workflow.upsert_memo({"a": 1, "b": 2})
        workflow.upsert_memo({"a": None})
        workflow.upsert_search_attributes({"Customer": "c", "Total": 3})
        workflow.upsert_search_attributes({"Customer": None})
        return [workflow.memo(), workflow.info().search_attributes.by_name()]

    stage = Stage(tagged)
    stage.task()
    assert stage.result == [{"b": 2}, {"Total": 3}]
    stage.replay()


def test_the_dynamic_workflow_takes_every_type() -> None:
    @workflow(dynamic=True)
    async def anything(name: str, args: list[RawValue]) -> str:
        return f"{name} {len(args)}"

    stage = Stage(anything, 1, 2, type_name="whatever")
    stage.task()
    assert stage.result == "whatever 2"


def test_arguments_that_do_not_convert_fail_the_task_by_name() -> None:
    @workflow
    async def typed(count: int) -> int:
        return count

    stage = Stage(typed, "three")
    stage.task()
    assert "typed: argument 'count'" in stage.error


def test_a_value_without_json_form_fails_the_task_even_if_caught() -> None:
    @workflow
    async def sloppy() -> int:
        try:
            await work(object())  # type: ignore[arg-type]
        except Exception:
            pass
        return 1

    stage = Stage(sloppy)
    stage.task()
    assert "argument 'n'" in stage.error


async def test_outside_of_workflows_functions_just_run() -> None:
    @workflow
    async def plain(n: int) -> int:
        return await work(n) + 1

    assert await plain(1) == 2
    with pytest.raises(NotInWorkflowError):
        workflow.now()
    with pytest.raises(NotInWorkflowError):
        await plain.start(1)


def test_mistakes_in_definitions_are_named() -> None:
    with pytest.raises(TypeError, match="async def"):

        @workflow
        def not_async() -> None: ...

    with pytest.raises(Exception, match=r"exactly one method with @workflow\.run"):

        @workflow
        class NoRun:
            pass

    with pytest.raises(Exception, match="two signal handlers named a"):

        @workflow
        class Twice:
            @workflow.run
            async def run(self) -> None: ...

            @workflow.signal(name="a")
            def one(self) -> None: ...

            @workflow.signal(name="a")
            def two(self) -> None: ...

    with pytest.raises(TypeError, match="plain `def`"):

        @workflow.query
        async def question() -> None: ...

    with pytest.raises(Exception, match=r"@workflow\.init"):

        @workflow
        class NeedsInit:
            def __init__(self, text: str) -> None: ...

            @workflow.run
            async def run(self, text: str) -> None: ...

    with pytest.raises(TypeError, match="no option of a child workflow"):
        workflow(colour="red")


def test_an_eviction_runs_no_code_of_the_user() -> None:
    ran: list[str] = []

    @activity
    async def undo() -> None:
        ran.append("undo")

    @workflow
    async def compensating() -> None:
        try:
            await work(1)
        finally:
            await undo()
            ran.append("after")

    stage = Stage(compensating)
    stage.task()
    stage.handler.cache.clear()
    assert ran == []
