"""Task queues: where polls wait for tasks, and tasks for polls.

A poll is parked as a future. The dispatcher asks for a parked poll before it writes a task
anywhere; only a task that nobody waits for becomes a row of the store. Memory holds a window of
each queue's rows, by rank; what is beyond it is read by page when the window has run empty.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
)

from perdure.api.caller import until
from perdure.api.errors import FailedPrecondition, ResourceExhausted, Unavailable
from perdure.service.clock import Alarm, Clock
from perdure.service.ranking import Ranking
from perdure.service.rate import NEVER_NS, Flow, Rate, SharedRate
from perdure.service.settings import Settings
from perdure.service.window import LeasedWindow, Window
from perdure.store.contract import Backlog, Store, StoreError, TaskRow
from perdure.store.sharing import Queue, Sharing

log = logging.getLogger("perdure.service")

WORKFLOW = 1
ACTIVITY = 2
_IDENTITIES_MAX = 1_000
_NOTE_NS = 1_000_000_000  # how exact the last look of a poller is
_RANK_AGAIN_NS = 1_000_000_000
_RANK_AGAIN_SHARE = 20  # of the time may go into asking

Answer = RespondWorkflowTaskCompletedRequest | RespondWorkflowTaskFailedRequest
Advance = Callable[[PollWorkflowTaskQueueResponse], Answer | None]
"""A worker of this process: takes a workflow task and answers it at once, or declines it (None).

It is called while the transition that made the task is still open, so it must not await, block, or
call the service.
"""

Evict = Callable[[str], None]
"""Told the id of a run that ``advance`` was given and whose commit was then lost: the worker's
cached run is ahead of the truth and must be dropped.
"""


class QueueKey(NamedTuple):
    """A task queue: its namespace, its name, and WORKFLOW or ACTIVITY."""

    namespace: str
    name: str
    kind: int


class QueryTask(Protocol):
    """A query that rides a workflow task queue; it lives in memory only."""

    def hand_over(self, poll: Poll) -> bool:
        """Resolve the poll's future with the query; False if nobody waits for the answer."""


class Poll:
    """A worker that waits for a task.

    Attributes:
        future: resolved with the response.
        request_id: marks the task that it got; fresh for every task.
        in_process: the worker dies with this process.
        advance, evict: see Advance and Evict.
        task: what was started for it: (key, scheduled event id), once matched.
        alarm: rings for a caller that leaves early.
        parked_ns: when it began to wait.
        worker: the instance key of the worker, if it says so.
    """

    __slots__ = (
        "advance",
        "alarm",
        "deadline_ns",
        "evict",
        "future",
        "identity",
        "in_process",
        "parked_ns",
        "queue",
        "request_id",
        "task",
        "worker",
    )

    def __init__(
        self,
        queue: TaskQueue,
        identity: str,
        in_process: bool,
        advance: Advance | None = None,
        evict: Evict | None = None,
    ) -> None:
        self.queue = queue
        self.identity = identity
        self.in_process = in_process
        self.advance = advance
        self.evict = evict
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.deadline_ns = 0
        self.parked_ns = 0
        self.alarm: Alarm | None = None
        self.worker = ""
        self.request_id = ""
        self.task: tuple[int, int] | None = None


class TaskQueue:
    """One queue on this node.

    Attributes:
        polls: parked, first come first served.
        rows: the window on the waiting tasks.
        ranking: gives the next one its place.
        flows: how many tasks came and went lately, by level.
        claiming: rows whose run is being loaded for a poll.
        seen_ns: when a poller was last here.
        rate: how fast its tasks may be given out; None for as fast as they come.
        worker_rate, operator_rate: what a worker and an operator said of it, a second.
        rate_alarm: set while a task waits for nothing but that.
        limit: makes a rate from so many a second.
        rank_again_ns: until when the ranking need not be compared with what other nodes did.
    """

    __slots__ = (
        "began_ns",
        "claiming",
        "flows",
        "key",
        "limit",
        "operator_rate",
        "pollers",
        "polls",
        "queries",
        "rank_again_ns",
        "ranking",
        "rate",
        "rate_alarm",
        "retired",
        "rows",
        "seen_ns",
        "worker_rate",
    )

    def __init__(self, key: QueueKey, rows: Window, limit: Callable[[float], Rate] = Rate) -> None:
        self.key = key
        self.limit = limit
        self.rank_again_ns = 0
        self.polls: OrderedDict[Poll, None] = OrderedDict()
        self.rows = rows
        self.ranking = Ranking()
        self.flows: dict[int, Flow] = {}
        self.began_ns = 0
        self.queries: deque[QueryTask] = deque()
        self.pollers: OrderedDict[str, int] = OrderedDict()
        self.claiming = 0
        self.seen_ns = 0
        self.retired = False
        self.rate: Rate | None = None
        self.worker_rate: float | None = None
        self.operator_rate: float | None = None
        self.rate_alarm: Alarm | None = None

    def take(self, now_ns: int) -> Poll | None:
        """The poll that waits longest, no longer parked; None also when it is too early for one."""
        if not self.polls or (self.rate is not None and not self.rate.spend(now_ns)):
            return None
        return self.polls.popitem(last=False)[0]

    def set_rate(self, per_second: float | None, *, by_worker: bool = False) -> None:
        """Limit how many tasks are given out a second, or no longer; an operator's word goes before
        that of workers."""
        if by_worker:
            self.worker_rate = per_second
        else:
            self.operator_rate = per_second
        wanted = self.worker_rate if self.operator_rate is None else self.operator_rate
        if wanted is None:
            self.rate = None
        elif self.rate is None or self.rate.per_second != wanted:
            self.rate = self.limit(wanted)

    def flow(self, level: int, now_ns: int) -> Flow:
        """The flow of one level; all begin with the first."""
        found = self.flows.get(level)
        if found is None:
            self.began_ns = self.began_ns or now_ns
            found = self.flows[level] = Flow(self.began_ns)
        return found

    def note(self, identity: str, now_ns: int) -> None:
        """Remember who polled."""
        pollers = self.pollers
        self.retired = False
        if now_ns - pollers.get(identity, 0) < _NOTE_NS:
            return
        self.seen_ns = now_ns
        pollers[identity] = now_ns
        pollers.move_to_end(identity)
        if len(pollers) > _IDENTITIES_MAX:
            pollers.popitem(last=False)

    def is_alive(self, now_ns: int, grace_ns: int) -> bool:
        """Whether a worker is there, or was a moment ago."""
        if self.polls:
            return True
        return not self.retired and self.seen_ns > 0 and now_ns - self.seen_ns <= grace_ns


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
        self._closed = False
        self._reason: StoreError | None = None
        self.claim: Callable[[TaskQueue, TaskRow], None]  # set by the dispatcher
        self.configure: Callable[[TaskQueue], None] = lambda _: None  # a queue that is new
        self.arrived: Callable[[TaskQueue], None] = lambda _: None  # one that had no workers

    async def open(self) -> None:
        """Read the first window of every queue that has waiting tasks."""
        if self._sharing is not None:
            return  # they are leased when somebody polls
        for queue, backlogs in self._queues_of(await self._store.backlogs()):
            queue.rows.forget()  # tasks taken back just now are not the oldest
            queue.ranking.restore(backlogs)
            await self._load(queue)

    def close(self, reason: StoreError | None = None) -> None:
        """Answer every parked poll empty, and refuse later ones."""
        self._closed = True
        self._reason = reason
        if self._alarm is not None:
            self._alarm.cancel()
        for poll in list(self._deadlines):
            self._expire(poll)

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
            size = self._settings.backlog_window
            if self._sharing is None:
                found = TaskQueue(key, Window(size))
            else:
                limit = partial(SharedRate, is_shared=self._has_company)
                found = TaskQueue(key, LeasedWindow(size), limit)
            self._queues[key] = found
            self.configure(found)
        return found

    def _has_company(self) -> bool:
        return self._sharing is not None and self._sharing.has_company

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
        is_first = not queue.is_alive(now_ns, self._settings.sticky_alive_ns)
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
        if is_first:
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
            self.finish(poll)
            poll.future.set_result(_empty(poll.queue))
            return
        poll.task = None
        poll.queue.polls[poll] = None
        poll.queue.polls.move_to_end(poll, last=False)

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
        if self._has_company() and self._clock.now_ns() >= queue.rank_again_ns:
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
                self._spawn(self._load_and_pump(queue))
            elif not queue.rows.more and not queue.claiming:
                queue.ranking.reset()

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

    async def _ask_for_permits(self, queue: TaskQueue, rate: SharedRate) -> None:
        """Have the database say how many tasks may be given out now."""
        assert self._sharing is not None
        name, wanted = "/".join(map(str, queue.key)), min(len(queue.rows), len(queue.polls)) or 1
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
            self.pump(queue)
        else:
            self._pump_at(queue, now_ns + rate.pause_ns)

    async def _rank_again(self, queue: TaskQueue) -> None:
        """Go on from what all nodes together let wait; not more often than it is worth."""
        asked_ns = self._clock.now_ns()
        queue.rank_again_ns = NEVER_NS
        try:
            queue.ranking.restore(await self._store.backlogs(*queue.key))
        except StoreError as error:
            log.warning("what waits in %s cannot be read: %s", queue.key.name, error)
        now_ns = self._clock.now_ns()
        pause_ns = max(_RANK_AGAIN_NS, _RANK_AGAIN_SHARE * (now_ns - asked_ns))
        queue.rank_again_ns = now_ns + pause_ns

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
            if self._sharing is None:
                found = await self._store.tasks(*queue.key, window.last, limit)
            else:
                limit = min(limit, max(1, len(queue.polls) - queue.claiming))
                found = await self._sharing.lease_tasks(queue.key, limit)
        except StoreError:
            window.failed()
            raise
        window.loaded(found, more=len(found) == limit)

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

    def retired_elsewhere(self, key: Queue) -> None:
        """A worker told another node that it shuts down."""
        queue = self.queue(*key)
        if not queue.polls:
            queue.retired = True

    def give_back(self, queue: TaskQueue, row: TaskRow) -> None:
        """A row that was taken finds no poll any more: it waits again."""
        if self._sharing is None:
            queue.rows.put_back(row)
        else:
            self._spawn(self._release(self._sharing, row))

    def discard(self, row: TaskRow) -> None:
        """A row's run is gone."""
        if self._sharing is not None:
            self._spawn(self._drop(self._sharing, row))

    async def _drop(self, sharing: Sharing, row: TaskRow) -> None:
        try:
            await sharing.drop_tasks([row.id])
        except StoreError as error:  # it comes again when the lease is over
            log.warning("a stale task could not be removed: %s", error)

    async def _release(self, sharing: Sharing, row: TaskRow) -> None:
        try:
            await sharing.release_tasks([row.id])
        except StoreError as error:  # it is free when the lease is over
            log.warning("a task could not be given back: %s", error)

    def release_worker(self, queue: TaskQueue, worker: str) -> None:
        """One worker of a queue shuts down: its polls are answered empty."""
        for poll in list(queue.polls):
            if poll.worker == worker:
                self._expire(poll)

    def _purge(self) -> None:
        """Forget queues that nobody used for long."""
        before_ns = self._clock.now_ns() - self._settings.queue_idle_ns
        idle = [
            key
            for key, queue in self._queues.items()
            if not (queue.polls or queue.rows or queue.rows.more or queue.queries or queue.claiming)
            and queue.seen_ns < before_ns
        ]
        for key in idle:
            del self._queues[key]
        self._purge_at = max(1_000, 2 * len(self._queues))


def _empty(queue: TaskQueue) -> PollWorkflowTaskQueueResponse | PollActivityTaskQueueResponse:
    if queue.key.kind == WORKFLOW:
        return PollWorkflowTaskQueueResponse()
    return PollActivityTaskQueueResponse()
