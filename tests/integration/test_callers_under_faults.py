"""Queries and updates while commits are refused, or done without an answer, and workers vanish."""

from __future__ import annotations

import asyncio
import random

import pytest
from api_stage import COMPLETED, Answers, Stage, finish, names, soon, staged, virtual
from temporalio.api.workflowservice.v1 import PollWorkflowTaskQueueResponse

from perdure.api.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    WorkflowNotReady,
)
from perdure.store.sqlite import SqliteStore
from perdure.testing import virtual_loop
from perdure.testing.faults import Faults, FaultyStore

UPDATES = 12
TASK_TIMEOUT_S = 10  # of workflow tasks and of workers that a query went to
QUERY_TIMEOUT_S = 30


def now() -> float:
    return asyncio.get_running_loop().time()


class Worker:
    """Takes workflow tasks, answers what they carry, and now and then vanishes with one."""

    def __init__(self, stage: Stage, rng: random.Random) -> None:
        self.stage = stage
        self.rng = rng
        self.vanished: list[float] = []  # when
        self.over = False

    async def run(self) -> None:
        while not self.over:
            try:
                task = await self.stage.poll()
            except Unavailable:
                await asyncio.sleep(0.1)
                continue
            if not task.task_token:
                await asyncio.sleep(0.01)
                continue
            if self.rng.random() < 0.1:
                self.vanished.append(now())
                continue
            await asyncio.sleep(self.rng.random() * 0.05)
            try:
                await self.answer(task)
            except (Unavailable, NotFound):
                continue

    async def answer(self, task: PollWorkflowTaskQueueResponse) -> None:
        if task.query.query_type:
            await self.stage.answer_query(task, "direct")
            return
        answers = Answers()
        for message in task.messages:
            if self.rng.random() < 0.2:
                answers.reject(message, "not now")
            else:
                answers.accept(message).complete(message.protocol_instance_id)
        queries = dict.fromkeys(task.queries, "along")
        await self.stage.complete(task, updates=answers, queries=queries)


async def update(stage: Stage, update_id: str, rng: random.Random) -> str:
    """Ask until it is settled, as a client does; 'done' or 'rejected'."""
    await asyncio.sleep(rng.random() * 2)
    while True:
        try:
            answer = await stage.update("a", update_id)
        except (Unavailable, ResourceExhausted):  # at most ten are under way at a time
            await asyncio.sleep(0.05)
            continue
        if answer.stage == COMPLETED:
            return "rejected" if answer.outcome.HasField("failure") else "done"


async def query(stage: Stage, workers: list[Worker], rng: random.Random) -> None:
    await asyncio.sleep(rng.random() * 2)
    while True:
        asked = now()
        try:
            answer = await stage.query("a")
        except Unavailable:
            await asyncio.sleep(0.05)
            continue
        except DeadlineExceeded:  # only workers that vanished one after the other may cause this
            assert _vanished(workers, asked - TASK_TIMEOUT_S) >= QUERY_TIMEOUT_S / TASK_TIMEOUT_S
            continue
        except WorkflowNotReady:  # the workflow task was tried twice
            assert _vanished(workers, since=0) >= 2
            await asyncio.sleep(1)
            continue
        assert answer.query_result.payloads
        return


def _vanished(workers: list[Worker], since: float) -> int:
    return sum(since <= when for worker in workers for when in worker.vanished)


async def signal(stage: Stage, rng: random.Random) -> None:
    await asyncio.sleep(rng.random() * 2)
    try:
        await stage.signal("a")
    except Unavailable:
        pass


async def scenario(seed: int) -> None:
    rng = random.Random(seed)
    disk = SqliteStore(":memory:")
    await disk.open()
    faults = Faults(refused=0.06, unanswered=0.06, delay_s=0.02)
    store = FaultyStore(disk, Faults(), rng)
    async with staged(store, rng=rng) as stage:  # type: ignore[arg-type]
        await stage.start("a")
        workers = [Worker(stage, rng) for _ in range(2)]
        running = [soon(worker.run()) for worker in workers]
        store._faults = faults
        asked = [soon(update(stage, f"u{n}", rng)) for n in range(UPDATES)]
        other = [soon(query(stage, workers, rng)) for _ in range(8)]
        other += [soon(signal(stage, rng)) for _ in range(8)]
        outcomes = await asyncio.wait_for(asyncio.gather(*asked), 600)
        await asyncio.wait_for(asyncio.gather(*other), 600)
        store._faults = Faults()
        for worker in running:
            worker.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.sleep(60)  # tasks that vanished workers held time out
        events = await stage.history("a")
        assert [event.event_id for event in events] == list(range(1, len(events) + 1))
        completed = [
            event.workflow_execution_update_completed_event_attributes.meta.update_id
            for event in events
            if event.HasField("workflow_execution_update_completed_event_attributes")
        ]
        assert len(completed) == len(set(completed)), "an update was done twice"
        done = {f"u{n}" for n, outcome in enumerate(outcomes) if outcome == "done"}
        assert done <= set(completed), "an acknowledged update is not in history"
        assert not stage.node.executions.companions
        await stage.signal("a")
        await stage.complete(await stage.poll(), finish())
        assert names(await stage.history("a"))[-1] == "WorkflowExecutionCompleted"


@pytest.mark.parametrize("seed", [*range(20), 178, 426])  # the last two: three workers in a row
def test_updates_and_queries_are_settled_once(seed: int) -> None:
    virtual_loop.run(scenario(seed))


@virtual
async def test_a_rejection_needs_the_request() -> None:
    """The worker above is a fair one: an answer to an update that nobody asked for is refused."""
    async with staged() as stage:
        await stage.start("a")
        task = await stage.poll()
        with pytest.raises(InvalidArgument):
            await stage.complete(task, updates=Answers().complete("nobody"))
