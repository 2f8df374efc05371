"""The processor: what it asks of a service, and how its cache, local activities and stop behave."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from stage import Stage
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.history.v1 import History
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryResponse,
    PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskCompletedResponse,
    RespondWorkflowTaskFailedRequest,
    ShutdownWorkerResponse,
)

from perdure.api.errors import NamespaceNotFound, NotFound, Unavailable
from perdure.sdk.activity import activity
from perdure.sdk.client import Client
from perdure.sdk.codecs import ZlibCodec
from perdure.sdk.converter import Converter
from perdure.sdk.errors import ActivityError, ApplicationError
from perdure.sdk.leaving import Leaving
from perdure.sdk.options import RetryPolicy
from perdure.sdk.runtime.local_execution import LocalAttempt
from perdure.sdk.runtime.processor import WorkflowTaskProcessor
from perdure.sdk.workflow import workflow


@activity
async def work(n: int) -> int:
    return n


@workflow
class Sum:
    def __init__(self) -> None:
        self.total = 0

    @workflow.run
    async def run(self, count: int) -> int:
        for number in range(count):
            self.total += await work(number)
        return self.total

    @workflow.query
    def so_far(self) -> int:
        return self.total


class FakeService:
    """Hands out the tasks it is given and notes the answers."""

    def __init__(self, stage: Stage, page_size: int = 1000) -> None:
        self.stage = stage
        self.page_size = page_size
        self.tasks: asyncio.Queue[PollWorkflowTaskQueueResponse] = asyncio.Queue()
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.polls: list[Any] = []
        self.history_requests = 0
        self.poll_errors: list[Exception] = []
        self.answer_errors: list[Exception] = []
        self.following: list[PollWorkflowTaskQueueResponse] = []
        self.released: list[str] = []

    async def poll_workflow_task_queue(self, request: Any, **extra: Any) -> Any:
        self.polls.append(request)
        if self.poll_errors:
            raise self.poll_errors.pop(0)
        return await self.tasks.get()

    async def respond_workflow_task_completed(self, request: Any) -> Any:
        if self.answer_errors:
            raise self.answer_errors.pop(0)
        await self.answers.put(request)
        response = RespondWorkflowTaskCompletedResponse()
        if request.force_create_new_workflow_task:
            self.stage.finish_task(request)
            response.workflow_task.CopyFrom(self.stage.begin_task())
        return response

    async def respond_workflow_task_failed(self, request: Any) -> Any:
        await self.answers.put(request)

    async def respond_query_task_completed(self, request: Any) -> Any:
        await self.answers.put(request)

    async def get_workflow_execution_history(self, request: Any) -> Any:
        self.history_requests += 1
        start = int(request.next_page_token or b"0")
        events = self.stage.history[start : start + self.page_size]
        following = start + self.page_size
        more = following < len(self.stage.history)
        return GetWorkflowExecutionHistoryResponse(
            history=History(events=events), next_page_token=str(following).encode() * more
        )

    async def shutdown_worker(self, request: Any) -> Any:
        self.released.append(request.sticky_task_queue)
        return ShutdownWorkerResponse()


@asynccontextmanager
async def processing(
    stage: Stage, service: FakeService, **extra: Any
) -> AsyncIterator[WorkflowTaskProcessor]:
    processor = WorkflowTaskProcessor(
        service,
        namespace="default",
        task_queue="q",
        identity="me",
        leaving=Leaving(service, namespace="default", task_queue="q", identity="me"),
        workflows=stage.workflows,
        converter=stage.converter,
        pollers=1,
        **extra,
    )
    running = asyncio.create_task(processor.run())
    try:
        yield processor
    finally:
        await processor.shutdown()
        await running


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until a condition holds; the test's own time limit ends it."""
    turn = asyncio.Event()
    while not condition():
        asyncio.get_running_loop().call_soon(turn.set)
        await turn.wait()
        turn.clear()


async def answered(service: FakeService, task: PollWorkflowTaskQueueResponse) -> Any:
    await service.tasks.put(task)
    return service.stage.finish_task(await service.answers.get())


async def test_a_run_goes_on_with_new_events_only() -> None:
    stage = Stage(Sum, 2)
    service = FakeService(stage)
    async with processing(stage, service) as processor:
        answer = await answered(service, stage.begin_task())
        assert answer.sticky_attributes.worker_task_queue.name == processor.sticky_queue
        assert answer.sticky_attributes.worker_task_queue.normal_name == "q"
        stage.complete_activity("1", 10)
        task = stage.begin_task()
        assert task.history.events[0].event_id > 1
        await answered(service, task)
        assert processor.cached_runs == 1
        stage.complete_activity("2", 5)
        await answered(service, stage.begin_task())
        assert processor.cached_runs == 0, "the run has ended"
    assert stage.result == 15
    assert service.history_requests == 0
    assert service.released == [processor.sticky_queue]
    stage.replay()


async def test_without_a_cache_every_task_reads_the_history_in_pages() -> None:
    stage = Stage(Sum, 2)
    service = FakeService(stage, page_size=3)
    async with processing(stage, service, max_cached_runs=0) as processor:
        answer = await answered(service, stage.begin_task())
        assert not answer.HasField("sticky_attributes")
        for number in (1, 2):
            stage.complete_activity(str(number), 10)
            await answered(service, stage.begin_task())
            assert processor.cached_runs == 0
    assert stage.result == 20
    assert service.history_requests > 4
    assert service.released == []


async def test_a_run_that_missed_a_task_is_rebuilt() -> None:
    stage = Stage(Sum, 3)
    service = FakeService(stage)
    async with processing(stage, service):
        await answered(service, stage.begin_task())
        stage.complete_activity("1", 10)
        elsewhere = stage.new_handler()
        task = stage.begin_task(whole=True)
        stage.finish_task(elsewhere.advance(task))
        stage.complete_activity("2", 5)
        await answered(service, stage.begin_task())
        assert service.history_requests == 1
    assert stage.commands == ["schedule_activity_task"]
    stage.replay()


async def test_a_refused_answer_leads_to_a_rebuilt_run() -> None:
    stage = Stage(Sum, 1)
    service = FakeService(stage)
    async with processing(stage, service) as processor:
        service.answer_errors = [NotFound("too late")]
        lost = stage.begin_task()
        await service.tasks.put(lost)
        await until(lambda: not service.answer_errors and not processor.cached_runs)
        stage.event("workflow_task_timed_out")
        await answered(service, stage.begin_task())
    assert stage.commands == ["schedule_activity_task"]
    stage.replay()


async def test_the_cache_is_bounded() -> None:
    stage = Stage(Sum, 2)
    service = FakeService(stage)
    async with processing(stage, service, max_cached_runs=2) as processor:
        for number in range(5):
            task = PollWorkflowTaskQueueResponse()
            task.CopyFrom(stage.begin_task(whole=True))
            task.workflow_execution.run_id = f"run-{number}"
            del stage.history[-2:]
            await service.tasks.put(task)
            await service.answers.get()
        await until(lambda: processor.cached_runs <= 2)
        assert processor.cached_runs == 2


async def test_transient_poll_errors_are_tried_again_and_fatal_ones_end_the_worker() -> None:
    stage = Stage(Sum, 1)
    service = FakeService(stage)
    service.poll_errors = [Unavailable("wait"), Unavailable("wait")]
    async with processing(stage, service):
        await answered(service, stage.begin_task())
    service.poll_errors = [NamespaceNotFound("nowhere")]
    processor = WorkflowTaskProcessor(
        service,
        namespace="nowhere",
        task_queue="q",
        identity="me",
        workflows=stage.workflows,
        converter=stage.converter,
    )
    with pytest.raises(NamespaceNotFound):
        await processor.run()


async def test_a_service_that_is_away_is_told_of_once_for_a_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by every poll, at each attempt."""
    for name in ("runtime.processor._FIRST_BACKOFF_S", "activity_worker._POLL_PAUSE_S"):
        monkeypatch.setattr(f"perdure.sdk.{name}", 0.001)
    failures, may_go_on = Counter[str](), asyncio.Event()

    class Away(FakeService):
        is_remote = True

        async def poll_workflow_task_queue(self, request: Any, **extra: Any) -> Any:
            if not may_go_on.is_set():
                failures[request.task_queue.name] += 1
                raise Unavailable("nobody answers")
            return await super().poll_workflow_task_queue(request, **extra)

        async def poll_activity_task_queue(self, _: Any) -> Any:
            if not may_go_on.is_set():
                failures["activities"] += 1
                raise Unavailable("nobody answers")
            return await asyncio.Event().wait()

        async def describe_namespace(self, _: Any) -> Any:
            raise Unavailable("it is over")

    service = Away(Stage(Sum, 1))
    client = Client(service, retry_for=timedelta(0))
    with caplog.at_level(logging.INFO):
        async with client.worker("q", workflows=[Sum], activities=[work], pollers=3):
            await until(lambda: len(failures) == 3 and min(failures.values()) >= 20)
            may_go_on.set()
            await service.tasks.put(PollWorkflowTaskQueueResponse())
            await until(lambda: len(service.polls) == 2 * 3 + 1)  # one was answered
    told = [record.getMessage() for record in caplog.records if record.name == "perdure.worker"]
    assert [text.partition(": ")[2] for text in told] == [
        "nobody answers",
        "task queue 'q' cannot be polled",  # is over
    ]


def last_started_id(stage: Stage) -> int:
    return max(
        event.event_id
        for event in stage.history
        if event.HasField("workflow_task_started_event_attributes")
    )


async def test_a_query_task_is_answered_from_cache_and_from_history() -> None:
    stage = Stage(Sum, 2)
    service = FakeService(stage)
    async with processing(stage, service):
        await answered(service, stage.begin_task())
        stage.complete_activity("1", 7)
        await answered(service, stage.begin_task())
        for run_id, requests in (("0d0c2a1e-run", 0), ("another", 1)):
            task = PollWorkflowTaskQueueResponse(task_token=b"q")
            task.previous_started_event_id = last_started_id(stage)
            task.workflow_execution.workflow_id = "stage"
            task.workflow_execution.run_id = run_id
            task.workflow_type.name = "Sum"
            task.query.CopyFrom(WorkflowQuery(query_type="so_far"))
            await service.tasks.put(task)
            answer = await service.answers.get()
            assert stage.converter.result(answer.query_result) == 7
            assert service.history_requests == requests


async def test_a_query_sees_what_another_worker_did_meanwhile() -> None:
    stage = Stage(Sum, 2)
    service = FakeService(stage)
    async with processing(stage, service):
        await answered(service, stage.begin_task())
        stage.complete_activity("1", 7)
        following = stage.begin_task()  # for another worker
        following.history.CopyFrom(History(events=stage.history))
        stage.finish_task(stage.handler.advance(following))
        task = PollWorkflowTaskQueueResponse(task_token=b"q")
        task.workflow_execution.workflow_id = "stage"
        task.workflow_execution.run_id = "0d0c2a1e-run"
        task.workflow_type.name = "Sum"
        task.previous_started_event_id = last_started_id(stage)
        task.query.CopyFrom(WorkflowQuery(query_type="so_far"))
        await service.tasks.put(task)
        answer = await service.answers.get()
        assert stage.converter.result(answer.query_result) == 7


# --- before the commit ----------------------------------------------------------------------------


def test_advancing_declines_what_it_cannot_see_whole() -> None:
    stage = Stage(Sum, 2)
    stage.task()
    stage.complete_activity("1", 1)
    stage.handler.cache.clear()
    assert stage.handler.advance(stage.begin_task()) is None


async def test_a_run_that_moved_before_it_was_delivered_is_not_moved_twice() -> None:
    calls: list[int] = []

    @workflow
    async def near() -> int:
        calls.append(1)
        return await work.local(4)

    async def run_local(attempt: LocalAttempt) -> Payloads:
        payloads = Payloads()
        stage.converter.fill(payloads, [9])
        return payloads

    stage = Stage(near, run_local_activity=run_local)
    service = FakeService(stage)
    stage.handler._service = service
    task = stage.begin_task()
    assert stage.handler.advance(task) is None
    await stage.handler.handle(task)
    stage.finish_task(service.answers.get_nowait())
    assert stage.commands == ["record_marker", "complete_workflow_execution"]
    assert stage.result == 9
    assert calls == [1]
    stage.replay()


def test_an_answer_whose_commit_failed_is_forgotten() -> None:
    stage = Stage(Sum, 2)
    stage.task()
    stage.complete_activity("1", 1)
    lost = stage.handler.advance(stage.begin_task())
    assert isinstance(lost, RespondWorkflowTaskCompletedRequest)
    del stage.history[-3:]  # the transaction was rolled back
    stage.complete_activity("1", 8)
    answer = stage.handler.advance(stage.begin_task(whole=True))
    stage.finish_task(answer)
    stage.complete_activity("2", 1)
    stage.task()
    assert stage.result == 9


# --- codecs ---------------------------------------------------------------------------------------


async def test_codecs_see_everything_that_leaves_and_arrives() -> None:
    @workflow
    class Talker:
        def __init__(self) -> None:
            self.text = ""

        @workflow.run
        async def run(self, text: str) -> str:
            await workflow.wait_condition(lambda: bool(self.text))
            return text + self.text

        @workflow.update
        async def say(self, text: str) -> str:
            self.text = text
            return text * 2

    class Secret(ZlibCodec):
        async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
            wrapped = [Payload(metadata={"encoding": b"secret"}) for _ in payloads]
            for target, payload in zip(wrapped, payloads, strict=True):
                target.data = payload.SerializeToString()[::-1]
            return wrapped

        async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
            assert all(p.metadata["encoding"] == b"secret" for p in payloads)
            return [Payload.FromString(p.data[::-1]) for p in payloads]

    from perdure.sdk.codecs import encode_message
    from perdure.sdk.runtime.tasks import _body

    stage = Stage(Talker, "plain text", converter=Converter(codec=Secret()))
    service = FakeService(stage)
    async with processing(stage, service):
        stage.update("u", "say", "hush")
        task = stage.begin_task()
        assert stage.handler.advance(task) is None, "codecs may wait for I/O"
        await encode_message(Secret(), task)
        for message in task.messages:
            body = _body(message)
            assert body is not None
            await encode_message(Secret(), body)
            message.body.Pack(body)
        await service.tasks.put(task)
        answer = await service.answers.get()
    assert isinstance(answer, RespondWorkflowTaskCompletedRequest)
    assert len(answer.commands) == 3
    assert b"hush" not in answer.SerializeToString()
    assert b"plain" not in answer.SerializeToString()


# --- local activities -----------------------------------------------------------------------------


async def _run_local_program(run_local: Any, program: Any) -> tuple[Stage, FakeService]:
    stage = Stage(program, run_local_activity=run_local)
    service = FakeService(stage)
    stage.handler._service = service
    await stage.handler.handle(stage.begin_task())
    while not service.answers.empty():
        answer = service.answers.get_nowait()
        if not answer.force_create_new_workflow_task:  # the service has taken those in itself
            stage.finish_task(answer)
    return stage, service


async def test_local_activities_are_retried_and_leave_one_marker() -> None:
    attempts: list[int] = []

    @workflow
    async def program() -> int:
        policy = RetryPolicy(initial_interval=timedelta(milliseconds=1))
        return await work.options(local=True, retry=policy)(5)

    async def run_local(attempt: LocalAttempt) -> Payloads:
        attempts.append(attempt.attempt)
        if attempt.attempt < 3:
            raise ValueError("not yet")
        payloads = Payloads()
        Converter().fill(payloads, [attempt.attempt])
        return payloads

    stage, _ = await _run_local_program(run_local, program)
    assert attempts == [1, 2, 3]
    assert stage.commands == ["record_marker", "complete_workflow_execution"]
    assert stage.result == 3
    stage.replay()


@pytest.mark.parametrize(
    ("policy", "error", "count"),
    [
        (RetryPolicy(maximum_attempts=1), ValueError("v"), 1),
        (RetryPolicy(), ApplicationError("v", non_retryable=True), 1),
        (RetryPolicy(non_retryable_error_types=[ValueError]), ValueError("v"), 1),
        (
            RetryPolicy(maximum_attempts=2, initial_interval=timedelta(milliseconds=1)),
            ValueError("v"),
            2,
        ),
    ],
)
async def test_a_local_activity_fails_for_good(
    policy: RetryPolicy, error: Exception, count: int
) -> None:
    attempts: list[int] = []

    @workflow
    async def program() -> str:
        try:
            await work.options(local=True, retry=policy)(5)
        except ActivityError as failed:
            return f"{failed.activity_type} {failed.retry_state.name} {failed.cause.message}"  # type: ignore[union-attr]
        return ""

    async def run_local(attempt: LocalAttempt) -> Payloads:
        attempts.append(attempt.attempt)
        raise error

    stage, _ = await _run_local_program(run_local, program)
    assert len(attempts) == count
    name = "MAXIMUM_ATTEMPTS_REACHED" if policy.maximum_attempts else "NON_RETRYABLE_FAILURE"
    assert stage.result == f"work {name} v"
    stage.replay()


async def test_a_long_wait_between_attempts_is_a_durable_timer() -> None:
    @workflow
    async def program() -> int:
        policy = RetryPolicy(initial_interval=timedelta(hours=1))
        return await work.options(local=True, retry=policy)(5)

    async def run_local(attempt: LocalAttempt) -> Payloads:
        if attempt.attempt == 1:
            raise ValueError("not yet")
        payloads = Payloads()
        Converter().fill(payloads, [attempt.attempt])
        return payloads

    stage, service = await _run_local_program(run_local, program)
    assert stage.commands == ["record_marker", "start_timer"]
    stage.fire_timer("1")
    await stage.handler.handle(stage.begin_task())
    stage.finish_task(service.answers.get_nowait())
    assert stage.result == 2
    stage.replay()


async def test_a_long_local_activity_prolongs_the_task() -> None:
    release = asyncio.Event()

    @workflow
    async def program() -> int:
        return await work.options(local=True)(5)

    async def run_local(attempt: LocalAttempt) -> Payloads:
        await release.wait()
        payloads = Payloads()
        Converter().fill(payloads, [6])
        return payloads

    stage = Stage(program, run_local_activity=run_local)
    started = stage.history[0].workflow_execution_started_event_attributes
    started.workflow_task_timeout.FromMilliseconds(20)
    service = FakeService(stage)
    stage.handler._service = service
    handling = asyncio.create_task(stage.handler.handle(stage.begin_task()))
    first = await service.answers.get()
    assert first.force_create_new_workflow_task
    assert not first.commands
    second = await service.answers.get()
    assert second.force_create_new_workflow_task
    release.set()
    answer = await service.answers.get()
    while answer.force_create_new_workflow_task:
        answer = await service.answers.get()
    await handling
    stage.finish_task(answer)
    assert stage.result == 6
    stage.replay()


async def test_a_cancelled_local_activity_is_stopped() -> None:
    stopped: list[str] = []

    @workflow
    async def program() -> str:
        slow = asyncio.create_task(work.local(1))
        await work.local(2)
        slow.cancel()
        try:
            await slow
        except asyncio.CancelledError:
            return "cancelled"
        return ""

    async def run_local(attempt: LocalAttempt) -> Payloads:
        payloads = Payloads()
        if Converter().result(attempt.input) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.append("slow")
        Converter().fill(payloads, [0])
        return payloads

    stage, _ = await _run_local_program(run_local, program)
    assert stage.result == "cancelled"
    assert stopped == ["slow"]
    stage.replay()


async def test_a_worker_without_local_activities_says_so() -> None:
    @workflow
    async def program() -> int:
        return await work.local(5)

    stage = Stage(program)
    service = FakeService(stage)
    stage.handler._service = service
    await stage.handler.handle(stage.begin_task())
    answer = service.answers.get_nowait()
    assert isinstance(answer, RespondWorkflowTaskFailedRequest)
    assert "no local activities" in answer.failure.message
