"""Commits of other nodes that somebody on this node waits for.

A watch is noted in the run's own row, and whoever commits next tells of it. It is asked for after
the caller began to wait, so the answer says which version the row had: another one than the caller
can have seen means that it need not wait. Memory may not hold the run any more, so the version that
callers were told of last is remembered for as long as somebody waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import TYPE_CHECKING

from perdure.api.trouble import Trouble
from perdure.store.contract import StoreError
from perdure.store.sharing import Awaited, Sharing

if TYPE_CHECKING:
    from perdure.service.executions import Executions

log = logging.getLogger("perdure.service")

_AT_ONCE = 1_000


class Watches:
    """What this node asked to be told of.

    Args:
        executions: whose waiters are woken.
        sharing: of the store.
        changed: called with the key of a run that another node may have changed.
    """

    def __init__(
        self, executions: Executions, sharing: Sharing, changed: Callable[[int], None]
    ) -> None:
        self._executions = executions
        self._sharing = sharing
        self._changed = changed
        self._wanted: dict[int, Awaited] = {}
        self._told: OrderedDict[int, int] = OrderedDict()  # versions; the one told of last is last
        self._asking: asyncio.Task[None] | None = None
        self._trouble = Trouble(log, "changes of other nodes cannot be watched")

    def add(self, key: int, awaited: Awaited) -> None:
        """Somebody waits for a commit of a run."""
        if not self._sharing.has_company:
            return  # and when company comes, `renew` asks for all
        self._wanted[key] = max(self._wanted.get(key, awaited), awaited)
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())

    def renew(self, at_once: int | None = None) -> None:
        """Ask again: nodes came, or notices may have been missed. For all, or for those `at_once`
        that were asked for longest ago."""
        watched = dict(self._executions.watched())
        for key in [key for key in self._told if key not in watched]:
            del self._told[key]
        new = (key for key in watched if key not in self._told)
        for key in islice(chain(new, self._told), at_once):
            self.add(key, watched[key])

    def heard(self, keys: Iterable[int]) -> None:
        """Another node changed these runs."""
        for key in keys:
            self._changed(key)

    def forget(self, key: int) -> None:
        """Who waits for a run could not be told: that is made up for when it is asked for again."""
        self._told.pop(key, None)

    async def close(self) -> None:
        """Wait for what is being asked."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> None:
        try:
            while self._wanted:
                batch = list(islice(self._wanted.items(), _AT_ONCE))
                for key, _ in batch:
                    del self._wanted[key]
                versions = await self._sharing.watch(batch)
                self._trouble.over()
                for key, _ in batch:
                    self._compare(key, versions.get(key))
        except StoreError as error:  # the next beat renews them
            self._trouble.met(error)
        finally:
            self._asking = None

    def _compare(self, key: int, stored: int | None) -> None:
        """Tell who waits for a run if it is not as they may have seen it."""
        told = self._told.pop(key, None)
        if stored is not None:
            self._told[key] = stored
        if stored is None or (stored != told and self._executions.is_behind(key, stored)):
            self._changed(key)
