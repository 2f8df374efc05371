"""Queries: a worker is asked about a run's state, and history knows nothing of it.

A query sees every event that was committed before it came. A run that waits for a worker to see
its newest events answers with its next workflow task (``queries`` of the poll response); any other
run, closed ones too, by a task of its own that carries nothing but the query. That one goes to the
worker that has the run in its cache, if it is there, and else to the run's task queue with the
whole history.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from temporalio.api.common.v1 import Payloads
from temporalio.api.enums.v1 import QueryRejectCondition, QueryResultType, WorkflowExecutionStatus
from temporalio.api.failure.v1 import Failure
from temporalio.api.query.v1 import WorkflowQuery, WorkflowQueryResult
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
    QueryWorkflowRequest,
    QueryWorkflowResponse,
    RespondQueryTaskCompletedRequest,
    RespondQueryTaskCompletedResponse,
)

from perdure.api.caller import until
from perdure.api.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    QueryFailed,
    ResourceExhausted,
    Unavailable,
    WorkflowNotReady,
)
from perdure.api.times import SECOND_NS
from perdure.engine.execution import Execution
from perdure.service import pages, tokens, validation, waiting
from perdure.service.companion import FAILING_ATTEMPT, Unblocked, failing_task
from perdure.service.entries import Entry
from perdure.service.pages import END, Page, PageToken
from perdure.service.queue import WORKFLOW, Poll, TaskQueue
from perdure.service.reading import reading
from perdure.store.sharing import Awaited

if TYPE_CHECKING:
    from perdure.service.node import Node

NOT_OPEN = QueryRejectCondition.QUERY_REJECT_CONDITION_NOT_OPEN
NOT_CLEAN = QueryRejectCondition.QUERY_REJECT_CONDITION_NOT_COMPLETED_CLEANLY
COMPLETED = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED
ANSWERED = QueryResultType.QUERY_RESULT_TYPE_ANSWERED


# -- what the run's state says ---------------------------------------------------------------------


def is_rejected(run: Execution, condition: int) -> bool:
    """Whether the caller does not want to query a run in this state; a held one has no worker."""
    if run.is_open:
        return run.is_held
    if condition == NOT_OPEN:
        return True
    return condition == NOT_CLEAN and run.state.status != COMPLETED


def check(run: Execution) -> None:
    """Raise unless a worker could answer for the run.

    Raises:
        WorkflowNotReady: its first workflow task is yet to come, or the present one keeps failing.
        FailedPrecondition: it closed without ever having had one.
    """
    state = run.state
    if not run.is_open:
        if not state.last_task_started_event_id:
            raise WorkflowNotReady("Workflow execution closed before WorkflowTaskStarted event")
        return
    task = state.workflow_task
    if task is None and not state.last_task_started_event_id and not state.failed_task_attempts:
        raise WorkflowNotReady("Workflow task is not scheduled yet.")
    if task is not None and task.attempt >= FAILING_ATTEMPT:
        raise failing_task()


def _look(condition: int, entry: Entry) -> tuple[Entry, int]:
    """A run that a worker could answer for, or its status when it is not to be asked."""
    if is_rejected(entry.run, condition):
        return entry, entry.run.state.status
    check(entry.run)
    return entry, 0


def rides_along(run: Execution) -> bool:
    """Whether the query has to go with the run's next workflow task, to see all events."""
    state = run.state
    return run.is_open and (state.workflow_task is not None or not state.last_task_started_event_id)


# -- a query as a task of its own ------------------------------------------------------------------


class DirectQuery:
    """A query on its way to one worker.

    Attributes:
        number: names it in its task token.
        taken: done when a worker has it.
        answer: the worker's answer.
    """

    def __init__(
        self, number: int, holder: int, entry: Entry, query: WorkflowQuery, history: Page | None
    ):
        loop = asyncio.get_running_loop()
        self.number = number
        self.taken: asyncio.Future[None] = loop.create_future()
        self.answer: asyncio.Future[RespondQueryTaskCompletedRequest] = loop.create_future()
        self._response = _response(number, holder, entry, query, history)

    def hand_over(self, poll: Poll) -> bool:
        """Give the query to a worker's poll; False when nobody waits for the answer any more."""
        if self.answer.done() or self.taken.done():
            return False
        self.taken.set_result(None)
        if not poll.future.done():
            poll.future.set_result(self._response)
        return True

    def withdraw(self) -> None:
        """Nobody waits any more."""
        self.taken.cancel()
        self.answer.cancel()


def _response(
    number: int, holder: int, entry: Entry, query: WorkflowQuery, history: Page | None
) -> PollWorkflowTaskQueueResponse:
    """The poll response; without `history` the worker has the run in its cache."""
    run = entry.run
    made = PollWorkflowTaskQueueResponse()
    made.task_token = tokens.encode(tokens.QUERY, run.key, entry.tag, number, node=holder)
    made.workflow_execution.workflow_id = run.info.workflow_id
    made.workflow_execution.run_id = run.info.run_id
    made.workflow_type.name = run.info.workflow_type
    made.workflow_execution_task_queue.name = run.info.task_queue
    made.previous_started_event_id = run.state.last_task_started_event_id
    made.attempt = 1
    made.query.CopyFrom(query)
    made.history.SetInParent()
    if history is not None:
        made.history.MergeFromString(history.events)
        if history.more:
            made.next_page_token = pages.encode_token(
                PageToken(run.info.run_id, run.key, history.last_event_id + 1)
            )
    return made


class QueryTasks:
    """The direct queries that workers hold, by number; at most `queries_max`."""

    def __init__(self, queries_max: int) -> None:
        self._max = queries_max
        self._tasks: dict[int, DirectQuery] = {}
        self._next = 0

    def add(
        self, entry: Entry, query: WorkflowQuery, history: Page | None, holder: int
    ) -> DirectQuery:
        """A new one, of the node `holder`. Raises ResourceExhausted when there are too many."""
        if len(self._tasks) >= self._max:
            raise ResourceExhausted(f"{self._max} queries wait for workers, the limit.")
        self._next += 1
        made = self._tasks[self._next] = DirectQuery(self._next, holder, entry, query, history)
        return made

    def remove(self, task: DirectQuery) -> None:
        """It is over, answered or not."""
        task.withdraw()
        self._tasks.pop(task.number, None)

    def get(self, number: int) -> DirectQuery | None:
        """The one that a task token names, while somebody waits for it."""
        return self._tasks.get(number)


# -- answers ---------------------------------------------------------------------------------------


def answered(payloads: Payloads, limit_bytes: int) -> QueryWorkflowResponse:
    """What the workflow's query handler returned. Raises QueryFailed if that is too large."""
    size_bytes = payloads.ByteSize()
    if size_bytes > limit_bytes:
        message = f"Query result exceeds limit: {size_bytes} bytes, {limit_bytes} are allowed."
        raise failed(message, Failure())
    made = QueryWorkflowResponse()
    made.query_result.CopyFrom(payloads)
    return made


def failed(message: str, failure: Failure) -> QueryFailed:
    """What the workflow's query handler raised, or why there is none."""
    given = failure if failure.ByteSize() else Failure(message=message)
    return QueryFailed(message or failure.message, given)


def of_result(result: WorkflowQueryResult, limit_bytes: int) -> QueryWorkflowResponse:
    """The answer that came with a workflow task. Raises QueryFailed."""
    if result.result_type == ANSWERED:
        return answered(result.answer, limit_bytes)
    raise failed(result.error_message, result.failure)


def of_request(
    request: RespondQueryTaskCompletedRequest, limit_bytes: int
) -> QueryWorkflowResponse:
    """The answer to a direct query. Raises QueryFailed."""
    if request.completed_type == ANSWERED:
        return answered(request.query_result, limit_bytes)
    raise failed(request.error_message, request.failure)


class QueryRPCs:
    """The RPCs about queries, as a part of the service."""

    node: Node

    async def query_workflow(self, request: QueryWorkflowRequest) -> QueryWorkflowResponse:
        """Ask a run's worker for a view on its state.

        Raises:
            InvalidArgument: no execution or no query type.
            QueryFailed: the handler failed, or there is none of that name.
            NotFound: no such run.
            WorkflowNotReady: no workflow task was scheduled yet, or it keeps failing.
            FailedPrecondition: no worker polls the run's task queue.
            ResourceExhausted: too many queries wait.
            DeadlineExceeded: no answer in time.
        """
        node = self.node
        node.namespaces.get(request.namespace)
        if not request.HasField("execution"):
            raise InvalidArgument("Execution is not set on request.")
        if not request.HasField("query"):
            raise InvalidArgument("WorkflowQuery is not set on request.")
        if not request.query.query_type:
            raise InvalidArgument("QueryType is not set on request.")
        validation.payload(request.query.query_args, "query_args", node.settings)
        execution = request.execution
        key = await node.executions.resolve(
            request.namespace, execution.workflow_id, execution.run_id
        )
        deadline_ns = until(node.clock.now_ns(), node.settings.query_timeout_ns)
        while True:
            entry, status = await node.executions.view(
                key, partial(_look, request.query_reject_condition)
            )
            if status:
                rejected = QueryWorkflowResponse()
                rejected.query_rejected.status = status  # type: ignore[assignment]
                return rejected
            answer = await self._ask_elsewhere(entry.run, request, deadline_ns)
            if answer is not None:
                return answer
            try:
                if rides_along(entry.run):
                    return await self._ride(key, request.query, deadline_ns)
                return await self._direct(entry, request.query, deadline_ns)
            except Unblocked:
                continue  # the run, or its worker, has moved on: see where it is now

    async def _ask_elsewhere(
        self, run: Execution, request: QueryWorkflowRequest, deadline_ns: int
    ) -> QueryWorkflowResponse | None:
        """The answer of the node where the run's worker polls; None when it is for this one."""
        neighbours = self.node.neighbours
        if neighbours is None:
            return None
        asked = QueryWorkflowRequest()
        asked.CopyFrom(request)
        asked.execution.run_id = run.info.run_id
        answer: QueryWorkflowResponse | None = await neighbours.ask_worker(
            run, "query_workflow", asked, deadline_ns
        )
        return answer

    async def _ride(
        self, key: int, query: WorkflowQuery, deadline_ns: int
    ) -> QueryWorkflowResponse:
        """Wait for the answer that comes with the run's next workflow task."""
        companion = self.node.companions.of(key)
        query_id, future = companion.add_query(query)
        self.node.executions.watch_elsewhere(key, Awaited.ANY)
        try:
            if not await waiting.happened(future, self.node.clock, deadline_ns):
                raise self._late(query)
            return of_result(future.result(), self.node.settings.payload_bytes_max)
        finally:
            companion.remove_query(query_id)

    async def _direct(
        self, entry: Entry, query: WorkflowQuery, deadline_ns: int
    ) -> QueryWorkflowResponse:
        """Ask by a task of its own: the sticky worker first, then any.

        Raises Unblocked when the workers' next polls may come to another node.
        """
        node, state, info = self.node, entry.run.state, entry.run.info
        queue = node.matching.known(info.namespace, state.sticky_queue, WORKFLOW)
        now_ns = node.clock.now_ns()
        if queue is not None and self._may_ask(queue):
            wait_ns = state.sticky_timeout_ns or 5 * SECOND_NS
            answer = await self._ask(
                entry, query, state.sticky_queue, None, now_ns + wait_ns, deadline_ns
            )
            if answer is not None:
                return of_request(answer, node.settings.payload_bytes_max)
        poller_ns = node.settings.query_poller_ns
        while True:
            history = await self._history(entry)
            now_ns = node.clock.now_ns()
            queue = node.matching.queue(info.namespace, info.task_queue, WORKFLOW)
            if self._may_ask(queue) or not self._has_company:
                alive = queue.is_alive(now_ns, node.settings.sticky_alive_ns)
                until_ns = deadline_ns if alive else min(deadline_ns, now_ns + poller_ns)
                answer = await self._ask(
                    entry, query, info.task_queue, history, until_ns, deadline_ns
                )
                if answer is not None:
                    return of_request(answer, node.settings.payload_bytes_max)
                now_ns = node.clock.now_ns()
            if now_ns >= deadline_ns:
                raise self._late(query)
            if not queue.is_alive(now_ns, poller_ns) and not await self._polled_elsewhere(queue):
                raise FailedPrecondition(
                    f"no poller seen for task queue {info.task_queue!r} recently, "
                    "worker may be down"
                )
            if self._has_company:
                raise Unblocked

    @property
    def _has_company(self) -> bool:
        return self.node.neighbours is not None and self.node.neighbours.has_company

    def _may_ask(self, queue: TaskQueue) -> bool:
        """Whether a worker is there, or was a moment ago and will be back: without other nodes."""
        if self._has_company:
            return bool(queue.polls)
        return queue.is_alive(self.node.clock.now_ns(), self.node.settings.sticky_alive_ns)

    async def _polled_elsewhere(self, queue: TaskQueue) -> bool:
        """Whether workers of a queue came to other nodes lately.

        Raises Unavailable when that is not known.
        """
        if self.node.neighbours is None:
            return False
        request = DescribeTaskQueueRequest(namespace=queue.key.namespace)
        request.task_queue.name = queue.key.name
        answers, is_all = await self.node.neighbours.survey("describe_task_queue", request)
        after_ns = self.node.clock.now_ns() - self.node.settings.query_poller_ns
        pollers = [poller for answer in answers for poller in answer.pollers]
        if any(poller.last_access_time.ToNanoseconds() > after_ns for poller in pollers):
            return True
        if not is_all:
            raise Unavailable("Not all nodes say whether the run's worker is there; try again.")
        return False

    async def _history(self, entry: Entry) -> Page:
        """The first page of the run's history, for a worker that does not know the run."""
        settings = self.node.settings
        with reading():
            return await pages.read(
                self.node.store,
                entry.run.key,
                1,
                END,
                max_events=settings.history_page_events_max,
                max_bytes=settings.history_page_bytes,
            )

    async def _ask(
        self,
        entry: Entry,
        query: WorkflowQuery,
        queue_name: str,
        history: Page | None,
        until_ns: int,
        deadline_ns: int,
    ) -> RespondQueryTaskCompletedRequest | None:
        """Offer the query to a queue; None when no worker took it by then, or did not answer."""
        node, namespace = self.node, entry.run.info.namespace
        task = node.query_tasks.add(entry, query, history, node.holder)
        try:
            node.matching.offer_query(namespace, queue_name, task)
            if not await waiting.happened(task.taken, node.clock, until_ns):
                return None
            answer_by_ns = min(deadline_ns, node.clock.now_ns() + node.settings.query_answer_ns)
            if not await waiting.happened(task.answer, node.clock, answer_by_ns):
                return None
            return task.answer.result()
        finally:
            node.matching.withdraw_query(namespace, queue_name, task)
            node.query_tasks.remove(task)

    async def respond_query_task_completed(
        self, request: RespondQueryTaskCompletedRequest
    ) -> RespondQueryTaskCompletedResponse:
        """A worker answers a direct query.

        Raises:
            InvalidArgument: the token is none of a query task.
            NotFound: nobody waits for the answer any more.
        """
        token = tokens.decode(request.task_token, tokens.QUERY)
        if self.node.neighbours is not None:
            taken: RespondQueryTaskCompletedResponse | None = await self.node.neighbours.ask_holder(
                token.node, "respond_query_task_completed", request
            )
            if taken is not None:
                return taken
        task = self.node.query_tasks.get(token.scheduled_event_id)
        if task is None or task.answer.done():
            raise NotFound("query task not found, or already expired")
        task.answer.set_result(request)
        return RespondQueryTaskCompletedResponse()

    def _late(self, query: WorkflowQuery) -> DeadlineExceeded:
        timeout_s = self.node.settings.query_timeout_ns / SECOND_NS
        return DeadlineExceeded(
            f"no worker answered query {query.query_type!r} within {timeout_s:g} s"
        )
