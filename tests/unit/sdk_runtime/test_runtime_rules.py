"""What workflow code can do, and what becomes of it: on the small server of ``stage.py``."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from stage import Stage
from temporalio.api.enums.v1 import QueryResultType, WorkflowTaskFailedCause
from temporalio.api.update.v1 import Rejection, Response

from perdure.sdk.activity import activity
from perdure.sdk.converter import RawValue
from perdure.sdk.errors import (
    ActivityError,
    ApplicationError,
    NonDeterminismError,
    NotInWorkflowError,
)
from perdure.sdk.interceptors import WorkflowInterceptor
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


# --- signals, queries, updates --------------------------------------------------------------------


@workflow
class Account:
    @workflow.init
    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.balance = 0
        self.closed = False
        self.unknown: list[str] = []

    @workflow.run
    async def run(self, owner: str) -> int:
        await workflow.wait_condition(lambda: self.closed)
        return self.balance

    @workflow.signal
    def deposit(self, amount: int) -> None:
        self.balance += amount

    @workflow.signal
    async def close(self) -> None:
        await asyncio.sleep(1)
        self.closed = True

    @workflow.signal(dynamic=True)
    def other(self, name: str, args: list[RawValue]) -> None:
        self.unknown.append(f"{name}/{len(args)}")

    @workflow.query
    def status(self) -> str:
        return f"{self.owner} has {self.balance} {self.unknown}"

    @workflow.query
    def naughty(self) -> None:
        workflow.upsert_memo({"a": 1})

    @workflow.update
    async def withdraw(self, amount: int) -> int:
        """Take money out."""
        self.balance -= await work(amount)
        return self.balance

    @withdraw.validator
    def check_withdraw(self, amount: int) -> None:
        if amount > self.balance:
            raise ValueError(f"{amount} is more than {self.balance}")

    @workflow.update(name="steal")
    async def take(self) -> None:
        raise ApplicationError("caught", type="Thief")


def test_signals_and_queries() -> None:
    stage = Stage(Account, "Ann")
    stage.signal("deposit", 5)
    stage.signal("mystery", 1, 2)
    stage.task(status=())
    assert stage.query_result("status") == "Ann has 5 ['mystery/2']"
    stage.signal("close")
    stage.task()
    assert stage.commands == ["start_timer"]
    stage.fire_timer("1")
    stage.task()
    assert stage.result == 5
    stage.replay()


def test_a_signal_whose_arguments_do_not_convert_is_dropped() -> None:
    stage = Stage(Account, "Ann")
    stage.signal("deposit", "much")
    stage.signal("deposit", 3)
    stage.task(status=())
    assert stage.query_result("status") == "Ann has 3 []"


def test_a_query_must_change_nothing() -> None:
    stage = Stage(Account, "Ann")
    stage.task(naughty=())
    result = stage.answer.query_results["naughty"]
    assert result.result_type == QueryResultType.QUERY_RESULT_TYPE_FAILED
    assert "upsert_memo() in the handler of query 'naughty'" in result.error_message
    assert stage.commands == []


def test_a_query_must_wake_nobody() -> None:
    @workflow
    class Fragile:
        def __init__(self) -> None:
            self.event = asyncio.Event()

        @workflow.run
        async def run(self) -> None:
            await self.event.wait()

        @workflow.query
        def wake(self) -> str:
            self.event.set()
            return "woken"

    stage = Stage(Fragile)
    stage.task(wake=())
    assert "set something in motion" in stage.answer.query_results["wake"].error_message
    stage.task()
    assert stage.commands == []


def test_an_unknown_query_is_told_which_there_are() -> None:
    stage = Stage(Account, "Ann")
    stage.task(balance=())
    result = stage.answer.query_results["balance"]
    assert "known queries: [naughty status]" in result.error_message


def test_builtin_queries() -> None:
    stage = Stage(Account, "Ann")
    stage.task(__stack_trace=(), __temporal_workflow_metadata=())
    trace = stage.query_result("__stack_trace")
    assert "wait_condition(lambda: self.closed)" in trace
    metadata = stage.query_result("__temporal_workflow_metadata")["definition"]
    assert metadata["type"] == "Account"
    assert metadata["updateDefinitions"][1] == {
        "name": "withdraw",
        "description": "Take money out.",
    }


def test_updates_are_accepted_rejected_and_answered() -> None:
    stage = Stage(Account, "Ann")
    stage.signal("deposit", 10)
    stage.task()
    stage.update("u1", "withdraw", 4)
    stage.update("u2", "withdraw", 40)
    stage.update("u3", "no-such")
    stage.update("u4", "withdraw", "much")
    stage.update("u5", "steal")
    stage.task()
    assert stage.commands == [
        "protocol_message",
        "protocol_message",
        "schedule_activity_task",
        "protocol_message",
    ]
    rejections = {}
    for message in stage.answer.messages:
        rejection = Rejection()
        if message.body.Unpack(rejection):
            rejections[message.protocol_instance_id] = rejection.failure.message
    assert rejections["u2"] == "40 is more than 10"
    assert "known updates: steal, withdraw" in rejections["u3"]
    assert "argument 'amount'" in rejections["u4"]
    failed = stage.find("workflow_execution_update_completed")
    outcome = failed.workflow_execution_update_completed_event_attributes.outcome
    assert outcome.failure.application_failure_info.type == "Thief"
    stage.complete_activity("1", 4)
    stage.task()
    response = Response()
    assert stage.answer.messages[0].body.Unpack(response)
    assert response.meta.update_id == "u1"
    assert stage.converter.result(response.outcome.success) == 6
    stage.replay()


def test_an_update_that_came_with_the_start() -> None:
    @workflow
    class Early:
        def __init__(self) -> None:
            self.names: list[str] = []

        @workflow.run
        async def run(self) -> list[str]:
            await asyncio.sleep(1)
            return self.names

        @workflow.update
        def name(self, name: str) -> int:
            self.names.append(name)
            return len(self.names)

    stage = Stage(Early)
    stage.update("u", "name", "x")
    stage.task()
    assert stage.commands == ["protocol_message", "protocol_message", "start_timer"]
    stage.fire_timer("1")
    stage.task()
    assert stage.result == ["x"]
    stage.replay()


def test_handlers_set_at_run_time() -> None:
    @workflow
    async def dynamic() -> list[str]:
        got: list[str] = []

        def signal(text: str) -> None:
            got.append(text)

        async def update(text: str) -> str:
            got.append(text)
            return text.upper()

        workflow.set_query_handler("got", lambda: got)
        workflow.set_update_handler("say", update)
        await asyncio.sleep(1)
        workflow.set_signal_handler("tell", signal)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return got

    stage = Stage(dynamic)
    stage.signal("tell", "early")
    stage.update("u", "say", "hi")
    stage.task(got=())
    assert stage.query_result("got") == ["hi"]
    stage.fire_timer("1")
    stage.task()
    assert stage.result == ["hi", "early"]
    stage.replay()


def test_the_end_of_a_run_answers_updates_of_the_same_task() -> None:
    @workflow
    class Last:
        def __init__(self) -> None:
            self.done = False

        @workflow.run
        async def run(self) -> str:
            await workflow.wait_condition(lambda: self.done)
            return "end"

        @workflow.update
        async def finish(self) -> str:
            self.done = True
            return "finished"

    stage = Stage(Last)
    stage.task()
    stage.update("u", "finish")
    stage.task()
    assert stage.commands == ["protocol_message"] * 2 + ["complete_workflow_execution"]
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


def test_interceptors_see_every_kind_of_call() -> None:
    seen: list[str] = []

    class Spy(WorkflowInterceptor):
        async def execute_workflow(self, call: Any, next: Any) -> Any:
            seen.append(f"run {call.workflow}")
            return await next(call)

        async def handle_signal(self, call: Any, next: Any) -> None:
            seen.append(f"signal {call.signal}")
            await next(call)

        def handle_query(self, call: Any, next: Any) -> Any:
            return f"<{next(call)}>"

        async def handle_update(self, call: Any, next: Any) -> Any:
            return await next(call) * 100

        async def schedule_activity(self, call: Any, next: Any) -> Any:
            seen.append(f"activity {call.activity}")
            return await next(call) + 1

    stage = Stage(Account, "Ann", interceptors=[Spy()])
    stage.signal("deposit", 10)
    stage.update("u", "withdraw", 3)
    stage.task(status=())
    assert "withdraw" not in str(stage.commands)
    stage.update("v", "withdraw", 3)
    stage.task(status=())
    assert stage.query_result("status") == "<Ann has 10 []>"
    stage.complete_activity("1", 3)
    stage.task()
    response = Response()
    assert stage.answer.messages[0].body.Unpack(response)
    assert stage.converter.result(response.outcome.success) == 600
    assert seen == ["signal deposit", "run Account", "activity work"]


def test_the_dynamic_workflow_takes_every_type() -> None:
    @workflow(dynamic=True)
    async def anything(name: str, args: list[RawValue]) -> str:
        return f"{name} {len(args)}"

    stage = Stage(anything, 1, 2, type_name="whatever")
    stage.task()
    assert stage.result == "whatever 2"


def test_an_unknown_type_fails_the_task_and_lists_the_known_ones() -> None:
    stage = Stage(Account, "Ann", type_name="Acount")
    stage.task()
    assert "'Acount' is not registered" in stage.error
    assert "Account" in stage.error


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


def test_a_read_only_error_names_the_command() -> None:
    stage = Stage(Account, "Ann")
    stage.task()
    run = stage.handler.cache.get("0d0c2a1e-run")
    assert run is not None
    run.read_only = "a test"
    with pytest.raises(NonDeterminismError, match="activity 'work' in a test"):
        run.inside(lambda: run.schedule_activity("work", [1], None, work.defaults))
