"""What the tests of the SDK run on: a node in this process, with its data in memory or on
PostgreSQL, a perdure server, a Temporal server, and two perdure servers on one PostgreSQL database
behind a balancer of single calls.

A test that takes `environment` from here runs once on each. What a target cannot do is said beside
the test: ``@pytest.mark.only_on("embedded", reason="time is skipped")``.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest

import perdure
from perdure import Client, testing
from perdure.sdk.remote import RemoteService

EMBEDDED: Final = "embedded"
ON_POSTGRES: Final = "on_postgres"
CLUSTER: Final = "cluster"
SERVERS: Final = ("perdure", "temporal", CLUSTER)
TARGETS: Final = (EMBEDDED, ON_POSTGRES, *SERVERS)

LONGEST_SLEEP: Final = timedelta(seconds=2)


class Target:
    """One of `TARGETS`, with the ``host:port`` of its servers, or what its node connects to."""

    def __init__(self, name: str, addresses: Sequence[str] = ()) -> None:
        self.name = name
        self.addresses = addresses

    @asynccontextmanager
    async def environment(self, **options: Any) -> AsyncIterator[Any]:
        """A client with a namespace of its own; of the embedded target, with skipped time."""
        if self.name == ON_POSTGRES:
            [dsn] = self.addresses
            async with perdure.connect(dsn) as first:
                namespace = await new_namespace(first)
            async with perdure.connect(dsn, **{"namespace": namespace} | options) as client:
                yield Served(client)
            return
        if not self.addresses:
            async with testing.environment(**options) as env:
                yield env
            return
        async with perdure.connect(f"grpc://{self.addresses[0]}") as first:
            namespace = await new_namespace(first)
        async with AsyncExitStack() as stack:
            services = []
            for address in self.addresses:
                services.append(RemoteService(address))
                stack.push_async_callback(services[-1].close)
            service = services[0] if len(services) == 1 else Balanced(services)
            yield Served(Client(service, **{"namespace": namespace} | options))


class Balanced:
    """A balancer of calls: each goes to any of some servers."""

    def __init__(self, services: Sequence[RemoteService]) -> None:
        self._services = services
        self.is_remote = True

    def __getattr__(self, name: str) -> Any:
        return getattr(random.choice(self._services), name)


class Served:
    """As `perdure.testing.Environment`, as far as a server goes: its time passes by itself."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def now(self) -> datetime:
        """The time, in UTC."""
        return datetime.now(UTC)

    async def sleep(self, length: timedelta) -> None:
        """Let time pass. A server's cannot be skipped, so no test may wait for long."""
        assert length <= LONGEST_SLEEP, f"{length}: mark the test as only_on embedded"
        await asyncio.sleep(length.total_seconds())


_here = Target(EMBEDDED)


def go_to(target: Target) -> None:
    """From now on `environment` is that of a target."""
    global _here
    _here = target


def environment(**options: Any) -> Any:
    """A client, and the time, on the target of the running test; see `perdure.testing`."""
    return _here.environment(**options)


SEARCH_ATTRIBUTES: Final = {
    "CustomKeywordField": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    "CustomIntField": IndexedValueType.INDEXED_VALUE_TYPE_INT,
    "Number": IndexedValueType.INDEXED_VALUE_TYPE_INT,
    "Share": IndexedValueType.INDEXED_VALUE_TYPE_DOUBLE,
    "Flag": IndexedValueType.INDEXED_VALUE_TYPE_BOOL,
    "Word": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    "Note": IndexedValueType.INDEXED_VALUE_TYPE_TEXT,
    "At": IndexedValueType.INDEXED_VALUE_TYPE_DATETIME,
    "Tags": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST,
}
"""What tests set; perdure would register them by their first use, Temporal does not."""


async def new_namespace(client: Client) -> str:
    """Register a namespace that nobody else uses, so that tests may choose ids as they like."""
    name = f"test-{uuid.uuid4().hex}"
    request = RegisterNamespaceRequest(namespace=name)
    request.workflow_execution_retention_period.FromSeconds(24 * 3600)
    await client.service.register_namespace(request)
    await client.service.add_search_attributes(
        AddSearchAttributesRequest(namespace=name, search_attributes=SEARCH_ATTRIBUTES)
    )
    return name
