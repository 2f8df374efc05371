"""What nodes that share a PostgreSQL database ask of it: see `perdure.store.sharing`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import asyncpg

from perdure.store.contract import MessageRow, StoreError, StoreUnavailable, TaskRow
from perdure.store.postgres.gathering import Gathering
from perdure.store.postgres.leases import (
    ALARM_LEASE_NS,
    BEATS_APART_NS,
    FUNERAL_NS,
    LETTER_LIVES_NS,
    MESSAGE_LEASE_NS,
    OVERDUE_NS,
    RATE_LIVES_NS,
    SILENT_NODE_LIVES_NS,
    TASK_LEASE_NS,
)
from perdure.store.postgres.listening import ECHO, Listening
from perdure.store.postgres.news import NOTICE_BYTES_MAX, News, notice_of
from perdure.store.postgres.schema import MIGRATIONS, Version
from perdure.store.postgres.statements import SHARED as SQL
from perdure.store.sharing import (
    FIRST_RUN,
    LETTER,
    Awaited,
    Beat,
    Letter,
    Orphans,
    Queue,
    permitted,
)

# One page takes some milliseconds, so that nothing else of the node waits for it.
_SWEPT_AT_ONCE = 5_000
_ORPHANS_AT_ONCE = 1_000
_NEVER = 1, 0


class PostgresSharing:
    """The store's other side.

    Args:
        dsn: of the database.
        name: of the database, as messages show it.
        run: runs a statement and returns its rows.
        run_beat: the same for signs of life, which nothing may keep waiting.
        allocate: gives fresh ids; see Store.allocate.

    Attributes:
        news: of commits, for other nodes.
    """

    def __init__(
        self,
        dsn: str,
        name: str,
        run: Callable[..., Awaitable[list[Any]]],
        run_beat: Callable[..., Awaitable[list[Any]]],
        allocate: Callable[[int], Awaitable[int]],
    ) -> None:
        self._name = name
        self._run = run
        self._run_beat = run_beat
        self._allocate = allocate
        self._versions = Gathering(self._look_up_versions)
        self._listening = Listening(dsn, self._heard)
        self._swept_to = 0
        self._beat_ns = 0  # what the database's clock showed at the last beat
        self._judges_ns = _NEVER  # from when and until when it may say that others are dead
        self.news = News(self._tell)
        self.node = 0
        self.has_company = False
        self.listener: Callable[[str], None] = lambda _: None

    async def open(self, node: int) -> None:
        """Begin to listen, as this node. Raises what the driver raises."""
        self.node = node
        await self._listening.start(node)

    async def close(self) -> None:
        """Tell what is to be told, and stop listening."""
        await self.news.close()
        await self._listening.close()

    def reconnect(self) -> None:
        """Listen on another connection."""
        self._listening.reconnect()

    @property
    def deaf(self) -> bool:
        """Notices do not come: look more often."""
        return self._listening.deaf

    def _heard(self, notice: str) -> None:
        self.listener(notice)

    async def version(self, key: int) -> int | None:
        """The version of a run, if it exists."""
        return await self._versions.get(key)

    async def _look_up_versions(self, keys: list[int]) -> dict[int, int]:
        return {row[0]: row[1] for row in await self._run(SQL["versions"], keys)}

    async def watch(self, awaited: Sequence[tuple[int, Awaited]]) -> dict[int, int]:
        """Ask to be told, once, of a commit; the runs' versions as of now."""
        keys = [key for key, _ in awaited]
        rows = await self._run(SQL["watch"], keys, [int(what) for _, what in awaited])
        return {row[0]: row[1] for row in rows}

    async def lease_tasks(self, queue: Queue, limit: int) -> list[TaskRow]:
        """The first waiting tasks that no node has leased, leased now."""
        rows = await self._run(SQL["lease_tasks"], *queue, limit, TASK_LEASE_NS)
        return sorted((TaskRow(*row) for row in rows), key=lambda row: (row.rank, row.id))

    async def release_tasks(self, ids: Sequence[int]) -> None:
        """Give up leases, and tell the others."""
        rows = await self._run(SQL["release_tasks"], list(ids))
        if rows and self.has_company:
            await self.tell(notice_of({(row[0], row[1], row[2]) for row in rows}))

    async def drop_tasks(self, ids: Sequence[int]) -> None:
        """Remove waiting tasks of runs that are gone."""
        await self._run(SQL["drop_tasks"], list(ids))

    async def lease_due(self, until_ns: int, limit: int) -> list[int]:
        """Runs whose alarm is due; it is put off a little for the others."""
        rows = await self._run(SQL["lease_due"], until_ns, limit, ALARM_LEASE_NS)
        return [row[0] for row in rows]

    async def lease_messages(self, limit: int) -> list[MessageRow]:
        """Messages that no node delivers, leased now."""
        rows = await self._run(SQL["lease_messages"], limit, MESSAGE_LEASE_NS)
        return sorted((MessageRow(*row) for row in rows), key=lambda row: row.id)

    async def release_messages(self, ids: Sequence[int]) -> None:
        """Give up leases: whoever looks next delivers these."""
        await self._run(SQL["release_messages"], list(ids))

    async def permits(self, name: str, per_second: float, burst: int, wanted: int) -> int:
        """Take up to so many of what a rate allows all nodes together; how many were there."""
        while True:
            now_ns, stored_ns = (await self._run(SQL["rate"], name))[0]
            count, due_ns = permitted(now_ns, stored_ns, per_second, burst, wanted)
            if not count or await self._run(SQL["take_rate"], name, due_ns, stored_ns):
                return count

    async def post(self, letter: Letter) -> int:
        """Leave a letter, and tell who may take it; its number."""
        number = await self._allocate(1)
        await self._run(SQL["post"], number, letter.address, letter.body)
        self.news.add_notice(f"{LETTER} {letter.address}")
        return number

    async def take_back_letter(self, number: int) -> bool:
        """Remove a letter; False when somebody took it."""
        return bool(await self._run(SQL["take_back"], number))

    async def collect(self, addresses: Sequence[str], limit: int) -> list[Letter]:
        """Take letters, oldest first."""
        rows = await self._run(SQL["collect"], list(addresses), limit)
        return [Letter(address, body) for _, _, address, body in sorted(map(tuple, rows))]

    async def tell(self, notice: str) -> None:
        """Send a notice to all nodes, soon."""
        self.news.add_notice(notice)

    async def _tell(self, notices: Sequence[str]) -> None:
        assert all(len(notice.encode()) <= NOTICE_BYTES_MAX for notice in notices), notices
        try:
            await self._run(SQL["tell"], [f"{self.node} {notice}" for notice in notices])
        except StoreError as error:
            if isinstance(error.__cause__, asyncpg.ProgramLimitExceededError):
                await self._run(SQL["free_notices"])
            raise

    async def beat(self, queues: Sequence[Queue], addresses: Sequence[str]) -> Beat:
        """Give a sign of life, and hear what waits. Raises StoreTooNew."""
        try:
            row = await self._beat(queues, addresses)
        except StoreUnavailable:
            raise
        except StoreError:  # perhaps a later version changed what it reads
            await self._check_version()
            raise
        now_ns, nodes, died, waiting, letters, messages, overdue, namespaces, *schema = row[:-1]
        self._note_beat(now_ns)
        found = Version(*schema)
        found.check(self._name)
        alive = frozenset([*nodes, self.node]) - frozenset(died)
        self.has_company = len(alive) > 1
        return Beat(
            now_ns=now_ns,
            nodes=alive,
            died=frozenset(died),
            queues=tuple(queues[place - 1] for place in waiting),
            letters=letters,
            messages=messages,
            overdue=overdue,
            namespaces=namespaces or "",
            newer_schema=found.number if found.number > len(MIGRATIONS) else 0,
        )

    async def sweep(self) -> bool:
        """Remove some of what nobody takes any more; whether there is more to look at."""
        if not self._swept_to:
            await self._run(SQL["sweep_letters"], LETTER_LIVES_NS)
            await self._run(SQL["sweep_messages"])
            await self._run(SQL["sweep_rates"], RATE_LIVES_NS)
        self._swept_to = (await self._run(SQL["sweep_tasks"], self._swept_to, _SWEPT_AT_ONCE))[0][0]
        return self._swept_to > 0

    async def orphans(self, after: tuple[str, str] = FIRST_RUN) -> Orphans:
        """A page of the open runs: those whose tasks may be held by workers of dead nodes."""
        rows = await self._run(
            SQL["orphans"], SILENT_NODE_LIVES_NS, *after, _ORPHANS_AT_ONCE, *self._judges_ns
        )
        keys, last = rows[0]
        return Orphans(keys, (last[0], last[1]) if last else None)

    async def dead(self, nodes: Collection[int]) -> frozenset[int]:
        """Those of some nodes that came, and do not live any more."""
        others = sorted(set(nodes) - {self.node})
        if not others:
            return frozenset()
        rows = await self._run(SQL["dead"], others, SILENT_NODE_LIVES_NS, *self._judges_ns)
        return frozenset(row[0] for row in rows)

    async def _beat(self, queues: Sequence[Queue], addresses: Sequence[str]) -> Any:
        columns: list[list[Any]] = [list(column) for column in zip(*queues, strict=True)]
        rows = await self._run_beat(
            SQL["beat"], self.node, SILENT_NODE_LIVES_NS, FUNERAL_NS,
            *(columns or [[], [], []]), list(addresses), OVERDUE_NS, *self._judges_ns,
        )  # fmt: skip
        self._listening.echo_sent(asyncio.get_running_loop().time())
        self.news.add_notice(ECHO)
        return rows[0]

    async def _check_version(self) -> None:
        Version(*(await self._run(SQL["version"]))[0]).check(self._name)

    def _note_beat(self, now_ns: int) -> None:
        """Who was silent itself gives the others as long as a silent node lives to come back.

        When the database was away all were silent, and who is back first knows nothing of the rest;
        nor does a node that is new. So it is when the clock goes back, as with a fail-over to a
        server whose clock is behind: all signs of life are of the former clock then.
        """
        from_ns, until_ns = self._judges_ns
        if not self._beat_ns <= now_ns <= until_ns:
            from_ns = now_ns + SILENT_NODE_LIVES_NS
        self._beat_ns = now_ns
        self._judges_ns = max(from_ns, now_ns), now_ns + BEATS_APART_NS

    async def bury(self, nodes: Sequence[int]) -> None:
        """Forget nodes that are silent still: their work was offered again. For this one: it
        leaves."""
        for node in nodes:
            if node == self.node:
                await self._run(SQL["leave"], node)
            else:
                await self._run(SQL["bury"], node, SILENT_NODE_LIVES_NS)
