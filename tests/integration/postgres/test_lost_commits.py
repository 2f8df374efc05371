"""The database loses commits that nodes have seen: with a server that waits for no disk, or with a
replica that was behind. What is lost is lost; runs go on from what is left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from pg_stage import Ledger
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    ResetStickyTaskQueueRequest,
)

import perdure
from perdure import Client, WorkflowStatus
from perdure.service.node import Node
from perdure.store.contract import Write
from postgres import PostgresServer, running_server

QUIET = {"wal_writer_delay": "10s", "bgwriter_lru_maxpages": "0"}
"""Nothing but commits that wait for the disk writes the log."""


@dataclass
class Stage:
    """A server, and two nodes."""

    server: PostgresServer
    one: Client
    two: Client

    @property
    def node(self) -> Node:
        """The first node."""
        node = self.one.calls.service.node
        assert isinstance(node, Node)
        return node

    async def key(self) -> int:
        key = await self.node.store.find("default", "ledger")
        assert key is not None
        return key

    async def version(self) -> int:
        """What is stored."""
        [[version]] = await self.server.fetch("SELECT version FROM perdure.states")
        assert isinstance(version, int)
        return version

    async def crash(self) -> None:
        """The server loses what is not on disk, and comes back; the nodes find it."""
        self.server.stop()
        self.server.start()
        for client in (self.one, self.two):
            await client.count()


async def stage_on(settings: dict[str, str]) -> AsyncIterator[Stage]:
    with running_server(QUIET | settings) as server:
        async with perdure.connect(server.dsn()) as one, perdure.connect(server.dsn()) as two:
            await one.start(Ledger, id="ledger")
            yield Stage(server, one, two)


@pytest.fixture
async def forgetful() -> AsyncIterator[Stage]:
    async for stage in stage_on({"synchronous_commit": "off"}):
        await stage.server.execute("CHECKPOINT")
        yield stage


@pytest.fixture
async def durable() -> AsyncIterator[Stage]:
    async for stage in stage_on({}):
        yield stage


async def reset_sticky(client: Client) -> None:
    """A commit without events, whose version counts up nevertheless."""
    request = ResetStickyTaskQueueRequest(namespace="default")
    request.execution.workflow_id = "ledger"
    await client.calls.service.reset_sticky_task_queue(request)


async def entries(client: Client) -> list[str]:
    """The signals in a history without gaps."""
    request = GetWorkflowExecutionHistoryRequest(namespace="default")
    request.execution.workflow_id = "ledger"
    events = (await client.calls.service.get_workflow_execution_history(request)).history.events
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    return [
        event.workflow_execution_signaled_event_attributes.input.payloads[0].data.decode()
        for event in events
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    ]


async def lose_entry(stage: Stage) -> None:
    """A signal that the first node acknowledges, and the database loses."""
    before = await stage.version()
    await stage.one.handle("ledger").signal("put", "lost")
    await stage.crash()
    assert await stage.version() == before


async def test_a_version_that_was_lost_is_not_given_again(forgetful: Stage) -> None:
    """Else what the first node remembers would count as what the second one wrote meanwhile."""
    await lose_entry(forgetful)
    await reset_sticky(forgetful.two)
    await forgetful.one.handle("ledger").signal("put", "one")
    await forgetful.two.handle("ledger").signal("put", "two")
    for client in (forgetful.one, forgetful.two):
        assert await entries(client) == ['"one"', '"two"']
    await forgetful.two.handle("ledger").terminate()
    assert (await forgetful.one.handle("ledger").describe()).status is WorkflowStatus.TERMINATED


async def test_nobody_is_shown_what_was_lost(forgetful: Stage) -> None:
    await lose_entry(forgetful)
    assert await entries(forgetful.one) == []


async def test_a_commit_that_was_made_to_be_over_is_so_after_a_crash(durable: Stage) -> None:
    key = await durable.key()
    based_on = await durable.version()
    late = Write(key=key, based_on=based_on, version=based_on + 1, state=b"")
    assert await durable.node.store.settle([[late]]) == [0]
    fenced = await durable.version()
    assert fenced > based_on
    await durable.crash()
    assert await durable.version() == fenced
