"""What the tests of PostgreSQL's own failures have in common: work that goes on, and its record."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

import perdure
from perdure import Client, activity, workflow
from perdure.api.errors import RPCError, Unavailable
from perdure.sdk.errors import WorkflowNotFoundError
from postgres import PostgresServer, running_server

WITHIN_S = 60.0
NO_RETRY = timedelta(0)

CALLS: Counter[str] = Counter()


@activity(start_to_close_timeout=timedelta(seconds=30))
async def note(word: str) -> str:
    CALLS[word] += 1
    return word


@workflow
async def order(name: str) -> str:
    first = await note(f"{name}-a")
    return first + await note(f"{name}-b")


@workflow
class Ledger:
    def __init__(self) -> None:
        self.entries: list[str] = []

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait_condition(lambda: "close" in self.entries)
        return self.entries

    @workflow.signal
    def put(self, entry: str) -> None:
        self.entries.append(entry)


def expected(name: str) -> str:
    """What an order of that name comes to."""
    return f"{name}-a{name}-b"


@contextmanager
def server_of_its_own(
    more_settings: dict[str, str] | None = None, initdb: tuple[str, ...] = ()
) -> Iterator[PostgresServer]:
    """A server that a test may break."""
    with running_server({"autovacuum": "on"} | (more_settings or {}), initdb) as server:
        yield server


@asynccontextmanager
async def working(dsn: str) -> AsyncIterator[Client]:
    """A client of a node, with a worker."""
    async with (
        perdure.connect(dsn) as client,
        client.worker(workflows=[order, Ledger], activities=[note]),
    ):
        yield client


def impatient(client: Client) -> Client:
    """A client that shows every error."""
    return Client(client.calls.service, retry_for=NO_RETRY)


class Traffic:
    """Starts one workflow after another, and remembers what it was told.

    Attributes:
        client: of the node.
        told: the ids whose start was acknowledged.
        refused: what was said to the others.
    """

    def __init__(self, client: Client, *, gap_s: float = 0.01) -> None:
        self.client = client
        self._impatient = impatient(client)
        self._gap_s = gap_s
        self._task: asyncio.Task[None] | None = None
        self.told: list[str] = []
        self.refused: dict[str, RPCError] = {}

    @classmethod
    @asynccontextmanager
    async def on(cls, dsn: str) -> AsyncIterator[Traffic]:
        """Traffic at a node; whatever the block did to the database, all is checked after it."""
        async with working(dsn) as client:
            traffic = cls(client)
            task = asyncio.create_task(traffic._run())
            traffic._task = task
            try:
                await traffic.more()
                yield traffic
            finally:
                task.cancel()
                await asyncio.wait([task])
            await traffic.check()

    async def _run(self) -> None:
        number = 0
        while True:
            number += 1
            name = f"order-{number}"
            try:
                await self._impatient.start(order, name, id=name)
                self.told.append(name)
            except Unavailable as error:  # nothing else may be answered
                self.refused[name] = error
            await asyncio.sleep(self._gap_s)

    async def more(self, count: int = 5) -> None:
        """Wait until so many more were acknowledged."""
        wanted = len(self.told) + count
        await until(lambda: len(self.told) >= wanted, self.died)

    async def trouble(self) -> RPCError:
        """Wait until something is refused; the last refusal."""
        had = len(self.refused)
        await until(lambda: len(self.refused) > had, self.died)
        return list(self.refused.values())[-1]

    def died(self) -> str:
        """What ended it, if something did."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()
        return f"{len(self.told)} told, {len(self.refused)} refused"

    async def check(self) -> None:
        """What was acknowledged is there, and all that is there ends right."""
        assert self.told
        for name in self.told:
            handle = self.client.handle(name, result_type=str)
            assert await asyncio.wait_for(handle.result(), WITHIN_S) == expected(name), name
        for name in self.refused:
            handle = self.client.handle(name, result_type=str)
            try:
                await handle.describe()
            except WorkflowNotFoundError:
                continue
            assert await asyncio.wait_for(handle.result(), WITHIN_S) == expected(name), name


async def until(
    condition: Callable[[], bool | Awaitable[bool]], say: Callable[[], str] = lambda: ""
) -> None:
    """Wait for something; says what it knows when it does not come."""
    try:
        async with asyncio.timeout(WITHIN_S):
            while True:
                found = condition()
                if not isinstance(found, bool):
                    found = await found
                if found:
                    return
                say()
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it did not come: {say()}") from None
