"""Task queues: where polls wait for tasks, and tasks for polls.

A poll is parked as a future. The dispatcher asks for a parked poll before it writes a task
anywhere; only a task that nobody waits for becomes a row of the store. Memory holds a window of
each queue's rows, by rank; what is beyond it is read by page when the window has run empty.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any

import msgspec
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueResponse,
)

from perdure.api.caller import until
from perdure.api.errors import FailedPrecondition, ResourceExhausted, Unavailable
from perdure.service.clock import Alarm, Clock
from perdure.service.queue import WORKFLOW, Poll, QueryTask, QueueKey, TaskQueue
from perdure.service.rate import NEVER_NS, Rate, SharedRate
from perdure.service.settings import Settings
from perdure.service.window import LeasedWindow, Window
from perdure.store.contract import Backlog, Store, StoreError, TaskRow
from perdure.store.sharing import Queue, Sharing

log = logging.getLogger("perdure.service")

_LEFT_MAX = 1_000
_KEPT_NS = 100_000_000
_RANK_AGAIN_NS = 1_000_000_000
_RANK_AGAIN_SHARE = 20  # of the time may go into asking


class Matching:
    """All task queues of a node. `claim` starts a waiting row's task for a parked poll."""

    def __init__(self, store: Store, clock: Clock, settings: Settings) -> None:
        self._store = store
        self._sharing = store.sharing
        self._clock = clock
        self._settings = settings
        self._queues: dict[tuple[str, str, int], TaskQueue] = {}
        self._deadlines: OrderedDict[Poll, None] = OrderedDict()
        self._alarm: Alarm | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._purge_at = 1_000
        self._has_forgotten = False  # queues that tasks may wait in
        self._left: OrderedDict[str, None] = OrderedDict()  # workers, the last ones
        self._closed = False
        self._reason: StoreError | None = None
        self.claim: Callable[[TaskQueue, TaskRow], None]  # set by the dispatcher
        self.configure: Callable[[TaskQueue], None] = lambda _: None  # a queue that is new
        self.arrived: Callable[[TaskQueue], None] = lambda _: None  # its first poll

    async def open(self) -> None:
        """Look at every queue that has waiting tasks, and read its first window: what is put there
        from now on comes behind."""
        for queue, backlogs in self._queues_of(await self._store.backlogs()):
            queue.rows.forget()
            queue.ranking.restore(backlogs)
            if not isinstance(queue.rows, LeasedWindow):  # else when somebody polls
                await self._load(queue)

    def close(self, reason: StoreError | None = None) -> None:
        """Answer every parked poll empty, and refuse later ones."""
        self._closed = True
        self._reason = reason
        if self._alarm is not None:
            self._alarm.cancel()
        for poll in list(self._deadlines):
            self._expire(poll)
        for queue in self._queues.values():
            self._give_back_leased(queue.rows)

    async def release(self, at_once: int = 500) -> None:
        """The same, a few at a time: a connection does not bear thousands of answers at once."""
        self._closed = True
        for number, poll in enumerate(list(self._deadlines), start=1):
            self._expire(poll)
            if number % at_once == 0:
                await asyncio.sleep(0.01)

    async def drain(self) -> None:
        """Wait for loads under way."""
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    def queue(self, namespace: str, name: str, kind: int) -> TaskQueue:
        """The queue of that name, made on first use."""
        found = self._queues.get((namespace, name, kind))
        if found is None:
            if len(self._queues) >= self._purge_at:
                self._purge()
            key = QueueKey(namespace, name, kind)
            if self._sharing is None:
                found = TaskQueue(key, self._window())
            else:
                limit = partial(SharedRate, is_shared=self._has_company)
                found = TaskQueue(key, self._window(), limit)
            found.made_ns = self._clock.now_ns()
            found.rank_again_ns = self._rank_again_ns()
            self._queues[key] = found
            self.configure(found)
        return found

    def _has_company(self) -> bool:
        return self._sharing is not None and self._sharing.has_company

    def _rank_again_ns(self) -> int:
        """When a queue's ranking is to be compared with the store: never, if memory knows all."""
        return 0 if self._has_company() or self._has_forgotten else NEVER_NS

    def _window(self) -> Window:
        """A new view on a queue's rows. With other nodes about, a row has to be leased first."""
        size = self._settings.backlog_window
        made = LeasedWindow(size) if self._has_company() else Window(size)
        if self._sharing is not None:
            made.forget()  # there may be rows that this node did not write
        return made

    def company_changed(self) -> None:
        """Other nodes came, or the last one left: look at what waits in the way that is right."""
        for queue in self._queues.values():
            self._give_back_leased(queue.rows)
            queue.rows = self._window()
            queue.rank_again_ns = self._rank_again_ns()
            self.pump(queue)

    def configure_again(self) -> None:
        """What is set for queues may have changed."""
        for queue in self._queues.values():
            self.configure(queue)
            self.pump(queue)

    def known(self, namespace: str, name: str, kind: int) -> TaskQueue | None:
        """The queue of that name, if anything ever used it."""
        return self._queues.get((namespace, name, kind))

    def waiting(self, kind: int) -> list[TaskQueue]:
        """The queues of a kind that have tasks waiting in memory."""
        return [queue for queue in self._queues.values() if queue.key.kind == kind and queue.rows]

    # -- polls -------------------------------------------------------------------------------------

    def park(self, poll: Poll) -> None:
        """Let a poll wait. Raises ResourceExhausted when the queue has too many."""
        queue = poll.queue
        if poll.worker in self._left:  # it was under way: nobody would do its task
            poll.future.set_result(_empty(queue))
            return
        if self._reason is not None:
            raise FailedPrecondition(f"This node stopped: {self._reason}")
        if self._closed:
            raise Unavailable("This node is being closed.")
        if len(queue.polls) >= self._settings.task_queue_polls_max:
            raise ResourceExhausted(
                f"Task queue {queue.key.name!r} has {len(queue.polls)} parked polls, the limit "
                "(task_queue_polls_max)."
            )
        poll.parked_ns = now_ns = self._clock.now_ns()
        queue.note(poll.identity, now_ns)
        expiry_ns = now_ns + self._settings.long_poll_ns
        poll.deadline_ns = until(now_ns, self._settings.long_poll_ns)
        if poll.deadline_ns < expiry_ns:  # the caller leaves before the others of its age
            poll.alarm = self._clock.call_at(poll.deadline_ns, partial(self._expire, poll))
        queue.polls[poll] = None
        self._deadlines[poll] = None
        if self._alarm is None:
            self._arm(expiry_ns)
        if queue.rows or queue.queries or queue.rows.more:
            self.pump(queue)
        if len(queue.polls) == 1:
            self.arrived(queue)

    def finish(self, poll: Poll) -> None:
        """The poll's call ended: it is parked nowhere any more."""
        self._deadlines.pop(poll, None)
        poll.queue.polls.pop(poll, None)
        if poll.alarm is not None:
            poll.alarm.cancel()

    def give_up(self, poll: Poll) -> None:
        """The caller is gone."""
        self.finish(poll)
        poll.queue.seen_ns = self._clock.now_ns()

    def put_back(self, poll: Poll) -> None:
        """A poll that had been matched waits again, before all others."""
        if poll.future.done():
            return
        if self._closed or poll.deadline_ns <= self._clock.now_ns():
            self.dismiss(poll)
            return
        poll.task = None
        poll.queue.polls[poll] = None
        poll.queue.polls.move_to_end(poll, last=False)

    def dismiss(self, poll: Poll) -> None:
        """Answer a poll that gets nothing, parked or not."""
        self.finish(poll)
        if not poll.future.done():
            poll.future.set_result(_empty(poll.queue))

    def _expire(self, poll: Poll) -> None:
        parked = poll in poll.queue.polls
        self._deadlines.pop(poll, None)
        if parked:
            self.give_up(poll)
            if not poll.future.done():
                poll.future.set_result(_empty(poll.queue))

    def _arm(self, time_ns: int) -> None:
        self._alarm = self._clock.call_at(time_ns, self._sweep)

    def _sweep(self) -> None:
        """Answer polls that waited their time."""
        self._alarm = None
        now_ns = self._clock.now_ns()
        while self._deadlines:
            poll = next(iter(self._deadlines))
            if poll.deadline_ns > now_ns:
                self._arm(poll.deadline_ns)
                return
            self._expire(poll)

    # -- waiting tasks -----------------------------------------------------------------------------

    def add_row(self, row: TaskRow) -> None:
        """A task's row was committed."""
        queue = self.queue(row.namespace, row.queue, row.kind)
        queue.rows.add(row)
        if self._clock.now_ns() >= queue.rank_again_ns:
            queue.rank_again_ns = NEVER_NS
            self._spawn(self._rank_again(queue))
        if queue.polls:
            self.pump(queue)

    def pump(self, queue: TaskQueue) -> None:
        """Bring parked polls and waiting tasks together."""
        while queue.polls and queue.queries:
            poll = next(iter(queue.polls))
            if queue.queries.popleft().hand_over(poll):
                queue.polls.pop(poll, None)
        while queue.rows and len(queue.polls) > queue.claiming and not self._closed:
            if queue.rate is not None and not self._is_time(queue, queue.rate):
                return
            row = queue.rows.pop()
            queue.ranking.taken(row.rank)
            self.claim(queue, row)
        if queue.polls and not queue.rows:
            if queue.rows.more and not queue.rows.loading:
                queue.rows.loading = True
                self._spawn(self._load_and_pump(queue))
            elif not queue.rows.more and not queue.claiming:
                queue.ranking.reset()
        elif queue.rows and isinstance(queue.rows, LeasedWindow) and not queue.rows.returning:
            queue.rows.returning = True
            due_ns = self._clock.now_ns() + _KEPT_NS
            self._clock.call_at(due_ns, partial(self._return_leases, queue, queue.rows))

    def _is_time(self, queue: TaskQueue, rate: Rate) -> bool:
        """Whether a task may be given out; if not, the queue is looked at when it may."""
        if queue.claiming:
            return False  # one after the other: each takes its share when its run is there
        if isinstance(rate, SharedRate) and rate.must_ask:
            if not rate.asking:
                rate.asking = True
                self._spawn(self._ask_for_permits(queue, rate))
            return False
        ready_ns = rate.ready_ns()
        if ready_ns <= self._clock.now_ns():
            return True
        self._pump_at(queue, ready_ns)
        return False

    def _pump_at(self, queue: TaskQueue, time_ns: int) -> None:
        if queue.rate_alarm is not None:
            queue.rate_alarm.cancel()
        queue.rate_alarm = None
        if time_ns < NEVER_NS:
            queue.rate_alarm = self._clock.call_at(time_ns, partial(self.pump, queue))

    def _return_leases(self, queue: TaskQueue, rows: LeasedWindow) -> None:
        """The polls that rows were leased for got other tasks: let other nodes have the rows."""
        rows.returning = False
        if self._sharing is None or queue.polls or queue.rows is not rows or self._closed:
            return
        self._give_back_leased(rows)

    def _give_back_leased(self, rows: Window) -> None:
        """Other nodes may have the rows that were leased for a queue's polls."""
        if self._sharing is not None and rows and isinstance(rows, LeasedWindow):
            self._spawn(self._release(self._sharing, [row.id for row in rows.drain()]))
            rows.forget()

    async def _ask_for_permits(self, queue: TaskQueue, rate: SharedRate) -> None:
        """Have the database say how many tasks may be given out now."""
        assert self._sharing is not None
        name = msgspec.json.encode(queue.key).decode()
        wanted = min(len(queue.rows), len(queue.polls)) or 1
        try:
            permits = await self._sharing.permits(name, rate.per_second, rate.burst, wanted)
        except StoreError as error:
            log.warning("the rate of %s cannot be asked for: %s", queue.key.name, error)
            permits = 0
        finally:
            rate.asking = False
        now_ns = self._clock.now_ns()
        if permits:
            rate.grant(permits, now_ns)
        if permits or queue.rate is not rate:  # another one is in force meanwhile
            self.pump(queue)
        else:
            self._pump_at(queue, now_ns + rate.pause_ns)

    async def _rank_again(self, queue: TaskQueue) -> None:
        """Go on from what all nodes together let wait; not more often than it is worth."""
        asked_ns = self._clock.now_ns()
        try:
            queue.ranking.restore(await self._store.backlogs(*queue.key))
        except StoreError as error:
            log.warning("what waits in %s cannot be read: %s", queue.key.name, error)
        now_ns = self._clock.now_ns()
        pause_ns = max(_RANK_AGAIN_NS, _RANK_AGAIN_SHARE * (now_ns - asked_ns))
        queue.rank_again_ns = now_ns + pause_ns if self._has_company() else NEVER_NS

    def polled(self) -> list[Queue]:
        """The queues that have parked polls."""
        return [queue.key for queue in self._queues.values() if queue.polls]

    def has_more(self, key: Queue) -> None:
        """The store has tasks for a queue that this node may not have heard of."""
        queue = self._queues.get(key)
        if queue is not None:
            queue.rows.forget()
            self.pump(queue)

    async def reread(self) -> None:
        """The store may have waiting tasks that memory has not heard of: read all windows anew."""
        if self._sharing is not None:
            for key in self.polled():
                self.has_more(key)
            return
        for queue, backlogs in self._queues_of(await self._store.backlogs()):
            queue.rows.forget()
            queue.ranking.restore(backlogs)
            self.pump(queue)

    def _queues_of(self, backlogs: list[Backlog]) -> Iterator[tuple[TaskQueue, list[Backlog]]]:
        """Queues with what waits in them."""
        for key, found in groupby(backlogs, key=attrgetter("namespace", "queue", "kind")):
            yield self.queue(*key), list(found)

    def pump_later(self, queue: TaskQueue) -> None:
        """The same after a pause: something failed."""
        pause_ns = self._settings.retry_ns // 10
        self._clock.call_at(self._clock.now_ns() + pause_ns, lambda: self.pump(queue))

    async def _load_and_pump(self, queue: TaskQueue) -> None:
        try:
            await self._load(queue)
        except StoreError as error:
            log.warning("the backlog of %s cannot be read: %s", queue.key.name, error)
            self.pump_later(queue)
        else:
            self.pump(queue)

    async def _load(self, queue: TaskQueue) -> None:
        window, limit = queue.rows, self._settings.backlog_window
        window.loading = True
        try:
            if not isinstance(window, LeasedWindow):
                found = await self._store.tasks(*queue.key, window.last, limit)
            else:
                assert self._sharing is not None
                limit = min(limit, max(1, len(queue.polls) - queue.claiming))
                found = await self._sharing.lease_tasks(queue.key, limit)
        except StoreError:
            window.failed()
            raise
        window.loaded(found, more=len(found) == limit)
        if window is not queue.rows:  # company changed
            self._give_back_leased(window)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- queries -----------------------------------------------------------------------------------

    def offer_query(self, namespace: str, name: str, query: QueryTask) -> None:
        """Give a query to the next workflow poll of that queue."""
        queue = self.queue(namespace, name, WORKFLOW)
        if len(queue.queries) >= self._settings.backlog_window:
            raise ResourceExhausted(f"Too many queries wait for task queue {name!r}.")
        queue.queries.append(query)
        self.pump(queue)

    def withdraw_query(self, namespace: str, name: str, query: QueryTask) -> None:
        """Forget a query that nobody waits for any more."""
        queue = self.known(namespace, name, WORKFLOW)
        if queue is not None and query in queue.queries:
            queue.queries.remove(query)

    # -- housekeeping ------------------------------------------------------------------------------

    def retire(self, queue: TaskQueue) -> None:
        """Its worker shuts down: polls are answered empty and the queue counts as dead at once."""
        for poll in list(queue.polls):
            self._expire(poll)
        queue.retired = True

    def give_back(self, queue: TaskQueue, row: TaskRow) -> None:
        """A row that was taken finds no poll any more: it waits again."""
        if self._sharing is None:
            queue.rows.put_back(row)
        else:
            self._spawn(self._release(self._sharing, [row.id]))

    def discard(self, row: TaskRow) -> None:
        """A row's run is gone."""
        if self._sharing is not None:
            self._spawn(self._drop(self._sharing, row))

    async def _drop(self, sharing: Sharing, row: TaskRow) -> None:
        try:
            await sharing.drop_tasks([row.id])
        except StoreError as error:  # it comes again when the lease is over
            log.warning("a stale task could not be removed: %s", error)

    async def _release(self, sharing: Sharing, ids: list[int]) -> None:
        try:
            await sharing.release_tasks(ids)
        except StoreError as error:  # they are free when their leases are over
            log.warning("tasks could not be given back: %s", error)

    def release_worker(self, worker: str, queues: Iterable[TaskQueue]) -> None:
        """A worker of these queues leaves: its polls are answered empty, also those to come."""
        self._left[worker] = None
        if len(self._left) > _LEFT_MAX:
            self._left.popitem(last=False)
        for queue in queues:
            for poll in list(queue.polls):
                if poll.worker == worker:
                    self._expire(poll)

    def _purge(self) -> None:
        """Forget queues that nobody used for long."""
        before_ns = self._clock.now_ns() - self._settings.queue_idle_ns
        for queue in list(self._queues.values()):
            if max(queue.seen_ns, queue.made_ns) < before_ns and self._can_be_forgotten(queue):
                self._give_back_leased(queue.rows)
                del self._queues[queue.key]
                self._has_forgotten = self._sharing is not None
        self._purge_at = max(1_000, 2 * len(self._queues))

    def _can_be_forgotten(self, queue: TaskQueue) -> bool:
        """Whether nobody polls a queue here, and no task depends on that.

        Where nodes share the store, tasks do not: whoever polls the queue next looks what waits.
        """
        if queue.polls or queue.queries or queue.claiming:
            return False
        return self._sharing is not None or not (queue.rows or queue.rows.more)


def _empty(queue: TaskQueue) -> PollWorkflowTaskQueueResponse | PollActivityTaskQueueResponse:
    if queue.key.kind == WORKFLOW:
        return PollWorkflowTaskQueueResponse()
    return PollActivityTaskQueueResponse()
