"""Running activities: what the service is told, and when."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration
from sdk_fakes import FakeService
from temporalio.api.workflowservice.v1 import RecordActivityTaskHeartbeatResponse

from perdure.api import errors as rpc
from perdure.sdk import leaving
from perdure.sdk.activity import ActivityInfo, CancellationReason, activity
from perdure.sdk.client import Client
from perdure.sdk.codecs import ZlibCodec
from perdure.sdk.converter import Converter
from perdure.sdk.errors import ApplicationError, ErrorCategory
from perdure.sdk.failures import error_from
from perdure.sdk.interceptors import ActivityInterceptor, ExecuteActivity, HeartbeatActivity
from perdure.sdk.options import RetryPolicy
from perdure.sdk.processes import Processes
from perdure.sdk.runtime.local_execution import LocalAttempt
from perdure.sdk.worker import Worker

CONVERTER = Converter()
COMPLETED = "respond_activity_task_completed"
FAILED = "respond_activity_task_failed"
CANCELED = "respond_activity_task_canceled"
HEARTBEAT = "record_activity_task_heartbeat"

CANCEL = RecordActivityTaskHeartbeatResponse(cancel_requested=True)
ONE_SECOND = Duration(seconds=1)


@asynccontextmanager
async def working(
    service: FakeService, *activities: Any, client: Client | None = None, **options: Any
) -> AsyncIterator[Worker]:
    options.setdefault("graceful_shutdown_timeout", timedelta(0))
    options.setdefault("max_concurrent_activities", 4)
    client = client or Client(service, retry_for=timedelta(0))
    async with client.worker(workflows=[], activities=activities, **options) as worker:
        yield worker


def value(request: Any) -> Any:
    return CONVERTER.result(request.result)


def failure(request: Any) -> Any:
    return error_from(request.failure, CONVERTER)


# --- results and failures -------------------------------------------------------------------------


@activity
async def join(a: str, b: int, *, c: str = "-") -> str:
    return f"{a}{b}{c}"


@activity
def thread_of(n: int) -> tuple[int, bool]:
    return n, threading.current_thread() is threading.main_thread()


@pytest.mark.parametrize("remote", [False, True])
async def test_results_are_reported(remote: bool) -> None:
    service = FakeService(remote=remote)
    async with working(service, join, thread_of):
        service.offer("join", "x", 1, "y", token=b"1")
        service.offer("thread_of", 7, token=b"2")
        done = await service.until(COMPLETED, 2)
    assert {request.task_token: value(request) for request in done} == {
        b"1": "x1y",
        b"2": [7, False],
    }


@pytest.mark.parametrize("remote", [False, True])
async def test_no_more_run_than_there_are_slots(remote: bool) -> None:
    running, most, full, release = 0, 0, asyncio.Event(), asyncio.Event()

    @activity
    async def crowd() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        await release.wait()
        running -= 1

    service = FakeService(remote=remote)
    async with working(service, crowd, max_concurrent_activities=3, pollers=2):
        for number in range(9):
            service.offer("crowd", token=bytes([number + 1]))
        await full.wait()
        for _ in range(100):  # a chance for a fourth
            await asyncio.sleep(0)
        release.set()
        await service.until(COMPLETED, 9)
    assert most == 3
    assert service.most_polls_open <= (2 if remote else 3)


async def test_a_failure_keeps_type_message_cause_and_trace() -> None:
    @activity
    def fail() -> None:
        try:
            {}["key"]
        except KeyError as error:
            raise ValueError("bad") from error

    service = FakeService()
    async with working(service, fail):
        service.offer("fail")
        (request,) = await service.until(FAILED)
    error = failure(request)
    assert (error.type, error.message, error.cause.type) == ("ValueError", "bad", "KeyError")
    assert error.stack_trace.startswith("  File")
    assert "perdure/sdk" not in error.stack_trace


async def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    service = FakeService()
    async with working(service, join, thread_of):
        service.offer("jion")
        (request,) = await service.until(FAILED)
    message = "activity 'jion' is not registered with this worker; registered are: join, thread_of"
    assert request.failure.message == message
    assert not request.failure.application_failure_info.non_retryable


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("x", "one"), "join: argument 'b': expected int"),
        (("x",), "join: argument 'b' is missing"),
        (("x", 1, "y", 2), "join: 4 arguments given, it takes 3"),
    ],
)
async def test_arguments_that_do_not_fit_fail_for_good(args: Any, text: str) -> None:
    service = FakeService()
    async with working(service, join):
        service.offer("join", *args)
        (request,) = await service.until(FAILED)
    assert text in request.failure.message
    assert request.failure.application_failure_info.non_retryable


async def test_a_result_of_the_wrong_type_fails_for_good() -> None:
    @activity
    async def wrong() -> int:
        return "text"  # type: ignore[return-value]

    service = FakeService()
    async with working(service, wrong):
        service.offer("wrong")
        (request,) = await service.until(FAILED)
    assert "wrong: result: expected int" in request.failure.message
    assert request.failure.application_failure_info.non_retryable


async def test_a_refused_answer_becomes_a_failure() -> None:
    service = FakeService()
    service.answers[COMPLETED] = rpc.InvalidArgument("result: 3 MB, at most 2 MB")
    async with working(service, join):
        service.offer("join", "x", 1)
        (request,) = await service.until(FAILED)
    assert "result: 3 MB, at most 2 MB" in request.failure.message


async def test_an_answer_that_comes_too_late_is_no_problem() -> None:
    service = FakeService()
    service.answers[COMPLETED] = rpc.NotFound("no such activity")
    async with working(service, join, max_concurrent_activities=1):
        service.offer("join", "x", 1)
        service.offer("join", "x", 2)
        await service.until(COMPLETED, 2)


async def test_completing_from_outside_is_not_answered() -> None:
    tokens = []

    @activity
    async def outside() -> str:
        tokens.append(activity.info().task_token)
        activity.raise_complete_async()

    service = FakeService()
    async with working(service, outside, join, max_concurrent_activities=1):
        service.offer("outside", token=b"token")
        service.offer("join", "x", 1, token=b"2")
        await service.until(COMPLETED)
    assert tokens == [b"token"]
    assert [name for name, _ in service.asked if name.startswith("respond")] == [COMPLETED]


async def test_an_activity_knows_what_it_is() -> None:
    infos: list[ActivityInfo] = []

    @activity
    def know() -> None:
        infos.append(activity.info())

    service = FakeService()
    task = service.offer("know", heartbeat_timeout=ONE_SECOND)
    CONVERTER.fill(task.heartbeat_details, ["half", 2])
    task.retry_policy.CopyFrom(RetryPolicy(maximum_attempts=3).to_message())
    async with working(service, know, task_queue="queue"):
        await service.until(COMPLETED)
    (info,) = infos
    assert (info.activity_type, info.attempt, info.task_queue) == ("know", 1, "queue")
    assert (info.workflow_id, info.workflow_run_id, info.workflow_type) == ("wf", "run", "caller")
    assert info.heartbeat_timeout == timedelta(seconds=1)
    assert info.heartbeat_details == ["half", 2]
    assert info.retry == RetryPolicy(maximum_attempts=3)
    assert not info.is_local


async def test_a_codec_is_applied_on_both_sides() -> None:
    service = FakeService()
    converter = Converter(codec=ZlibCodec(minimum_size_bytes=1))
    task = service.offer("join", "x" * 1000, 1)
    (packed,) = await ZlibCodec(minimum_size_bytes=1).encode([task.input.payloads[0]])
    task.input.payloads[0].CopyFrom(packed)
    async with working(service, join, client=Client(service, converter=converter)):
        (request,) = await service.until(COMPLETED)
    (result,) = request.result.payloads
    assert result.metadata["encoding"] == b"binary/zlib"
    assert CONVERTER.decode((await ZlibCodec().decode([result]))[0]) == "x" * 1000 + "1-"


# --- heartbeats and cancellation ------------------------------------------------------------------


async def test_heartbeats_are_thinned_out_and_the_last_details_kept() -> None:
    @activity
    async def beating() -> None:
        for number in range(1000):
            activity.heartbeat(number)
            await asyncio.sleep(0)
        raise ValueError("after 999")

    service = FakeService()
    async with working(service, beating):
        service.offer("beating", heartbeat_timeout=Duration(seconds=3600))
        (request,) = await service.until(FAILED)
    assert len(service.requests(HEARTBEAT)) == 1
    assert CONVERTER.decode_all(request.last_heartbeat_details) == [999]


async def test_later_details_are_sent_when_the_interval_is_over() -> None:
    @activity
    async def slow() -> None:
        activity.heartbeat("first")
        await asyncio.sleep(0)
        activity.heartbeat("second")
        activity.heartbeat("third")
        await asyncio.Event().wait()

    service = FakeService()
    async with working(service, slow):
        service.offer("slow", heartbeat_timeout=Duration(nanos=100_000_000))
        sent = await service.until(HEARTBEAT, 2)
    assert [CONVERTER.decode_all(request.details) for request in sent[:2]] == [["first"], ["third"]]


async def test_automatic_heartbeats_need_no_call() -> None:
    @activity(auto_heartbeat=True)
    async def quiet() -> None:
        await asyncio.Event().wait()

    service = FakeService()
    async with working(service, quiet):
        service.offer("quiet", heartbeat_timeout=Duration(nanos=50_000_000))
        await service.until(HEARTBEAT, 3)


@activity
async def until_cancelled() -> None:
    while True:
        activity.heartbeat("working")
        await asyncio.sleep(0.005)


@activity
def until_cancelled_in_thread() -> None:
    while True:
        activity.heartbeat("working")
        time.sleep(0.005)


@activity
def waiting_in_thread() -> bool:
    activity.heartbeat("working")
    assert activity.wait_for_cancelled_sync(timedelta(seconds=30))
    with activity.shield():
        activity.heartbeat("cleaning up")
    activity.heartbeat("never sent")
    return True


@pytest.mark.parametrize(
    "function", [until_cancelled, until_cancelled_in_thread, waiting_in_thread]
)
async def test_a_cancellation_comes_with_a_heartbeat(function: Any) -> None:
    service = FakeService()
    service.answers[HEARTBEAT] = CANCEL
    async with working(service, function):
        service.offer(function.name, heartbeat_timeout=ONE_SECOND)
        (request,) = await service.until(CANCELED)
    assert request.task_token == function.name.encode()


async def test_an_activity_may_refuse_to_be_cancelled() -> None:
    reasons = []

    @activity
    async def stubborn() -> str:
        activity.heartbeat()
        try:
            await activity.wait_for_cancelled()
        except asyncio.CancelledError:
            reasons.append(activity.cancellation_reason())
        return "done all the same"

    service = FakeService()
    service.answers[HEARTBEAT] = CANCEL
    async with working(service, stubborn, join, max_concurrent_activities=1):
        service.offer("stubborn")
        service.offer("join", "x", 1)  # the slot must have come through unharmed
        first, second = await service.until(COMPLETED, 2)
    assert (value(first), value(second)) == ("done all the same", "x1-")
    assert reasons == [CancellationReason.CANCEL_REQUESTED]


async def test_what_is_not_wanted_any_more_is_stopped_without_an_answer() -> None:
    service = FakeService()
    service.answers[HEARTBEAT] = rpc.NotFound("gone")
    async with working(service, until_cancelled, join, max_concurrent_activities=1):
        service.offer("until_cancelled")
        service.offer("join", "x", 1)
        await service.until(COMPLETED)
    assert [name for name, _ in service.asked if name.startswith("respond")] == [COMPLETED]


@pytest.mark.parametrize(
    ("answer", "kind"), [("activity_paused", "ActivityPaused"), ("activity_reset", "ActivityReset")]
)
async def test_pause_and_reset_stop_the_attempt(answer: str, kind: str) -> None:
    service = FakeService()
    service.answers[HEARTBEAT] = RecordActivityTaskHeartbeatResponse(**{answer: True})
    async with working(service, until_cancelled):
        service.offer("until_cancelled")
        (request,) = await service.until(FAILED)
    assert failure(request).type == kind


async def test_a_cancellation_that_nobody_asked_for_is_a_failure() -> None:
    @activity
    async def confused() -> None:
        raise asyncio.CancelledError

    service = FakeService()
    async with working(service, confused):
        service.offer("confused")
        (request,) = await service.until(FAILED)
    assert failure(request).type == "CancelledError"


async def test_an_attempt_that_is_overdue_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.sdk.activity_worker._WATCH_INTERVAL_S", 0.01)
    reasons = []

    @activity
    async def late() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            reasons.append(activity.cancellation_reason())

    service = FakeService()
    async with working(service, late, join, max_concurrent_activities=1):
        long_ago = int(time.time()) - 100
        task = service.offer("late", start_to_close_timeout=ONE_SECOND)
        task.started_time.seconds = long_ago
        service.offer("join", "x", 1)
        await service.until(COMPLETED)
    assert reasons == [CancellationReason.TIMED_OUT]


# --- shutting down --------------------------------------------------------------------------------


@pytest.mark.parametrize("remote", [False, True])
async def test_running_activities_may_finish(remote: bool) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()
    seen = []

    @activity
    async def finishing() -> str:
        started.set()
        await go_on.wait()
        seen.append(activity.is_worker_shutting_down())
        return "finished"

    service = FakeService(remote=remote)
    grace = timedelta(seconds=30)
    async with working(service, finishing, graceful_shutdown_timeout=grace) as worker:
        service.offer("finishing")
        await started.wait()
        stopping = asyncio.create_task(worker.shutdown())
        for _ in range(100):  # for the task to begin
            await asyncio.sleep(0)
        assert worker._activity_worker.shutting_down
        service.offer("finishing", token=b"too late")
        go_on.set()
        await stopping
    assert [value(request) for request in service.requests(COMPLETED)] == ["finished"]
    assert seen == [True]
    assert service.polls_open == 0


async def test_a_poller_that_waits_for_a_slot_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leaving, "_ANSWERED_WITHIN_S", 3_600)
    started, go_on = asyncio.Event(), asyncio.Event()

    @activity
    async def occupied() -> None:
        started.set()
        await go_on.wait()

    service = FakeService(remote=True)
    described = service.answers["describe_namespace"]
    described.namespace_info.capabilities.worker_poll_complete_on_shutdown = True
    async with working(service, occupied, max_concurrent_activities=1) as worker:
        service.offer("occupied")
        await started.wait()
        stopping = asyncio.create_task(worker.shutdown())
        await asyncio.sleep(0)
        go_on.set()
        await stopping
    assert len(service.requests("shutdown_worker")) == 1


async def test_what_comes_with_a_workflow_task_answered_during_the_end_is_done() -> None:
    service = FakeService(remote=True)
    options: dict[str, Any] = {"graceful_shutdown_timeout": timedelta(seconds=30)}
    async with working(service, join, max_concurrent_activities=9, **options) as worker:
        slots = worker._activity_worker
        for _ in range(20):  # for the polls to be open
            await asyncio.sleep(0)
        held = slots.reserve(2)
        stopping = asyncio.create_task(worker.shutdown())
        for _ in range(100):  # it would have ended by now
            await asyncio.sleep(0)
        assert service.polls_open == 0
        assert not stopping.done()
        slots.take([service.offer("join", "x", 1)], held)
        await stopping
        assert [value(request) for request in service.requests(COMPLETED)] == ["x1-"]
        assert slots.reserve(2) == 0


@pytest.mark.parametrize("remote", [False, True])
async def test_what_does_not_finish_is_handed_back(
    remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.sdk.activity_worker._FORCED_END_S", 0.05)
    started, released = threading.Event(), threading.Event()

    @activity
    def deaf() -> None:
        started.set()
        released.wait(30)

    service = FakeService(remote=remote)
    async with working(service, deaf, until_cancelled):
        service.offer("deaf")
        service.offer("until_cancelled")
        await service.until(HEARTBEAT)
        assert await asyncio.to_thread(started.wait, 30)
    released.set()
    handed_back = service.requests(FAILED)
    assert {request.task_token for request in handed_back} == {b"deaf", b"until_cancelled"}
    for request in handed_back:
        error = failure(request)
        assert error.type == "WorkerShutdown"
        assert error.next_retry_delay == timedelta(milliseconds=1)
        assert not error.non_retryable


async def test_a_worker_that_may_not_poll_says_so() -> None:
    service = FakeService()

    async def refuse(request: Any) -> Any:
        raise rpc.NamespaceNotFound("nowhere")

    service.poll_activity_task_queue = refuse  # type: ignore[method-assign]
    worker = Client(service).worker(workflows=[], activities=[join])
    with pytest.raises(rpc.NamespaceNotFound):
        await worker.run()
    with pytest.raises(rpc.NamespaceNotFound):
        async with Client(service).worker(workflows=[], activities=[join]):
            await asyncio.Event().wait()


async def test_polling_goes_on_after_transient_errors() -> None:
    service = FakeService()
    answer = service.poll_activity_task_queue
    failures = [rpc.Unavailable("restarting"), rpc.ResourceExhausted("slow down")]

    async def flaky(request: Any) -> Any:
        if failures:
            raise failures.pop()
        return await answer(request)

    service.poll_activity_task_queue = flaky  # type: ignore[method-assign]
    async with working(service, join):
        service.offer("join", "x", 1)
        await service.until(COMPLETED)


# --- child processes ------------------------------------------------------------------------------


@activity(executor="process")
def in_process(n: int) -> tuple[int, str]:
    activity.heartbeat("from the child", n)
    return os.getpid(), activity.info().activity_id


@activity(executor="process")
def failing_in_process() -> None:
    activity.heartbeat("as far as", 7)
    raise ApplicationError("no", 7, type="Refused", category=ErrorCategory.BENIGN)


@activity(executor="process")
def dying_in_process() -> None:
    os._exit(3)


@activity(executor="process")
def endless_in_process() -> None:
    while True:
        activity.heartbeat("still here")
        time.sleep(0.005)


async def test_activities_run_in_child_processes() -> None:
    service = FakeService()
    answers = {b"endless": CANCEL}
    default = service.answers[HEARTBEAT]
    service.answers[HEARTBEAT] = lambda request: answers.get(request.task_token, default)
    functions = [in_process, failing_in_process, endless_in_process]
    async with working(service, *functions, max_processes=1):
        service.offer("in_process", 5, token=b"good")
        (done,) = await service.until(COMPLETED)
        service.offer("failing_in_process", token=b"bad")
        (failed,) = await service.until(FAILED)
        service.offer("endless_in_process", token=b"endless", heartbeat_timeout=ONE_SECOND)
        await service.until(CANCELED)
    child, activity_id = value(done)
    assert child != os.getpid()
    assert activity_id == "1"
    heartbeats = service.requests(HEARTBEAT)
    assert CONVERTER.decode_all(heartbeats[0].details) == ["from the child", 5]
    error = failure(failed)
    assert (error.type, error.details, error.category) == ("Refused", (7,), ErrorCategory.BENIGN)
    assert "raise ApplicationError" in error.stack_trace


async def test_the_last_heartbeat_of_a_child_is_heard_before_its_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = Processes._heard

    def late(self: Processes, number: int, details: bytes | None) -> None:
        asyncio.get_running_loop().call_later(0.05, heard, self, number, details)

    monkeypatch.setattr(Processes, "_heard", late)
    service = FakeService()
    async with working(service, failing_in_process):
        service.offer("failing_in_process")
        (failed,) = await service.until(FAILED)
    assert CONVERTER.decode_all(failed.last_heartbeat_details) == ["as far as", 7]


async def test_a_child_that_dies_fails_its_activity_only() -> None:
    service = FakeService()
    async with working(service, dying_in_process, in_process, max_processes=1):
        service.offer("dying_in_process")
        (failed,) = await service.until(FAILED)
        service.offer("in_process", 1)
        await service.until(COMPLETED)
    assert failure(failed).type == "ChildProcessDied"


async def test_what_does_not_pickle_is_explained() -> None:
    @activity(executor="process")
    def local() -> None: ...

    service = FakeService()
    async with working(service, local):
        service.offer("local")
        (failed,) = await service.until(FAILED)
    assert "local: cannot be sent to a child process" in failure(failed).message


# --- interceptors and local activities ------------------------------------------------------------


class Shouting(ActivityInterceptor):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def execute_activity(self, call: ExecuteActivity, next: Any) -> Any:
        self.heard.append((call.activity.name, dict(call.headers)))
        return await next(replace(call, args=[str(arg).upper() for arg in call.args]))

    def heartbeat(self, call: HeartbeatActivity, next: Any) -> None:
        next(HeartbeatActivity(details=[*call.details, "!"]))


async def test_interceptors_see_and_change_calls() -> None:
    @activity
    async def echo(text: str) -> str:
        activity.heartbeat(text)
        await asyncio.sleep(0)
        return text

    service, shouting = FakeService(), Shouting()
    async with working(service, echo, interceptors=[shouting]):
        task = service.offer("echo", "hello")
        task.header.fields["h"].CopyFrom(CONVERTER.encode("v"))
        (request,) = await service.until(COMPLETED)
        (beat,) = await service.until(HEARTBEAT)
    assert value(request) == "HELLO"
    assert shouting.heard == [("echo", {"h": CONVERTER.encode("v")})]
    assert CONVERTER.decode_all(beat.details) == ["HELLO", "!"]


def local_attempt(name: str, *args: Any) -> LocalAttempt:
    task = FakeService().offer(name, *args)
    return LocalAttempt(
        activity_id="1", activity_type=name, attempt=2, input=task.input, headers={},
        workflow_id="wf", run_id="run", workflow_type="caller", namespace="default",
        task_queue="queue", scheduled_ns=1_000_000_000, start_to_close_timeout=None,
        schedule_to_close_timeout=None, retry=RetryPolicy(),
    )  # fmt: skip


async def test_local_activities_run_without_the_service() -> None:
    @activity
    def where() -> tuple[bool, int]:
        activity.heartbeat("means nothing")
        return activity.info().is_local, activity.info().attempt

    service = FakeService()
    async with working(service, where, join) as worker:
        run_local = worker._activity_worker.run_local
        assert CONVERTER.result(await run_local(local_attempt("where"))) == [True, 2]
        assert CONVERTER.result(await run_local(local_attempt("join", "x", 1))) == "x1-"
        with pytest.raises(Exception, match="registered are: join, where"):
            await run_local(local_attempt("nope"))
        assert {method for method, _ in service.asked} <= {"shutdown_worker"}


ORPHAN = """
import asyncio, sys
sys.path[:0] = {paths!r}
from sdk_fakes import FakeService
from test_sdk_activity_worker import in_process, working

async def main():
    service = FakeService()
    async with working(service, in_process, max_processes=1):
        service.offer("in_process", 1)
        (done,) = await service.until("respond_activity_task_completed")
        print(done.result.payloads[0].data.decode(), flush=True)
        await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks into /proc")
def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(ORPHAN.format(paths=[str(Path(__file__).parent)]))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child, _ = msgspec.json.decode(parent.stdout.readline())
        os.kill(child, 0)  # it is there
        parent.kill()
    for _ in range(3000):
        if not is_running(child):
            return
        time.sleep(0.01)
    pytest.fail(f"child {child} outlived its parent")


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # nobody may be there to bury it
