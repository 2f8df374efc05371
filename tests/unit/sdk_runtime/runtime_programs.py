"""Programs whose histories were recorded on a Temporal server, and are replayed by the tests.

The recorded files hold what these functions did then: changing a program here means recording its
history again, with ``record_histories.py``.
"""

# ruff: noqa: PT017  (these are no tests: workflow code may assert in an `except`)
from __future__ import annotations

import asyncio
import random
import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from perdure.sdk.activity import activity
from perdure.sdk.errors import ActivityError, ApplicationError, ChildWorkflowError
from perdure.sdk.options import ActivityCancellationType, ParentClosePolicy, RetryPolicy
from perdure.sdk.workflow import workflow


@dataclass
class Order:
    id: str
    cents: int


@activity(start_to_close_timeout=timedelta(seconds=10), retry=RetryPolicy(maximum_attempts=1))
async def echo(text: str) -> str:
    return text


@activity(start_to_close_timeout=timedelta(seconds=10), retry=RetryPolicy(maximum_attempts=1))
async def broken(text: str) -> str:
    raise ApplicationError(f"broken {text}", type="Broken", non_retryable=True)


@activity(start_to_close_timeout=timedelta(seconds=60), heartbeat_timeout=timedelta(seconds=2))
async def endless() -> str:
    while True:
        activity.heartbeat()
        await asyncio.sleep(0.1)


@workflow
async def sequence(order: Order, steps: int) -> list[str]:
    results = []
    for number in range(steps):
        results.append(await echo(f"{order.id}-{number}"))
    await asyncio.sleep(0.2)
    return results


@workflow
async def primitives() -> list[str]:
    """Every asyncio primitive that is promised to work."""
    seen: list[str] = []
    tasks = {asyncio.create_task(echo(str(n)), name=f"t{n}") for n in range(5)}
    done, _ = await asyncio.wait(tasks)
    seen += [task.get_name() for task in done]
    for first in asyncio.as_completed([echo(f"c{n}") for n in range(4)]):
        seen.append(await first)
    async with asyncio.TaskGroup() as group:
        grouped = [group.create_task(echo(f"g{n}")) for n in range(3)]
    seen += [task.result() for task in grouped]
    try:
        async with asyncio.timeout(0.2):
            await asyncio.sleep(3600)
    except TimeoutError:
        seen.append("timeout")
    queue: asyncio.Queue[str] = asyncio.Queue(maxsize=1)
    lock, event = asyncio.Lock(), asyncio.Event()

    async def produce() -> None:
        for n in range(3):
            async with lock:
                await queue.put(await echo(f"q{n}"))
        event.set()

    producer = asyncio.create_task(produce())
    for _ in range(3):
        seen.append(await queue.get())
    await asyncio.wait_for(event.wait(), 10)
    await producer
    seen += await workflow.map(echo, [f"m{n}" for n in range(6)], concurrency=2)
    return seen


@workflow
async def failures() -> str:
    try:
        await broken("one")
    except ActivityError as error:
        assert isinstance(error.cause, ApplicationError)
        assert error.cause.type == "Broken"
    outcomes = await asyncio.gather(broken("two"), echo("fine"), return_exceptions=True)
    assert isinstance(outcomes[0], ActivityError)
    assert outcomes[1] == "fine"
    raise ApplicationError("at last", type="AtLast", non_retryable=True)


@workflow
async def cancels() -> list[str]:
    seen: list[str] = []
    for kind in ActivityCancellationType:
        task = asyncio.create_task(endless.options(cancellation_type=kind)())
        await asyncio.sleep(0.3)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            seen.append(kind.name)
    task = asyncio.create_task(asyncio.sleep(3600))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    return seen


@workflow
async def until_cancelled() -> str:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await echo("cleaning up")
        raise
    return "not reached"


@workflow
async def nature() -> list[str]:
    """Time and randomness, which must be the same in a replay."""
    before = [
        str(uuid.uuid4()),
        str(random.random()),
        str(random.randint(1, 10**9)),
        str(time.time_ns()),
        datetime.now().isoformat(),
        str(workflow.uuid4()),
        str(workflow.random("named").random()),
        str(workflow.side_effect(lambda: 42)),
    ]
    await asyncio.sleep(0.1)
    recorded = await echo("|".join(before))
    assert recorded == "|".join(before), (recorded, before)
    if workflow.patched("new-way"):
        await echo("new")
    else:
        await echo("old")
    return before


@workflow
async def child(text: str) -> str:
    if text == "fail":
        raise ApplicationError("child failed", type="Child")
    if text == "wait":
        await asyncio.sleep(3600)
    return await echo(text)


@workflow
async def parent() -> list[str]:
    seen = [await child("a")]
    handle = await child.options(parent_close_policy=ParentClosePolicy.ABANDON).start("b")
    seen.append(await handle)
    try:
        await child("fail")
    except ChildWorkflowError as error:
        assert isinstance(error.cause, ApplicationError)
        seen.append(error.cause.message)
    waiting = await child.start("wait")
    waiting.cancel()
    try:
        await waiting
    except (asyncio.CancelledError, ChildWorkflowError) as error:
        seen.append(type(error).__name__)
    try:
        await workflow.external("no-such-workflow").signal("hello", 1)
    except ApplicationError as error:
        seen.append(str(error.type))
    return seen


@workflow
class Approval:
    def __init__(self) -> None:
        self.decision: str | None = None
        self.notes: list[str] = []
        self.text = ""

    @workflow.run
    async def run(self, document: str) -> str:
        self.text = document
        await workflow.wait_condition(
            lambda: self.decision is not None, timeout=timedelta(seconds=30)
        )
        await workflow.wait_condition(workflow.all_handlers_finished)
        return f"{self.decision}:{self.text}:{','.join(self.notes)}"

    @workflow.signal
    def decide(self, decision: str) -> None:
        self.decision = decision

    @workflow.signal
    async def note(self, text: str) -> None:
        self.notes.append(await echo(text))

    @workflow.query
    def status(self) -> str:
        return self.decision or "open"

    @workflow.update
    async def amend(self, text: str) -> int:
        self.text = await echo(text)
        info = workflow.current_update_info()
        assert info is not None
        assert info.name == "amend"
        return len(text)

    @amend.validator
    def check_amend(self, text: str) -> None:
        if not text:
            raise ValueError("text must not be empty")


@workflow
async def counter(count: int) -> int:
    await asyncio.sleep(0.05)
    if count < 3:
        workflow.continue_as_new(count + 1)
    return count


@workflow
async def quick() -> list[str]:
    """Local activities, one of them longer than a workflow task may take."""
    seen = [await echo.local("near")]
    seen += await asyncio.gather(echo.local("x"), echo.local("y"), echo("far"))
    try:
        await broken.local("z")
    except ActivityError as error:
        assert isinstance(error.cause, ApplicationError)
        seen.append(error.cause.message)
    return seen


@workflow
async def properties() -> str:
    workflow.upsert_memo({"color": "red"})
    await echo("memo")
    assert workflow.info().memo == {"color": "red"}
    return workflow.info().workflow_type


WORKFLOWS = [
    sequence,
    primitives,
    failures,
    cancels,
    until_cancelled,
    nature,
    child,
    parent,
    Approval,
    counter,
    quick,
    properties,
]
ACTIVITIES = [echo, broken, endless]
