"""What nodes that died or left were doing: this one goes on with it.

All open runs are looked at for that, page by page, beside the signs of life: with many of them it
takes a while, and the node must not count as dead itself meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from perdure.api.errors import RPCError
from perdure.service.clock import sleep_until
from perdure.store.contract import StoreError
from perdure.store.sharing import FIRST_RUN, Orphans, Sharing

if TYPE_CHECKING:
    from perdure.service.node import Node

T = TypeVar("T")
log = logging.getLogger("perdure.service")


class Heir:
    """Takes over from other nodes; `turn` is to be called again and again."""

    def __init__(self, node: Node, sharing: Sharing) -> None:
        self._node = node
        self._sharing = sharing
        self._gone: dict[int, bool] = {}  # whose work is to be taken over; whether to bury them
        self._wake = asyncio.Event()
        self._wake.set()  # the first time for those that went before this node came

    def inherit(self, nodes: Iterable[int], *, bury: bool) -> None:
        """Nodes are gone. `bury`: they did not leave by themselves."""
        for node in nodes:
            self._gone[node] = bury or self._gone.get(node, False)
            self._wake.set()

    async def turn(self) -> None:
        """Wait until nodes are gone, and take over from them."""
        await self._wake.wait()
        self._wake.clear()
        gone, self._gone = self._gone, {}
        await self._insist(self._node.alarms.open)
        await self._insist(self._node.courier.reread)
        self._empty_namespaces()
        living: frozenset[int] = frozenset()
        after: tuple[str, str] | None = FIRST_RUN
        while after is not None:
            page = await self._insist(partial(self._take_back, after))
            after, living = page.last, page.living
        dead = {node for node, bury in gone.items() if bury}
        await self._insist(partial(self._sharing.bury, sorted(dead - living)))

    def _empty_namespaces(self) -> None:
        """Go on with the removal of runs of deleted namespaces; of several nodes one is enough."""
        neighbours = self._node.neighbours
        if neighbours is not None and neighbours.is_eldest:
            self._node.purger.go_on()

    async def _take_back(self, after: tuple[str, str]) -> Orphans:
        """Offer again what workers of the dead held of a page of runs."""
        page = await self._sharing.orphans(after)
        await self._node.take_back(page.keys, page.living)
        return page

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something, however often the database fails."""
        node = self._node
        while True:
            try:
                return await work()
            except (StoreError, RPCError) as error:
                log.warning("what other nodes left cannot be taken over now: %s", error)
                await sleep_until(node.clock, node.clock.now_ns() + node.settings.retry_ns)
