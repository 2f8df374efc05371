"""Runs as they are, in memory and in the store.

What is in memory may be ahead of the store, by changes that are not durable yet, or behind it, when
other nodes changed a run: whoever looks is shown nothing that is not stored, and nothing older than
what was stored when the look began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from perdure.api import wire
from perdure.api.errors import DataLoss, InvalidArgument, NotFound, RPCError, Unavailable
from perdure.engine.execution import Execution
from perdure.service import records, validation
from perdure.service.committer import Committer
from perdure.service.entries import Companion, Entry
from perdure.service.namespaces import Namespaces
from perdure.service.run_cache import RunCache
from perdure.service.settings import Settings
from perdure.service.units import Unit
from perdure.service.watchers import Watchers
from perdure.store.contract import Store, StoreError
from perdure.store.sharing import Awaited

T = TypeVar("T")
_SHORT_EVENTS = 64  # histories up to this are read together with their run


class Runs:
    """Finds, reads and watches runs.

    Args:
        store, settings, namespaces: of the node.

    Attributes:
        committer: writes the changes; set by who makes them.
        companions: what calls wait for of a run beside its commits, by key.
        watch_elsewhere: called with each run that somebody begins to wait for.
    """

    committer: Committer

    def __init__(self, store: Store, settings: Settings, namespaces: Namespaces) -> None:
        self._store = store
        self._sharing = store.sharing
        self._settings = settings
        self._namespaces = namespaces
        self._cache = RunCache(settings)
        self._loading: dict[int, asyncio.Task[Entry | None]] = {}
        self._unsettled: set[int] = set()
        self._watchers = Watchers()
        self._close_watchers = Watchers()
        self.companions: dict[int, Companion] = {}
        self.watch_elsewhere: Callable[[int, Awaited], None] = lambda _key, _awaited: None

    # -- memory ------------------------------------------------------------------------------------

    def cached(self, key: int) -> Entry | None:
        """The run, if it is in memory."""
        return self._cache.use(key)

    def cached_runs(self) -> Iterator[Execution]:
        """The runs in memory."""
        return (entry.run for entry in self._cache)

    def cached_open(self, namespace: str, workflow_id: str) -> Entry | None:
        """The open run of a workflow id, if it is in memory."""
        entry = self._cache.current(namespace, workflow_id)
        return entry if entry is not None and entry.run.is_open else None

    def drop(self, entry: Entry) -> None:
        """Forget a run; the next look reads the store."""
        self._cache.drop(entry)

    # -- find --------------------------------------------------------------------------------------

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
            entry = self._cache.with_run_id(namespace, workflow_id, run_id)
            return None if entry is None else entry.run.key
        entry = self._cache.current(namespace, workflow_id)
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
            entry = self._cache.get(key)
            unit = None if entry is None else entry.unit
            if unit is None or unit.writes[key].based_on:
                return key
            # It does not exist before it is stored: until then, its predecessor is the one.
            with suppress(Unavailable):
                await unit.is_written()
        raise Unavailable("The workflow changes too often to be found now; try again.")

    # -- read --------------------------------------------------------------------------------------

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
        entry = self._cache.get(key)
        if entry is None or stored is None:
            return True
        version = entry.run.state.version
        return version < stored or (version > stored and entry.unit is None)

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
        entry = self._cache.get(key)
        return None if entry is None else entry.unit

    def unit_of_current(self, namespace: str, workflow_id: str) -> Unit | None:
        """The same for the run that a workflow id leads to."""
        entry = self._cache.current(namespace, workflow_id)
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

    # -- wait --------------------------------------------------------------------------------------

    def watch(self, key: int) -> asyncio.Future[None]:
        """A future for the next commit that changes the run. Cancel it when you are done."""
        self.watch_elsewhere(key, Awaited.ANY)
        return self._watchers.add(key)

    def watch_close(self, key: int) -> asyncio.Future[None]:
        """A future for the commit that closes the run. Cancel it when you are done."""
        self.watch_elsewhere(key, Awaited.CLOSE)
        return self._close_watchers.add(key)

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
        self._watchers.tell(key)
        if closed:
            self._close_watchers.tell(key)
        elif key in self._close_watchers:
            self.watch_elsewhere(key, Awaited.CLOSE)

    def watched(self) -> list[tuple[int, Awaited]]:
        """The runs that somebody waits for."""
        found = dict.fromkeys(self._close_watchers.keys(), Awaited.CLOSE)
        found.update(dict.fromkeys([*self._watchers.keys(), *self.companions], Awaited.ANY))
        return list(found.items())

    # -- load --------------------------------------------------------------------------------------

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
        found = self._cache.get(key)
        if loaded is None or found is not None:
            return found
        try:
            run = records.execution(loaded)
        except Exception as error:
            raise DataLoss(f"The stored run {key} cannot be read: {error}") from error
        entry = Entry(run, self._namespaces)
        entry.close_is_stored = not run.is_open
        await self._load_history(entry)
        found = self._cache.get(key)
        if found is not None:  # while its history was read
            return found
        self._cache.insert(entry)
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
        self._watchers.tell(key)
        if entry.close_is_stored:
            self._close_watchers.tell(key)

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


def _not_there(workflow_id: str, run_id: str) -> NotFound:
    if not run_id:
        return NotFound(f"workflow not found for ID: {workflow_id}")
    words = f'workflow ID "{workflow_id}" and run ID "{run_id}"'
    return NotFound(f"workflow execution not found for {words}")
