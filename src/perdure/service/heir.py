"""What nodes that died or left were doing: this one goes on with it.

All open runs are looked at for that, page by page, beside the signs of life: with many of them it
takes a while, and the node must not count as dead itself meanwhile.

One look is not enough. A commit that a node sent before it died may wait for a replica, or be on
its way, and come after the look; and a node whose signs of life do not get through is taken for
dead, goes on, and then dies without anybody hearing of it. So one of the nodes looks again: soon
after others are gone, then ever less often, but never quite ceasing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from perdure.api.errors import RPCError
from perdure.service.clock import sleep_until
from perdure.store.contract import StoreError
from perdure.store.sharing import FIRST_RUN, Sharing

if TYPE_CHECKING:
    from perdure.service.node import Node

T = TypeVar("T")
log = logging.getLogger("perdure.service")

_AGAIN_S: Final = 30.0
_AGAIN_MAX_S: Final = 480.0
_REST: Final = 20  # of a page's time, before the next one when nothing is known to have happened


class Heir:
    """Takes over from other nodes; `turn` is to be called again and again.

    Args:
        node: whose workers go on with it.
        sharing: of the store.
        is_eldest: whether this node is the one to look again.
    """

    def __init__(self, node: Node, sharing: Sharing, is_eldest: Callable[[], bool]) -> None:
        self._node = node
        self._sharing = sharing
        self._is_eldest = is_eldest
        self._died: set[int] = set()  # who is to be buried
        self._wake = asyncio.Event()
        self._pause_s = _AGAIN_S

    def look(self) -> None:
        """Nodes may be gone."""
        self._wake.set()

    def inherit(self, died: Iterable[int]) -> None:
        """Nodes died, and nobody else takes over from them."""
        for node in died:
            self._died.add(node)
            self._wake.set()

    async def turn(self) -> None:
        """Wait until nodes are gone, or for a while, and take over from them."""
        if await self._is_woken(self._pause_s):
            self._pause_s = _AGAIN_S
            await self._take_over()
        else:
            self._pause_s = min(2 * self._pause_s, _AGAIN_MAX_S)
            if self._is_eldest():
                await self._look_again()

    async def _is_woken(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                return await self._wake.wait()
        except TimeoutError:
            return False

    async def _take_over(self) -> None:
        """Go on with all that nodes left, and bury those that died."""
        self._wake.clear()
        died, self._died = self._died, set()
        await self._insist(self._node.alarms.open)
        await self._insist(self._node.courier.reread)
        self._empty_namespaces()
        after: tuple[str, str] | None = FIRST_RUN
        while after is not None:
            after = await self._insist(partial(self._take_back, after))
        await self._insist(partial(self._sharing.bury, sorted(died)))

    def _empty_namespaces(self) -> None:
        """Go on with the removal of runs of deleted namespaces; of several nodes one is enough."""
        if self._is_eldest():
            self._node.purger.go_on()

    async def _look_again(self) -> None:
        """Look whether more has come to light, at leisure; not when there is something to do."""
        loop = asyncio.get_running_loop()
        after: tuple[str, str] | None = FIRST_RUN
        while after is not None:
            began_s = loop.time()
            after = await self._take_back(after)
            if after is not None and await self._is_woken(_REST * (loop.time() - began_s)):
                return

    async def _take_back(self, after: tuple[str, str]) -> tuple[str, str] | None:
        """Offer again what the dead held of a page of runs; where the next page begins."""
        page = await self._sharing.orphans(after)
        await self._node.take_back(page.keys, self._sharing.dead)
        return page.last

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something, however often the database fails."""
        node = self._node
        while True:
            try:
                return await work()
            except (StoreError, RPCError) as error:
                log.warning("what other nodes left cannot be taken over now: %s", error)
                await sleep_until(node.clock, node.clock.now_ns() + node.settings.retry_ns)
