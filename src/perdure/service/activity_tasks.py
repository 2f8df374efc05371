"""The RPCs of activity workers: take an attempt, keep it alive, end it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from temporalio.api.common.v1 import Payloads
from temporalio.api.failure.v1 import Failure
from temporalio.api.taskqueue.v1 import TaskQueueMetadata
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    RecordActivityTaskHeartbeatByIdRequest,
    RecordActivityTaskHeartbeatByIdResponse,
    RecordActivityTaskHeartbeatRequest,
    RecordActivityTaskHeartbeatResponse,
    RespondActivityTaskCanceledByIdRequest,
    RespondActivityTaskCanceledByIdResponse,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCanceledResponse,
    RespondActivityTaskCompletedByIdRequest,
    RespondActivityTaskCompletedByIdResponse,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskCompletedResponse,
    RespondActivityTaskFailedByIdRequest,
    RespondActivityTaskFailedByIdResponse,
    RespondActivityTaskFailedRequest,
    RespondActivityTaskFailedResponse,
)

from perdure.api.caller import CALLER
from perdure.api.errors import InvalidArgument, NotFound
from perdure.engine import activities
from perdure.engine.state import Activity
from perdure.engine.transition import Transition
from perdure.service import scaling, tokens, validation
from perdure.service.matching import Matching
from perdure.service.queue import ACTIVITY, Poll, TaskQueue
from perdure.service.tokens import TaskToken

if TYPE_CHECKING:
    from perdure.service.node import Node

T = TypeVar("T")
Ending = Callable[[Transition, Activity], T]

ById = (
    RespondActivityTaskCompletedByIdRequest
    | RespondActivityTaskFailedByIdRequest
    | RespondActivityTaskCanceledByIdRequest
    | RecordActivityTaskHeartbeatByIdRequest
)
ByToken = (
    RespondActivityTaskCompletedRequest
    | RespondActivityTaskFailedRequest
    | RespondActivityTaskCanceledRequest
    | RecordActivityTaskHeartbeatRequest
)


class Beat(NamedTuple):
    """What a worker hears when its activity beats."""

    cancel_requested: bool
    paused: bool = False
    reset: bool = False


class ParkedPoll:
    """A poll that waits while its caller does something else. Await ``response`` or ``cancel``."""

    __slots__ = ("_node", "poll")

    def __init__(self, node: Node, poll: Poll) -> None:
        self._node = node
        self.poll = poll

    async def response(self) -> PollActivityTaskQueueResponse:
        """The task, or an empty response after a minute."""
        poll = self.poll
        try:
            response: PollActivityTaskQueueResponse = await poll.future
        except asyncio.CancelledError:
            self._node.give_up(poll)
            raise
        finally:
            self._node.matching.finish(poll)
        return response

    def cancel(self) -> None:
        """Wait no longer; a task that is on its way goes back."""
        self._node.give_up(self.poll)


class ActivityTaskRPCs:
    """The RPCs about activity tasks, as a part of the service."""

    node: Node

    async def poll_activity_task_queue(
        self, request: PollActivityTaskQueueRequest
    ) -> PollActivityTaskQueueResponse:
        """Wait for an activity; an empty response after a minute without one."""
        parked = self.park_activity_poll(request)
        return scaling.advised(self.node, parked.poll, await parked.response())

    def park_activity_poll(self, request: PollActivityTaskQueueRequest) -> ParkedPoll:
        """The same without waiting yet.

        A worker of this process parks its next poll before it answers for the activity that it
        has done: what that answer leads to can then come to it within the same transition.
        """
        node = self.node
        node.namespaces.get(request.namespace)
        validation.task_queue(request, node.settings)
        validation.bounded(request.identity, "Identity", node.settings)
        queue = node.matching.queue(request.namespace, request.task_queue.name, ACTIVITY)
        poll = Poll(queue, request.identity, CALLER.get().in_process)
        poll.worker = request.worker_instance_key
        if request.HasField("task_queue_metadata"):
            _limit(node.matching, queue, request.task_queue_metadata)
        node.matching.park(poll)
        return ParkedPoll(node, poll)

    # -- by token ----------------------------------------------------------------------------------

    async def respond_activity_task_completed(
        self, request: RespondActivityTaskCompletedRequest
    ) -> RespondActivityTaskCompletedResponse:
        """The activity has its result.

        Raises:
            InvalidArgument: the token is none of an activity task.
            NotFound: the attempt timed out, or the activity or its run is over.
        """
        key, operation = self._of_token(request, self._completion(request.result, request.identity))
        await self.node.executions.transact(key, operation)
        return RespondActivityTaskCompletedResponse()

    async def respond_activity_task_failed(
        self, request: RespondActivityTaskFailedRequest
    ) -> RespondActivityTaskFailedResponse:
        """The attempt failed; whether another follows, its retry policy says."""
        failure = request.failure
        if request.HasField("failure") and not failure.HasField("application_failure_info"):
            raise InvalidArgument("Failure must have ApplicationFailureInfo.")
        await self._by_token(request, self._failure(request))
        return RespondActivityTaskFailedResponse()

    async def respond_activity_task_canceled(
        self, request: RespondActivityTaskCanceledRequest
    ) -> RespondActivityTaskCanceledResponse:
        """The activity stopped because it was asked to."""
        await self._by_token(request, self._cancelation(request.details, request.identity))
        return RespondActivityTaskCanceledResponse()

    async def record_activity_task_heartbeat(
        self, request: RecordActivityTaskHeartbeatRequest
    ) -> RecordActivityTaskHeartbeatResponse:
        """The activity is alive; the answer says whether it should stop."""
        beat = await self._by_token(request, self._heartbeat(request))
        return RecordActivityTaskHeartbeatResponse(
            cancel_requested=beat.cancel_requested,
            activity_paused=beat.paused,
            activity_reset=beat.reset,
        )

    def _of_token(
        self, request: ByToken, ending: Ending[T]
    ) -> tuple[int, Callable[[Transition], T]]:
        """The run's key, and what to do with it."""
        token = tokens.decode(request.task_token, tokens.ACTIVITY)
        namespace = request.namespace
        if namespace:
            self.node.namespaces.get(namespace)
        return token.key, partial(_with_held, token, namespace, ending)

    async def _by_token(self, request: ByToken, ending: Ending[T]) -> T:
        key, operation = self._of_token(request, ending)
        return await self.node.executions.transact(key, operation)

    # -- by id -------------------------------------------------------------------------------------

    async def respond_activity_task_completed_by_id(
        self, request: RespondActivityTaskCompletedByIdRequest
    ) -> RespondActivityTaskCompletedByIdResponse:
        """As respond_activity_task_completed, by workflow id and activity id; also unstarted."""
        completion = self._completion(request.result, request.identity, unstarted=True)
        await self._by_id(request, completion)
        return RespondActivityTaskCompletedByIdResponse()

    async def respond_activity_task_failed_by_id(
        self, request: RespondActivityTaskFailedByIdRequest
    ) -> RespondActivityTaskFailedByIdResponse:
        """As respond_activity_task_failed, by workflow id and activity id."""
        await self._by_id(request, self._failure(request))
        return RespondActivityTaskFailedByIdResponse()

    async def respond_activity_task_canceled_by_id(
        self, request: RespondActivityTaskCanceledByIdRequest
    ) -> RespondActivityTaskCanceledByIdResponse:
        """As respond_activity_task_canceled, by workflow id and activity id."""
        await self._by_id(request, self._cancelation(request.details, request.identity))
        return RespondActivityTaskCanceledByIdResponse()

    async def record_activity_task_heartbeat_by_id(
        self, request: RecordActivityTaskHeartbeatByIdRequest
    ) -> RecordActivityTaskHeartbeatByIdResponse:
        """As record_activity_task_heartbeat, by workflow id and activity id."""
        beat = await self._by_id(request, self._heartbeat(request))
        return RecordActivityTaskHeartbeatByIdResponse(
            cancel_requested=beat.cancel_requested,
            activity_paused=beat.paused,
            activity_reset=beat.reset,
        )

    async def _by_id(self, request: ById, ending: Ending[T]) -> T:
        node = self.node
        node.namespaces.get(request.namespace)
        if not request.activity_id:
            raise InvalidArgument("ActivityId is not set on request.")
        if request.run_id and not validation.is_uuid(request.run_id):
            raise InvalidArgument("RunId is not valid UUID.")
        key = await node.executions.resolve(request.namespace, request.workflow_id, request.run_id)
        return await node.executions.transact(
            key, partial(_with_found, request.activity_id, ending)
        )

    # -- what happens to the activity --------------------------------------------------------------

    def _completion(
        self, result: Payloads, identity: str, *, unstarted: bool = False
    ) -> Ending[None]:
        body = result.SerializeToString()
        if len(body) > self.node.settings.payload_bytes_max:
            failure = _server_failure("Complete result exceeds size limit.", retry=False)
            return partial(_fail, failure, identity, b"")
        return partial(_complete, body, identity, unstarted)

    def _failure(
        self, request: RespondActivityTaskFailedRequest | RespondActivityTaskFailedByIdRequest
    ) -> Ending[None]:
        failure = request.failure
        limit = self.node.settings.payload_bytes_max
        if failure.ByteSize() > limit:
            failure = _server_failure("Failure exceeds size limit.", retry=True)
        details = request.last_heartbeat_details.SerializeToString()
        return partial(_fail, failure, request.identity, details if len(details) <= limit else b"")

    def _cancelation(self, details: Payloads, identity: str) -> Ending[None]:
        validation.payload(details, "details", self.node.settings)
        return partial(_cancel, details.SerializeToString(), identity)

    def _heartbeat(
        self,
        request: RecordActivityTaskHeartbeatRequest | RecordActivityTaskHeartbeatByIdRequest,
    ) -> Ending[Beat]:
        details = request.details.SerializeToString()
        if len(details) > self.node.settings.payload_bytes_max:
            failure = _server_failure("Heartbeat details exceed size limit.", retry=False)
            return partial(_fail_and_stop, failure, request.identity)
        return partial(_beat, details, request.HasField("details"))


def _limit(matching: Matching, queue: TaskQueue, metadata: TaskQueueMetadata) -> None:
    """Take over how fast a worker wants its task queue's tasks to be given out."""
    if metadata.HasField("max_tasks_per_second"):
        per_second = metadata.max_tasks_per_second.value
        if not 0 <= per_second < float("inf"):
            raise InvalidArgument(f"max_tasks_per_second is 0 or more, got {per_second}.")
        queue.set_rate(per_second, by_worker=True)
        matching.pump(queue)


# -- operations ------------------------------------------------------------------------------------


def _with_held(token: TaskToken, namespace: str, ending: Ending[T], tx: Transition) -> T:
    """Do something with the activity that a token was made for. Raises NotFound when it is over."""
    run = tx.run
    tokens.check_run(token, run.info, namespace)
    activity = activities.find(run, token.scheduled_event_id)
    if activity.stamp != token.stamp or activity.attempt != token.attempt:
        raise NotFound(
            "invalid activityID or activity already timed out or invoking workflow is completed"
        )
    return ending(tx, activity)


def _with_found(activity_id: str, ending: Ending[T], tx: Transition) -> T:
    return ending(tx, activities.find(tx.run, activity_id=activity_id))


def _complete(
    result: bytes, identity: str, unstarted: bool, tx: Transition, activity: Activity
) -> None:
    activities.complete(tx, activity, result, identity, unstarted=unstarted)


def _fail(
    failure: Failure, identity: str, details: bytes, tx: Transition, activity: Activity
) -> None:
    activities.fail(tx, activity, failure, identity, details)


def _cancel(details: bytes, identity: str, tx: Transition, activity: Activity) -> None:
    activities.cancel(tx, activity, details, identity)


def _beat(details: bytes, has_details: bool, tx: Transition, activity: Activity) -> Beat:
    cancel = activities.heartbeat(tx, activity, details, has_details)
    return Beat(cancel, activity.paused_ns > 0, activity.reset)


def _fail_and_stop(failure: Failure, identity: str, tx: Transition, activity: Activity) -> Beat:
    activities.fail(tx, activity, failure, identity)
    return Beat(True)


def _server_failure(message: str, *, retry: bool) -> Failure:
    failure = Failure(message=message, source="Server")
    failure.server_failure_info.non_retryable = not retry
    return failure
