"""One task queue on a node: the polls that wait there, and the tasks.

Nothing here asks the store; see `perdure.service.matching`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
)

from perdure.service.clock import Alarm
from perdure.service.ranking import Ranking
from perdure.service.rate import Flow, Rate
from perdure.service.window import Window

WORKFLOW = 1
ACTIVITY = 2
_IDENTITIES_MAX = 1_000
_NOTE_NS = 1_000_000_000  # how exact the last look of a poller is

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
        made_ns: when this node first had to do with it.
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
        "made_ns",
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
        self.made_ns = 0
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
