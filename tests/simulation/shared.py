"""A fake of a database that nodes share, with PostgreSQL's semantics, over a store that is real.

Rows live in one store in memory. Beside it stands what PostgreSQL keeps for its nodes: leases,
watches, signs of life, letters, rates and notices. Every call of a node is a journey there and
back, which takes time and may be lost on either way.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import random
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import msgspec

from perdure.store.contract import (
    LEVEL_BITS,
    NOBODY,
    START,
    THIS_NODE,
    Backlog,
    MessageRow,
    NamespaceRow,
    Store,
    StoreUnavailable,
    TaskRow,
    Unit,
    Write,
)
from perdure.store.postgres.leases import (
    ALARM_LEASE_NS,
    FUNERAL_NS,
    MESSAGE_LEASE_NS,
    OVERDUE_NS,
    SILENT_NODE_LIVES_NS,
    TASK_LEASE_NS,
)
from perdure.store.postgres.news import notice_of
from perdure.store.sharing import (
    AWAITED,
    CLOCK_SLACK_NS,
    FIRST_RUN,
    LETTER,
    NAMESPACES,
    Awaited,
    Beat,
    Letter,
    Orphans,
    Queue,
    Sharing,
    permitted,
)
from perdure.testing.faults import Faults, FaultyStore
from perdure.testing.virtual_loop import VirtualLoop

from .late import Late

T = TypeVar("T")

ALL = 100_000
SEVERAL = -1  # nodes whose workers hold tasks of one run
NOTICE_DELAY_S = 0.005
LATE_S = 2.0
RECONNECTED_WITHIN_S = 6.0


@dataclass
class Network:
    """What may go wrong between a node and the database.

    ``severed``: the share of calls whose connection breaks, on the way there or back.
    ``late``: the share of answers that take long: much can happen between a commit and the moment
    in which its node hears of it.
    ``unheard``: the share of notices that a broken connection swallows.
    """

    severed: float = 0.0
    unheard: float = 0.0
    delay_s: float = 0.0
    late: float = 0.0

    def heal(self) -> None:
        """Nothing more goes wrong."""
        self.severed = self.unheard = self.late = 0.0


@dataclass
class Database:
    """The truth, which outlives all nodes."""

    network: Network
    inner: Store
    late: Late
    stores: list[SharedStore] = field(default_factory=list)
    task_leases: dict[int, int] = field(default_factory=dict)
    message_leases: dict[int, int] = field(default_factory=dict)
    alarm_leases: dict[int, int] = field(default_factory=dict)
    watched: dict[int, Awaited] = field(default_factory=dict)
    holders: dict[int, int] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)
    funerals: dict[int, int] = field(default_factory=dict)
    letters: dict[int, Letter] = field(default_factory=dict)
    rates: dict[str, int] = field(default_factory=dict)
    posted: int = 0
    steps: random.Random = field(default_factory=lambda: random.Random("fence"))

    def now_ns(self) -> int:
        """The database's clock."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop.now_ns()

    def living(self) -> set[int]:
        """Nodes that gave a sign of life of late."""
        now_ns = self.now_ns()
        return {
            node
            for node, seen_ns in self.seen.items()
            if abs(now_ns - seen_ns) <= SILENT_NODE_LIVES_NS  # or it is of another clock
        }

    def is_over(self, lease_ns: int | None, lives_ns: int) -> bool:
        """Whether a lease that ends then is over, or of another clock."""
        now_ns = self.now_ns()
        return not now_ns <= (lease_ns or 0) <= now_ns + lives_ns + CLOCK_SLACK_NS

    def is_free_task(self, task_id: int) -> bool:
        """Whether no node has leased a task."""
        return self.is_over(self.task_leases.get(task_id), TASK_LEASE_NS)

    def is_free_message(self, message_id: int) -> bool:
        """Whether no node has leased a message."""
        return self.is_over(self.message_leases.get(message_id), MESSAGE_LEASE_NS)

    def tell(self, sender: int, notice: str) -> None:
        """To every other node that listens, soon."""
        for store in self.stores:
            if store.node != sender:
                store.hear(notice)

    def tell_soon(self, sender: int, notice: str) -> None:
        """What a node tells after a commit; nobody does if it dies in between."""

        def tell() -> None:
            if any(store.node == sender for store in self.stores):
                self.tell(sender, notice)

        asyncio.get_running_loop().call_soon(tell)

    async def commit(self, units: Sequence[Unit], node: int, has_company: bool) -> list[int]:
        """Write the rows, and what goes with them."""
        left_out = await self.inner.commit(units)
        accepted = [unit for index, unit in enumerate(units) if index not in set(left_out)]
        writes = [write for unit in accepted for write in unit]
        for write in writes:
            self._keep(write, node)
        queues = {(t.namespace, t.queue, t.kind) for write in writes for t in write.put_tasks}
        if queues and has_company:
            self.tell_soon(node, notice_of(queues))
        heard = sorted({write.key for write in writes if self._is_awaited(write)})
        if heard:
            self.tell_soon(node, f"{AWAITED} {' '.join(map(str, heard))}")
        return left_out

    async def fence(self, unit: Unit) -> bool:
        """Whether a unit is not written, and from now on cannot be."""
        for write in unit:
            found = await self.inner.load(write.key) if write.based_on else None
            if found is not None and found.version == write.based_on:
                later = write.based_on + 1 + self.steps.getrandbits(20)
                await self.inner.commit([[Write(write.key, write.based_on, later, found.state)]])
                return True
        return False

    def _keep(self, write: Write, node: int) -> None:
        holder = self.holders.get(write.key, 0)
        if write.in_flight == NOBODY:
            self.holders.pop(write.key, None)
        elif write.in_flight == THIS_NODE:
            self.holders[write.key] = node if holder in (0, node) else SEVERAL
        if write.wake_changed:
            self.alarm_leases.pop(write.key, None)
        for task_id in write.drop_tasks:
            self.task_leases.pop(task_id, None)
        for message in write.put_messages:
            self.message_leases[message.id] = self.now_ns() + MESSAGE_LEASE_NS
        for message_id in write.drop_messages:
            self.message_leases.pop(message_id, None)

    async def drop_task(self, row: TaskRow) -> None:
        """Remove a waiting task, as no write of a run does."""

        def work(db: sqlite3.Connection) -> int:
            db.execute("BEGIN IMMEDIATE")
            return db.execute("DELETE FROM tasks WHERE id = ?", (row.id,)).rowcount

        await self.inner._transact(1, work)  # type: ignore[attr-defined]

    def _is_awaited(self, write: Write) -> bool:
        closes = write.record is not None and write.record.close_ns > 0
        awaited = self.watched.get(write.key)
        told = awaited == Awaited.ANY or (awaited == Awaited.CLOSE and closes)
        if closes:
            self.watched.pop(write.key, None)
        elif told:
            self.watched[write.key] = Awaited.CLOSE
        return told


class Session:
    """One node's side of the database: a store without network."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.node = 0
        self.has_company = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database.inner, name)

    async def commit(self, units: Sequence[Unit]) -> list[int]:
        write = partial(self.database.commit, node=self.node, has_company=self.has_company)
        return await self.database.late.commit(units, write)

    async def settle(self, units: Sequence[Unit]) -> list[int]:
        await self.database.late.settle(units)
        return [place for place, unit in enumerate(units) if await self.database.fence(unit)]

    async def due(self, until_ns: int, limit: int) -> list[tuple[int, int]]:
        """As if a lease had put the alarm off in the run's row."""
        found = [
            (key, max(wake_ns, self.database.alarm_leases.get(key, 0)))
            for key, wake_ns in await self.database.inner.due(2**62, ALL)
        ]
        found.sort(key=lambda pair: pair[1])
        return [pair for pair in found if pair[1] <= until_ns][:limit]

    async def backlogs(self, namespace: str = "", queue: str = "", kind: int = 0) -> list[Backlog]:
        """Of one queue: the first rank is that of those that are not leased."""
        found = await self.database.inner.backlogs(namespace, queue, kind)
        if not queue:
            return found
        firsts: dict[tuple[int, str], int] = {}
        for row in await self.database.inner.tasks(namespace, queue, kind, START, ALL):
            if self.database.is_free_task(row.id):
                firsts.setdefault((row.rank >> LEVEL_BITS, row.fairness_key), row.rank)
        return [
            msgspec.structs.replace(
                backlog,
                first_rank=firsts.get((backlog.level, backlog.fairness_key), backlog.first_rank),
            )
            for backlog in found
        ]

    async def next_alarm(self) -> int | None:
        found = await self.due(2**62, 1)
        return found[0][1] if found else None

    async def in_flight(self) -> list[int]:
        living = self.database.living()
        return sorted(key for key, node in self.database.holders.items() if node not in living)

    async def put_namespace(self, row: NamespaceRow, former: bytes | None = None) -> bool:
        written = await self.database.inner.put_namespace(row, former)
        if written:
            self.database.tell(self.node, NAMESPACES)
        return written


class SharedStore(FaultyStore):
    """A node's way to the database; a new one for each process."""

    def __init__(self, database: Database, faults: Faults, rng: random.Random) -> None:
        self.session = Session(database)
        super().__init__(self.session, faults, rng)  # type: ignore[arg-type]
        self.database = database
        self.rng = rng
        self._sharing = FakeSharing(self)
        self._context: contextvars.Context | None = None
        self._heard_until_s = 0.0

    @property
    def sharing(self) -> Sharing:
        return self._sharing

    async def open(self) -> None:
        await self.journey(super().open)
        self.session.node = self.node
        self._context = contextvars.copy_context()
        self.database.stores.append(self)

    async def close(self) -> None:
        if self in self.database.stores:
            self.database.stores.remove(self)

    def crash(self) -> None:
        super().crash()
        if self in self.database.stores:
            self.database.stores.remove(self)

    async def journey(self, there: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Go to the database, do something, and come back."""
        network = self.database.network
        await self._travel()
        if self.rng.random() < network.severed / 2:
            raise StoreUnavailable("injected: the connection broke on the way")
        result = await there(*arguments)
        if network.late and self.rng.random() < network.late:
            await asyncio.sleep(self.rng.random() * LATE_S)
        await self._travel()
        if self.rng.random() < network.severed / 2:
            raise StoreUnavailable("injected: the connection broke, and the answer is lost")
        return result

    async def _travel(self) -> None:
        await self._alive()
        if self.database.network.delay_s:
            await asyncio.sleep(self.rng.random() * self.database.network.delay_s)
            await self._alive()

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self.session, name)
        if not asyncio.iscoroutinefunction(inner):
            return inner

        async def call(*arguments: Any, **options: Any) -> Any:
            async def there() -> Any:
                return await inner(*arguments, **options)

            return await self.journey(there)

        return call

    def hear(self, notice: str) -> None:
        """A notice comes, after those before it; or is missed, and that is known later."""
        loop = asyncio.get_running_loop()
        delay_s = self.rng.random() * NOTICE_DELAY_S
        if self.rng.random() < self.database.network.unheard:
            notice, delay_s = "", self.rng.random() * RECONNECTED_WITHIN_S
            loop.call_later(delay_s, self._hear, notice, context=self._context)
            return
        self._heard_until_s = max(self._heard_until_s, loop.time() + delay_s)
        loop.call_at(self._heard_until_s, self._hear, notice, context=self._context)

    def _hear(self, notice: str) -> None:
        if not self.crashed.is_set():
            self._sharing.listener(notice)


class FakeSharing:
    """See `perdure.store.sharing.Sharing`."""

    deaf = False

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._database = store.database
        self.listener: Callable[[str], None] = lambda _: None

    @property
    def node(self) -> int:
        return self._store.node

    @property
    def has_company(self) -> bool:
        return self._store.session.has_company

    async def _do(self, work: Callable[[], Awaitable[T]]) -> T:
        return await self._store.journey(work)

    async def version(self, key: int) -> int | None:
        async def work() -> int | None:
            loaded = await self._database.inner.load(key)
            return None if loaded is None else loaded.version

        return await self._do(work)

    async def watch(self, awaited: Sequence[tuple[int, Awaited]]) -> dict[int, int]:
        async def work() -> dict[int, int]:
            versions = {}
            for key, what in awaited:
                loaded = await self._database.inner.load(key)
                if loaded is not None:
                    versions[key] = loaded.version
                    former = self._database.watched.get(key, what)
                    self._database.watched[key] = max(former, what)
            return versions

        return await self._do(work)

    async def lease_tasks(self, queue: Queue, limit: int) -> list[TaskRow]:
        async def work() -> list[TaskRow]:
            rows = await self._database.inner.tasks(*queue, START, ALL)
            free = [row for row in rows if self._database.is_free_task(row.id)][:limit]
            until_ns = self._database.now_ns() + TASK_LEASE_NS
            self._database.task_leases.update((row.id, until_ns) for row in free)
            return free

        return await self._do(work)

    async def release_tasks(self, ids: Sequence[int]) -> None:
        async def work() -> None:
            for task_id in ids:
                self._database.task_leases.pop(task_id, None)
            if self.has_company:
                self._database.tell(self.node, notice_of(await self._queues_of(ids)))

        await self._do(work)

    async def _queues_of(self, ids: Sequence[int]) -> set[Queue]:
        queues = set()
        for backlog in await self._database.inner.backlogs():
            queue = (backlog.namespace, backlog.queue, backlog.kind)
            rows = await self._database.inner.tasks(*queue, START, ALL)
            if any(row.id in ids for row in rows):
                queues.add(queue)
        return queues

    async def drop_tasks(self, ids: Sequence[int]) -> None:
        raise AssertionError("runs are not deleted here")

    async def lease_due(self, until_ns: int, limit: int) -> list[int]:
        async def work() -> list[int]:
            due = [key for key, _ in await self._store.session.due(until_ns, limit)]
            self._database.alarm_leases.update((key, until_ns + ALARM_LEASE_NS) for key in due)
            return due

        return await self._do(work)

    async def lease_messages(self, limit: int) -> list[MessageRow]:
        async def work() -> list[MessageRow]:
            rows = await self._database.inner.messages(0, ALL)
            free = [row for row in rows if self._database.is_free_message(row.id)][:limit]
            until_ns = self._database.now_ns() + MESSAGE_LEASE_NS
            self._database.message_leases.update((row.id, until_ns) for row in free)
            return free

        return await self._do(work)

    async def release_messages(self, ids: Sequence[int]) -> None:
        async def work() -> None:
            for message_id in ids:
                self._database.message_leases.pop(message_id, None)

        await self._do(work)

    async def permits(self, name: str, per_second: float, burst: int, wanted: int) -> int:
        async def work() -> int:
            now_ns, stored_ns = self._database.now_ns(), self._database.rates.get(name, 0)
            count, due_ns = permitted(now_ns, stored_ns, per_second, burst, wanted)
            if count:
                self._database.rates[name] = due_ns
            return count

        return await self._do(work)

    async def post(self, letter: Letter) -> int:
        async def work() -> int:
            self._database.posted += 1
            self._database.letters[self._database.posted] = letter
            self._database.tell(self.node, f"{LETTER} {letter.address}")
            return self._database.posted

        return await self._do(work)

    async def take_back_letter(self, number: int) -> bool:
        async def work() -> bool:
            return self._database.letters.pop(number, None) is not None

        return await self._do(work)

    async def collect(self, addresses: Sequence[str], limit: int) -> list[Letter]:
        async def work() -> list[Letter]:
            letters = self._database.letters
            found = [n for n, letter in letters.items() if letter.address in addresses][:limit]
            return [letters.pop(number) for number in found]

        return await self._do(work)

    async def tell(self, notice: str) -> None:
        async def work() -> None:
            self._database.tell(self.node, notice)

        await self._do(work)

    async def beat(self, queues: Sequence[Queue], addresses: Sequence[str]) -> Beat:
        async def work() -> Beat:
            database, now_ns = self._database, self._database.now_ns()
            database.seen[self.node] = now_ns
            living = database.living()
            await self._sweep()
            died = {
                node
                for node in database.seen
                if node not in living and database.is_over(database.funerals.get(node), FUNERAL_NS)
            }
            database.funerals.update(dict.fromkeys(sorted(died), now_ns + FUNERAL_NS))
            self._store.session.has_company = len(living) > 1
            return Beat(
                now_ns=now_ns,
                nodes=frozenset(living),
                died=frozenset(died),
                queues=tuple([queue for queue in queues if await self._waits(queue)]),
                letters=any(letter.address in addresses for letter in database.letters.values()),
                messages=await self._messages_wait(),
                overdue=bool(await self._store.session.due(now_ns - OVERDUE_NS, 1)),
                namespaces=_digest(await database.inner.namespaces()),
            )

        return await self._do(work)

    async def _sweep(self) -> None:
        """Tasks of closed runs that nobody takes are removed."""
        database = self._database
        for backlog in await database.inner.backlogs():
            queue = (backlog.namespace, backlog.queue, backlog.kind)
            for row in await database.inner.tasks(*queue, START, ALL):
                loaded = await database.inner.load(row.key)
                assert loaded is not None
                if loaded.record.close_ns and database.is_free_task(row.id):
                    await database.drop_task(row)

    async def _waits(self, queue: Queue) -> bool:
        rows = await self._database.inner.tasks(*queue, START, ALL)
        return any(self._database.is_free_task(row.id) for row in rows)

    async def _messages_wait(self) -> bool:
        rows = await self._database.inner.messages(0, ALL)
        return any(self._database.is_free_message(row.id) for row in rows)

    async def sweep(self) -> bool:
        return False  # with every beat, see above

    async def orphans(self, after: tuple[str, str] = FIRST_RUN) -> Orphans:
        async def work() -> Orphans:
            keys = await self._store.session.in_flight()
            return Orphans(keys)

        return await self._do(work)

    async def dead(self, nodes: Collection[int]) -> frozenset[int]:
        async def work() -> frozenset[int]:
            return frozenset(nodes) - self._database.living() - {self.node}

        return await self._do(work)

    async def bury(self, nodes: Sequence[int]) -> None:
        async def work() -> None:
            for node in nodes:
                if node == self.node or node not in self._database.living():
                    self._database.seen.pop(node, None)
                    self._database.funerals.pop(node, None)

        await self._do(work)


def _digest(rows: Iterable[NamespaceRow]) -> str:
    total = hashlib.sha256()
    for row in rows:
        total.update(row.body)
    return total.hexdigest()
