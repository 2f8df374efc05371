"""Handling workflow tasks: finding or rebuilding the run, letting it move, answering."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final, Protocol

from google.protobuf.message import Message as ProtobufMessage
from temporalio.api.command.v1 import ScheduleActivityTaskCommandAttributes
from temporalio.api.enums.v1 import TaskQueueKind
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.protocol.v1 import Message
from temporalio.api.update.v1 import Acceptance, Rejection, Request, Response
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskCompletedResponse,
    RespondWorkflowTaskFailedRequest,
)

from perdure.api.errors import NotFound, RPCError
from perdure.sdk.codecs import codec_error, decode_message, encode_message
from perdure.sdk.converter import Converter
from perdure.sdk.runtime import answer, local_execution
from perdure.sdk.runtime.cache import RunCache
from perdure.sdk.runtime.local_execution import RunLocalActivity
from perdure.sdk.runtime.locals import LocalCall
from perdure.sdk.runtime.run import Run
from perdure.sdk.runtime.settings import RunSettings

_log = logging.getLogger("perdure.worker")

HISTORY_PAGE_SIZE: Final = 1000
MAXIMUM_HISTORY_EVENTS: Final = 1_000_000
"""A history that is longer is not loaded: something is wrong with who sends it."""

HEARTBEAT_FRACTION: Final = 0.8
"""Part of the workflow task's timeout after which waiting local activities prolong it."""

DEFAULT_TASK_TIMEOUT_S: Final = 10.0


class Service(Protocol):
    """The RPCs that workflow processing needs."""

    async def poll_workflow_task_queue(self, request: Any, /, **extra: Any) -> Any: ...
    async def respond_workflow_task_completed(self, request: Any, /) -> Any: ...
    async def respond_workflow_task_failed(self, request: Any, /) -> Any: ...
    async def respond_query_task_completed(self, request: Any, /) -> Any: ...
    async def get_workflow_execution_history(self, request: Any, /) -> Any: ...
    async def shutdown_worker(self, request: Any, /) -> Any: ...


class ActivitySlots(Protocol):
    """Where activities run that come with the answer to a workflow task."""

    def reserve(self, wanted: int, /) -> int:
        """Hold up to so many free slots; how many it were. `take` follows, whatever happens."""

    def take(self, tasks: Sequence[PollActivityTaskQueueResponse], held: int, /) -> None:
        """Run what came; give back the other slots that were held."""


Answer = RespondWorkflowTaskCompletedRequest | RespondWorkflowTaskFailedRequest


class TaskHandler:
    """Answers workflow tasks of one worker.

    Args:
        sticky_queue: the queue for runs in the cache; "" for none.
        run_local_activity: executes attempts of local activities; None if the worker has none.
        activity_slots: for activities that come with the answer to a workflow task.
    """

    def __init__(
        self,
        service: Service,
        settings: RunSettings,
        *,
        identity: str,
        cache: RunCache,
        sticky_queue: str,
        sticky_timeout_s: float,
        run_local_activity: RunLocalActivity | None,
        activity_slots: ActivitySlots | None,
    ) -> None:
        self._service = service
        self._settings = settings
        self._converter = settings.converter
        self._codec = settings.converter.codec
        self._identity = identity
        self.cache = cache
        self._run_local_activity = run_local_activity
        self._activity_slots = activity_slots
        self._template = self._completion_template(sticky_queue, sticky_timeout_s)

    def _completion_template(self, sticky_queue: str, sticky_timeout_s: float) -> bytes:
        """What is the same in all completions, serialised."""
        request = RespondWorkflowTaskCompletedRequest()
        request.identity = self._identity
        request.namespace = self._settings.namespace
        request.return_new_workflow_task = True
        if sticky_queue:
            sticky = request.sticky_attributes
            sticky.worker_task_queue.name = sticky_queue
            sticky.worker_task_queue.kind = TaskQueueKind.TASK_QUEUE_KIND_STICKY
            sticky.worker_task_queue.normal_name = self._settings.task_queue
            timeout = sticky.schedule_to_start_timeout
            timeout.FromNanoseconds(int(sticky_timeout_s * 1e9))
        return request.SerializeToString()

    # --- before the commit ----------------------------------------------------------------------

    def advance(self, task: PollWorkflowTaskQueueResponse) -> Answer | None:
        """Answer a task at once, or None if that takes more than the run and the task.

        An embedded service calls it inside of its own transition. If None comes after the run has
        moved, the run stays as it is, and goes on when the same task is delivered.
        """
        if self._codec is not None or task.HasField("query"):
            return None
        run_id = task.workflow_execution.run_id
        if self.cache.is_pinned(run_id):
            return None
        self.cache.pin(run_id)  # a full cache must not let it go while it moves
        try:
            found = self._ready_run(task, run_id)
            if found is None:
                return None
            run, events = found
            if events:
                run.advance(events, task.started_event_id, task.messages)
            if run.local_wanted():
                return None
            return self._completed(run, task)
        except Exception as error:
            return self._failed(task, error)
        finally:
            self.cache.unpin(run_id)

    # --- delivered ------------------------------------------------------------------------------

    async def handle(self, task: PollWorkflowTaskQueueResponse) -> None:
        """Answer a task, and those that the service returns with the answer."""
        following: PollWorkflowTaskQueueResponse | None = task
        while following is not None and following.task_token:
            run_id = following.workflow_execution.run_id
            self.cache.pin(run_id)
            try:
                if following.HasField("query"):
                    await self._answer_query_task(following)
                    return
                following = await self._answer_task(following)
            finally:
                self.cache.unpin(run_id)

    async def _answer_task(
        self, task: PollWorkflowTaskQueueResponse
    ) -> PollWorkflowTaskQueueResponse | None:
        try:
            await self._decode(task)
            run_id = task.workflow_execution.run_id
            run, events = self._ready_run(task, run_id) or await self._load(task)
            if events:
                run.advance(events, task.started_event_id, task.messages)
            if run.local_wanted():
                following = await self._run_locals(run, task)
                if following is None:
                    return None
                task = following
            request: Answer = self._completed(run, task)
        except RPCError as error:
            # The history could not be read. The task times out, and comes again.
            self.cache.evict(task.workflow_execution.run_id)
            _log.warning("workflow task of %s given up: %s", _name(task), error)
            return None
        except Exception as error:
            request = self._failed(task, error)
        return await self._send(task, request)

    async def _send(
        self, task: PollWorkflowTaskQueueResponse, request: Answer
    ) -> PollWorkflowTaskQueueResponse | None:
        """Send an answer. What the service refuses is forgotten: the run is rebuilt next time."""
        run_id = task.workflow_execution.run_id
        try:
            await self._encode(request)
        except Exception as error:
            self.cache.evict(run_id)
            _log.error("the codec failed for the workflow task of %s", _name(task), exc_info=error)
            request = self._signed(answer.codec_failure(error, task))
        try:
            if isinstance(request, RespondWorkflowTaskFailedRequest):
                await self._service.respond_workflow_task_failed(request)
                return None
            response = await self._complete(request)
        except NotFound:
            self.cache.evict(run_id)  # the task has timed out, or the run was closed meanwhile
            return None
        except RPCError as error:
            self.cache.evict(run_id)
            _log.warning("the answer to the workflow task of %s failed: %s", _name(task), error)
            return None
        if response.reset_history_event_id:
            run = self.cache.get(run_id)
            if run is not None:
                run.forget_task(response.reset_history_event_id)
        following: PollWorkflowTaskQueueResponse = response.workflow_task
        return following if following.task_token else None

    async def _complete(
        self, request: RespondWorkflowTaskCompletedRequest
    ) -> RespondWorkflowTaskCompletedResponse:
        """Send an answer, asking for as many of its activities at once as there are free slots."""
        slots = self._activity_slots
        wanted = [] if slots is None else _asked_eagerly(request)
        if slots is None or not wanted:
            return await self._respond(request)
        held = slots.reserve(len(wanted))
        for attributes in wanted[held:]:
            attributes.request_eager_execution = False
        came: Sequence[PollActivityTaskQueueResponse] = ()
        try:
            response = await self._respond(request)
            came = response.activity_tasks
        finally:
            slots.take(came, held)
        return response

    async def _respond(
        self, request: RespondWorkflowTaskCompletedRequest
    ) -> RespondWorkflowTaskCompletedResponse:
        response = await self._service.respond_workflow_task_completed(request)
        assert isinstance(response, RespondWorkflowTaskCompletedResponse)
        return response

    def _completed(
        self, run: Run, task: PollWorkflowTaskQueueResponse
    ) -> RespondWorkflowTaskCompletedRequest:
        request = answer.completion(run, task)
        request.MergeFromString(self._template)
        if request.messages:
            request.capabilities.discard_speculative_workflow_task_with_events = True
        if task.previous_started_event_id == 0:
            request.sdk_metadata.sdk_name = answer.SDK_NAME
        if run.closing is not None:
            self.cache.evict(run.run_id)
        return request

    def _failed(
        self, task: PollWorkflowTaskQueueResponse, error: BaseException
    ) -> RespondWorkflowTaskFailedRequest:
        self.cache.evict(task.workflow_execution.run_id)
        return self._signed(answer.failure(error, task, self._converter))

    def _signed(
        self, request: RespondWorkflowTaskFailedRequest
    ) -> RespondWorkflowTaskFailedRequest:
        request.identity = self._identity
        request.namespace = self._settings.namespace
        return request

    # --- runs -----------------------------------------------------------------------------------

    def _ready_run(
        self, task: PollWorkflowTaskQueueResponse, run_id: str
    ) -> tuple[Run, Sequence[HistoryEvent]] | None:
        """The run and the events it has not seen, if that takes no request; else None.

        Raises:
            UnknownTypeError: the worker has no such workflow.
        """
        events = task.history.events
        first_id = events[0].event_id if events else 0
        run = self.cache.get(run_id)
        if run is not None:
            if run.unanswered is not None and events and events[-1] == run.unanswered:
                return run, ()  # it has moved already, before the task was delivered
            follows = (
                run.last_started_id == task.previous_started_event_id
                and 0 < first_id <= run.seen_id + 1
                and not task.next_page_token
            )
            if follows:
                return run, events[run.seen_id + 1 - first_id :]
            self.cache.evict(run.run_id)
        if first_id != 1 or task.next_page_token:
            return None
        return self._new_run(task), events

    def _new_run(self, task: PollWorkflowTaskQueueResponse) -> Run:
        execution = task.workflow_execution
        run = Run(self._settings, task.workflow_type.name, execution.workflow_id, execution.run_id)
        self.cache.put(run)
        return run

    async def _load(
        self, task: PollWorkflowTaskQueueResponse
    ) -> tuple[Run, Sequence[HistoryEvent]]:
        """A new run and its whole history.

        Raises:
            RPCError: the history cannot be read.
            UnknownTypeError: the worker has no such workflow.
        """
        events = await self._whole_history(task)
        return self._new_run(task), events

    async def _whole_history(self, task: PollWorkflowTaskQueueResponse) -> list[HistoryEvent]:
        given = list(task.history.events)
        request = GetWorkflowExecutionHistoryRequest(
            namespace=self._settings.namespace, maximum_page_size=HISTORY_PAGE_SIZE
        )
        request.execution.CopyFrom(task.workflow_execution)
        events: list[HistoryEvent] = []
        if given and given[0].event_id == 1:
            events, given = given, []
            request.next_page_token = task.next_page_token
        while request.next_page_token or not events:
            response = await self._service.get_workflow_execution_history(request)
            await self._decode(response)
            events.extend(response.history.events)
            request.next_page_token = response.next_page_token
            if not response.next_page_token:
                break
            if len(events) > MAXIMUM_HISTORY_EVENTS:
                raise ValueError(f"a history of more than {MAXIMUM_HISTORY_EVENTS} events")
        # The events of the task itself may be in no page yet.
        last_id = events[-1].event_id if events else 0
        events.extend(event for event in given if event.event_id > last_id)
        return events

    # --- queries --------------------------------------------------------------------------------

    async def _answer_query_task(self, task: PollWorkflowTaskQueueResponse) -> None:
        namespace = self._settings.namespace
        run = self.cache.get(task.workflow_execution.run_id)
        if run is not None and run.last_started_id != task.previous_started_event_id:
            run = None  # another worker had the run meanwhile: what is cached here is old
        loaded: Run | None = None
        try:
            await self._decode(task)
            if run is None:
                execution = task.workflow_execution
                type_name = task.workflow_type.name
                loaded = run = Run(
                    self._settings, type_name, execution.workflow_id, execution.run_id
                )
                run.advance(await self._whole_history(task), 0, ())
            request = answer.query_completion(run, task, namespace)
        except Exception as error:
            request = answer.query_failure(error, task, namespace, self._converter)
        finally:
            if loaded is not None:
                loaded.evict()
        try:
            await self._encode(request)
        except Exception as error:
            _log.error("the codec failed for a query of %s", _name(task), exc_info=error)
            request = answer.query_failure(codec_error(error), task, namespace, Converter())
        try:
            await self._service.respond_query_task_completed(request)
        except RPCError as error:
            _log.debug("nobody waits for the answer to a query of %s: %s", _name(task), error)

    # --- local activities -----------------------------------------------------------------------

    async def _run_locals(
        self, run: Run, task: PollWorkflowTaskQueueResponse
    ) -> PollWorkflowTaskQueueResponse | None:
        """Execute local activities until the run wants none, prolonging the task as needed.

        Returns:
            The task to answer, which is another one after prolonging; None if it was lost.
        """
        if self._run_local_activity is None:
            raise RuntimeError("this worker executes no local activities")
        executing: dict[asyncio.Task[Any], LocalCall] = {}
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._patience_s(run)
        try:
            while wanted := run.local_wanted():
                self._begin_locals(run, wanted, executing)
                remaining_s = max(deadline_s - loop.time(), 0.0)
                done, _ = await asyncio.wait(
                    executing, timeout=remaining_s, return_when=asyncio.FIRST_COMPLETED
                )
                for finished in done:
                    call = executing.pop(finished)
                    if not finished.cancelled():
                        run.local_finished(call, finished.result())
                if not done:
                    prolonged = await self._prolong(run, task)
                    if prolonged is None:
                        return None
                    task = prolonged
                    deadline_s = loop.time() + self._patience_s(run)
            return task
        finally:
            for left in executing:
                left.cancel()
            if executing:
                await asyncio.gather(*executing, return_exceptions=True)

    def _begin_locals(
        self,
        run: Run,
        wanted: Sequence[LocalCall],
        executing: dict[asyncio.Task[Any], LocalCall],
    ) -> None:
        """Start what is wanted and not started; stop what is not wanted any more."""
        assert self._run_local_activity is not None
        for task, call in executing.items():
            if call.done():
                task.cancel()
        for call in wanted:
            if not call.started:
                call.started = True
                coroutine = local_execution.execute(run, call, self._run_local_activity)
                executing[asyncio.create_task(coroutine)] = call

    def _patience_s(self, run: Run) -> float:
        timeout = run.info.task_timeout if run.info is not None else None
        timeout_s = DEFAULT_TASK_TIMEOUT_S if timeout is None else timeout.total_seconds()
        return HEARTBEAT_FRACTION * timeout_s

    async def _prolong(
        self, run: Run, task: PollWorkflowTaskQueueResponse
    ) -> PollWorkflowTaskQueueResponse | None:
        """Complete the task with what there is, and go on under a new one."""
        request = self._completed(run, task)
        request.force_create_new_workflow_task = True
        following = await self._send(task, request)
        if following is None:
            self.cache.evict(run.run_id)
            return None
        await self._decode(following)
        found = self._ready_run(following, run.run_id)
        if found is None or found[0] is not run:
            self.cache.evict(run.run_id)
            return None
        run.advance(found[1], following.started_event_id, following.messages)
        return following

    # --- codecs ---------------------------------------------------------------------------------

    async def _decode(self, message: ProtobufMessage) -> None:
        if self._codec is None:
            return
        await decode_message(self._codec, message)
        for inner in getattr(message, "messages", ()):
            body = _body(inner)
            if body is not None:
                await decode_message(self._codec, body)
                inner.body.Pack(body)

    async def _encode(self, message: ProtobufMessage) -> None:
        if self._codec is None:
            return
        await encode_message(self._codec, message)
        for inner in getattr(message, "messages", ()):
            body = _body(inner)
            if body is not None:
                await encode_message(self._codec, body)
                inner.body.Pack(body)


def _body(message: Message) -> ProtobufMessage | None:
    """What a protocol message carries, which codecs do not see inside of its `Any`."""
    for kind in (Request, Acceptance, Rejection, Response):
        body = kind()
        if message.body.Unpack(body):
            return body
    return None


def _asked_eagerly(
    request: RespondWorkflowTaskCompletedRequest,
) -> list[ScheduleActivityTaskCommandAttributes]:
    """The activities of an answer that want to come with the response."""
    found = (command.schedule_activity_task_command_attributes for command in request.commands)
    return [attributes for attributes in found if attributes.request_eager_execution]


def _name(task: PollWorkflowTaskQueueResponse) -> str:
    execution = task.workflow_execution
    return f"{task.workflow_type.name} (id {execution.workflow_id}, run {execution.run_id})"
