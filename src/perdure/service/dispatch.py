"""From a transition's tasks to workers: match before commit, fuse in process, else write a row.

Called by ``Executions.seal`` while the transition is open. A task for which a poll is parked is
started in the same transition and goes straight to that poll once the commit is done. A worker of
this process that can ``advance`` a run answers the workflow task before the commit; its answer
joins the same transition.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskFailedRequest,
)

from perdure.api.errors import Cancelled, NotFound, RPCError, Unavailable
from perdure.engine import activities, outbox, priorities, workflow_tasks
from perdure.engine.execution import Execution
from perdure.engine.state import Activity, WorkflowTask
from perdure.engine.transition import TaskRef, Transition
from perdure.service import completing, pages, ranking, responses, tokens
from perdure.service.background import Background
from perdure.service.clock import Clock, sleep_until
from perdure.service.entries import Companion, Entry
from perdure.service.executions import Executions
from perdure.service.ids import Ids
from perdure.service.matching import Matching
from perdure.service.namespaces import Namespaces
from perdure.service.queue import ACTIVITY, WORKFLOW, Poll, TaskQueue
from perdure.service.settings import Settings
from perdure.service.units import HandedOut, RunWrite, Unit
from perdure.store.contract import MessageRow, Store, StoreError, TaskRow

log = logging.getLogger("perdure.service")


class HandOut:
    """A workflow task that was started: its response, and the history it still lacks.

    Attributes:
        missing: (first, last) event ids to be read from the store before it can be handed over.
        after: framed events that follow the read ones (of a transient task).
    """

    __slots__ = ("after", "missing", "response")

    def __init__(
        self,
        response: PollWorkflowTaskQueueResponse,
        missing: tuple[int, int] | None = None,
        after: bytes = b"",
    ) -> None:
        self.response = response
        self.missing = missing
        self.after = after


class Dispatcher:
    """Knows which task goes to whom."""

    def __init__(
        self,
        executions: Executions,
        matching: Matching,
        store: Store,
        clock: Clock,
        settings: Settings,
        ids: Ids,
        namespaces: Namespaces,
        deliver: Callable[[list[tuple[int, int, outbox.Message]]], None],
        alarm: Callable[[int], None],
    ) -> None:
        self._executions = executions
        self._matching = matching
        self._store = store
        self._clock = clock
        self._settings = settings
        self._ids = ids
        self._namespaces = namespaces
        self._deliver = deliver
        self._alarm = alarm
        self._background = Background()
        self._rounds = 0
        matching.claim = self.claim

    # -- within a transition -----------------------------------------------------------------------

    def dispatch(
        self, entry: Entry, tx: Transition, unit: Unit, write: RunWrite, *, gather: bool
    ) -> None:
        """Give ready tasks to parked polls, or write rows for them; queue messages and answers.

        With `gather`, the workflow task of a run that has activities under way waits until its unit
        is sent: others may end by then, and one task serves for all of them.
        """
        companion = self._executions.companions.get(entry.run.key)
        if companion is not None:
            _note_answer(companion, unit)
        if tx.tasks:
            self._rounds = self._settings.fused_rounds_max
            for ref in tx.tasks:  # grows while fused workflow tasks make more
                if ref.kind == WORKFLOW:
                    if gather and entry.run.activities:
                        unit.ready[entry.run.key] = ref
                    else:
                        self._workflow(entry, tx, unit, write, ref)
                else:
                    self._activity(entry, tx, unit, write, ref)
        for message in tx.messages:
            row_id = self._ids.take()
            write.put_messages.append(MessageRow(row_id, entry.run.key, outbox.encode(message)))
            unit.messages.append((row_id, entry.run.key, message))
        if companion is not None:
            if tx.update_results:
                unit.done.append(partial(companion.on_update_results, tx.update_results))
            if tx.closed:
                unit.done.append(companion.on_closed)

    def unit_committed(self, unit: Unit) -> None:
        """Messages may travel, alarms must be heard."""
        if unit.messages:
            self._deliver(unit.messages)
        for write in unit.writes.values():
            if write.wake_changed:
                wake_at_ns = write.entry.run.state.wake_at_ns
                if wake_at_ns:
                    self._alarm(wake_at_ns)

    # -- workflow tasks ----------------------------------------------------------------------------

    def _workflow(
        self, entry: Entry, tx: Transition, unit: Unit, write: RunWrite, ref: TaskRef
    ) -> None:
        task = ready_workflow_task(entry.run, ref.scheduled_event_id, ref.stamp)
        if task is None:
            return
        queue = self._live_queue(entry.run, task)
        poll = queue.take(tx.now_ns)
        self._count(queue, tx.now_ns, entry.run.info.priority, ref, taken=poll is not None)
        if poll is None:
            row = self._row(entry, tx, queue, ref, entry.run.info.priority)
            if entry.workflow_row is not None:
                write.drop_task(entry.workflow_row[1])
            entry.workflow_row = (ref.stamp, row.id)
            write.put_tasks.append(row)
            unit.done.append(partial(self._matching.add_row, row))
            return
        hand_out = self.start_workflow_task(entry, tx, poll)
        if poll.advance is not None and self._fuse(entry, tx, unit, poll, hand_out):
            return
        unit.done.append(partial(self._hand_over_workflow, entry.run.key, poll, hand_out))
        unit.undo.append(partial(self._matching.put_back, poll))

    def _live_queue(self, run: Execution, task: WorkflowTask) -> TaskQueue:
        """The task's queue; the normal one when its sticky queue's worker is gone."""
        namespace = run.info.namespace
        queue = self._matching.queue(namespace, task.queue, WORKFLOW)
        if not task.sticky or queue.polls:
            return queue
        if not self._may_live(queue):
            run.state.sticky_queue = ""
            task.sticky = False
            task.queue = run.info.task_queue
            queue = self._matching.queue(namespace, task.queue, WORKFLOW)
        return queue

    def _may_live(self, queue: TaskQueue) -> bool:
        """Whether a sticky queue's worker may be there: here, or at another node."""
        if queue.is_alive(self._clock.now_ns(), self._settings.sticky_alive_ns):
            return True
        sharing = self._store.sharing
        return sharing is not None and sharing.has_company and not queue.retired

    def start_workflow_task(
        self, entry: Entry, tx: Transition, poll: Poll, *, goes_on: bool = False
    ) -> HandOut:
        """Start the run's ready workflow task for a poll and write its response.

        `goes_on`: the worker has just answered the task before, and has the run in its cache.
        """
        run = entry.run
        sticky = bool(run.state.workflow_task and run.state.workflow_task.sticky)
        poll.request_id = f"{tx.random.getrandbits(64):016x}"
        started = workflow_tasks.start(
            tx,
            identity=poll.identity,
            request_id=poll.request_id,
            in_process=poll.in_process,
            holder=self._store.node,
        )
        task = run.state.workflow_task
        assert task is not None
        poll.task = (run.key, task.scheduled_event_id)
        tx.handed_out.append((WORKFLOW, task.scheduled_event_id, poll.request_id))
        after = workflow_tasks.transient_events(run)
        previous = started.previous_started_event_id
        first = previous + 1 if sticky or goes_on else 1
        history = entry.events(first, tx.parts)
        missing = None
        if history is None:
            missing, history = (first, run.state.next_event_id - 1), b""
        response = responses.workflow_task(
            entry, task, previous, history if missing else history + after
        )
        companion = self._executions.companions.get(run.key)
        if companion is not None:
            companion.on_task_started(response)
            if (response.queries or response.messages) and self._store.sharing is not None:
                response.task_token = tokens.for_node(response.task_token, self._store.node)
        return HandOut(response, missing, after)

    def _fuse(
        self, entry: Entry, tx: Transition, unit: Unit, poll: Poll, hand_out: HandOut
    ) -> bool:
        """Let a worker of this process answer the task now; whether it did."""
        run = entry.run
        task = run.state.workflow_task
        assert poll.advance is not None
        assert task is not None
        # A speculative task may leave no trace, which the worker must be told in a response.
        if self._rounds <= 0 or hand_out.missing is not None or task.speculative:
            return False
        run_id = run.info.run_id
        if poll.evict is not None:
            unit.undo.append(partial(poll.evict, run_id))
        try:
            answer = poll.advance(hand_out.response)
        except Exception:
            log.exception("a worker in this process failed to advance %s", run_id)
            return False
        if answer is None:
            return False
        self._rounds -= 1
        companion = self._executions.companions.get(run.key)
        outcome = completing.apply(tx, answer, self._namespaces, companion)
        if outcome.failed and poll.evict is not None:
            poll.evict(run_id)
        if companion is not None:
            if outcome.failed or isinstance(answer, RespondWorkflowTaskFailedRequest):
                unit.done.append(companion.on_task_lost)
            else:
                _note_answer(companion, unit)
        poll.queue.polls[poll] = None  # it goes on waiting, and goes first
        poll.queue.polls.move_to_end(poll, last=False)
        poll.task = None
        return True

    def _hand_over_workflow(self, key: int, poll: Poll, hand_out: HandOut) -> None:
        if hand_out.missing is not None:
            self.spawn(self._hand_over_after_reading(key, poll, hand_out))
        elif poll.future.done():
            self.take_back(poll)
        else:
            poll.future.set_result(hand_out.response)

    async def _hand_over_after_reading(self, key: int, poll: Poll, hand_out: HandOut) -> None:
        try:
            await self.complete_history(key, hand_out)
        except Exception as error:
            if isinstance(error, RPCError):
                log.warning("no history for a workflow task of run %d: %s", key, error.message)
            else:
                log.exception("no history for a workflow task of run %d", key)
            self._matching.dismiss(poll)
            await sleep_until(self._clock, self._clock.now_ns() + self._settings.retry_ns)
            self.take_back(poll)
        else:
            self._hand_over_workflow(key, poll, hand_out)

    async def complete_history(self, key: int, hand_out: HandOut) -> None:
        """Read what a response lacks of history, after its commit. Raises Unavailable."""
        if hand_out.missing is None:
            return
        first, last = hand_out.missing
        try:
            page = await pages.read(
                self._store, key, first, last, max_events=pages.END,
                max_bytes=self._settings.history_page_bytes,
            )  # fmt: skip
        except StoreError as error:
            raise Unavailable(f"The database cannot be read: {error}") from error
        response = hand_out.response
        response.history.MergeFromString(page.events)
        if page.more:
            run_id = response.workflow_execution.run_id
            response.next_page_token = pages.encode_token(
                pages.PageToken(run_id, key, page.last_event_id + 1)
            )
        else:
            response.history.MergeFromString(hand_out.after)
        hand_out.missing = None

    # -- activities --------------------------------------------------------------------------------

    def _activity(
        self, entry: Entry, tx: Transition, unit: Unit, write: RunWrite, ref: TaskRef
    ) -> None:
        activity = ready_activity(entry.run, ref.scheduled_event_id, ref.stamp)
        if activity is None:
            return
        queue = self._matching.queue(entry.run.info.namespace, ref.queue, ACTIVITY)
        poll = queue.take(tx.now_ns)
        priority = priorities.merged(entry.run.info.priority, activity.priority)
        self._count(queue, tx.now_ns, priority, ref, taken=poll is not None)
        if poll is None:
            row = self._row(entry, tx, queue, ref, priority)
            entry.activity_rows[ref.scheduled_event_id] = (ref.stamp, row.id)
            write.put_tasks.append(row)
            unit.done.append(partial(self._matching.add_row, row))
            return
        response = self.start_activity(entry, tx, activity, poll)
        over_ns = activities.over_ns(activity)
        unit.done.append(partial(self._hand_over_activity, poll, response, over_ns))
        unit.undo.append(partial(self._matching.put_back, poll))

    def start_activity(
        self, entry: Entry, tx: Transition, activity: Activity, poll: Poll
    ) -> PollActivityTaskQueueResponse:
        """Start a ready activity for a poll and write its response."""
        poll.request_id = f"{tx.random.getrandbits(64):016x}"
        poll.task = (entry.run.key, activity.scheduled_event_id)
        tx.handed_out.append((ACTIVITY, activity.scheduled_event_id, poll.request_id))
        activities.start(
            tx,
            activity.scheduled_event_id,
            identity=poll.identity,
            request_id=poll.request_id,
            in_process=poll.in_process,
            holder=self._store.node,
        )
        return responses.activity_task(entry, activity)

    def _hand_over_activity(
        self, poll: Poll, response: PollActivityTaskQueueResponse, over_ns: int
    ) -> None:
        if poll.future.done():
            self.take_back(poll)
        elif self._clock.now_ns() >= over_ns:  # the database took too long: its time is over
            self._matching.put_back(poll)
        else:
            poll.future.set_result(response)

    def _count(
        self, queue: TaskQueue, now_ns: int, priority: bytes, ref: TaskRef, *, taken: bool
    ) -> None:
        flow = queue.flow(ranking.claim(priority).level, now_ns)
        if not ref.rank:
            flow.added.add(now_ns)
        if taken:
            flow.dispatched.add(now_ns)

    def _row(
        self, entry: Entry, tx: Transition, queue: TaskQueue, ref: TaskRef, priority: bytes
    ) -> TaskRow:
        claim = ranking.claim(priority)
        return TaskRow(
            id=self._ids.take(),
            namespace=queue.key.namespace,
            queue=queue.key.name,
            kind=ref.kind,
            key=entry.run.key,
            scheduled_event_id=ref.scheduled_event_id,
            stamp=ref.stamp,
            created_ns=tx.now_ns,
            rank=ref.rank or queue.ranking.next(claim),
            fairness_key=claim.fairness_key,
        )

    # -- rows --------------------------------------------------------------------------------------

    def claim(self, queue: TaskQueue, row: TaskRow) -> None:
        """Start a waiting row's task for the queue's first parked poll."""
        entry = self._executions.cached(row.key)
        if entry is not None:
            self._claim_now(queue, row, entry)
        else:
            queue.claiming += 1
            self.spawn(self._claim_stored(queue, row))

    async def _claim_stored(self, queue: TaskQueue, row: TaskRow) -> None:
        try:
            entry = await self._executions.entry(row.key)
        except NotFound:
            queue.claiming -= 1  # the run was deleted
            self._matching.discard(row)
            self._matching.pump(queue)
        except RPCError:
            queue.claiming -= 1
            queue.rows.put_back(row)
            self._matching.pump_later(queue)
        else:
            queue.claiming -= 1
            if queue.polls:
                self._claim_now(queue, row, entry)
                self._matching.pump(queue)
            else:
                self._matching.give_back(queue, row)

    def _claim_now(self, queue: TaskQueue, row: TaskRow, entry: Entry) -> None:
        # Forgotten first: a task that ends the run within this transition must not drop it, too.
        if row.kind == WORKFLOW:
            if entry.workflow_row == (row.stamp, row.id):
                entry.workflow_row = None
        elif entry.activity_rows.get(row.scheduled_event_id) == (row.stamp, row.id):
            del entry.activity_rows[row.scheduled_event_id]
        try:
            _, unit = self._executions.apply(entry, partial(_requeue, row), gather=False)
        except Exception:
            log.exception("a waiting task of run %d cannot be started", row.key)
            queue.rows.refused(row)
            self._matching.pump_later(queue)
            return
        unit.writes[row.key].drop_task(row.id)
        unit.undo.append(partial(self._return_row, queue, row))
        unit.done.append(partial(queue.rows.claimed, row))

    async def redirect(self, queue: TaskQueue) -> None:
        """The worker of a sticky queue is gone: what waits there goes to the normal queue."""
        rows = queue.rows.drain()
        if self._store.sharing is not None:
            with suppress(StoreError):  # then their time on the sticky queue ends first
                rows += await self._store.sharing.lease_tasks(
                    queue.key, self._settings.backlog_window
                )
        for row in {row.id: row for row in rows}.values():
            try:
                entry = await self._executions.entry(row.key)
            except NotFound:
                continue
            except RPCError:
                queue.rows.put_back(row)
                continue
            self._claim_now(queue, row, entry)

    def _return_row(self, queue: TaskQueue, row: TaskRow) -> None:
        queue.rows.refused(row)
        self._matching.pump_later(queue)

    # -- polls that are gone -----------------------------------------------------------------------

    def take_back(self, poll: Poll) -> None:
        """The poll's caller is gone: its task becomes ready again."""
        if poll.task is not None:
            key, scheduled_event_id = poll.task
            poll.task = None
            kind = poll.queue.key.kind
            self.take_back_task(HandedOut(key, kind, scheduled_event_id, poll.request_id))

    def take_back_task(self, task: HandedOut) -> None:
        """A task that no worker has becomes ready again, if it was started at all."""
        self.spawn(self._take_back(*task))

    async def _take_back(
        self, key: int, kind: int, scheduled_event_id: int, request_id: str
    ) -> None:
        operation = _untake_workflow if kind == WORKFLOW else _untake_activity
        while True:
            try:
                await self._executions.transact(
                    key, partial(operation, scheduled_event_id, request_id)
                )
                break
            except NotFound:
                break
            except Cancelled:  # this node ends, and who comes next takes it back
                return
            except Unavailable:
                pause_ns = self._settings.retry_ns
                await sleep_until(self._clock, self._clock.now_ns() + pause_ns)
            except RPCError as error:  # as it is it can never be stored: it has to time out
                log.warning("a task of run %d cannot be taken back: %s", key, error.message)
                break
        companion = self._executions.companions.get(key)
        if companion is not None and kind == WORKFLOW:
            companion.on_task_lost()

    # -- background --------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the calls; an error is only told."""
        self._background.spawn(work)

    async def close(self, grace_s: float = 5.0) -> None:
        """Wait a while for what runs beside the calls, then stop it."""
        await self._background.close(grace_s)


def _note_answer(companion: Companion, unit: Unit) -> None:
    """Tell of a worker's answer once its commit is done, or lost."""
    answer = companion.take_answer()
    if answer is not None:
        unit.done.append(partial(companion.on_task_completed, answer))
        unit.undo.append(partial(companion.on_task_undone, answer))


def ready_workflow_task(run: Execution, scheduled_event_id: int, stamp: int) -> WorkflowTask | None:
    """The run's workflow task, if it is this one and no worker has it."""
    task = run.state.workflow_task
    if task is None or task.started_ns or task.stamp != stamp:
        return None
    return task if task.scheduled_event_id == scheduled_event_id else None


def ready_activity(run: Execution, scheduled_event_id: int, stamp: int) -> Activity | None:
    """The activity, if this attempt of it is the present one and no worker has it."""
    activity = run.activities.get(scheduled_event_id)
    if activity is None or activity.started_ns or activity.stamp != stamp or run.is_held:
        return None
    return activity


def _requeue(row: TaskRow, tx: Transition) -> None:
    """Offer a waiting row's task once more; a stale one is only dropped."""
    run = tx.run
    if not run.is_open:
        return
    if row.kind == WORKFLOW:
        if ready_workflow_task(run, row.scheduled_event_id, row.stamp) is None:
            return
    elif ready_activity(run, row.scheduled_event_id, row.stamp) is None:
        return
    tx.tasks.append(TaskRef(row.kind, row.queue, row.scheduled_event_id, row.stamp, row.rank))


def _untake_workflow(scheduled_event_id: int, request_id: str, tx: Transition) -> None:
    task = tx.run.state.workflow_task
    if task is None or task.request_id != request_id or not task.started_ns:
        raise NotFound("Workflow task not found.")
    workflow_tasks.take_back(tx)


def _untake_activity(scheduled_event_id: int, request_id: str, tx: Transition) -> None:
    activity = tx.run.activities.get(scheduled_event_id)
    if activity is None or activity.request_id != request_id or not activity.started_ns:
        raise NotFound("Activity task not found.")
    activities.take_back(tx, activity, ran=False)
