"""What nodes that share a PostgreSQL database ask of it: see `perdure.store.sharing`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from perdure.store.contract import MessageRow, TaskRow
from perdure.store.postgres.gathering import Gathering
from perdure.store.postgres.leases import (
    ALARM_LEASE_NS,
    FUNERAL_NS,
    LETTER_LIVES_NS,
    MESSAGE_LEASE_NS,
    OVERDUE_NS,
    SECOND_NS,
    SILENT_NODE_LIVES_NS,
    TASK_LEASE_NS,
)
from perdure.store.postgres.listening import Listening
from perdure.store.postgres.news import NOTICE_BYTES_MAX, News, notice_of
from perdure.store.postgres.schema import MIGRATIONS, Version
from perdure.store.postgres.statements import SHARED as SQL
from perdure.store.sharing import LETTER, Awaited, Beat, Letter, Queue

_SWEEP_EVERY = 100  # beats


class PostgresSharing:
    """The store's other side.

    Args:
        dsn: of the database.
        name: of the database, as messages show it.
        run: runs a statement and returns its rows.

    Attributes:
        news: of commits, for other nodes.
    """

    def __init__(self, dsn: str, name: str, run: Callable[..., Awaitable[list[Any]]]) -> None:
        self._name = name
        self._run = run
        self._versions = Gathering(self._look_up_versions)
        self._listening = Listening(dsn, self._heard, self.tell)
        self.news = News(self._tell)
        self._beats = 0
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

    async def permits(self, name: str, per_second: float, burst: int, wanted: int) -> int:
        """Take up to so many of what a rate allows all nodes together; how many were there."""
        interval_ns = max(1, round(SECOND_NS / per_second))
        while True:
            now_ns, stored_ns = (await self._run(SQL["rate"], name))[0]
            due_ns = max(now_ns, stored_ns)
            count = min(wanted, (now_ns + burst * interval_ns - due_ns) // interval_ns)
            if count <= 0:
                return 0
            taken = (name, due_ns + count * interval_ns, stored_ns)
            if await self._run(SQL["take_rate"], *taken):
                return int(count)

    async def post(self, letter: Letter) -> int:
        """Leave a letter, and tell who may take it; its number."""
        notice = f"{self.node} {LETTER} {letter.address}"
        rows = await self._run(SQL["post"], letter.address, letter.body, notice)
        return int(rows[0][0])

    async def take_back_letter(self, number: int) -> bool:
        """Remove a letter; False when somebody took it."""
        return bool(await self._run(SQL["take_back"], number))

    async def collect(self, addresses: Sequence[str], limit: int) -> list[Letter]:
        """Take letters, oldest first."""
        rows = await self._run(SQL["collect"], list(addresses), limit)
        return [Letter(row[1], row[2]) for row in sorted(rows, key=lambda row: int(row[0]))]

    async def tell(self, notice: str) -> None:
        """Send a notice to all nodes."""
        await self._tell([notice])

    async def _tell(self, notices: Sequence[str]) -> None:
        assert all(len(notice.encode()) <= NOTICE_BYTES_MAX for notice in notices), notices
        await self._run(SQL["tell"], [f"{self.node} {notice}" for notice in notices])

    async def beat(self, queues: Sequence[Queue], addresses: Sequence[str]) -> Beat:
        """Give a sign of life, and hear what waits. Raises StoreTooNew."""
        self._beats += 1
        if self._beats % _SWEEP_EVERY == 0:
            await self._run(SQL["sweep_letters"], LETTER_LIVES_NS)
            await self._run(SQL["sweep_tasks"])
        columns: list[list[Any]] = [list(column) for column in zip(*queues, strict=True)]
        rows = await self._run(
            SQL["beat"], self.node, SILENT_NODE_LIVES_NS, FUNERAL_NS,
            *(columns or [[], [], []]), list(addresses), OVERDUE_NS,
        )  # fmt: skip
        now_ns, nodes, died, waiting, letters, messages, overdue, namespaces, *schema, _ = rows[0]
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

    async def orphans(self) -> list[int]:
        """Open runs whose tasks may be held by workers of nodes that died."""
        return [row[0] for row in await self._run(SQL["orphans"], SILENT_NODE_LIVES_NS)]

    async def bury(self, nodes: Sequence[int]) -> None:
        """Forget nodes: their work was offered again. For this one: it leaves."""
        for node in sorted(nodes):  # one at a time: two nodes never wait for each other
            await self._run(SQL["bury"], [node])
