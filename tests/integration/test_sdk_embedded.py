"""A program as users write it, on a node in this process: client, worker, workflows, activities."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import (
    ActivityCancellationType,
    ActivityError,
    ActivityInterceptor,
    ApplicationError,
    CancelledFailure,
    Client,
    ClientInterceptor,
    Converter,
    FileStorageCodec,
    RetryPolicy,
    SearchAttributeKey,
    TerminatedError,
    WorkflowAlreadyStartedError,
    WorkflowFailedError,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
    WorkflowNotFoundError,
    WorkflowStatus,
    activity,
    workflow,
)

TRIES: dict[str, int] = {}
QUICK = RetryPolicy(initial_interval=timedelta(milliseconds=1))


@dataclass
class Order:
    id: str
    cents: int


class CardDeclined(Exception):
    pass


@activity(retry=QUICK)
async def flaky(key: str, failures: int) -> int:
    TRIES[key] = TRIES.get(key, 0) + 1
    if TRIES[key] <= failures:
        raise ConnectionError("try again")
    return activity.info().attempt


@activity
def in_thread(order: Order) -> Order:
    return replace(order, cents=order.cents + 1)


@activity(retry=replace(QUICK, non_retryable_error_types=[CardDeclined]))
async def declined(card: str) -> None:
    try:
        raise KeyError(card)
    except KeyError as error:
        raise CardDeclined("no money") from error


@activity(retry=replace(QUICK, maximum_attempts=3))
async def resumes() -> list[Any]:
    info = activity.info()
    if info.attempt < 3:
        activity.heartbeat(*info.heartbeat_details, info.attempt)
        raise ValueError
    return list(info.heartbeat_details)


@activity(heartbeat_timeout=timedelta(seconds=1))
async def endless() -> None:
    while True:
        activity.heartbeat()
        await asyncio.sleep(0.01)


@activity
async def by_somebody_else() -> str:
    OUTSIDE.set_result(activity.info().task_token)
    activity.raise_complete_async()


@activity(executor="process")
def squares(numbers: list[int]) -> int:
    return sum(n * n for n in numbers)


OUTSIDE: asyncio.Future[bytes]


@workflow
async def orders(order: Order) -> list[Any]:
    first = await in_thread(order)
    attempts = await flaky(order.id, 2)
    local = await in_thread.local(order)
    many = await asyncio.gather(*[squares([n]) for n in range(3)])
    return [first, attempts, local, many, await resumes()]


@workflow
async def failing(card: str) -> str:
    try:
        await declined(card)
    except ActivityError as error:
        cause: Any = error.cause
        raise ApplicationError(f"{cause.type} because of {cause.cause.type}", 7) from error
    return "paid"


@workflow
async def cancelling(kind: ActivityCancellationType) -> str:
    call = asyncio.create_task(endless.options(cancellation_type=kind)())
    await asyncio.sleep(0.05)
    call.cancel()
    try:
        await call
    except asyncio.CancelledError:
        return "cancelled"
    return "finished"


@workflow
async def waiting() -> str:
    return await by_somebody_else()


@workflow
async def sleeping() -> None:
    await asyncio.sleep(3600)


@workflow
class Counter:
    def __init__(self) -> None:
        self.total = 0

    @workflow.run
    async def run(self, target: int) -> int:
        await workflow.wait_condition(lambda: self.total >= target)
        return self.total

    @workflow.signal
    def add(self, n: int) -> None:
        self.total += n

    @workflow.query
    def now(self) -> int:
        return self.total

    @workflow.update
    async def add_and_get(self, n: int) -> int:
        if n < 0:
            raise ApplicationError("negative", type="Negative")
        self.total += n
        return self.total


WORKFLOWS = [orders, failing, cancelling, waiting, sleeping, Counter]
ACTIVITIES = [
    flaky, in_thread, declined, resumes, endless, by_somebody_else, squares
]  # fmt: skip


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with (
        perdure.connect("memory://") as client,
        client.worker(workflows=WORKFLOWS, activities=ACTIVITIES, max_processes=1),
    ):
        yield client


async def test_activities_of_every_kind(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "perdure.activity")
    order = Order("o-1", 5)
    result = await client.execute(orders, order)
    more = {"id": "o-1", "cents": 6}
    assert result == [more, 3, more, [0, 1, 4], [1, 2]]


async def test_failures_keep_their_chain(client: Client) -> None:
    with pytest.raises(WorkflowFailedError) as caught:
        await client.execute(failing, "card", id="f")
    cause = caught.value.cause
    assert isinstance(cause, ApplicationError)
    assert (cause.message, cause.details) == ("CardDeclined because of KeyError", (7,))
    chain = []
    error: BaseException | None = cause
    while error is not None:
        chain.append(type(error).__name__)
        error = error.__cause__
    assert chain == ["ApplicationError", "ActivityError", "ApplicationError", "ApplicationError"]
    assert 'raise CardDeclined("no money")' in cause.cause.cause.stack_trace  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", list(ActivityCancellationType))
async def test_cancelling_an_activity(client: Client, kind: ActivityCancellationType) -> None:
    assert await client.execute(cancelling, kind) == "cancelled"


async def test_an_activity_is_completed_from_outside(client: Client) -> None:
    global OUTSIDE
    OUTSIDE = asyncio.get_running_loop().create_future()
    handle = await client.start(waiting)
    await client.activity_handle(task_token=await OUTSIDE).complete("done by hand")
    assert await handle.result() == "done by hand"


async def test_signal_query_and_update(client: Client) -> None:
    handle = await client.start(Counter, 10, id="counter")
    await handle.signal(Counter.add, 3)
    assert await handle.query(Counter.now) == 3
    assert await handle.update(Counter.add_and_get, 4) == 7
    with pytest.raises(perdure.UpdateFailedError) as caught:
        await handle.update(Counter.add_and_get, -1)
    assert isinstance(caught.value.cause, ApplicationError)
    with pytest.raises(perdure.QueryFailedError, match="now"):
        await handle.query("nope")
    same = client.handle_of(Counter, "counter")
    await same.signal("add", 3)
    assert await same.result() == 10
    assert await handle.query(Counter.now) == 10  # a closed run answers, too
    with pytest.raises(WorkflowNotFoundError):
        await handle.signal(Counter.add, 1)


async def test_start_policies(client: Client) -> None:
    first = await client.start(sleeping, id="s")
    with pytest.raises(WorkflowAlreadyStartedError) as caught:
        await client.start(sleeping, id="s")
    assert caught.value.run_id == first.first_run_id
    same = await client.start(
        sleeping, id="s", id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING
    )
    assert same.first_run_id == first.first_run_id
    fresh = await client.start(
        sleeping, id="s", id_conflict_policy=WorkflowIDConflictPolicy.TERMINATE_EXISTING
    )
    assert fresh.first_run_id != first.first_run_id
    with pytest.raises(WorkflowFailedError) as ended:
        await first.result()
    assert isinstance(ended.value.cause, TerminatedError)
    await fresh.cancel()
    with pytest.raises(WorkflowFailedError) as ended:
        await fresh.result()
    assert isinstance(ended.value.cause, CancelledFailure)
    with pytest.raises(WorkflowAlreadyStartedError):
        await client.start(sleeping, id="s", id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE)


async def test_a_request_id_makes_a_start_safe_to_repeat(client: Client) -> None:
    first = await client.start(sleeping, id="r", request_id="once")
    again = await client.start(sleeping, id="r", request_id="once")
    assert again.first_run_id == first.first_run_id


async def test_lists_see_what_was_just_written(client: Client) -> None:
    total = SearchAttributeKey.int("CustomIntField")
    handle = await client.start(sleeping, id="l", memo={"note": [1]})
    (run,) = [run async for run in client.list("WorkflowId = 'l'")]
    assert (run.status, run.workflow_type) == (WorkflowStatus.RUNNING, "sleeping")
    assert (run.memo, run.search_attributes.get(total)) == ({"note": [1]}, None)
    assert (await client.count("WorkflowType = 'sleeping'")).count == 1
    await handle.terminate(reason="enough")
    (run,) = [run async for run in client.list("WorkflowId = 'l'")]
    assert run.status is WorkflowStatus.TERMINATED
    with pytest.raises(perdure.RPCError, match="column 5"):
        _ = [run async for run in client.list("Foo Bar 'x'")]


async def test_describing_and_history(client: Client) -> None:
    handle = await client.start(sleeping, id="d", run_timeout=timedelta(hours=2))
    description = await handle.describe()
    assert (description.id, description.status) == ("d", WorkflowStatus.RUNNING)
    assert description.run_timeout == timedelta(hours=2)
    history = await handle.fetch_history()
    assert [event.event_id for event in history.events] == list(range(1, len(history.events) + 1))
    back = perdure.WorkflowHistory.from_json(history.to_json(), "d")
    assert list(back.events) == list(history.events)


async def test_a_reset_runs_on_from_an_event(client: Client) -> None:
    handle = await client.start(Counter, 5)
    await handle.signal(Counter.add, 2)
    assert await handle.query(Counter.now) == 2
    fresh = await handle.reset(to="first", reason="again")
    await client.handle(handle.id).signal(Counter.add, 3)
    assert await fresh.result() == 5


async def test_update_with_start(client: Client) -> None:
    for expected in (1, 2):
        update = await client.update_with_start(
            Counter, 2, id="u", update=Counter.add_and_get, update_args=[1],
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        )  # fmt: skip
        assert await update.result() == expected


async def test_interceptors_and_codec(tmp_path: Path) -> None:
    class Tracing(ClientInterceptor, ActivityInterceptor):
        def __init__(self) -> None:
            self.seen: list[str] = []

        async def start_workflow(self, call: Any, next: Any) -> Any:
            self.seen.append(f"start {call.workflow}")
            return await next(call)

        async def execute_activity(self, call: Any, next: Any) -> Any:
            self.seen.append(f"activity {call.activity.name}")
            return await next(call)

    @activity
    async def echo(text: str) -> str:
        return text

    @workflow
    async def echoing(text: str) -> str:
        return await echo(text)

    tracing = Tracing()
    converter = Converter(codec=FileStorageCodec(tmp_path, threshold_size_bytes=1000))
    async with (
        perdure.connect("memory://", converter=converter, interceptors=[tracing]) as client,
        client.worker(workflows=[echoing], activities=[echo]),
    ):
        handle = await client.start(echoing, "x" * 5_000_000)
        assert await handle.result() == "x" * 5_000_000
        description = await handle.describe()
        assert description.history_size_bytes < 10_000
    assert tracing.seen == ["start echoing", "activity echo"]


async def test_work_goes_on_after_a_worker_was_stopped(tmp_path: Path) -> None:
    runs: list[str] = []

    @activity
    async def step(name: str) -> str:
        runs.append(name)
        return name

    @workflow
    class Steps:
        def __init__(self) -> None:
            self.go_on = False

        @workflow.run
        async def run(self) -> list[str]:
            first = await step("one")
            await workflow.wait_condition(lambda: self.go_on)
            return [first, await step("two")]

        @workflow.signal
        def go(self) -> None:
            self.go_on = True

    target = f"sqlite:///{tmp_path}/steps.db"
    async with (
        perdure.connect(target) as client,
        client.worker(workflows=[Steps], activities=[step]),
    ):
        await client.start(Steps, id="steps")
        while not runs:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    async with perdure.connect(target) as client:
        handle = client.handle_of(Steps, "steps")
        await handle.signal(Steps.go)
        async with client.worker(workflows=[Steps], activities=[step]):
            assert await handle.result() == ["one", "two"]
    assert runs == ["one", "two"]


SCRIPT = """
import perdure
from perdure import activity, workflow

@activity
def add(a: int, b: int) -> int:
    return a + b

@workflow
async def total(numbers: list[int]) -> int:
    sum = 0
    for number in numbers:
        sum = await add(sum, number)
    return sum

if __name__ == "__main__":
    print(perdure.execute(total, [1, 2, 3], id="total"))
"""


def test_a_script_needs_no_event_loop(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("6\n", "")
    assert (tmp_path / "perdure.db").exists()


async def test_execute_says_what_to_do_in_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match=r"await client\.execute"):
        perdure.execute(sleeping)
