"""A node: the service over one store, with all that runs beside the calls."""

from __future__ import annotations

import asyncio
import logging
import random as random_module
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from perdure.api.errors import NotFound, Unavailable
from perdure.engine import activities, workflow_tasks
from perdure.engine.execution import Execution
from perdure.engine.state import Activity, WorkflowTask
from perdure.engine.transition import Transition
from perdure.service import queue_configs
from perdure.service.alarms import Alarms
from perdure.service.clock import Clock, SystemClock, sleep_until
from perdure.service.companion import Companions
from perdure.service.courier import Courier
from perdure.service.deleting import Purger
from perdure.service.dispatch import Dispatcher
from perdure.service.doubts import Doubts
from perdure.service.executions import Executions
from perdure.service.ids import Ids
from perdure.service.matching import Matching
from perdure.service.namespaces import Namespaces
from perdure.service.neighbours import Neighbours
from perdure.service.queries import QueryTasks
from perdure.service.queue import WORKFLOW, Poll, TaskQueue
from perdure.service.settings import Settings
from perdure.service.starting import Starting
from perdure.service.workers import Workers
from perdure.service.workflow_service import WorkflowService
from perdure.store.contract import Store, StoreError

T = TypeVar("T")
_TAKE_BACK_BATCH = 500

log = logging.getLogger("perdure.service")


class Node:
    """One process's part of the system; all state that matters is in the store.

    Args:
        store: not yet open; the node opens and closes it.
        clock: where time comes from.
        rng: where ids and jitter come from; seed it for a simulation.
        settings: limits and knobs.

    Attributes:
        service: the API.

    Example:
        >>> node = await Node.open(SqliteStore(Path("orders.db")))
        >>> await node.service.start_workflow_execution(request)
        >>> await node.close()
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock | None = None,
        rng: random_module.Random | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.store = store
        self.store_name = type(store).__name__.removesuffix("Store").lower()
        self.clock = clock or SystemClock()
        self.random = rng or random_module.Random()
        self.settings = settings or Settings()
        self.namespaces = Namespaces(
            store,
            new_id=self.new_id,
            settings=self.settings,
        )
        self.ids = Ids(store, self.settings.id_block)
        self.executions = Executions(
            store, self.clock, self.random, self.settings, self.ids, self.namespaces
        )
        self.matching = Matching(store, self.clock, self.settings)
        self.alarms = Alarms(self.executions, store, self.clock, self.settings)
        self.starting = Starting(self)
        self.courier = Courier(
            self.executions, store, self.clock, self.settings, self.namespaces, self.starting
        )
        self.dispatcher = Dispatcher(
            self.executions, self.matching, store, self.clock, self.settings, self.ids,
            self.namespaces, deliver=self.courier.deliver, alarm=self.alarms.note,
        )  # fmt: skip
        self.executions.sink = self.dispatcher
        self.matching.configure = self._configure
        self.doubts = Doubts(self)
        self.executions.committer.doubted = self.doubts.add
        self.executions.committer.broke = self.end
        self.companions = Companions(
            self.executions, self.settings.queries_per_run_max, lambda: self.holder
        )
        self.query_tasks = QueryTasks(self.settings.queries_max)
        self.workers = Workers(self.clock, self.settings)
        self.purger = Purger(self)
        self.neighbours: Neighbours | None = None
        if store.sharing is not None:
            neighbours = self.neighbours = Neighbours(self, store.sharing)
            self.executions.watch_elsewhere = neighbours.watches.add
            self.matching.arrived = neighbours.workers_arrived
            self.namespaces.spread = neighbours.spread_namespaces
            self.companions.has_worker = neighbours.has_worker
        self.namespaces.changed = self._namespaces_changed
        self.service = WorkflowService(self)
        self.ended: asyncio.Event = asyncio.Event()
        self.ended_by: StoreError | None = None
        self._is_behind = False  # memory: look again
        self._looking = False
        self._end: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, store: Store, **options: Any) -> Node:
        """A node that serves. Raises StoreHeld, StoreTooNew, StoreUnavailable."""
        node = cls(store, **options)
        await node.start()
        return node

    async def start(self) -> None:
        """Open the store and take up what an earlier process left."""
        await self.store.open()
        try:
            await self.ids.open()
            await self.namespaces.open()
            self.executions.open()
            if self.neighbours is not None:
                await self.neighbours.open()
            await self.matching.open()
            if self.neighbours is None:
                await self._take_back()
                await self._redirect_orphans()
            await self.courier.open()
            await self.alarms.open()
            self.purger.open()
        except BaseException:
            await self._close()
            raise

    def end(self, reason: StoreError) -> None:
        """Close by itself: the database is no longer for this node. Calls then say why."""
        if self._end is None:
            log.error("this node stops: %s", reason)
            self.ended_by = reason
            self.ended.set()
            self._end = asyncio.get_running_loop().create_task(self._close())

    async def close(self) -> None:
        """Answer the polls, finish what is being written, and let go of the store."""
        if self._end is None:
            self._end = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._end)

    async def _close(self) -> None:
        self.matching.close(self.ended_by)
        await self.alarms.close()
        await self.purger.close()
        await self.courier.close()
        await self.companions.close()
        await self.doubts.close()
        await self.dispatcher.close()
        await self.matching.drain()
        await self.executions.committer.close(self.ended_by)
        await self.doubts.close()  # of its last commits
        await self.namespaces.close()
        if self.neighbours is not None:
            await self.neighbours.close()
        await self.ids.close()
        await self.store.close()

    @property
    def holder(self) -> int:
        """What a task's token says when only this node can use the answer; 0 for the only node."""
        return self.store.node if self.neighbours is not None else 0

    def new_id(self) -> str:
        """A fresh UUID from the node's randomness."""
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    async def wait_for_task(self, poll: Poll) -> Any:
        """Park a poll and wait for its response. A caller that gives up loses no task."""
        self.matching.park(poll)
        return await self.wait_for_parked(poll)

    async def wait_for_parked(self, poll: Poll) -> Any:
        """Wait for the response of a poll that is parked."""
        try:
            return await poll.future
        except asyncio.CancelledError:
            self.give_up(poll)
            raise
        finally:
            self.matching.finish(poll)

    def _configure(self, queue: TaskQueue) -> None:
        """A queue comes into being: it follows what is set for it."""
        config = self.namespaces.task_queue(queue.key.namespace, queue_configs.name_of(queue.key))
        queue_configs.put_in_force(queue, config)

    def _namespaces_changed(self) -> None:
        """Another node changed one: this one does what its own calls do then."""
        self.matching.configure_again()
        self.purger.watch_retention()

    def look_again(self) -> None:
        """A commit may be stored of which memory has not heard."""
        self._is_behind = True
        if not self._looking:
            self._looking = True
            self.dispatcher.spawn(self._reread())

    async def _reread(self) -> None:
        """Read what waits in the store, once it can be read."""
        try:
            while self._is_behind and self._end is None:
                self._is_behind = False
                try:
                    await self.matching.reread()
                    await self.courier.reread()
                    await self.alarms.open()
                except StoreError:
                    self._is_behind = True
                    await sleep_until(self.clock, self.clock.now_ns() + self.settings.retry_ns)
        finally:
            self._looking = False

    def give_up(self, poll: Poll) -> None:
        """The caller of a parked poll is gone; a task that it was given goes back."""
        self.matching.give_up(poll)
        if not poll.future.done():
            poll.future.cancel()
        elif not poll.future.cancelled():
            self.dispatcher.take_back(poll)

    # -- after a restart ---------------------------------------------------------------------------

    async def _take_back(self) -> None:
        """Workers of the former process died with it: what they held is offered again."""

        async def others(nodes: Collection[int]) -> frozenset[int]:
            return frozenset(nodes) - {self.store.node}

        await self.take_back(await self.store.in_flight(), others)

    async def take_back(
        self, keys: list[int], dead: Callable[[Collection[int]], Awaitable[frozenset[int]]]
    ) -> None:
        """Offer again what workers of dead nodes held of some runs.

        `dead` is asked which of the nodes that hold something do not live any more: after they were
        seen to hold it, as a node that comes meanwhile is none of them.

        Raises Unavailable, StoreError.
        """
        for first in range(0, len(keys), _TAKE_BACK_BATCH):
            batch = keys[first : first + _TAKE_BACK_BATCH]
            held = dict(zip(batch, await _all(map(self._holders_of, batch)), strict=True))
            gone = await dead(frozenset().union(*held.values()))
            await _all(self._take_back_of(key, gone) for key in batch if held[key] & gone)

    async def _holders_of(self, key: int) -> frozenset[int]:
        with _other_runs_go_on(key):
            return await self.executions.view(key, lambda entry: holders(entry.run))
        return frozenset()

    async def _take_back_of(self, key: int, dead: frozenset[int]) -> None:
        with _other_runs_go_on(key):
            await self.executions.transact(key, partial(take_back, dead))

    async def _redirect_orphans(self) -> None:
        """Tasks on the sticky queue of a worker that died go to the normal queue."""
        for queue in self.matching.waiting(WORKFLOW):
            try:
                entry = await self.executions.entry(queue.rows.first.key)
            except NotFound:
                continue
            task = entry.run.state.workflow_task
            if task is not None and task.sticky and task.queue == queue.key.name:
                await self.dispatcher.redirect(queue)


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Do all of it; the first error is raised when the rest is done, too."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


@contextmanager
def _other_runs_go_on(key: int) -> Iterator[None]:
    """One bad run does not stand in the way of all others; Unavailable concerns them, too."""
    try:
        yield
    except NotFound:
        pass
    except Unavailable:
        raise
    except Exception:
        log.exception("what workers held of run %d cannot be offered again", key)


def _held(run: Execution) -> list[Activity | WorkflowTask]:
    """What workers have that die with a node's process."""
    if not run.is_open:
        return []
    tasks = [*run.activities.values(), run.state.workflow_task]
    return [task for task in tasks if task is not None and task.in_process and task.started_ns]


def holders(run: Execution) -> frozenset[int]:
    """The nodes whose own workers hold tasks of a run."""
    return frozenset(task.holder for task in _held(run))


def take_back(dead: frozenset[int], tx: Transition) -> None:
    """Offer again what workers held that died with a node's process."""
    for task in _held(tx.run):
        if task.holder not in dead or not tx.run.is_open:
            continue
        if isinstance(task, Activity):
            activities.take_back(tx, task)
        else:
            workflow_tasks.take_back(tx)
