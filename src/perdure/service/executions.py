"""The one path by which runs change.

``transact`` finds a run, lets an operation of the engine change it, hands the tasks that this makes
to the dispatcher, and queues the outcome for the database. All of that is synchronous on the loop's
thread, so there are no locks: a run's transitions stack on uncommitted ones, and each caller is
answered when its own write is durable. If a write is lost, the run and all that stacked on it is
dropped from memory, and what can be redone is redone from the stored truth.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest

from perdure.api.errors import NotFound, RPCError, Unavailable
from perdure.engine import lifecycle
from perdure.engine.lifecycle import StartRun
from perdure.engine.transition import Transition
from perdure.service.clock import Clock
from perdure.service.committer import Committer
from perdure.service.entries import Entry
from perdure.service.ids import Ids
from perdure.service.namespaces import Namespaces
from perdure.service.runs import Runs
from perdure.service.settings import Settings
from perdure.service.units import Conflict, RunWrite, Unit
from perdure.store.contract import Store
from perdure.store.sharing import Awaited

log = logging.getLogger("perdure.service")
T = TypeVar("T")
_STEP_BITS = 20


class TaskSink(Protocol):
    """Takes the tasks and messages of a transition (see dispatch)."""

    def dispatch(
        self, entry: Entry, tx: Transition, unit: Unit, write: RunWrite, *, gather: bool
    ) -> None:
        """Give ready tasks to parked polls, or write rows for them; queue messages."""

    def unit_committed(self, unit: Unit) -> None:
        """The unit is durable."""


class Executions(Runs):
    """The runs, and ``transact``.

    Args:
        store, clock, rng, settings, namespaces: of the node.
        ids: gives keys for new runs.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        rng: random.Random,
        settings: Settings,
        ids: Ids,
        namespaces: Namespaces,
    ) -> None:
        super().__init__(store, settings, namespaces)
        self._clock = clock
        self._random = rng
        self._steps = random.Random()  # seeded when the node has its number
        self._ids = ids
        self.sink: TaskSink  # set by the node: the dispatcher needs this object too
        self.committer = Committer(
            store, settings, namespaces,
            complete=self._complete, committed=self._committed, lost=self._lost,
        )  # fmt: skip

    def open(self) -> None:
        """Begin to write. The store is open."""
        self._steps.seed(self._store.node)
        self.committer.open()

    # -- the one path ------------------------------------------------------------------------------

    async def transact(self, key: int, operation: Callable[[Transition], T]) -> T:
        """Change a run, and return the operation's result once the change is durable.

        The operation is called again, on the stored run, whenever its change was lost to a race.

        Raises:
            RPCError: the operation's own, with nothing changed.
            NotFound: no such run.
            Refused: the store can never hold the change.
            Unavailable: the store failed; the change may or may not be stored.
        """
        before = self._unit_of(key)
        why = ""
        for _ in range(self._settings.redo_max):
            if self.committer.is_full:
                await self.committer.room()
            entry = self.cached(key)
            if entry is None:
                entry = await self.entry(key)
            try:
                result, unit = self.apply(entry, operation)
            except RPCError:
                if not await self.is_sure(entry, before):
                    continue
                raise
            try:
                await unit.wait()
            except Conflict as conflict:
                why = str(conflict)
                continue
            return result
        raise Unavailable(why or "The run changes too often; try again.")

    async def transact_found(
        self, find: Callable[[], Awaitable[int]], operation: Callable[[Transition], T]
    ) -> T:
        """`transact` the run that `find` leads to; if that ends meanwhile, the one in its place.

        Raises what `find` and `transact` raise.
        """
        key = await find()
        for _ in range(self._settings.redo_max):
            try:
                return await self.transact(key, operation)
            except NotFound:
                found = await find()
                if found == key:
                    raise
                key = found
        raise Unavailable("The workflow changes too often; try again.")

    def apply(
        self, entry: Entry, operation: Callable[[Transition], T], *, gather: bool = True
    ) -> tuple[T, Unit]:
        """Run an operation on a cached run and queue the outcome; raises what it raises."""
        assert not entry.dropped
        tx = self.begin(entry)
        try:
            result = operation(tx)
            return result, self.seal(entry, tx, gather=gather)
        except RPCError:
            if tx.parts or tx.changed or tx.dropped or tx.tasks:
                self.poison(entry)
            raise
        except BaseException:
            self.poison(entry)
            raise

    def begin(self, entry: Entry, now_ns: int = 0) -> Transition:
        """A transition over a cached run, at the given time or now."""
        tx = Transition(entry.run, now_ns or self._clock.now_ns(), self._random)
        tx.limits = self._settings.limits
        return tx

    def create(
        self, start: StartRun, first_signal: SignalWorkflowExecutionRequest | None = None
    ) -> tuple[Entry, Transition]:
        """A run that does not exist yet, started; `seal` it."""
        now_ns = self._clock.now_ns()
        run = lifecycle.new_execution(self._ids.take(), start, now_ns)
        entry = Entry(run, self._namespaces)
        tx = self.begin(entry, now_ns)
        lifecycle.start(tx, start, first_signal)
        self._cache.insert(entry)
        return entry, tx

    def adopt(self, tx: Transition) -> Entry:
        """A run that a transition made otherwise than by a start (a reset); `seal` it next."""
        entry = Entry(tx.run, self._namespaces)
        entry.tail_first = tx.first_event_id
        self._cache.insert(entry)
        return entry

    def seal(
        self,
        entry: Entry,
        tx: Transition,
        unit: Unit | None = None,
        *,
        gather: bool = True,
        follows: int | None = None,
    ) -> Unit:
        """Dispatch a transition's tasks and queue its changes.

        Without `unit`: in the one that waits with earlier changes of the run, or a new one.
        `gather`: its workflow task may wait for more to come, until the unit is sent. `follows`: of
        a new run, see Write.
        """
        run = entry.run
        joined = entry.unit
        if joined is not None and not joined.sent:
            assert unit is None or unit is joined
            unit = joined
        elif unit is None:
            unit = Unit()
            self.committer.put(unit)
        write = unit.writes.get(run.key)
        if write is None:
            write = unit.writes[run.key] = RunWrite(entry, tx.based_on, tx.first_event_id, follows)
        entry.unit = unit
        self.sink.dispatch(entry, tx, unit, write, gather=gather)
        state = run.state
        state.version += self._step()
        state.transition_count += 1
        write.merge(tx)
        if tx.closed:
            self._close(entry, write)
        entry.grow_tail(tx.parts, self._settings.tail_bytes_max)
        self._cache.weigh(entry)
        if tx.successor is not None:
            follower, follower_tx = self.create(tx.successor)
            self.seal(follower, follower_tx, unit)
        return unit

    def _step(self) -> int:
        """How much a transition adds to its run's version.

        A random number: what is written is known by its version, so no two transitions may lead
        to the same one. Two nodes may go on from the same version, and from one that comes back
        when a database loses commits.
        """
        return 1 + self._steps.getrandbits(_STEP_BITS)

    def _complete(self, unit: Unit) -> None:
        """A unit is about to be sent: dispatch the workflow tasks that waited for more to come."""
        while unit.ready:
            key, ref = unit.ready.popitem()
            entry = unit.writes[key].entry
            try:
                self.apply(entry, lambda tx, ref=ref: tx.tasks.append(ref), gather=False)  # type: ignore[misc]
            except Exception:
                log.exception("a workflow task of run %d cannot be dispatched", key)
                return

    def _close(self, entry: Entry, write: RunWrite) -> None:
        """A closed run needs no alarm, and its waiting tasks are void."""
        state = entry.run.state
        state.wake_at_ns = 0
        write.wake_changed = write.closes = True
        if entry.workflow_row is not None:
            write.drop_task(entry.workflow_row[1])
            entry.workflow_row = None
        for _, row_id in entry.activity_rows.values():
            write.drop_task(row_id)
        entry.activity_rows.clear()

    def poison(self, entry: Entry) -> None:
        """Drop a run whose state in memory cannot be trusted; its unwritten changes are redone."""
        unit = entry.unit
        self.drop(entry)
        if unit is None:
            return
        if unit.sent or self.committer.is_idle is False:
            self._unsettled.add(entry.run.key)
        if not unit.sent:
            self.committer.lose(unit, Conflict())

    # -- the end of a unit -------------------------------------------------------------------------

    def _committed(self, unit: Unit) -> None:
        watchers, settings = self._watchers, self._settings
        for key, write in unit.writes.items():
            entry = write.entry
            if entry.unit is unit:
                entry.unit = None
            if watchers:
                watchers.tell(key)
            if key in self.companions:  # what it waits for was told of this commit only
                self.watch_elsewhere(key, Awaited.ANY)
            if outgrows(write, settings):
                info = entry.run.info
                log.warning(
                    "the history of workflow %s, run %s, is long: %d events, %d bytes; "
                    "it should continue as new",
                    info.workflow_id, info.run_id,
                    entry.run.state.next_event_id - 1, entry.run.state.history_size_bytes,
                )  # fmt: skip
            if write.closes:
                entry.close_is_stored = True
                self._close_watchers.tell(key)
        for call in unit.done:
            call()
        self.sink.unit_committed(unit)

    def _lost(self, unit: Unit) -> None:
        for write in unit.writes.values():
            entry = write.entry
            self.drop(entry)
            later = entry.unit
            entry.unit = None
            if later is not None and later is not unit and not later.sent:
                self.committer.lose(later, Conflict())
        for call in reversed(unit.undo):
            call()


def outgrows(write: RunWrite, settings: Settings) -> bool:
    """Whether it is with this write that a history grows longer than an operator wants to know."""
    first, count = write.first_event_id, len(write.parts)
    if first <= settings.history_events_warn < first + count:
        return True
    size, bound = write.entry.run.state.history_size_bytes, settings.history_bytes_warn
    return size > bound > 0 and size - sum(map(len, write.parts)) <= bound
