"""Signals, queries and updates: on the small server of ``stage.py``."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stage import RUN_ID, Stage
from temporalio.api.enums.v1 import QueryResultType
from temporalio.api.update.v1 import Rejection, Response
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueResponse,
    RespondQueryTaskCompletedRequest,
)

from perdure.sdk.activity import activity
from perdure.sdk.converter import RawValue
from perdure.sdk.errors import (
    ApplicationError,
    NonDeterminismError,
)
from perdure.sdk.interceptors import WorkflowInterceptor
from perdure.sdk.workflow import workflow


@activity
async def work(n: int) -> int:
    return n


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


class Asked:
    """A service that hears the answer to a query."""

    answer: RespondQueryTaskCompletedRequest

    async def respond_query_task_completed(self, request: RespondQueryTaskCompletedRequest) -> None:
        self.answer = request


async def test_a_query_on_a_rebuilt_run_sees_what_the_last_task_has_seen() -> None:
    """What came since may be in the history already: its own task is on the way."""
    stage = Stage(Account, "Ann")
    stage.signal("deposit", 5)
    stage.task()
    stage.signal("deposit", 7)
    stage.signal("close")
    stage.event("workflow_task_scheduled")
    asked = Asked()
    task = PollWorkflowTaskQueueResponse(task_token=b"token")
    task.workflow_execution.run_id = RUN_ID
    task.workflow_type.name = stage.type_name
    task.history.events.extend(stage.history)
    task.query.query_type = "status"
    await stage.new_handler(service=asked).handle(task)
    assert asked.answer.error_message == ""
    assert stage.converter.result(asked.answer.query_result) == "Ann has 5 []"


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


def test_an_unknown_type_fails_the_task_and_lists_the_known_ones() -> None:
    stage = Stage(Account, "Ann", type_name="Acount")
    stage.task()
    assert "'Acount' is not registered" in stage.error
    assert "Account" in stage.error


def test_a_read_only_error_names_the_command() -> None:
    stage = Stage(Account, "Ann")
    stage.task()
    run = stage.handler.cache.get("0d0c2a1e-run")
    assert run is not None
    run.read_only = "a test"
    with pytest.raises(NonDeterminismError, match="activity 'work' in a test"):
        run.inside(lambda: run.schedule_activity("work", [1], None, work.defaults))
