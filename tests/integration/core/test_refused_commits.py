"""A change that the database can never hold: refused to its caller, and nobody else's business."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from harness import Harness, complete_command, execution, payloads, settle
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest

from perdure.api.errors import InvalidArgument, NotFound, Unavailable
from perdure.engine.limits import Limits
from perdure.service.settings import Settings
from perdure.store.contract import Store, StoreRefused, StoreUnavailable, Unit
from perdure.store.postgres import PostgresStore

POISON = "poison"


class Choosy:
    """A store that can never hold a certain word.

    Attributes:
        gate: commits wait for it.
        commits: how many units each commit had.
        failing, unanswered: the numbers of those that fail, before or after they are written.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.gate = asyncio.Event()
        self.gate.set()
        self.commits: list[int] = []
        self.failing: set[int] = set()
        self.unanswered: set[int] = set()

    async def commit(self, units: Sequence[Unit]) -> list[int]:
        await self.gate.wait()
        number = len(self.commits)
        self.commits.append(len(units))
        if number in self.failing:
            raise StoreUnavailable("the disk is full")
        if any(POISON.encode() in write.events for unit in units for write in unit):
            raise StoreRefused("no place for poison")
        conflicts = await self.inner.commit(units)
        if number in self.unanswered:
            raise StoreUnavailable("the answer was lost")
        return conflicts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.fixture
async def node(make_store: Callable[[], Store]) -> AsyncIterator[Harness]:
    harness = await Harness(lambda: Choosy(make_store())).open()  # type: ignore[arg-type,return-value]
    yield harness
    await harness.close()


def store_of(node: Harness) -> Choosy:
    assert isinstance(node.store, Choosy)
    return node.store


def signal(node: Harness, name: str, workflow_id: str = "wf") -> asyncio.Future[Any]:
    request = SignalWorkflowExecutionRequest(
        namespace="default", workflow_execution=execution(workflow_id), signal_name=name
    )
    request.input.CopyFrom(payloads(name))
    return asyncio.ensure_future(node.service.signal_workflow_execution(request))


async def together(node: Harness, *names: str) -> list[Any]:
    """What becomes of starts that share a commit: the run id, or the error."""
    store = store_of(node)
    store.gate.clear()
    first = asyncio.ensure_future(node.start("first"))
    await settle()  # its commit is under way
    rest = [asyncio.ensure_future(node.start(name)) for name in names]
    await settle()
    store.commits.clear()
    store.gate.set()
    outcomes = await asyncio.gather(first, *rest, return_exceptions=True)
    assert store.commits[:2] == [1, len(names)]
    return outcomes[1:]


@pytest.mark.parametrize("place", range(7))
async def test_only_the_guilty_is_refused(node: Harness, place: int) -> None:
    names = [f"wf-{n}" for n in range(7)]
    names[place] = POISON
    outcomes = await together(node, *names)
    error = outcomes.pop(place)
    assert isinstance(error, InvalidArgument)
    assert error.message == "It cannot be stored: no place for poison"
    assert all(outcome.run_id for outcome in outcomes)
    with pytest.raises(NotFound):
        await node.events(POISON)
    names.remove(POISON)
    for name in names:
        assert await node.events(name) == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]
    taken = {(await node.take()).workflow_execution.workflow_id for _ in range(7)}
    assert taken == {"first", *names}


async def test_several_guilty_ones(node: Harness) -> None:
    names = ["a", f"{POISON}-1", "b", f"{POISON}-2", f"{POISON}-3"]
    outcomes = await together(node, *names)
    refused = [isinstance(outcome, InvalidArgument) for outcome in outcomes]
    assert refused == [name.startswith(POISON) for name in names]


async def test_the_guilty_is_found_by_halves(node: Harness) -> None:
    await together(node, POISON, *(f"wf-{n}" for n in range(63)))
    assert store_of(node).commits == [1, 64, 32, 16, 8, 4, 2, 1, 1, 2, 4, 8, 16, 32]


async def test_a_database_that_goes_away_meanwhile(node: Harness) -> None:
    store_of(node).failing = {4}  # the second half of the first half, after [first, all, half]
    outcomes = await together(node, POISON, "a", "b", "c", "d", "e", "f", "g")
    assert store_of(node).commits == [1, 8, 4, 2, 1]
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 8
    for name in ("a", "g"):
        assert (await node.start(name)).started


async def test_what_was_written_before_it_went_away_counts(node: Harness) -> None:
    store_of(node).unanswered = {3}
    outcomes = await together(node, "a", "b", "c", POISON)
    assert store_of(node).commits == [1, 4, 2, 2, 1, 1]
    assert [bool(getattr(outcome, "run_id", "")) for outcome in outcomes] == [True] * 3 + [False]


async def test_a_run_is_as_it_was(node: Harness) -> None:
    await node.start()
    with pytest.raises(InvalidArgument, match="no place for poison"):
        await signal(node, POISON)
    await signal(node, "good")
    await node.complete(await node.take(), complete_command())
    assert (await node.events()).count("WorkflowExecutionSignaled") == 1


async def test_who_shares_a_change_with_the_guilty_may_try_again(node: Harness) -> None:
    await node.start()
    store = store_of(node)
    store.gate.clear()
    first = signal(node, "first")
    await settle()
    calls = [signal(node, name) for name in ("good", POISON)]
    await settle()
    store.gate.set()
    await first
    for call in calls:
        with pytest.raises(Unavailable, match="or another call's at the same time"):
            await call
    await signal(node, "good")
    with pytest.raises(InvalidArgument, match="no place for poison"):
        await signal(node, POISON)


async def test_who_only_looks_is_not_refused(node: Harness) -> None:
    await node.start()
    key = await node.node.executions.resolve("default", "wf")
    store = store_of(node)
    store.gate.clear()
    call = signal(node, POISON)
    await settle()
    looks = asyncio.ensure_future(node.node.executions.read(key))
    start = asyncio.ensure_future(node.start(POISON))
    await settle()
    found = asyncio.ensure_future(node.node.executions.resolve("default", POISON))
    await settle()
    store.gate.set()
    assert (await looks).run.state.signal_count == 0
    for refused in (call, start):
        with pytest.raises(InvalidArgument):
            await refused
    with pytest.raises(NotFound):
        await found


async def test_what_no_index_of_postgresql_can_hold(postgres_dsn: str) -> None:
    """As when a check of the limits has a gap."""
    settings = Settings(limits=Limits(id_bytes_max=10_000))
    node = await Harness(lambda: PostgresStore(postgres_dsn), settings).open()
    wide = "".join(map(chr, random.Random(1).choices(range(0x4E00, 0x9FFF), k=1_300)))
    names = ["a", "b", wide, "c"]
    outcomes = await asyncio.gather(*map(node.start, names), return_exceptions=True)
    refused = outcomes.pop(2)
    assert isinstance(refused, InvalidArgument)
    assert "index row size" in refused.message
    assert all(getattr(outcome, "run_id", "") for outcome in outcomes), outcomes
    await node.close()
