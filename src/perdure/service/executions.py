"""Runs in memory, and the one path by which they change.

``transact`` finds a run, lets an operation of the engine change it, hands the tasks that this makes
to the dispatcher, and queues the outcome for the database. All of that is synchronous on the loop's
thread, so there are no locks: a run's transitions stack on uncommitted ones, and each caller is
answered when its own write is durable. If a write is lost, the run and all that stacked on it is
dropped from memory, and what can be redone is redone from the stored truth.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Protocol, TypeVar

from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest

from perdure.api import wire
from perdure.api.errors import DataLoss, InvalidArgument, NotFound, RPCError, Unavailable
from perdure.engine import lifecycle
from perdure.engine.execution import Execution
from perdure.engine.lifecycle import StartRun
from perdure.engine.transition import Transition
from perdure.service import records, validation
from perdure.service.clock import Clock
from perdure.service.committer import Committer
from perdure.service.entries import Companion, Entry
from perdure.service.ids import Ids
from perdure.service.namespaces import Namespaces
from perdure.service.settings import Settings
from perdure.service.units import Conflict, RunWrite, Unit
from perdure.store.contract import Store, StoreError
from perdure.store.sharing import Awaited

log = logging.getLogger("perdure.service")
T = TypeVar("T")
_SHORT_EVENTS = 64  # histories up to this are read together with their run
_STEP_BITS = 20


class TaskSink(Protocol):
    """Takes the tasks and messages of a transition (see dispatch)."""

    def dispatch(
        self, entry: Entry, tx: Transition, unit: Unit, write: RunWrite, *, gather: bool
    ) -> None:
        """Give ready tasks to parked polls, or write rows for them; queue messages."""

    def unit_committed(self, unit: Unit) -> None:
        """The unit is durable."""


class Executions:
    """The cache of runs, and ``transact``.

    Args:
        store, clock, rng, settings: of the node.
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
        self._store = store
        self._sharing = store.sharing
        self._clock = clock
        self._random = rng
        self._steps = random.Random()  # seeded when the node has its number
        self._settings = settings
        self._ids = ids
        self._namespaces = namespaces
        self._limits = settings.limits
        self._runs: OrderedDict[int, Entry] = OrderedDict()
        self._bytes = 0
        self._current: dict[tuple[str, str], Entry] = {}
        self._by_run_id: dict[str, Entry] = {}
        self._loading: dict[int, asyncio.Task[Entry | None]] = {}
        self._unsettled: set[int] = set()
        self._watchers: dict[int, list[asyncio.Future[None]]] = {}
        self._close_watchers: dict[int, list[asyncio.Future[None]]] = {}
        self.companions: dict[int, Companion] = {}
        self.watch_elsewhere: Callable[[int, Awaited], None] = lambda _key, _awaited: None
        self.sink: TaskSink  # set by the node: the dispatcher needs this object too
        self.committer = Committer(
            store, settings, namespaces,
            complete=self._complete, committed=self._committed, lost=self._lost,
        )  # fmt: skip

    def open(self) -> None:
        """Begin to write. The store is open."""
        self._steps.seed(self._store.node)
        self.committer.open()

    # -- look-up -----------------------------------------------------------------------------------

    def cached(self, key: int) -> Entry | None:
        """The run, if it is in memory."""
        entry = self._runs.get(key)
        if entry is not None:
            self._runs.move_to_end(key)
        return entry

    def cached_runs(self) -> Iterator[Execution]:
        """The runs in memory."""
        return (entry.run for entry in self._runs.values())

    def cached_open(self, namespace: str, workflow_id: str) -> Entry | None:
        """The open run of a workflow id, if it is in memory."""
        entry = self._current.get((namespace, workflow_id))
        return entry if entry is not None and entry.run.is_open else None

    async def entry(self, key: int) -> Entry:
        """The run, from memory or the store, as it is now. Raises NotFound."""
        for _ in range(self._settings.redo_max):
            entry = self.cached(key)
            if entry is not None and not await self._is_present(entry):
                continue
            if entry is None:
                is_old = key in self._loading and self._sharing is not None
                entry = await self._load(key)
                if is_old:  # it began before this call, and may have read what was true then
                    continue
            if entry is None:
                raise NotFound("workflow execution not found")
            if not entry.dropped:  # by a commit that was lost before this caller's turn came
                return entry
        raise Unavailable("The run changes too often to be read now; try again.")

    async def _is_present(self, entry: Entry) -> bool:
        """Whether no other node has changed a cached run; if one has, the run is dropped.

        What is written on a run that another node has changed meanwhile is found out by the commit.
        """
        if self._sharing is None or entry.unit is not None:
            return True
        key, version = entry.run.key, entry.run.state.version
        try:
            stored = await self._sharing.version(key)
        except StoreError as error:
            raise Unavailable(f"The database cannot be read: {error}") from error
        if entry.dropped:
            return False  # as what this node changed meanwhile was lost to another one
        if entry.unit is not None or entry.run.state.version > version:
            return True  # changed by this node meanwhile
        if stored == version:
            return True
        self.drop(entry)
        return False

    def is_behind(self, key: int, stored: int | None) -> bool:
        """Whether memory may lack what the store has of a run: this version, or none.

        A newer version in memory is one that this node has written since, or is about to; or the
        database has lost it.
        """
        entry = self._runs.get(key)
        if entry is None or stored is None:
            return True
        version = entry.run.state.version
        return version < stored or (version > stored and entry.unit is None)

    def is_awaited(self, key: int) -> bool:
        """Whether somebody waits for a commit of a run."""
        return key in self._close_watchers or key in self._watchers or key in self.companions

    async def look_again(self, key: int) -> None:
        """Another node may have changed a run: wake who waits for that."""
        try:
            entry = await self.entry(key)
        except NotFound:
            closed = True
        else:
            closed = entry.close_is_stored
        _wake(self._watchers.pop(key, ()))
        if closed:
            _wake(self._close_watchers.pop(key, ()))
        elif key in self._close_watchers:
            self.watch_elsewhere(key, Awaited.CLOSE)

    def watched(self) -> list[tuple[int, Awaited]]:
        """The runs that somebody waits for."""
        found = dict.fromkeys(self._close_watchers, Awaited.CLOSE)
        found.update(dict.fromkeys([*self._watchers, *self.companions], Awaited.ANY))
        return list(found.items())

    async def find(self, namespace: str, workflow_id: str, run_id: str = "") -> int | None:
        """The key of a run; without a run id of the open one, else of the one that started last."""
        key = self._find_cached(namespace, workflow_id, run_id)
        if key is not None:
            return key
        try:
            key = await self._store.find(namespace, workflow_id, run_id)
        except StoreError as error:
            raise Unavailable(f"The database cannot be read: {error}") from error
        started = self._find_cached(namespace, workflow_id, run_id)  # while the store looked
        return key if started is None else started

    def _find_cached(self, namespace: str, workflow_id: str, run_id: str) -> int | None:
        if run_id:
            entry = self._by_run_id.get(run_id)
            if entry is None or entry.run.info.workflow_id != workflow_id:
                return None
            return entry.run.key if entry.run.info.namespace == namespace else None
        entry = self._current.get((namespace, workflow_id))
        if entry is None:
            return None
        # A run that is stored may have been closed by another node, and have a successor there.
        is_new = entry.unit is not None and not entry.unit.writes[entry.run.key].based_on
        is_sure = is_new or (
            self._sharing is None and (entry.unit is not None or entry.run.is_open)
        )
        return entry.run.key if is_sure else None

    async def resolve(self, namespace: str, workflow_id: str, run_id: str = "") -> int:
        """The key of the run a request names. Raises InvalidArgument, NotFound."""
        if not workflow_id:
            raise InvalidArgument("WorkflowId is not set on request.")
        validation.whole(workflow_id, "WorkflowId")
        if run_id and not validation.is_uuid(run_id):
            raise InvalidArgument("Invalid RunId.")
        for _ in range(self._settings.redo_max):
            key = await self.find(namespace, workflow_id, run_id)
            if key is None:
                raise _not_there(workflow_id, run_id)
            entry = self._runs.get(key)
            unit = None if entry is None else entry.unit
            if unit is None or unit.writes[key].based_on:
                return key
            # It does not exist before it is stored: until then, its predecessor is the one.
            with suppress(Unavailable):
                await unit.is_written()
        raise Unavailable("The workflow changes too often to be found now; try again.")

    async def read(self, key: int) -> Entry:
        """The run, once it is stored. By then newer changes may wait for that: see `view`.

        The entry is good until the caller next awaits.
        """
        return await self.view(key, lambda entry: entry)

    async def view(self, key: int, look: Callable[[Entry], T]) -> T:
        """What a look at the run shows, or raises, once all that it saw is durable.

        The run may never be without newer changes: hence the look comes before the wait.
        """
        before = self._unit_of(key)
        for _ in range(self._settings.redo_max):
            entry = await self.entry(key)
            is_stored = entry.unit is None
            try:
                shown = look(entry)
            except RPCError:
                if not is_stored and not await self.is_sure(entry, before):
                    continue
                raise
            if is_stored or await self.is_sure(entry, before):
                return shown
        raise Unavailable("The run changes too often to be read now; try again.")

    def _unit_of(self, key: int) -> Unit | None:
        """The changes of a run that are not known to be stored."""
        entry = self._runs.get(key)
        return None if entry is None else entry.unit

    def unit_of_current(self, namespace: str, workflow_id: str) -> Unit | None:
        """The same for the run that a workflow id leads to."""
        entry = self._current.get((namespace, workflow_id))
        return None if entry is None else entry.unit

    async def is_sure(self, entry: Entry, before: Unit | None) -> bool:
        """Whether what a run shows was stored at a moment after a call came.

        What was on its way `before` the call may have been stored before it, too, and other nodes
        may have changed the run since: it is to be looked at again.
        """
        unit = entry.unit
        if unit is None:
            if not await self._is_present(entry):
                return False
            unit = entry.unit  # of a call that came meanwhile
        if unit is None:
            return True
        if not await unit.is_written() or (entry.dropped and entry.unit is not None):
            return False
        return self._sharing is None or unit is not before

    def watch(self, key: int) -> asyncio.Future[None]:
        """A future for the next commit that changes the run. Cancel it when you are done."""
        self.watch_elsewhere(key, Awaited.ANY)
        return _watch(self._watchers, key)

    def watch_close(self, key: int) -> asyncio.Future[None]:
        """A future for the commit that closes the run. Cancel it when you are done."""
        self.watch_elsewhere(key, Awaited.CLOSE)
        return _watch(self._close_watchers, key)

    async def _load(self, key: int) -> Entry | None:
        loading = self._loading.get(key)
        if loading is None:
            loading = asyncio.get_running_loop().create_task(self._load_now(key))
            self._loading[key] = loading
            loading.add_done_callback(lambda _: self._loading.pop(key, None))
        return await asyncio.shield(loading)

    async def _load_now(self, key: int) -> Entry | None:
        if key in self._unsettled:
            await self.committer.settled()
            self._unsettled.discard(key)
        try:
            loaded = await self._store.load(key)
        except StoreError as error:
            raise Unavailable(f"The database cannot be read: {error}") from error
        if loaded is None or key in self._runs:
            return self._runs.get(key)
        try:
            run = records.execution(loaded)
        except Exception as error:
            raise DataLoss(f"The stored run {key} cannot be read: {error}") from error
        entry = Entry(run, self._namespaces)
        entry.close_is_stored = not run.is_open
        await self._load_history(entry)
        if key in self._runs:  # while its history was read
            return self._runs[key]
        self._insert(entry)
        if self._sharing is not None:
            self._heed(entry)
        return entry

    def _heed(self, entry: Entry) -> None:
        """A run was read anew, perhaps because another node changed it: tell who waits for that.

        Nobody else will: from now on memory lacks nothing of what the store has.
        """
        key = entry.run.key
        companion = self.companions.get(key)
        if companion is not None:
            companion.look_again(entry.run)
        if key in self.companions:
            self.watch_elsewhere(key, Awaited.ANY)
        _wake(self._watchers.pop(key, ()))
        if entry.close_is_stored:
            _wake(self._close_watchers.pop(key, ()))

    async def _load_history(self, entry: Entry) -> None:
        """Keep a short history with a run that was not in memory: its next worker will want it."""
        run = entry.run
        last = run.state.next_event_id - 1
        if not run.is_open or last > _SHORT_EVENTS:
            return
        if run.state.history_size_bytes > self._settings.tail_bytes_max // 8:
            return
        try:
            batches = await self._store.history(run.key, 1, last, limit=_SHORT_EVENTS)
        except StoreError:
            return  # it is a convenience
        tail = [part for batch in batches for part in wire.frames(batch.events)]
        if len(tail) == last:  # else somebody else wrote more, which the first commit will find out
            entry.tail = tail
            entry.tail_first = 1
            entry.tail_bytes = run.state.history_size_bytes

    # -- the cache ---------------------------------------------------------------------------------

    def _insert(self, entry: Entry) -> None:
        run = entry.run
        self._runs[run.key] = entry
        self._by_run_id[run.info.run_id] = entry
        name = (run.info.namespace, run.info.workflow_id)
        current = self._current.get(name)
        if current is None or run.is_open or current.run.info.start_ns <= run.info.start_ns:
            self._current[name] = entry
        self._weigh(entry)
        self._evict()

    def _weigh(self, entry: Entry) -> None:
        """Note roughly what a run takes."""
        run = entry.run
        size_bytes = 6_000 + 1_000 * len(run.items) + entry.tail_bytes + len(run.memo)
        self._bytes += size_bytes - entry.size_bytes
        entry.size_bytes = size_bytes

    def _evict(self) -> None:
        """Forget runs not used lately; never one with changes that are not committed."""
        settings, runs = self._settings, self._runs
        looked_at = 0
        while (
            len(runs) > settings.cached_runs_max or self._bytes > settings.cached_bytes_max
        ) and looked_at < 16:
            looked_at += 1
            entry = next(iter(runs.values()))
            if entry.unit is None:
                self.drop(entry)
            else:
                runs.move_to_end(entry.run.key)

    def drop(self, entry: Entry) -> None:
        """Forget a run; the next look reads the store."""
        if entry.dropped:
            return
        entry.dropped = True
        run = entry.run
        name = (run.info.namespace, run.info.workflow_id)
        self._bytes -= entry.size_bytes
        if self._runs.get(run.key) is entry:
            del self._runs[run.key]
        if self._by_run_id.get(run.info.run_id) is entry:
            del self._by_run_id[run.info.run_id]
        if self._current.get(name) is entry:
            del self._current[name]

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
            except Conflict:
                continue
            return result
        raise Unavailable("The run changes too often; try again.")

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
        tx.limits = self._limits
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
        self._insert(entry)
        return entry, tx

    def adopt(self, tx: Transition) -> Entry:
        """A run that a transition made otherwise than by a start (a reset); `seal` it next."""
        entry = Entry(tx.run, self._namespaces)
        entry.tail_first = tx.first_event_id
        self._insert(entry)
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
        self._weigh(entry)
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
            if watchers and key in watchers:
                _wake(watchers.pop(key))
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
                _wake(self._close_watchers.pop(key, ()))
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


def _not_there(workflow_id: str, run_id: str) -> NotFound:
    if not run_id:
        return NotFound(f"workflow not found for ID: {workflow_id}")
    words = f'workflow ID "{workflow_id}" and run ID "{run_id}"'
    return NotFound(f"workflow execution not found for {words}")


def _watch(watched: dict[int, list[asyncio.Future[None]]], key: int) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    watched.setdefault(key, []).append(future)

    def forget(done: asyncio.Future[None]) -> None:
        """One that was told is forgotten already; this one gave up."""
        watchers = watched.get(key)
        if done.cancelled() and watchers is not None and done in watchers:
            watchers.remove(done)
            if not watchers:
                del watched[key]

    future.add_done_callback(forget)
    return future


def _wake(watchers: Iterable[asyncio.Future[None]]) -> None:
    for watcher in watchers:
        if not watcher.done():
            watcher.set_result(None)
