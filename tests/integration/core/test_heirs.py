"""A node goes on with what another one left, and gives signs of life meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from harness import Harness, activity_command, event_name, settle
from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.workflowservice.v1 import (
    QueryWorkflowRequest,
    RespondQueryTaskCompletedRequest,
)

from perdure.api.errors import Unavailable
from perdure.service.queries import ANSWERED
from perdure.service.settings import Settings
from perdure.store.contract import StoreUnavailable
from perdure.store.postgres import PostgresStore
from perdure.store.postgres.leases import SECOND_NS, SILENT_NODE_LIVES_NS
from perdure.store.postgres.sharing import PostgresSharing

WITHIN_S = 20


@pytest.fixture
async def two(postgres_dsn: str) -> AsyncIterator[tuple[Harness, Harness]]:
    first = await Harness(lambda: PostgresStore(postgres_dsn)).open()
    second = await Harness(lambda: PostgresStore(postgres_dsn)).open()
    await beat(first)
    for node in (first, second):  # they see the database for long enough to say who is dead
        node.store._sharing._judges_ns = 0, 1 << 62  # type: ignore[attr-defined]
    yield first, second
    await second.close()
    await first.close()


@pytest.fixture
def looks_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_AGAIN_S", "_AGAIN_MAX_S"):
        monkeypatch.setattr(f"perdure.service.heir.{name}", 0.1)


@pytest.fixture
async def look(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_dsn)
    yield connection
    await connection.close()


async def beat(node: Harness) -> None:
    assert node.node.neighbours is not None
    await node.node.neighbours._beat()


async def hold(node: Harness, *workflow_ids: str) -> None:
    """Have the node's own workers begin an activity of some workflows."""
    for workflow_id in workflow_ids:
        await node.start(workflow_id)
        await node.complete(await node.take(), activity_command("a"))
        await node.take_activity()


async def die(node: Harness, look: asyncpg.Connection) -> None:
    """Be silent for long, as others see it."""
    assert node.node.neighbours is not None
    await node.node.neighbours._background.close()
    node.store.sharing.listener = lambda _: None  # type: ignore[union-attr]
    silent_ns = SILENT_NODE_LIVES_NS + SECOND_NS
    await look.execute(
        f"UPDATE perdure.nodes SET seen_ns = seen_ns - {silent_ns} WHERE id = {node.store.node}"
    )


async def buried(node: Harness, look: asyncpg.Connection) -> None:
    number = node.store.node
    while await look.fetchval("SELECT 1 FROM perdure.nodes WHERE id = $1", number):  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def test_a_run_that_cannot_be_read_keeps_no_other_from_being_taken_over(
    two: tuple[Harness, Harness], postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    heir, dead = two
    await hold(dead, "bad", "good")
    look = await asyncpg.connect(postgres_dsn)
    try:
        bad = await dead.node.executions.resolve("default", "bad")
        await look.execute("UPDATE perdure.states SET state = '\\x00' WHERE key = $1", bad)
        await die(dead, look)
        await beat(heir)
        async with asyncio.timeout(WITHIN_S):
            assert (await heir.poll_activity()).workflow_execution.workflow_id == "good"
            await buried(dead, look)
    finally:
        await look.close()
    assert f"run {bad} cannot be offered again" in caplog.text


async def test_a_node_starts_although_a_run_cannot_be_read(
    two: tuple[Harness, Harness], postgres_dsn: str
) -> None:
    _, dead = two
    await hold(dead, "bad")
    look = await asyncpg.connect(postgres_dsn)
    try:
        await look.execute("UPDATE perdure.states SET state = '\\x00'")
        await die(dead, look)
    finally:
        await look.close()
    third = await Harness(lambda: PostgresStore(postgres_dsn)).open()
    await third.start("other")
    await third.close()


async def test_signs_of_life_go_on_while_a_node_takes_over(
    two: tuple[Harness, Harness], postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heir, dead = two
    await hold(dead, "wf")
    sharing = heir.store.sharing
    assert sharing is not None
    may_go_on, usual = asyncio.Event(), sharing.orphans

    async def slow(*arguments: Any) -> Any:
        await may_go_on.wait()
        return await usual(*arguments)

    monkeypatch.setattr(sharing, "orphans", slow)
    look = await asyncpg.connect(postgres_dsn)
    try:
        await die(dead, look)
    finally:
        await look.close()
    async with asyncio.timeout(WITHIN_S):
        for _ in range(3):
            await beat(heir)
    await settle()
    poll = heir.poll_activity()
    await settle()
    assert not poll.done()
    may_go_on.set()
    assert (await asyncio.wait_for(poll, WITHIN_S)).workflow_execution.workflow_id == "wf"


async def test_a_take_over_that_fails_is_made_again_from_where_it_was(
    two: tuple[Harness, Harness], postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.store.postgres.sharing._ORPHANS_AT_ONCE", 1)
    heir, dead = two
    await hold(dead, "a", "b")
    sharing = heir.store.sharing
    assert sharing is not None
    usual, asked = sharing.orphans, []

    async def failing(after: tuple[str, str] = ("", "")) -> Any:
        asked.append(after[1])
        if asked == ["", "a"]:
            raise StoreUnavailable("gone")
        return await usual(after)

    monkeypatch.setattr(sharing, "orphans", failing)
    look = await asyncpg.connect(postgres_dsn)
    try:
        await die(dead, look)
    finally:
        await look.close()
    await beat(heir)
    polls = [heir.poll_activity() for _ in range(2)]
    async with asyncio.timeout(WITHIN_S):
        while len(asked) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await heir.clock.advance(1)
        found = await asyncio.gather(*polls)
    assert sorted(task.workflow_execution.workflow_id for task in found) == ["a", "b"]
    assert asked[:3] == ["", "a", "a"]


@pytest.mark.usefixtures("looks_again_soon")
async def test_what_a_node_commits_after_its_burial_is_taken_over_when_it_is_found(
    two: tuple[Harness, Harness], look: asyncpg.Connection
) -> None:
    """As one does whose last commit was late, or that is silent though it goes on."""
    heir, dead = two
    await die(dead, look)
    await beat(heir)
    await buried(dead, look)
    await hold(dead, "late")
    async with asyncio.timeout(WITHIN_S):
        assert (await heir.poll_activity()).workflow_execution.workflow_id == "late"


async def test_who_comes_while_a_node_takes_over_keeps_what_it_holds(
    two: tuple[Harness, Harness],
    postgres_dsn: str,
    look: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heir, dead = two
    await dead.start("wf")
    await dead.complete(await dead.take(), activity_command("a"), activity_command("b"))
    first = await dead.take_activity()
    newcomer = Harness(lambda: PostgresStore(postgres_dsn))
    sharing = heir.store.sharing
    assert sharing is not None
    usual, held = sharing.orphans, []

    async def slow(*arguments: Any) -> Any:
        page = await usual(*arguments)
        if page.keys and not held:
            await newcomer.open()
            held.append(await newcomer.take_activity())
        return page

    monkeypatch.setattr(sharing, "orphans", slow)
    await die(dead, look)
    await beat(heir)
    await buried(dead, look)
    again = await heir.take_activity()
    assert again.activity_id == first.activity_id != held[0].activity_id
    await newcomer.finish_activity(held[0])
    await newcomer.close()


async def test_of_all_nodes_one_takes_over_from_those_that_leave(
    two: tuple[Harness, Harness], postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heir, leaving = two
    usual, asked = PostgresSharing.orphans, []

    async def noting(sharing: PostgresSharing, *arguments: Any) -> Any:
        asked.append(sharing.node)
        return await usual(sharing, *arguments)

    monkeypatch.setattr(PostgresSharing, "orphans", noting)
    third = await Harness(lambda: PostgresStore(postgres_dsn)).open()
    await beat(heir)
    await hold(leaving, "wf")
    await leaving.close()
    for node in (third, heir):
        await beat(node)
    await heir.take_activity()
    await settle()
    await third.close()
    assert set(asked) == {heir.store.node}


async def test_a_query_that_a_dead_node_took_is_asked_again(
    two: tuple[Harness, Harness], look: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    heir, dead = two
    await dead.start("wf")
    await dead.complete(await dead.take())
    request = QueryWorkflowRequest(namespace="default", query=WorkflowQuery(query_type="state"))
    request.execution.workflow_id = "wf"
    poll = dead.poll()
    await settle()
    query = asyncio.create_task(heir.service.query_workflow(request))
    assert (await asyncio.wait_for(poll, WITHIN_S)).query.query_type == "state"

    async def fail(*_: object) -> int:
        raise StoreUnavailable("it is dead")

    monkeypatch.setattr(dead.store.sharing, "post", fail)
    await die(dead, look)
    await heir.clock.advance(12)
    await beat(heir)
    asked = await heir.take()
    assert asked.query.query_type == "state"
    await heir.service.respond_query_task_completed(
        RespondQueryTaskCompletedRequest(task_token=asked.task_token, completed_type=ANSWERED)
    )
    await asyncio.wait_for(query, WITHIN_S)


async def test_what_a_node_that_leaves_had_to_deliver_is_delivered_at_once(
    two: tuple[Harness, Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    heir, leaving = two

    async def fail(*_: object) -> None:
        raise Unavailable("not now")

    monkeypatch.setattr(leaving.node.courier, "_deliver_one", fail)
    await leaving.start("target")
    await leaving.complete(await leaving.take())
    await leaving.start("sender")
    await leaving.complete(await leaving.take(), signal_command("target", "s"))
    await leaving.close()
    await settle()
    await beat(heir)
    assert await signals_of(heir, "target", 1) == ["s"]


async def test_messages_that_memory_had_no_room_for_are_not_left_until_their_lease_is_over(
    postgres_dsn: str,
) -> None:
    settings = Settings(outbox_window=3)
    node = await Harness(lambda: PostgresStore(postgres_dsn), settings).open()
    await node.start("target")
    await node.complete(await node.take())
    await node.start("sender")
    names = [f"signal-{number}" for number in range(20)]
    await node.complete(await node.take(), *(signal_command("target", name) for name in names))
    assert await signals_of(node, "target", len(names)) == names
    await node.close()


async def test_messages_of_a_commit_in_doubt_are_not_left_until_their_lease_is_over(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await Harness(lambda: PostgresStore(postgres_dsn)).open()
    await node.start("target")
    await node.complete(await node.take())
    await node.start("sender")
    task = await node.take()
    commit = node.store.commit

    async def unanswered(units: Any) -> Any:
        await commit(units)
        raise StoreUnavailable("the connection broke")

    async def away(_units: Any) -> Any:
        raise StoreUnavailable("out of reach")

    with monkeypatch.context() as broken:
        broken.setattr(node.store, "commit", unanswered)
        broken.setattr(node.store, "settle", away)
        with pytest.raises(Unavailable):
            await node.complete(task, signal_command("target", "s"))
    await node.clock.advance(1)
    assert await signals_of(node, "target", 1) == ["s"]
    await node.close()


async def test_what_a_dead_node_had_to_deliver_comes_once(
    two: tuple[Harness, Harness], postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heir, dead = two
    monkeypatch.setattr(dead.node.dispatcher, "_deliver", lambda _messages: None)
    await dead.start("target")
    await dead.complete(await dead.take())
    await dead.start("sender")
    names = [f"signal-{number}" for number in range(20)]
    await dead.complete(await dead.take(), *(signal_command("target", name) for name in names))
    look = await asyncpg.connect(postgres_dsn)
    try:
        await die(dead, look)
        await look.execute("UPDATE perdure.messages SET leased_until_ns = 0")
    finally:
        await look.close()
    await beat(heir)
    assert sorted(await signals_of(heir, "target", len(names))) == sorted(names)


async def signals_of(node: Harness, workflow_id: str, count: int) -> list[str]:
    """The names of the signals that a workflow got, once there are so many."""
    async with asyncio.timeout(WITHIN_S):
        while (await node.events(workflow_id)).count("WorkflowExecutionSignaled") < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await settle()
    events = (await node.history(workflow_id)).events
    got = [e for e in events if event_name(e.event_type) == "WorkflowExecutionSignaled"]
    return [e.workflow_execution_signaled_event_attributes.signal_name for e in got]


def signal_command(workflow_id: str, name: str) -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION)
    attributes = made.signal_external_workflow_execution_command_attributes
    attributes.execution.workflow_id = workflow_id
    attributes.signal_name = name
    return made
