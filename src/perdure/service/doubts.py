"""Commits of which nobody could say whether they are, or will be, stored.

Their callers were told so, and ask again; what was handed out with them reached no worker, and
their messages nobody. Once the store knows, tasks that turn out to be handed out are taken back,
messages are delivered by who looks first, and who waits for the runs looks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perdure.api.errors import RPCError
from perdure.service.clock import sleep_until
from perdure.service.units import HandedOut, Unit
from perdure.store.contract import StoreError
from perdure.store.contract import Unit as StoredUnit

if TYPE_CHECKING:
    from perdure.service.node import Node

log = logging.getLogger("perdure.service")

_GRACE_S = 5.0


class Doubts:
    """What is to be found out, one commit after the other.

    Args:
        node: whose commits they are.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._open: deque[tuple[list[HandedOut], list[StoredUnit]]] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, doubts: Sequence[tuple[Unit, StoredUnit]]) -> None:
        """Units of one commit, as they are in memory and as they were sent."""
        handed_out = [task for unit, _ in doubts for task in unit.handed_out]
        self._open.append((handed_out, [rows for _, rows in doubts]))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="perdure-doubts")

    async def close(self) -> None:
        """Wait a while: what comes when the node has left is found by others, though later."""
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=_GRACE_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _run(self) -> None:
        node = self._node
        while self._open:
            handed_out, units = self._open[0]
            if await self._is_settled(units):
                self._open.popleft()
                self._resolve(handed_out, {write.key for unit in units for write in unit})
            else:
                self._open.rotate(-1)
                await sleep_until(node.clock, node.clock.now_ns() + node.settings.retry_ns)

    async def _is_settled(self, units: list[StoredUnit]) -> bool:
        try:
            await self._node.store.settle(units)
            await self._release_messages(units)
        except StoreError:  # still out of reach, or still at it
            return False
        except Exception:
            log.exception("what became of a commit could not be found out")
            return False
        return True

    async def _release_messages(self, units: list[StoredUnit]) -> None:
        """The commit leased them for this node, whose courier has not heard of them."""
        sharing = self._node.store.sharing
        writes = [write for unit in units for write in unit]
        messages = [message.id for write in writes for message in write.put_messages]
        if sharing is not None and messages:
            await sharing.release_messages(messages)

    def _resolve(self, handed_out: list[HandedOut], keys: set[int]) -> None:
        node = self._node
        if node.executions.committer.is_closed:
            return
        node.look_again()
        for task in handed_out:
            node.dispatcher.take_back_task(task)
        for key in sorted(keys):
            node.dispatcher.spawn(self._look_at(key))

    async def _look_at(self, key: int) -> None:
        try:
            await self._node.executions.look_again(key)
            await self._node.companions.look_again(key)
        except RPCError as error:  # who waits looks for itself, in time
            log.warning("run %d cannot be read: %s", key, error)
