"""What other nodes are told of writes: right after them, all that came meanwhile in one statement.

Not within them: transactions that notify end one after the other, over the whole server, and each
would make the next one wait until the disk and a replica have it; and while the server's queue of
notices is full, as a listener of some other application does not read them, they fail. News need
not be on any disk. What is lost others find with their next beat.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from perdure.store.contract import StoreError
from perdure.store.sharing import AWAITED, TASKS, Queue, queues_notice

log = logging.getLogger("perdure.store")

NOTICE_BYTES_MAX = 7_500  # PostgreSQL's limit is 8,000
_RUNS_MAX = 350  # in a notice: a key has 20 digits at the most


class News:
    """What is still to be told. `send` tells notices, in one statement."""

    def __init__(self, send: Callable[[list[str]], Awaitable[None]]) -> None:
        self._send = send
        self._queues: set[Queue] = set()
        self._runs: dict[int, None] = {}
        self._notices: dict[str, None] = {}
        self._is_failing = False
        self._task: asyncio.Task[None] | None = None

    def add(self, queues: Collection[Queue], runs: Collection[int]) -> None:
        """Queues that have new tasks, and runs with a commit that somebody waits for."""
        self._queues.update(queues)
        self._runs.update(dict.fromkeys(runs))
        self._begin()

    def add_notice(self, notice: str) -> None:
        """Anything else."""
        self._notices[notice] = None
        self._begin()

    @property
    def _has_some(self) -> bool:
        return bool(self._queues or self._runs or self._notices)

    def _begin(self) -> None:
        if self._task is None and self._has_some:
            self._task = asyncio.get_running_loop().create_task(self._tell(), name="perdure-news")

    async def close(self) -> None:
        """Wait until all is told."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _tell(self) -> None:
        try:
            while self._has_some:
                try:
                    await self._send(self._take())
                    self._is_failing = False
                except StoreError as error:  # the beats of others find it
                    self._note_failure(error)
        finally:
            self._task = None

    def _note_failure(self, error: StoreError) -> None:
        """Say so, but not again with every beat."""
        if not self._is_failing:
            self._is_failing = True
            log.warning("other nodes cannot be told of what is done here, they look: %s", error)

    def _take(self) -> list[str]:
        queues, self._queues = self._queues, set()
        keys, self._runs = [str(key) for key in self._runs], {}
        parts = [keys[first : first + _RUNS_MAX] for first in range(0, len(keys), _RUNS_MAX)]
        notices = [f"{AWAITED} {' '.join(part)}" for part in parts]
        others, self._notices = list(self._notices), {}
        return [*([notice_of(queues)] if queues else []), *notices, *others]


def notice_of(queues: Collection[Queue]) -> str:
    """What others are told of queues that have new tasks; of too many: that there are some."""
    notice = queues_notice(TASKS, queues)
    return notice if len(notice.encode()) <= NOTICE_BYTES_MAX else queues_notice(TASKS, [])
