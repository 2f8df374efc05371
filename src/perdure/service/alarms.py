"""One timer for a node: it rings the runs whose `wake_at` has come.

Which runs those are, the store knows; memory holds only the earliest time. Due runs are rung in
bounded batches, all of a batch in one commit.
"""

from __future__ import annotations

import asyncio
import logging

from perdure.api.errors import NotFound, RPCError
from perdure.api.trouble import Trouble
from perdure.engine import alarms as engine_alarms
from perdure.engine.transition import Transition
from perdure.service.clock import Alarm, Clock
from perdure.service.executions import Executions
from perdure.service.settings import Settings
from perdure.store.contract import Store, StoreError

log = logging.getLogger("perdure.service")


class Alarms:
    """Rings runs in time."""

    def __init__(
        self, executions: Executions, store: Store, clock: Clock, settings: Settings
    ) -> None:
        self._executions = executions
        self._store = store
        self._clock = clock
        self._settings = settings
        self._alarm: Alarm | None = None
        self._at_ns = 0  # what the alarm is set for; 0: none
        self._noted_ns = 0  # the earliest that was noted while runs were being rung
        self._ringing: asyncio.Task[None] | None = None
        self._closed = False
        self._unread = Trouble(log, "due runs cannot be read")
        self._unrung = Trouble(log, "runs cannot be rung")

    async def open(self) -> None:
        """Set the timer for the earliest stored alarm."""
        earliest_ns = await self._store.next_alarm()
        if earliest_ns:
            self.note(earliest_ns)

    @property
    def is_ringing(self) -> bool:
        """Whether runs are being rung now."""
        return self._ringing is not None

    def note(self, wake_at_ns: int) -> None:
        """A run wants to be rung at that time, and that is committed."""
        if self._ringing is not None:  # it may be too late for what the store is asked then
            self._noted_ns = min(self._noted_ns or wake_at_ns, wake_at_ns)
            return
        if self._closed or (self._at_ns and self._at_ns <= wake_at_ns):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._at_ns = wake_at_ns
        self._alarm = self._clock.call_at(wake_at_ns, self._due)

    def _due(self) -> None:
        self._alarm = None
        if self._clock.now_ns() < self._at_ns:  # a clock that rounds, or waits in steps
            self._alarm = self._clock.call_at(self._at_ns, self._due)
        elif self._ringing is None:
            self._ringing = asyncio.get_running_loop().create_task(self._ring())

    async def _ring(self) -> None:
        """Ring everything due, then set the timer anew."""
        settings, clock = self._settings, self._clock
        next_ns = self._noted_ns = 0
        try:
            while not self._closed:
                due = await self._take_due(clock.now_ns(), settings.alarm_batch)
                if not due:
                    break
                rung = await asyncio.gather(*(self._ring_one(key) for key in due))
                if not all(rung):
                    next_ns = clock.now_ns() + settings.retry_ns
                    break
            if not next_ns:
                self._unrung.over()
            next_ns = next_ns or await self._store.next_alarm() or 0
            self._unread.over()
        except StoreError as error:
            self._unread.met(error)
            next_ns = clock.now_ns() + settings.retry_ns
        finally:
            self._ringing = None
            self._at_ns = 0
        for wake_at_ns in (next_ns, self._noted_ns):
            if wake_at_ns:
                self.note(wake_at_ns)

    async def _take_due(self, until_ns: int, limit: int) -> list[int]:
        """The runs to ring; of several nodes each gets others."""
        if self._store.sharing is not None:
            return await self._store.sharing.lease_due(until_ns, limit)
        return [key for key, _ in await self._store.due(until_ns, limit)]

    async def _ring_one(self, key: int) -> bool:
        try:
            await self._executions.transact(key, ring)
        except NotFound:
            return True
        except RPCError as error:
            self._unrung.met(f"run {key}: {error.message}")
            return False
        except Exception:
            log.exception("run %d could not be rung", key)
            return False
        return True

    async def close(self) -> None:
        """Ring no more; wait for what rings now."""
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        if self._ringing is not None:
            await asyncio.wait([self._ringing])


def ring(tx: Transition) -> None:
    """Fire what is due in a run."""
    if tx.run.is_open:
        engine_alarms.ring(tx)
    else:
        tx.run.state.wake_at_ns = 0
    tx.wake_changed = True
