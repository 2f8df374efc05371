"""Interceptors on client, workflow and activity: order, headers, what they see and change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from perdure import (
    ActivityError,
    ActivityInterceptor,
    ApplicationError,
    ClientInterceptor,
    Converter,
    RetryPolicy,
    WorkflowFailedError,
    WorkflowInterceptor,
    activity,
    workflow,
)
from perdure.sdk.interceptors import (
    ContinueAsNewCall,
    ExecuteActivity,
    ExecuteWorkflow,
    HandleQuery,
    HandleSignal,
    HandleUpdate,
    HeartbeatActivity,
    QueryWorkflow,
    ScheduleActivity,
    SignalExternalWorkflow,
    SignalWorkflow,
    StartChildWorkflow,
    StartUpdate,
    StartWorkflow,
)
from targets import environment

ONCE = RetryPolicy(maximum_attempts=1)
CONVERTER = Converter()


def _trace(headers: Any) -> str:
    payload = headers.get("trace")
    return "" if payload is None else str(CONVERTER.decode(payload, str))


def _with_trace(call: Any, trace: str) -> Any:
    return replace(call, headers={**call.headers, "trace": CONVERTER.encode(trace)})


class Recorder(ClientInterceptor, WorkflowInterceptor, ActivityInterceptor):
    """Notes each call with the trace that came along, and lengthens the trace."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name = name
        self.seen = seen

    def _on(self, call: Any, what: str) -> Any:
        replaying = workflow.in_workflow() and workflow.is_replaying()
        if not replaying or what.startswith("answer"):  # a query is answered in a replayed run
            self.seen.append(f"{self.name}:{what}:{_trace(call.headers)}")
        return _with_trace(call, f"{_trace(call.headers)}>{self.name}")

    async def start_workflow(self, call: StartWorkflow, next: Callable[..., Any]) -> Any:
        return await next(self._on(call, f"start {call.workflow}"))

    async def signal_workflow(self, call: SignalWorkflow, next: Callable[..., Any]) -> None:
        await next(self._on(call, f"send {call.signal}"))

    async def query_workflow(self, call: QueryWorkflow, next: Callable[..., Any]) -> Any:
        return await next(self._on(call, f"ask {call.query}"))

    async def start_update(self, call: StartUpdate, next: Callable[..., Any]) -> Any:
        return await next(self._on(call, f"update {call.update}"))

    async def execute_workflow(self, call: ExecuteWorkflow, next: Callable[..., Any]) -> Any:
        return await next(self._on(call, f"run {call.workflow}"))

    async def handle_signal(self, call: HandleSignal, next: Callable[..., Any]) -> None:
        await next(self._on(call, f"handle {call.signal}"))

    def handle_query(self, call: HandleQuery, next: Callable[..., Any]) -> Any:
        return next(self._on(call, f"answer {call.query}"))

    def validate_update(self, call: HandleUpdate, next: Callable[..., Any]) -> None:
        next(self._on(call, f"validate {call.update}"))

    async def handle_update(self, call: HandleUpdate, next: Callable[..., Any]) -> Any:
        return await next(self._on(call, f"do {call.update}"))

    async def schedule_activity(self, call: ScheduleActivity, next: Callable[..., Any]) -> Any:
        return await next(self._on(call, f"schedule {call.activity}"))

    async def start_child_workflow(self, call: StartChildWorkflow, next: Callable[..., Any]) -> Any:
        return await next(self._on(call, f"child {call.workflow}"))

    async def signal_external_workflow(
        self, call: SignalExternalWorkflow, next: Callable[..., Any]
    ) -> None:
        await next(self._on(call, f"pass {call.signal}"))

    def continue_as_new(self, call: ContinueAsNewCall, next: Callable[..., Any]) -> Any:
        return next(self._on(call, f"anew {call.workflow}"))

    async def execute_activity(self, call: ExecuteActivity, next: Callable[..., Any]) -> Any:
        return await next(self._on(call, f"act {call.activity.name}"))

    def heartbeat(self, call: HeartbeatActivity, next: Callable[..., Any]) -> None:
        self.seen.append(f"{self.name}:beat {call.details[0]}")
        next(call)


@activity
async def step(text: str) -> str:
    activity.heartbeat(text)
    return text


@workflow
async def child(text: str) -> str:
    return text


@workflow
class Everything:
    def __init__(self) -> None:
        self.said: list[str] = []

    @workflow.run
    async def run(self, again: bool) -> list[str]:
        await step("a")
        await step.local("b")
        await child("c")
        if again:
            workflow.continue_as_new(False)
        await workflow.wait_condition(lambda: len(self.said) == 2)
        await workflow.external("other").signal("say", "x")
        return self.said

    @workflow.signal
    def say(self, text: str) -> None:
        self.said.append(text)

    @workflow.query
    def all(self) -> int:
        return len(self.said)

    @workflow.update
    async def add(self, text: str) -> str:
        self.said.append(text)
        return text

    @add.validator
    def check(self, text: str) -> None: ...


WORKFLOWS = [child, Everything]


async def test_order_and_headers_from_client_to_activity_and_child() -> None:
    seen: list[str] = []
    outer, inner, worker = (Recorder(name, seen) for name in ("o", "i", "w"))
    async with (
        environment(interceptors=[outer, inner]) as env,
        env.client.worker(workflows=WORKFLOWS, activities=[step], interceptors=[worker]),
    ):
        await env.client.start(Everything, False, id="other")
        handle = await env.client.start(Everything, True)
        # What comes before the first run has really ended is lost with it.
        while sum(line.startswith("w:run Everything") for line in seen) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await handle.signal("say", "1")
        assert await handle.query("all") in (0, 1)
        assert await handle.update("add", "2") == "2"
        assert sorted(await handle.result()) == ["1", "2"]
    # Client interceptors are the outer ones, in order, and the trace has grown by each.
    assert seen[:2] == ["o:start Everything:", "i:start Everything:>o"]
    for what in ("run Everything", "schedule step", "child child", "handle say", "validate add",
                 "do add", "answer all"):  # fmt: skip
        names = [line.split(":")[0] for line in seen if line.split(":")[1] == what][:3]
        assert names == ["o", "i", "w"], what
    for what in ("run Everything", "handle say", "do add", "answer all"):  # from the client
        first = next(line for line in seen if line.startswith(f"o:{what}"))
        assert first == f"o:{what}:>o>i"
    for what in ("act step", "run child"):  # from the workflow, which has three
        first = next(line for line in seen if line.startswith(f"o:{what}"))
        assert first.endswith(">o>i>w"), first
    for line in ("o:beat a", "i:beat a", "w:beat a"):
        assert line in seen
    assert any(line.startswith("w:pass say") for line in seen)
    runs = [line for line in seen if line.startswith("o:run Everything")]
    assert sorted(runs) == [  # the last one was made by a workflow, which has three
        "o:run Everything:>o>i",
        "o:run Everything:>o>i",
        "o:run Everything:>o>i>w",
    ]


# --- changing what passes -------------------------------------------------------------------------


class Changing(ClientInterceptor, WorkflowInterceptor, ActivityInterceptor):
    async def start_workflow(self, call: StartWorkflow, next: Callable[..., Any]) -> Any:
        return await next(replace(call, args=[call.args[0] + " client"]))

    async def execute_workflow(self, call: ExecuteWorkflow, next: Callable[..., Any]) -> Any:
        try:
            result = await next(replace(call, args=[call.args[0] + " workflow"]))
        except ActivityError as error:
            raise ApplicationError("mended", type="Mended") from error
        return f"({result})"

    async def schedule_activity(self, call: ScheduleActivity, next: Callable[..., Any]) -> Any:
        return f"[{await next(replace(call, args=[call.args[0] + ' call']))}]"

    async def execute_activity(self, call: ExecuteActivity, next: Callable[..., Any]) -> Any:
        try:
            return "{" + await next(replace(call, args=[call.args[0] + " activity"])) + "}"
        except ValueError as error:
            raise ApplicationError(f"seen: {error}", type="Seen", non_retryable=True) from error


@activity
async def picky(text: str) -> str:
    if text.startswith("bad"):
        raise ValueError("bad text")
    return text


@workflow
async def passes(text: str) -> str:
    return await picky(text)


async def test_they_change_arguments_and_results() -> None:
    async with (
        environment(interceptors=[Changing()]) as env,
        env.client.worker(workflows=[passes], activities=[picky]),
    ):
        result = await env.client.execute(passes, "a")
        assert result == "([{a client workflow call activity}])"


async def test_they_see_and_change_errors() -> None:
    async with (
        environment(interceptors=[Changing()]) as env,
        env.client.worker(workflows=[passes], activities=[picky]),
    ):
        with pytest.raises(WorkflowFailedError) as caught:
            await env.client.execute(passes, "bad")
        mended = caught.value.cause
        assert isinstance(mended, ApplicationError)
        assert mended.type == "Mended"
        assert isinstance(mended.cause, ActivityError)
        seen = mended.cause.cause
        assert isinstance(seen, ApplicationError)
        assert (seen.type, seen.message) == ("Seen", "seen: bad text")
        assert isinstance(seen.cause, ApplicationError)
        assert seen.cause.type == "ValueError"


class Refusing(ClientInterceptor):
    async def start_workflow(self, call: StartWorkflow, next: Callable[..., Any]) -> Any:
        raise PermissionError(f"not you: {call.id}")


async def test_one_that_refuses_keeps_the_call_from_the_service() -> None:
    async with environment(interceptors=[Refusing()]) as env:
        with pytest.raises(PermissionError, match="not you: w"):
            await env.client.start(passes, "a", id="w")
        assert (await env.client.count()).count == 0
