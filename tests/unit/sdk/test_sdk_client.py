"""The client's requests, and what it makes of the answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sdk_fakes import FakeService
from temporalio.api.enums.v1 import EventType
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.update.v1 import Outcome
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    CountWorkflowExecutionsResponse,
    ExecuteMultiOperationResponse,
    GetWorkflowExecutionHistoryResponse,
    ListWorkflowExecutionsResponse,
    PollWorkflowExecutionUpdateResponse,
    QueryWorkflowResponse,
    RecordActivityTaskHeartbeatResponse,
    ResetWorkflowExecutionResponse,
    SignalWithStartWorkflowExecutionResponse,
    StartWorkflowExecutionResponse,
    UpdateWorkflowExecutionResponse,
)

from perdure.api import errors as rpc
from perdure.sdk import errors
from perdure.sdk.client import Client
from perdure.sdk.converter import Converter
from perdure.sdk.failures import failure_from
from perdure.sdk.interceptors import ClientInterceptor, StartWorkflow
from perdure.sdk.options import (
    Priority,
    QueryRejectCondition,
    ResetReapply,
    RetryPolicy,
    UpdateWaitStage,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
    WorkflowStatus,
)
from perdure.sdk.search_attributes import SearchAttributeKey, SearchAttributes
from perdure.sdk.workflow import workflow

CONVERTER = Converter()
START = "start_workflow_execution"
HISTORY = "get_workflow_execution_history"
UPDATE = "update_workflow_execution"


@dataclass
class Order:
    id: str
    cents: int


@workflow
async def checkout(order: Order, express: bool = False) -> list[Order]:
    return [order] if express else []


@workflow
class Approval:
    @workflow.run
    async def run(self, document: str) -> str:
        return document

    @workflow.signal
    def decide(self, decision: str) -> None: ...

    @workflow.query
    def status(self, verbose: bool) -> Order:
        raise NotImplementedError

    @workflow.update
    async def amend(self, text: str) -> Order:
        raise NotImplementedError


def make(**answers: Any) -> tuple[FakeService, Client]:
    service = FakeService()
    service.answers[START] = StartWorkflowExecutionResponse(run_id="run-1")
    service.answers.update(answers)
    return service, Client(service, retry_for=timedelta(0), identity="me")


def closing(kind: str, **fields: Any) -> GetWorkflowExecutionHistoryResponse:
    """History's last event."""
    event = HistoryEvent(event_type=EventType.Value(f"EVENT_TYPE_WORKFLOW_EXECUTION_{kind}"))
    attributes = getattr(event, f"workflow_execution_{kind.lower()}_event_attributes")
    attributes.SetInParent()
    for name, value in fields.items():
        if name in ("result", "details"):
            CONVERTER.fill(getattr(attributes, name), [value])
        elif isinstance(value, Failure):
            attributes.failure.CopyFrom(value)
        else:
            setattr(attributes, name, value)
    response = GetWorkflowExecutionHistoryResponse()
    response.history.events.append(event)
    return response


# --- starting -------------------------------------------------------------------------------------


async def test_a_start_says_all_that_was_asked() -> None:
    service, client = make()
    key = SearchAttributeKey.int("Total")
    handle = await client.start(
        checkout,
        Order("o", 5),
        True,
        id="order-1",
        task_queue="shop",
        id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        execution_timeout=timedelta(hours=3),
        run_timeout=timedelta(hours=2),
        task_timeout=timedelta(seconds=5),
        retry=RetryPolicy(maximum_attempts=3),
        start_delay=timedelta(minutes=1),
        memo={"note": [1]},
        search_attributes={key: 7},
        request_id="request",
        priority=Priority(key=2, fairness_key="f", fairness_weight=2.0),
        summary="one line",
        details="several",
    )
    (request,) = service.requests(START)
    assert CONVERTER.decode_all(request.input, [Order, bool]) == [Order("o", 5), True]
    assert (request.workflow_id, request.workflow_type.name) == ("order-1", "checkout")
    assert (request.task_queue.name, request.identity) == ("shop", "me")
    assert (request.workflow_id_reuse_policy, request.workflow_id_conflict_policy) == (3, 2)
    assert request.workflow_execution_timeout.ToTimedelta() == timedelta(hours=3)
    assert request.workflow_run_timeout.ToTimedelta() == timedelta(hours=2)
    assert request.workflow_task_timeout.ToTimedelta() == timedelta(seconds=5)
    assert request.workflow_start_delay.ToTimedelta() == timedelta(minutes=1)
    assert request.retry_policy.maximum_attempts == 3
    assert CONVERTER.decode(request.memo.fields["note"]) == [1]
    assert request.search_attributes.indexed_fields["Total"].metadata["type"] == b"Int"
    assert request.request_id == "request"
    assert (request.priority.priority_key, request.priority.fairness_key) == (2, "f")
    assert CONVERTER.decode(request.user_metadata.summary) == "one line"
    assert CONVERTER.decode(request.user_metadata.details) == "several"
    assert (handle.id, handle.run_id, handle.first_run_id) == ("order-1", None, "run-1")


async def test_ids_and_queue_have_defaults() -> None:
    service, client = make()
    first, second = await client.start("any"), await client.start("any")
    requests = service.requests(START)
    assert first.id != second.id
    assert requests[0].request_id != requests[1].request_id
    assert requests[0].task_queue.name == "default"


@pytest.mark.parametrize(
    ("args", "options", "error", "text"),
    [
        ((Order("o", 5),), {"queue": "q"}, TypeError, "queue: no option of a start"),
        ((Order("o", 5),), {"id": ""}, ValueError, "id: "),
        ((), {}, TypeError, "checkout: missing a required argument: 'order'"),
        ((1, 2, 3), {}, TypeError, "checkout: too many"),
        (("order",), {}, errors.ConversionError, "checkout: argument 'order': expected Order"),
        ((Order("o", "5"),), {}, errors.ConversionError, "argument 'order'"),  # type: ignore[arg-type]
        ((Order("o", 5), 1), {}, errors.ConversionError, "argument 'express': expected bool"),
        ((Order("o", 5),), {"search_attributes": {"T": datetime(2026, 1, 1)}},
         errors.ConversionError, "'T'.* time zone"),
    ],
)  # fmt: skip
async def test_a_mistake_is_named_and_nothing_is_sent(
    args: Any, options: Any, error: type[Exception], text: str
) -> None:
    service, client = make()
    with pytest.raises(error, match=text):
        await client.start(checkout, *args, **options)
    assert service.asked == []


async def test_what_is_no_workflow_is_refused() -> None:
    with pytest.raises(TypeError, match="with @workflow"):
        await make()[1].start(print)  # type: ignore[call-overload]


async def test_an_id_that_is_taken() -> None:
    _, client = make(**{START: rpc.WorkflowAlreadyStarted("taken", "request", "run-0")})
    with pytest.raises(errors.WorkflowAlreadyStartedError) as caught:
        await client.start(checkout, Order("o", 5), id="order-1")
    assert (caught.value.workflow_id, caught.value.run_id) == ("order-1", "run-0")


async def test_a_first_signal() -> None:
    service, client = make(
        signal_with_start_workflow_execution=SignalWithStartWorkflowExecutionResponse(run_id="r")
    )
    await client.start(Approval, "doc", start_signal=Approval.decide, start_signal_args=["yes"])
    (request,) = service.requests("signal_with_start_workflow_execution")
    assert request.signal_name == "decide"
    assert CONVERTER.decode_all(request.signal_input) == ["yes"]
    with pytest.raises(errors.ConversionError, match="signal decide: argument 'decision'"):
        await client.start(Approval, "doc", start_signal=Approval.decide, start_signal_args=[3])


# --- retries --------------------------------------------------------------------------------------


async def test_transient_errors_are_retried_with_the_same_request() -> None:
    service, _ = make()
    outcomes: list[Any] = [rpc.Unavailable("x"), rpc.Aborted("x"), rpc.ResourceExhausted("x")]

    def answer(request: Any) -> Any:
        if outcomes:
            raise outcomes.pop()
        return StartWorkflowExecutionResponse(run_id="run-1")

    service.answers[START] = answer
    sleeps: list[float] = []

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("perdure.sdk.calls.asyncio.sleep", sleep)
        await Client(service).start("any", id="a")
    requests = service.requests(START)
    assert len(requests) == 4
    assert len({request.request_id for request in requests}) == 1
    assert [0.05 <= sleeps[0] <= 0.1, 0.1 <= sleeps[1] <= 0.2, 0.2 <= sleeps[2] <= 0.4] == [
        True
    ] * 3


async def test_a_query_that_the_server_cancels_is_asked_again_and_a_signal_is_not() -> None:
    outcomes: list[Any] = [rpc.Cancelled("context canceled"), QueryWorkflowResponse()]

    def answer(_: Any) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    signal = "signal_workflow_execution"
    service, _ = make(query_workflow=answer, **{signal: rpc.Cancelled("context canceled")})
    client = Client(service)
    await client.handle("w").query("status")
    assert outcomes == []
    with pytest.raises(rpc.Cancelled):
        await client.handle("w").signal("go")
    assert len(service.requests(signal)) == 1


async def test_retries_end() -> None:
    service, client = make(**{START: rpc.Unavailable("down")})
    with pytest.raises(rpc.Unavailable, match="down"):
        await client.start("any")
    assert len(service.requests(START)) == 1


async def test_other_errors_are_not_retried() -> None:
    service, _ = make(**{START: rpc.InvalidArgument("bad")})
    with pytest.raises(rpc.InvalidArgument):
        await Client(service).start("any")
    assert len(service.requests(START)) == 1


# --- results --------------------------------------------------------------------------------------


def in_order(*responses: Any) -> Any:
    left = list(responses)

    def answer(request: Any) -> Any:
        response = left.pop(0)
        if isinstance(response, Exception):
            raise response
        return response

    return answer


async def test_a_result_is_waited_for_and_typed() -> None:
    empty = GetWorkflowExecutionHistoryResponse(next_page_token=b"wait")
    done = closing("COMPLETED", result=[{"id": "o", "cents": 5}])
    answer = in_order(empty, rpc.DeadlineExceeded("poll again"), done)
    service, client = make(**{HISTORY: answer})
    assert await client.execute(checkout, Order("o", 5)) == [Order("o", 5)]
    requests = service.requests(HISTORY)
    assert [request.next_page_token for request in requests] == [b"", b"wait", b"wait"]
    assert requests[0].execution.run_id == "run-1"
    assert requests[0].wait_new_event


async def test_the_chain_of_runs_is_followed() -> None:
    answer = in_order(
        closing("CONTINUED_AS_NEW", new_execution_run_id="2"),
        closing("FAILED", failure=Failure(message="retried"), new_execution_run_id="3"),
        closing("TIMED_OUT", new_execution_run_id="4"),
        closing("COMPLETED", result="old", new_execution_run_id="5"),
        closing("COMPLETED", result="end"),
    )
    service, client = make(**{HISTORY: answer})
    assert await client.handle("w").result() == "end"
    runs = [request.execution.run_id for request in service.requests(HISTORY)]
    assert runs == ["", "2", "3", "4", "5"]


async def test_the_chain_is_not_followed_if_not_wanted() -> None:
    _, client = make(**{HISTORY: closing("CONTINUED_AS_NEW", new_execution_run_id="2")})
    with pytest.raises(errors.WorkflowContinuedAsNewError) as caught:
        await client.handle("w").result(follow_runs=False)
    assert caught.value.new_run_id == "2"


FAILURE = failure_from(errors.ApplicationError("no money", type="CardDeclined"), CONVERTER)


@pytest.mark.parametrize(
    ("response", "kind", "text"),
    [
        (closing("FAILED", failure=FAILURE), errors.ApplicationError, "failed: CardDeclined: no m"),
        (closing("CANCELED", details="why"), errors.CancelledFailure, "was cancelled"),
        (closing("TERMINATED", reason="bye"), errors.TerminatedError, "was terminated: bye"),
        (closing("TIMED_OUT"), errors.TimeoutError, "timed out"),
    ],
)
async def test_an_end_without_result_is_raised_with_its_cause(
    response: Any, kind: type[BaseException], text: str
) -> None:
    _, client = make(**{HISTORY: response})
    with pytest.raises(errors.WorkflowFailedError, match=f"Workflow w {text}") as caught:
        await client.handle("w").result()
    assert type(caught.value.cause) is kind


async def test_a_workflow_that_is_not_there() -> None:
    _, client = make(
        **{HISTORY: rpc.NotFound("no"), "signal_workflow_execution": rpc.NotFound("no"),
           "describe_workflow_execution": rpc.NamespaceNotFound("n")}
    )  # fmt: skip
    with pytest.raises(errors.WorkflowNotFoundError, match="w: no"):
        await client.handle("w").result()
    with pytest.raises(errors.WorkflowNotFoundError):
        await client.handle("w").signal("s")
    with pytest.raises(rpc.NamespaceNotFound):
        await client.handle("w").describe()


# --- signal, query, update ------------------------------------------------------------------------


async def test_signals() -> None:
    service, client = make()
    handle = client.handle("w", run_id="r")
    await handle.signal(Approval.decide, "yes")
    await handle.signal("other", 1, 2)
    first, second = service.requests("signal_workflow_execution")
    assert (first.signal_name, CONVERTER.decode_all(first.input)) == ("decide", ["yes"])
    assert (second.signal_name, CONVERTER.decode_all(second.input)) == ("other", [1, 2])
    assert first.workflow_execution.run_id == "r"
    with pytest.raises(errors.ConversionError, match="signal decide: argument 'decision'"):
        await handle.signal(Approval.decide, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"@workflow\.signal"):
        await handle.signal(Approval.status, "x")  # type: ignore[arg-type]


async def test_queries() -> None:
    response = QueryWorkflowResponse()
    CONVERTER.fill(response.query_result, [{"id": "o", "cents": 5}])
    service, client = make(query_workflow=response)
    handle = client.handle("w")
    assert await handle.query(Approval.status, True) == Order("o", 5)
    assert await handle.query("status", True) == {"id": "o", "cents": 5}
    assert await handle.query("status", result_type=Order) == Order("o", 5)
    await handle.query("status", reject=QueryRejectCondition.NOT_OPEN)
    requests = service.requests("query_workflow")
    assert [request.query_reject_condition for request in requests] == [0, 0, 0, 2]
    service.answers["query_workflow"] = rpc.QueryFailed("unknown", FAILURE)
    with pytest.raises(errors.QueryFailedError, match="unknown") as caught:
        await handle.query("status")
    assert isinstance(caught.value.cause, errors.ApplicationError)
    rejected = QueryWorkflowResponse()
    rejected.query_rejected.status = 2  # type: ignore[assignment]
    service.answers["query_workflow"] = rejected
    with pytest.raises(errors.QueryRejectedError, match="COMPLETED"):
        await handle.query("status")


def update_response(stage: int, **outcome: Any) -> UpdateWorkflowExecutionResponse:
    response = UpdateWorkflowExecutionResponse(stage=stage)  # type: ignore[arg-type]
    response.update_ref.workflow_execution.run_id = "r"
    response.update_ref.update_id = "u"
    fill_outcome(response, **outcome)
    return response


def fill_outcome(response: Any, *, success: Any = None, failure: Failure | None = None) -> None:
    outcome: Outcome = response.outcome
    if success is not None:
        CONVERTER.fill(outcome.success, [success])
    if failure is not None:
        outcome.failure.CopyFrom(failure)


async def test_an_update_that_is_over_at_once() -> None:
    order = {"id": "o", "cents": 5}
    service, client = make(**{UPDATE: update_response(3, success=order)})
    assert await client.handle("w").update(Approval.amend, "text", id="u") == Order("o", 5)
    (request,) = service.requests(UPDATE)
    assert request.request.meta.update_id == "u"
    assert request.request.input.name == "amend"
    assert service.requests("poll_workflow_execution_update") == []


async def test_an_update_is_asked_for_until_it_is_over() -> None:
    done = PollWorkflowExecutionUpdateResponse()
    fill_outcome(done, success={"id": "o", "cents": 5})
    poll = in_order(PollWorkflowExecutionUpdateResponse(), rpc.DeadlineExceeded("again"), done)
    service, client = make(
        **{UPDATE: in_order(update_response(1), rpc.DeadlineExceeded("x"), update_response(2)),
           "poll_workflow_execution_update": poll}
    )  # fmt: skip
    handle = await client.handle("w").start_update(Approval.amend, "text")
    assert await handle.result() == Order("o", 5)
    requests = service.requests(UPDATE)
    assert len({request.request.meta.update_id for request in requests}) == 1
    assert len(service.requests("poll_workflow_execution_update")) == 3
    assert service.requests("poll_workflow_execution_update")[0].update_ref.update_id == "u"


async def test_a_rejected_update() -> None:
    _, client = make(**{UPDATE: update_response(3, failure=FAILURE)})
    handle = await client.handle("w").start_update("amend", wait_stage=UpdateWaitStage.COMPLETED)
    with pytest.raises(errors.UpdateFailedError, match="no money") as caught:
        await handle.result()
    assert isinstance(caught.value.cause, errors.ApplicationError)
    with pytest.raises(ValueError, match="wait_stage"):
        await client.handle("w").start_update("amend", wait_stage=UpdateWaitStage.ADMITTED)


async def test_update_with_start() -> None:
    response = ExecuteMultiOperationResponse()
    response.responses.add().start_workflow.run_id = "r"
    response.responses.add().update_workflow.CopyFrom(
        update_response(3, success={"id": "o", "cents": 5})
    )
    service, client = make(execute_multi_operation=response)
    handle = await client.update_with_start(
        Approval, "doc", id="w", update=Approval.amend, update_args=["t"],
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
    )  # fmt: skip
    assert await handle.result() == Order("o", 5)
    (request,) = service.requests("execute_multi_operation")
    start, update = request.operations
    assert start.start_workflow.workflow_id == "w"
    assert update.update_workflow.workflow_execution.workflow_id == "w"
    with pytest.raises(ValueError, match="id_conflict_policy"):
        await client.update_with_start(Approval, "doc", update="amend")


# --- ending and looking ---------------------------------------------------------------------------


async def test_cancel_and_terminate_reach_the_chain_that_was_started() -> None:
    service, client = make(
        request_cancel_workflow_execution=rpc.CancellationAlreadyRequested("twice")
    )
    handle = await client.start(checkout, Order("o", 5), id="w")
    await handle.cancel(reason="because")
    await handle.terminate("detail", reason="bye")
    (cancel,) = service.requests("request_cancel_workflow_execution")
    (terminate,) = service.requests("terminate_workflow_execution")
    assert (cancel.first_execution_run_id, cancel.reason) == ("run-1", "because")
    assert (terminate.first_execution_run_id, terminate.reason) == ("run-1", "bye")
    assert CONVERTER.decode_all(terminate.details) == ["detail"]


async def test_reset_finds_its_event() -> None:
    events = [EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED] * 2
    history = GetWorkflowExecutionHistoryResponse()
    for number, kind in enumerate(events):
        history.history.events.add(event_id=4 + number, event_type=kind)
    reset = ResetWorkflowExecutionResponse(run_id="fresh")
    service, client = make(**{HISTORY: history, "reset_workflow_execution": reset})
    handle = client.handle("w")
    assert (await handle.reset(to="first")).run_id == "fresh"
    await handle.reset(to="last", reapply=ResetReapply.NONE)
    await handle.reset(to=9)
    requests = service.requests("reset_workflow_execution")
    assert [request.workflow_task_finish_event_id for request in requests] == [4, 5, 9]
    assert [request.reset_reapply_type for request in requests] == [3, 2, 3]
    service.answers[HISTORY] = GetWorkflowExecutionHistoryResponse()
    with pytest.raises(ValueError, match="completed no workflow task"):
        await handle.reset(to="last")


def info(number: int) -> WorkflowExecutionInfo:
    message = WorkflowExecutionInfo(status=1)  # type: ignore[arg-type]
    message.execution.workflow_id = f"w{number}"
    message.type.name = "checkout"
    message.start_time.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
    message.memo.fields["note"].CopyFrom(CONVERTER.encode([number]))
    SearchAttributes({"Total": number}).fill(message.search_attributes)
    return message


async def test_listing_goes_through_the_pages() -> None:
    pages = {
        b"": ListWorkflowExecutionsResponse(executions=[info(1), info(2)], next_page_token=b"2"),
        b"2": ListWorkflowExecutionsResponse(executions=[info(3)]),
    }
    service, client = make(list_workflow_executions=lambda r: pages[r.next_page_token])
    found = [run async for run in client.list("WorkflowType = 'checkout'")]
    assert [run.id for run in found] == ["w1", "w2", "w3"]
    run = found[2]
    assert (run.status, run.memo, run.close_time) == (WorkflowStatus.RUNNING, {"note": [3]}, None)
    assert run.search_attributes.get(SearchAttributeKey.int("Total")) == 3
    assert run.start_time == datetime(2026, 1, 1, tzinfo=UTC)
    assert service.requests("list_workflow_executions")[0].query == "WorkflowType = 'checkout'"
    assert [run.id async for run in client.list(limit=2)] == ["w1", "w2"]
    assert service.requests("list_workflow_executions")[-1].page_size == 2


async def test_counting_by_group() -> None:
    response = CountWorkflowExecutionsResponse(count=3)
    group = response.groups.add(count=3)
    group.group_values.append(CONVERTER.encode("Running"))
    _, client = make(count_workflow_executions=response)
    count = await client.count("GROUP BY ExecutionStatus")
    assert (count.count, count.groups[0].values, count.groups[0].count) == (3, ["Running"], 3)


# --- interceptors and activities ------------------------------------------------------------------


async def test_interceptors_are_nested_in_their_order() -> None:
    class Adding(ClientInterceptor):
        def __init__(self, name: str) -> None:
            self.name = name

        async def start_workflow(self, call: StartWorkflow, next: Any) -> Any:
            headers = {**call.headers, self.name: CONVERTER.encode(list(call.headers))}
            return await next(replace(call, headers=headers))

    service, _ = make()
    client = Client(service, interceptors=[Adding("outer"), Adding("inner")])
    await client.start("any")
    (request,) = service.requests(START)
    headers = {name: CONVERTER.decode(value) for name, value in request.header.fields.items()}
    assert headers == {"outer": [], "inner": ["outer"]}


async def test_completing_an_activity_from_outside() -> None:
    service, client = make()
    by_token = client.activity_handle(task_token=b"t")
    await by_token.complete({"a": 1})
    await by_token.fail(ValueError("no"), "half")
    await by_token.report_cancelled("why")
    await by_token.heartbeat("alive")
    by_id = client.activity_handle(workflow_id="w", activity_id="1")
    await by_id.complete()
    methods = [name for name, _ in service.asked]
    assert methods == [
        "respond_activity_task_completed", "respond_activity_task_failed",
        "respond_activity_task_canceled", "record_activity_task_heartbeat",
        "respond_activity_task_completed_by_id",
    ]  # fmt: skip
    assert service.asked[0][1].task_token == b"t"
    assert service.asked[4][1].workflow_id == "w"
    service.answers["record_activity_task_heartbeat"] = RecordActivityTaskHeartbeatResponse(
        cancel_requested=True
    )
    with pytest.raises(errors.ActivityCancelledError):
        await by_token.heartbeat()
    service.answers["respond_activity_task_completed"] = rpc.NotFound("gone")
    with pytest.raises(errors.ActivityNotFoundError, match="gone"):
        await by_token.complete()


@pytest.mark.parametrize(
    "given",
    [{}, {"task_token": b"t", "workflow_id": "w", "activity_id": "1"}, {"workflow_id": "w"}],
)
def test_an_activity_is_named_in_one_way(given: Any) -> None:
    with pytest.raises(ValueError, match="task_token"):
        make()[1].activity_handle(**given)


async def test_a_worker_needs_something_to_do() -> None:
    _, client = make()
    with pytest.raises(ValueError, match="nothing is defined"):
        client.worker(workflows=[], activities=[])
    with pytest.raises(ValueError, match="max_concurrent_activities: 1 or more"):
        client.worker(workflows=[checkout], activities=[], max_concurrent_activities=0)
    with pytest.raises(TypeError, match="put @workflow on it"):
        client.worker(workflows=[print], activities=[])
    worker = client.worker(workflows=[checkout, Approval], activities=[])
    assert set(worker.workflows) == {"checkout", "Approval"}


async def test_a_worker_stops_when_its_runner_is_cancelled() -> None:
    _, client = make()
    worker = client.worker(workflows=[checkout], activities=[])
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(RuntimeError, match="only once"):
        await worker.run()
