"""Group commit: all transitions that are ready are written in one database transaction.

While a commit is under way, units gather; when it is done, they are the next batch. Nobody is
answered, and no task is handed out, before the unit it belongs to is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable

from perdure.api.errors import Cancelled, FailedPrecondition, RPCError
from perdure.service.namespaces import Namespaces
from perdure.service.outcomes import Outcome
from perdure.service.settings import Settings
from perdure.service.units import Conflict, Refused, Unit
from perdure.service.writing import Ending, told_of, write
from perdure.store.contract import Store, StoreError, Write

log = logging.getLogger("perdure.service")

STORED, LOST, UNKNOWN = Outcome.STORED, Outcome.LOST, Outcome.UNKNOWN


class Committer:
    """Writes units, in the order in which they were queued.

    Args:
        store: where to.
        namespaces: where search attributes are registered before the first run that uses them.
        complete: called with a unit that has `ready` tasks, just before it is sent.
        committed, lost: told of every unit's end before its waiters are.

    Attributes:
        doubted: called with lost units of which nobody can say whether they are stored, and with
            their writes.
        broke: called when commits ended for good, with the reason.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        namespaces: Namespaces,
        *,
        complete: Callable[[Unit], None],
        committed: Callable[[Unit], None],
        lost: Callable[[Unit], None],
    ) -> None:
        self._store = store
        self._namespaces = namespaces
        self._batch_max = settings.commit_units_max
        self._bytes_max = settings.commit_bytes_max
        self._queue_max = settings.commit_queue_max
        self._complete = complete
        self._committed = committed
        self._lost = lost
        self._queue: deque[Unit] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._batch: list[Unit] = []
        self._settled: list[asyncio.Future[None]] = []
        self._closing = False
        self.doubted: Callable[[list[tuple[Unit, list[Write]]]], None] = lambda _: None
        self.broke: Callable[[StoreError], None] = lambda _: None
        self.commits = 0
        self.units = 0
        self._reason: StoreError | None = None

    def open(self) -> None:
        """Begin to write."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="perdure-committer")

    async def close(self, reason: StoreError | None = None) -> None:
        """Write what is queued, then stop. With a reason not to: only what is under way."""
        self._closing = True
        if reason is not None:
            self._reason = reason
            queued, self._queue = self._queue, type(self._queue)()
            self._lose_all(queued)
        self._rouse()
        if self._task is not None:
            await asyncio.wait([self._task])
        self._give_up()

    @property
    def is_full(self) -> bool:
        """Whether new work should wait."""
        return len(self._queue) >= self._queue_max

    @property
    def is_closed(self) -> bool:
        """Whether nothing will be written any more."""
        return self._queue_max == 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is being written."""
        return not self._queue and not self._batch

    def put(self, unit: Unit) -> None:
        """Queue a unit."""
        if self._queue_max == 0:  # the caller is yet to wait for it
            asyncio.get_running_loop().call_soon(self.lose, unit, self._gone())
            return
        self._queue.append(unit)
        wake = self._wake
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def settled(self) -> None:
        """Wait for the end of the commit that is under way, if one is."""
        if self._batch:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._settled.append(future)
            await future

    async def room(self) -> None:
        """Wait until fewer transitions are queued than may be."""
        while self.is_full:
            if self._queue_max == 0:
                raise self._gone()
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._settled.append(future)
            await future

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _run(self) -> None:
        try:
            await self._serve()
        except asyncio.CancelledError:  # the loop is torn down, as by a second Ctrl-C
            self._give_up()
            raise
        except Exception as error:  # it may not be: nothing can be written any more
            log.exception("the committer ended")
            self._reason = StoreError(f"its commits ended: {error!r}")
            self._give_up()
            self.broke(self._reason)

    def _give_up(self) -> None:
        """Whoever waits, or comes later, hears that nothing will be written any more."""
        self._queue_max = 0
        open_units = [*self._batch, *self._queue]
        self._queue.clear()
        self._batch = []
        self._lose_all(open_units)
        self._tell_settled()

    def _lose_all(self, units: Iterable[Unit]) -> None:
        for unit in units:
            if not unit.abandoned:
                self.lose(unit, self._gone())

    def _gone(self) -> RPCError:
        if self._reason is not None:
            return FailedPrecondition(f"This node stopped: {self._reason}")
        return Cancelled("The node was stopped; the change may or may not be stored.")

    def _tell_settled(self) -> None:
        for future in self._settled:
            if not future.done():
                future.set_result(None)
        self._settled.clear()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                if self._closing:
                    return
                self._wake = loop.create_future()
                await self._wake
                self._wake = None
            self._take_batch()
            if self._batch:
                await self._write()

    def _take_batch(self) -> None:
        queue, batch = self._queue, self._batch
        size_bytes = 0
        while queue and len(batch) < self._batch_max and size_bytes < self._bytes_max:
            unit = queue.popleft()
            if unit.ready and not unit.abandoned:
                self._complete(unit)
            if not unit.abandoned:
                unit.sent = True
                batch.append(unit)
                size_bytes += unit.size_bytes

    async def _write(self) -> None:
        batch = self._batch
        rows: list[list[Write]] = []
        try:
            if self._namespaces.dirty:
                await self._namespaces.flush()
            rows = [unit.encode(self._store.node) for unit in batch]
        except Exception as error:
            endings = [Ending(LOST, told_of(error))] * len(batch)
        else:
            endings = await write(self._store, rows)
        self.commits += 1
        self.units += len(batch)
        self._batch = []
        for unit, (outcome, failure) in zip(batch, endings, strict=True):
            if outcome is STORED:
                self._finish(unit)
            else:
                self.lose(unit, failure or Conflict())
        doubtful = [place for place, (outcome, _) in enumerate(endings) if outcome is UNKNOWN]
        if doubtful:
            self.doubted([(batch[place], rows[place]) for place in doubtful])
        self._tell_settled()

    def _finish(self, unit: Unit) -> None:
        try:
            self._committed(unit)
        except Exception:
            log.exception("work after a commit failed")
        unit.end()

    def lose(self, unit: Unit, failure: Exception) -> None:
        """End a unit that was not written, or not for sure."""
        assert isinstance(failure, RPCError | Conflict)
        unit.abandoned = True
        if isinstance(failure, Refused):
            log.warning("a change of %s is refused: %s", unit.workflow_ids, failure.message)
        try:
            self._lost(unit)
        except Exception:
            log.exception("taking back a lost unit failed")
        unit.end(failure)
