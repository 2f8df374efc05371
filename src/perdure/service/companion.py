"""What waits in memory beside a run: queries for its next workflow task, and updates.

A companion outlives the cached run: a conflict or an eviction does not touch it. It dies with the
process, and that is sound: nobody was told anything about what only it knew, and clients ask again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from temporalio.api.query.v1 import WorkflowQuery, WorkflowQueryResult
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest,
)

from perdure.api.errors import NotFound, ResourceExhausted, RPCError, WorkflowNotReady
from perdure.engine import updates as engine_updates
from perdure.engine import workflow_tasks
from perdure.engine.execution import Execution
from perdure.engine.updates import ADMITTED, COMPLETED
from perdure.service import tokens
from perdure.store.sharing import Awaited

if TYPE_CHECKING:
    from perdure.service.executions import Executions

FAILING_ATTEMPT = 3  # from this attempt of a workflow task on, queries are refused


NOT_SENT = -1


class Unblocked(Exception):
    """What was waited for will not come this way: look at the run again."""


class WaitingQuery(msgspec.Struct):
    """A query for the run's next workflow task; the future gives its WorkflowQueryResult."""

    query: WorkflowQuery
    answer: asyncio.Future[WorkflowQueryResult]
    sent_with: int = NOT_SENT
    answered_by: int = NOT_SENT


class PendingUpdate(msgspec.Struct):
    """An update that is not completed, and those who wait for it.

    Attributes:
        request: serialised Request; b"" when the run's history has it.
        stage, outcome: how far it durably is.
        sent_with: the stamp of the last workflow task that carries the request.
        answered_by: the stamp of the task whose answer has it, which is not durable yet.
        error: why it cannot go on.
        callers: who follow it.
        waiters: told of every step, and of the end.
    """

    update_id: str
    request: bytes
    stage: int
    outcome: bytes = b""
    sent_with: int = NOT_SENT
    answered_by: int = NOT_SENT
    error: RPCError | Unblocked | None = None
    callers: int = 0
    waiters: list[asyncio.Future[None]] = []


class RunCompanion:
    """The queries and updates that wait for one run.

    Args:
        wake: makes sure that the run gets a workflow task, because an update waits for one.
        attempt: the attempt of the run's present workflow task; 0 without one.
        emptied: called with the companion when nothing waits any more.
        queries_max: how many queries may wait for one workflow task.
        holder: what the tokens of tasks say that carry something of here; see `tokens`.
    """

    def __init__(
        self,
        wake: Callable[[], None],
        attempt: Callable[[], int],
        emptied: Callable[[RunCompanion], None],
        queries_max: int,
        holder: int = 0,
    ) -> None:
        self._queries_max = queries_max
        self._holder = holder
        self._wake = wake
        self._attempt = attempt
        self._emptied = emptied
        self._applied: RespondWorkflowTaskCompletedRequest | None = None
        self._queries: dict[str, WaitingQuery] = {}
        self._updates: dict[str, PendingUpdate] = {}
        self._next_query = 0

    # -- queries -----------------------------------------------------------------------------------

    def add_query(self, query: WorkflowQuery) -> tuple[str, asyncio.Future[WorkflowQueryResult]]:
        """Let a query wait for the next workflow task.

        The future raises Unblocked when there is no such task (any more), or the error to give out.
        Raises ResourceExhausted when too many wait.
        """
        if len(self._queries) >= self._queries_max:
            raise ResourceExhausted(
                "consistent query buffer is full, cannot accept new consistent queries "
                f"({self._queries_max} wait for one workflow task)"
            )
        self._next_query += 1
        query_id = f"q{self._next_query}"
        waiting = WaitingQuery(query, asyncio.get_running_loop().create_future())
        self._queries[query_id] = waiting
        return query_id, waiting.answer

    def remove_query(self, query_id: str) -> None:
        """Its caller waits no longer."""
        waiting = self._queries.pop(query_id, None)
        if waiting is not None:
            waiting.answer.cancel()
        self._check_empty()

    # -- updates -----------------------------------------------------------------------------------

    @property
    def admitted(self) -> Mapping[str, bytes]:
        """Requests that the run has not accepted, by update id: for the engine to check answers."""
        return {
            update.update_id: update.request
            for update in self._updates.values()
            if update.stage == ADMITTED
        }

    def find_update(self, update_id: str) -> PendingUpdate | None:
        """An update that waits here."""
        return self._updates.get(update_id)

    def add_update(self, update_id: str, request: bytes, stage: int = ADMITTED) -> PendingUpdate:
        """Admit an update, or follow one that the run knows already (then without a request)."""
        assert update_id not in self._updates
        update = self._updates[update_id] = PendingUpdate(update_id, request, stage)
        return update

    def wait_update(self, update: PendingUpdate) -> asyncio.Future[None]:
        """A future for the update's next step.

        It raises Unblocked when the run closed first, or the error to give out. Cancel it after.
        """
        if update.error is not None:
            raise update.error
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        update.waiters.append(waiter)
        waiter.add_done_callback(lambda done: _discard(update.waiters, done))
        return waiter

    def drop_update(self, update: PendingUpdate, error: RPCError | Unblocked) -> None:
        """The update cannot go on; its waiters are told why."""
        update.error = error
        if self._updates.get(update.update_id) is update:
            del self._updates[update.update_id]
        for waiter in list(update.waiters):
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()
        self._check_empty()

    def _step(self, update: PendingUpdate, stage: int, outcome: bytes) -> None:
        update.stage = stage
        update.outcome = outcome
        if stage == COMPLETED:
            self._updates.pop(update.update_id, None)
        for waiter in list(update.waiters):
            if not waiter.done():
                waiter.set_result(None)

    def release(self) -> None:
        """Go away if nothing waits: a follower of an update may have been the last."""
        for update in list(self._updates.values()):
            if not update.callers and update.stage != ADMITTED:
                del self._updates[update.update_id]
        self._check_empty()

    def _check_empty(self) -> None:
        if not self._queries and not self._updates:
            self._emptied(self)

    # -- what the run does (see executions.Companion) ----------------------------------------------

    def on_task_started(self, response: PollWorkflowTaskQueueResponse) -> None:
        """Add queries and update requests to a workflow task that is handed out.

        All that has no answer is added, sent before or not: the task that carried it before did
        not complete, or its commit was lost.
        """
        stamp = _stamp(response.task_token)
        for query_id, waiting in self._queries.items():
            if waiting.answered_by == NOT_SENT:
                waiting.sent_with = stamp
                response.queries[query_id].CopyFrom(waiting.query)
        for update in self._updates.values():
            if update.stage == ADMITTED and update.request and update.answered_by == NOT_SENT:
                update.sent_with = stamp
                response.messages.append(
                    engine_updates.request_message(
                        update.update_id, update.request, response.started_event_id - 1
                    )
                )

    def on_task_applied(self, request: RespondWorkflowTaskCompletedRequest) -> None:
        """An answer was taken in: what it settles is not sent again while its commit is open."""
        self._applied = request
        stamp, results = self._read(request)
        if not request.force_create_new_workflow_task:
            for update in self._updates.values():
                if update.sent_with == stamp:  # with no message about it, it will be rejected
                    update.answered_by = stamp
        for message in request.messages:
            answered = self._updates.get(message.protocol_instance_id)
            if answered is not None:
                answered.answered_by = stamp
        for query_id in results:
            waiting = self._queries.get(query_id)
            if waiting is not None:
                waiting.answered_by = stamp

    def _read(
        self, request: RespondWorkflowTaskCompletedRequest
    ) -> tuple[int, Mapping[str, WorkflowQueryResult]]:
        """The stamp of the task that is answered, and the answers to queries of here.

        What another node handed out carried nothing of here, even if this node had tried to hand
        out the same task; and there, too, a query may be called q1.
        """
        token = tokens.decode(request.task_token, tokens.WORKFLOW)
        if token.node == self._holder:
            return token.stamp, request.query_results
        for waiting in self._queries.values():
            if waiting.sent_with == token.stamp:
                waiting.sent_with = NOT_SENT
        for update in self._updates.values():
            if update.sent_with == token.stamp:
                update.sent_with = NOT_SENT
        return token.stamp, {}

    def take_answer(self) -> RespondWorkflowTaskCompletedRequest | None:
        """The answer that was taken in by the open transition, once."""
        applied, self._applied = self._applied, None
        return applied

    def on_task_undone(self, request: RespondWorkflowTaskCompletedRequest) -> None:
        """The commit of an answer was lost: what it settled is open again."""
        self._settle(_stamp(request.task_token))

    def _settle(self, stamp: int) -> None:
        for waiting in self._queries.values():
            if waiting.answered_by == stamp:
                waiting.answered_by = NOT_SENT
        for update in self._updates.values():
            if update.answered_by == stamp:
                update.answered_by = NOT_SENT

    def on_task_completed(self, request: RespondWorkflowTaskCompletedRequest) -> None:
        """Take the answers to queries; requests of updates that got none are rejected.

        The run's next task may have been started already, and carry what came while this one ran.
        """
        stamp, results = self._read(request)
        self._settle(stamp)
        self._answer_queries(results, stamp)
        if not request.force_create_new_workflow_task:  # a heartbeat: the worker is still at it
            self._reject_unanswered({m.protocol_instance_id for m in request.messages}, stamp)
        self._wake_for_updates()
        self._check_empty()

    def _answer_queries(self, results: Mapping[str, WorkflowQueryResult], stamp: int) -> None:
        for query_id, result in results.items():
            waiting = self._queries.pop(query_id, None)
            if waiting is not None and not waiting.answer.done():
                waiting.answer.set_result(result)
        for query_id, waiting in list(self._queries.items()):
            ignored = waiting.sent_with == stamp
            stranded = waiting.sent_with == NOT_SENT and not self._attempt()
            if ignored or stranded:
                del self._queries[query_id]
                if not waiting.answer.done():
                    waiting.answer.set_exception(Unblocked())

    def _reject_unanswered(self, answered: set[str], stamp: int) -> None:
        for update in list(self._updates.values()):
            sent = update.stage == ADMITTED and update.sent_with == stamp
            if sent and update.update_id not in answered:
                self._step(update, COMPLETED, engine_updates.unprocessed_outcome())

    def _wake_for_updates(self) -> None:
        """See to it that a task comes for updates that no task carries."""
        if any(u.stage == ADMITTED and u.sent_with == NOT_SENT for u in self._updates.values()):
            self._wake()

    def on_task_lost(self) -> None:
        """What it carried must be sent again; queries give up on a task that keeps failing."""
        for update in self._updates.values():
            update.answered_by = NOT_SENT
        if self._attempt() >= FAILING_ATTEMPT:
            for waiting in self._queries.values():
                if not waiting.answer.done():
                    waiting.answer.set_exception(failing_task())
        if any(update.stage == ADMITTED for update in self._updates.values()):
            self._wake()

    def on_update_results(self, results: list[tuple[str, int, bytes]]) -> None:
        """Durable steps of updates."""
        for update_id, stage, outcome in results:
            update = self._updates.get(update_id)
            if update is not None:
                self._step(update, stage, outcome)
        self._check_empty()

    def look_again(self, run: Execution) -> None:
        """Other nodes may have changed the run: what its tasks carried, or its updates became."""
        for update in list(self._updates.values()):
            found = engine_updates.find(run, update.update_id)
            if found is not None and found.stage > update.stage:
                self._step(update, found.stage, found.outcome)
        if not run.is_open:
            self.on_closed()
            return
        task = run.state.workflow_task
        stamp = NOT_SENT if task is None else task.stamp
        for waiting in self._queries.values():
            if waiting.sent_with != stamp and waiting.answered_by == NOT_SENT:
                waiting.sent_with = NOT_SENT
            stranded = waiting.sent_with == NOT_SENT and task is None
            if stranded and not waiting.answer.done():
                waiting.answer.set_exception(Unblocked())
        for update in self._updates.values():
            unseen = update.stage == ADMITTED and update.answered_by == NOT_SENT
            if unseen and update.sent_with != stamp:
                update.sent_with = NOT_SENT
        if task is None:
            self._wake_for_updates()
        self._check_empty()

    def pass_on(self, run: Execution) -> None:
        """The run's worker is at another node: who asked for an update that no worker has asks
        there."""
        task = run.state.workflow_task
        stamp = NOT_SENT if task is None else task.stamp
        for update in list(self._updates.values()):
            waits = update.stage == ADMITTED and update.answered_by == NOT_SENT
            if waits and (update.sent_with == NOT_SENT or update.sent_with != stamp):
                self.drop_update(update, Unblocked())

    def refuse_updates(self, error: RPCError) -> None:
        """No workflow task can be had for those that the run has not accepted."""
        for update in list(self._updates.values()):
            if update.stage == ADMITTED:
                self.drop_update(update, error)

    def on_closed(self) -> None:
        """Whoever still waits looks at the run again: closed, or followed by another."""
        for waiting in self._queries.values():
            if not waiting.answer.done():
                waiting.answer.set_exception(Unblocked())
        self._queries.clear()
        for update in list(self._updates.values()):
            self.drop_update(update, Unblocked())
        self._check_empty()


def _stamp(task_token: bytes) -> int:
    """What tells a run's workflow tasks apart."""
    return tokens.decode(task_token, tokens.WORKFLOW).stamp


def failing_task() -> RPCError:
    """What a query gets while the run's workflow task keeps failing."""
    return WorkflowNotReady("Unable to query workflow due to Workflow Task in failed state.")


def _discard(waiters: list[asyncio.Future[None]], waiter: asyncio.Future[None]) -> None:
    if waiter in waiters:
        waiters.remove(waiter)
    if not waiter.cancelled():
        waiter.exception()


class Companions:
    """All companions of a node; a run has one only while something waits for it.

    Args:
        executions: the runs.
        queries_max, holder: see `RunCompanion`.
    """

    def __init__(
        self, executions: Executions, queries_max: int, holder: Callable[[], int] = lambda: 0
    ) -> None:
        self._executions = executions
        self._queries_max = queries_max
        self._holder = holder
        self._made: dict[int, RunCompanion] = {}
        self.has_worker: Callable[[Execution], bool] = lambda _: True  # or another node has it
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, key: int) -> RunCompanion:
        """The run's companion, made when there is none. Add something to it before you await."""
        found = self._made.get(key)
        if found is None:
            found = RunCompanion(
                partial(self._wake, key),
                partial(self._attempt, key),
                partial(self._forget, key),
                self._queries_max,
                self._holder(),
            )
            self._made[key] = found
            self._executions.companions[key] = found
        return found

    def known(self, key: int) -> RunCompanion | None:
        """The run's companion, if something waits for it."""
        return self._made.get(key)

    def _forget(self, key: int, emptied: RunCompanion) -> None:
        if self._made.get(key) is emptied:  # an earlier one may hear late of a task it saw start
            del self._made[key]
            del self._executions.companions[key]

    def _attempt(self, key: int) -> int:
        entry = self._executions.cached(key)
        task = entry.run.state.workflow_task if entry is not None else None
        return task.attempt if task is not None else 0

    def _wake(self, key: int) -> None:
        task = asyncio.get_running_loop().create_task(self._schedule(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _schedule(self, key: int) -> None:
        try:
            await self._executions.transact(key, workflow_tasks.schedule_speculative)
        except RPCError as error:
            companion = self._made.get(key)
            if companion is not None:
                companion.refuse_updates(error)
        else:
            self._pass_on(key)

    async def look_again(self, key: int) -> None:
        """Another node may have changed a run. Raises RPCError when it cannot be read."""
        companion = self._made.get(key)
        if companion is not None:
            try:
                entry = await self._executions.entry(key)
            except NotFound:
                companion.on_closed()
            else:
                if entry.unit is None:  # else what this node writes comes to it anyway
                    companion.look_again(entry.run)
            if self._made.get(key) is companion:
                self._executions.watch_elsewhere(key, Awaited.ANY)

    def pass_on(self) -> None:
        """What waits for a worker of another node is to be asked for there."""
        for key in list(self._made):
            self._pass_on(key)

    def _pass_on(self, key: int) -> None:
        companion, entry = self._made.get(key), self._executions.cached(key)
        if companion is None or entry is None or entry.unit is not None:
            return
        if not self.has_worker(entry.run):
            companion.pass_on(entry.run)

    async def close(self) -> None:
        """Wait for wake-ups under way."""
        if self._tasks:
            await asyncio.wait(list(self._tasks))
