"""The RPCs of workflow workers: take a workflow task, complete it, fail it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.enums.v1 import WorkflowTaskFailedCause
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
    ResetStickyTaskQueueRequest,
    ResetStickyTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskCompletedResponse,
    RespondWorkflowTaskFailedRequest,
    RespondWorkflowTaskFailedResponse,
    ShutdownWorkerRequest,
    ShutdownWorkerResponse,
)

from perdure.api.caller import CALLER
from perdure.api.errors import InvalidArgument, NotFound
from perdure.engine import activities, workflow_tasks
from perdure.engine.commands import CompletedTask
from perdure.engine.transition import Transition
from perdure.service import completing, scaling, tokens, validation
from perdure.service.dispatch import HandOut, ready_activity, ready_workflow_task
from perdure.service.queue import ACTIVITY, WORKFLOW, Advance, Evict, Poll
from perdure.service.tokens import TaskToken

if TYPE_CHECKING:
    from perdure.service.entries import Entry
    from perdure.service.node import Node


class WorkflowTaskRPCs:
    """The RPCs about workflow tasks, as a part of the service."""

    node: Node

    async def poll_workflow_task_queue(
        self,
        request: PollWorkflowTaskQueueRequest,
        advance: Advance | None = None,
        *,
        evict: Evict | None = None,
    ) -> PollWorkflowTaskQueueResponse:
        """Wait for a workflow task; an empty response after a minute without one.

        A worker of this process may give `advance`: it is then handed tasks within the transition
        that made them, and its answers join that transition. The poll goes on waiting; it returns
        with the first task that `advance` declines. `evict` hears of answers that were lost.
        """
        node = self.node
        node.namespaces.get(request.namespace)
        name = request.task_queue.name
        validation.task_queue(request, node.settings)
        validation.bounded(request.identity, "Identity", node.settings)
        queue = node.matching.queue(request.namespace, name, WORKFLOW)
        poll = Poll(queue, request.identity, CALLER.get().in_process, advance, evict)
        poll.worker = request.worker_instance_key
        response = await node.wait_for_task(poll)
        assert isinstance(response, PollWorkflowTaskQueueResponse)
        return scaling.advised(node, poll, response)

    async def respond_workflow_task_completed(
        self, request: RespondWorkflowTaskCompletedRequest
    ) -> RespondWorkflowTaskCompletedResponse:
        """What the workflow's code did next.

        Raises:
            InvalidArgument: not a token of a workflow task, or a command is wrong: the workflow
                task has then failed, and history says why.
            NotFound: the task timed out, or the run is closed.
        """
        node = self.node
        token = tokens.decode(request.task_token, tokens.WORKFLOW)
        if request.namespace:
            node.namespaces.get(request.namespace)
        sticky = request.sticky_attributes.worker_task_queue.name
        validation.bounded(sticky, "StickyAttributes.WorkerTaskQueue", node.settings)
        if token.node and node.neighbours is not None:
            answer: RespondWorkflowTaskCompletedResponse | None = await node.neighbours.ask_holder(
                token.node, "respond_workflow_task_completed", request
            )
            if answer is not None:
                return answer
        completion = _Completion(node, token, request)
        await node.executions.transact(token.key, completion)
        if completion.task.failed:
            companion = node.executions.companions.get(token.key)
            if companion is not None:
                companion.on_task_lost()
            raise InvalidArgument(completion.task.message)
        await node.namespaces.are_known(completing.attributes_set_by(request))
        return await completion.response()

    async def respond_workflow_task_failed(
        self, request: RespondWorkflowTaskFailedRequest
    ) -> RespondWorkflowTaskFailedResponse:
        """The workflow's code could not go on; the task is tried again."""
        node = self.node
        token = tokens.decode(request.task_token, tokens.WORKFLOW)
        if request.namespace:
            node.namespaces.get(request.namespace)
        if request.cause == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND:
            return RespondWorkflowTaskFailedResponse()

        def fail(tx: Transition) -> None:
            if not tx.run.is_open:
                raise NotFound("workflow execution already completed")
            _check(tx, token, request.namespace)
            completing.apply(tx, request, node.namespaces, None)

        await node.executions.transact(token.key, fail)
        companion = node.executions.companions.get(token.key)
        if companion is not None:
            companion.on_task_lost()
        return RespondWorkflowTaskFailedResponse()

    async def reset_sticky_task_queue(
        self, request: ResetStickyTaskQueueRequest
    ) -> ResetStickyTaskQueueResponse:
        """The run's next workflow task may go to any worker."""
        node = self.node
        node.namespaces.get(request.namespace)
        execution = request.execution
        key = await node.executions.resolve(
            request.namespace, execution.workflow_id, execution.run_id
        )
        await node.executions.transact(key, workflow_tasks.forget_sticky)
        return ResetStickyTaskQueueResponse()

    async def shutdown_worker(self, request: ShutdownWorkerRequest) -> ShutdownWorkerResponse:
        """A worker stops: its polls end, and what waits on its sticky queue goes to others."""
        node = self.node
        node.namespaces.get(request.namespace)
        self._note_stopped(request)
        if request.sticky_task_queue:
            queue = node.matching.queue(request.namespace, request.sticky_task_queue, WORKFLOW)
            node.matching.retire(queue)
            await node.dispatcher.redirect(queue)
        if node.neighbours is not None:
            await node.neighbours.ask_others("shutdown_worker", request)
        return ShutdownWorkerResponse()

    def _note_stopped(self, request: ShutdownWorkerRequest) -> None:
        """Its last heartbeat, and the polls that it named itself in."""
        node, worker = self.node, request.worker_instance_key
        if request.HasField("worker_heartbeat"):
            node.workers.note(request.namespace, request.worker_heartbeat)
        if not worker:
            return
        node.workers.stop(request.namespace, worker)
        known = [
            node.matching.known(request.namespace, name, kind)
            for name in {request.task_queue, request.sticky_task_queue} - {""}
            for kind in (WORKFLOW, ACTIVITY)
        ]
        node.matching.release_worker(worker, [queue for queue in known if queue is not None])


class _Completion:
    """One answer on its way through a transition, perhaps more than once."""

    def __init__(
        self, node: Node, token: TaskToken, request: RespondWorkflowTaskCompletedRequest
    ) -> None:
        self._node = node
        self._token = token
        self._request = request
        self._hand_out: HandOut | None = None
        self._activities: list[tuple[int, PollActivityTaskQueueResponse]] = []  # over at
        self._reset_event_id = 0
        self.task = CompletedTask()

    def __call__(self, tx: Transition) -> None:
        node, request = self._node, self._request
        self._hand_out = None
        self._activities = []
        _check(tx, self._token, request.namespace)
        companion = node.executions.companions.get(self._token.key)
        held = tx.run.state.workflow_task
        in_process = held is not None and held.in_process
        speculative = held is not None and held.speculative
        self.task = completing.apply(tx, request, node.namespaces, companion)
        last_started = tx.run.state.last_task_started_event_id
        # A task made for an update that was rejected leaves no trace: the worker must forget it.
        dropped = speculative and last_started < self._token.started_event_id
        self._reset_event_id = last_started if dropped and not self.task.failed else 0
        entry = node.executions.cached(self._token.key)
        assert entry is not None
        if self.task.eager_activities:
            self._start_activities(entry, tx, in_process)
        if request.return_new_workflow_task and not self.task.failed:
            self._start_next(entry, tx, in_process)

    def _start_activities(self, entry: Entry, tx: Transition, in_process: bool) -> None:
        eager = set(self.task.eager_activities)
        for ref in [r for r in tx.tasks if r.kind == ACTIVITY and r.scheduled_event_id in eager]:
            caller = self._caller(ref.queue, ACTIVITY, in_process)
            rate = caller.queue.rate
            if rate is not None and not rate.spend(tx.now_ns):
                continue  # it waits for its turn like any other
            tx.tasks.remove(ref)
            activity = ready_activity(entry.run, ref.scheduled_event_id, ref.stamp)
            assert activity is not None
            response = self._node.dispatcher.start_activity(entry, tx, activity, caller)
            self._activities.append((activities.over_ns(activity), response))

    def _start_next(self, entry: Entry, tx: Transition, in_process: bool) -> None:
        for ref in tx.tasks:
            if ref.kind == WORKFLOW:
                if ready_workflow_task(entry.run, ref.scheduled_event_id, ref.stamp) is None:
                    continue
                tx.tasks.remove(ref)
                caller = self._caller(ref.queue, WORKFLOW, in_process)
                self._hand_out = self._node.dispatcher.start_workflow_task(
                    entry, tx, caller, goes_on=True
                )
                return

    def _caller(self, queue: str, kind: int, in_process: bool) -> Poll:
        namespace = self._request.namespace
        return Poll(
            self._node.matching.queue(namespace, queue, kind), self._request.identity, in_process
        )

    async def response(self) -> RespondWorkflowTaskCompletedResponse:
        """What to answer, after the commit."""
        node = self._node
        now_ns = node.clock.now_ns()
        in_time = [response for over_ns, response in self._activities if now_ns < over_ns]
        made = RespondWorkflowTaskCompletedResponse(activity_tasks=in_time)
        made.reset_history_event_id = self._reset_event_id
        if self._hand_out is not None:
            await node.dispatcher.complete_history(self._token.key, self._hand_out)
            made.workflow_task.CopyFrom(self._hand_out.response)
        return made


def _check(tx: Transition, token: TaskToken, namespace: str) -> None:
    """Raise unless the token is that of the run's started workflow task."""
    tokens.check_run(token, tx.run.info, namespace)
    workflow_tasks.check_token(
        tx.run, token.scheduled_event_id, token.started_event_id, token.stamp
    )
