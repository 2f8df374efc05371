"""Workflow processing of a worker: polling for tasks, handing them out, stopping in good order."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from temporalio.api.enums.v1 import TaskQueueKind
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
)

from perdure.api.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RPCError,
    Unimplemented,
)
from perdure.api.trouble import Trouble
from perdure.sdk.converter import Converter
from perdure.sdk.leaving import Leaving
from perdure.sdk.registry import by_name
from perdure.sdk.runtime import guards
from perdure.sdk.runtime.cache import RunCache
from perdure.sdk.runtime.local_execution import RunLocalActivity
from perdure.sdk.runtime.settings import RunSettings
from perdure.sdk.runtime.tasks import ActivitySlots, Service, TaskHandler
from perdure.sdk.runtime.watchdog import WATCHDOG

if TYPE_CHECKING:
    from perdure.sdk.interceptors import WorkflowInterceptor
    from perdure.sdk.workflow.definition import WorkflowDefinition

_log = logging.getLogger("perdure.worker")

_FATAL: Final = (InvalidArgument, NotFound, PermissionDenied, Unimplemented)
"""Answers to a poll that will be the same next time."""

_FIRST_BACKOFF_S: Final = 0.1
_LONGEST_BACKOFF_S: Final = 10.0


class WorkflowTaskProcessor:
    """Executes the workflows of one task queue.

    Args:
        service: an object with the API's methods. If it has a truthy `advances_in_process`, its
            polls are given the callback `advance`.
        workflows: definitions, decorated functions or classes; or a mapping to them by name.
        converter: values to payloads.
        interceptors: around what happens in workflow code, outermost first.
        max_cached_runs: runs kept in memory; 0 to replay every task from the first event.
        pollers: polls that wait at the same time, for each of the two queues.
        leaving: by which the service is told of the end.
        trouble: tells that polls fail, once for the whole worker.
        max_concurrent_tasks: workflow tasks in hand at the same time.
        sticky_timeout_s: how long a task of a cached run waits for this worker before any other
            may take it.
        run_local_activity: executes one attempt of a local activity.
        activity_slots: for activities that come with the answer to a workflow task; without them
            none are asked for.
        failure_exception_types: exceptions that fail a run instead of its workflow task.
        deadlock_timeout_s: how long workflow code may run without waiting.

    Raises:
        ValueError: naming the argument that is out of range, or two workflows of one name.
        TypeError: something among `workflows` is no workflow.
    """

    def __init__(
        self,
        service: Service,
        *,
        namespace: str,
        task_queue: str,
        identity: str,
        leaving: Leaving | None = None,
        trouble: Trouble | None = None,
        workflows: Iterable[Any],
        converter: Converter,
        interceptors: Sequence[WorkflowInterceptor] = (),
        max_cached_runs: int = 1000,
        pollers: int = 5,
        max_concurrent_tasks: int = 100,
        sticky_timeout_s: float = 10.0,
        run_local_activity: RunLocalActivity | None = None,
        activity_slots: ActivitySlots | None = None,
        failure_exception_types: Sequence[type[BaseException]] = (),
        deadlock_timeout_s: float = 20.0,
    ) -> None:
        if pollers < 1:
            raise ValueError(f"pollers: 1 or more, got {pollers}")
        if max_concurrent_tasks < 1:
            raise ValueError(f"max_concurrent_tasks: 1 or more, got {max_concurrent_tasks}")
        self._service = service
        self._namespace = namespace
        self._task_queue = task_queue
        self._identity = identity
        self._leaving = leaving
        self._trouble = trouble or poll_trouble(task_queue)
        self._pollers = pollers
        self._slots = asyncio.Semaphore(max_concurrent_tasks)
        self._sticky_queue = f"{identity}:{uuid.uuid4()}" if max_cached_runs else ""
        if leaving is not None:
            leaving.sticky_queue = self._sticky_queue
        self._settings = make_settings(
            workflows,
            converter=converter,
            namespace=namespace,
            task_queue=task_queue,
            interceptors=interceptors,
            failure_exception_types=failure_exception_types,
            eager_activities=activity_slots is not None,
        )
        self._settings.deadlock_timeout_s = deadlock_timeout_s
        self._handler = TaskHandler(
            service,
            self._settings,
            identity=identity,
            cache=RunCache(max_cached_runs),
            sticky_queue=self._sticky_queue,
            sticky_timeout_s=sticky_timeout_s,
            run_local_activity=run_local_activity,
            activity_slots=activity_slots,
        )
        self._advance = bool(getattr(service, "advances_in_process", False))
        self._handling: set[asyncio.Task[None]] = set()
        self._polling: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    @property
    def cached_runs(self) -> int:
        """Runs in memory."""
        return len(self._handler.cache)

    @property
    def sticky_queue(self) -> str:
        """The queue of this worker's cached runs; "" if it caches none."""
        return self._sticky_queue

    async def run(self) -> None:
        """Work until `shutdown` is called.

        Raises:
            RPCError: the service refuses to be polled: no such namespace, no permission.
            RuntimeError: called twice.
        """
        if self._polling:
            raise RuntimeError("WorkflowTaskProcessor.run() was called before")
        guards.arm()
        WATCHDOG.start(self._settings.deadlock_timeout_s)
        try:
            for number in range(self._pollers):
                self._poll_in_background(self._task_queue, False, number)
                if self._sticky_queue:
                    self._poll_in_background(self._sticky_queue, True, number)
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([stopping, *self._polling], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            for poll in self._polling:
                if poll.done():
                    poll.result()
        finally:
            await self._stop()
            WATCHDOG.stop()

    async def shutdown(self) -> None:
        """Stop polling, and finish the tasks in hand. `run` returns when that is done."""
        self._stopping.set()

    async def handle(self, task: PollWorkflowTaskQueueResponse) -> None:
        """Handle a task that came in another way than by polling, such as with a start."""
        await self._slots.acquire()
        self._hand_out(task)

    # --- polling --------------------------------------------------------------------------------

    def _poll_in_background(self, queue: str, sticky: bool, number: int) -> None:
        kind = "sticky" if sticky else "normal"
        coroutine = self._poll_loop(self._poll_request(queue, sticky))
        self._polling.append(
            asyncio.create_task(coroutine, name=f"perdure workflow poll {kind} {number}")
        )

    def _poll_request(self, queue: str, sticky: bool) -> PollWorkflowTaskQueueRequest:
        request = PollWorkflowTaskQueueRequest(namespace=self._namespace, identity=self._identity)
        if self._leaving is not None:
            request.worker_instance_key = self._leaving.instance_key
        request.task_queue.name = queue
        request.task_queue.kind = TaskQueueKind.TASK_QUEUE_KIND_NORMAL
        if sticky:
            request.task_queue.kind = TaskQueueKind.TASK_QUEUE_KIND_STICKY
            request.task_queue.normal_name = self._task_queue
        return request

    async def _poll_loop(self, request: PollWorkflowTaskQueueRequest) -> None:
        extra: dict[str, Any] = {}
        if self._advance:
            extra = {"advance": self._handler.advance, "evict": self._handler.cache.evict}
        failures = 0
        while not self._stopping.is_set():
            await self._slots.acquire()
            handed_out = False
            try:
                task = await self._service.poll_workflow_task_queue(request, **extra)
                failures = 0
                self._trouble.over()
                if task.task_token:
                    self._hand_out(task)
                    handed_out = True
            except _FATAL:
                raise
            except RPCError as error:
                failures += 1
                self._trouble.met(error)
            finally:
                if not handed_out:
                    self._slots.release()
            if failures:
                await asyncio.sleep(_backoff_s(failures))

    def _hand_out(self, task: PollWorkflowTaskQueueResponse) -> None:
        handling = asyncio.create_task(self._handler.handle(task), name="perdure workflow task")
        self._handling.add(handling)
        handling.add_done_callback(self._handled)

    def _handled(self, handling: asyncio.Task[None]) -> None:
        self._handling.discard(handling)
        self._slots.release()
        if not handling.cancelled() and (error := handling.exception()) is not None:
            _log.error("a workflow task was not handled", exc_info=error)

    # --- stopping -------------------------------------------------------------------------------

    async def _stop(self) -> None:
        self._stopping.set()
        if self._leaving is not None:
            await self._leaving.end(self._polling)
        for poll in self._polling:
            poll.cancel()
        await asyncio.gather(*self._polling, return_exceptions=True)
        if self._handling:
            await asyncio.gather(*self._handling, return_exceptions=True)
        self._handler.cache.clear()


def poll_trouble(task_queue: str) -> Trouble:
    """Tells that the polls of a worker fail: all of them do when the service is away."""
    return Trouble(_log, f"task queue {task_queue!r} cannot be polled")


def _backoff_s(failures: int) -> float:
    longest_s = min(_FIRST_BACKOFF_S * 2 ** min(failures - 1, 16), _LONGEST_BACKOFF_S)
    return float(longest_s * random.uniform(0.5, 1.0))


def make_settings(
    workflows: Iterable[Any],
    *,
    converter: Converter,
    namespace: str,
    task_queue: str,
    interceptors: Sequence[WorkflowInterceptor] = (),
    failure_exception_types: Sequence[type[BaseException]] = (),
    eager_activities: bool = False,
) -> RunSettings:
    """Settings for runs of these workflows.

    Raises:
        TypeError: something among `workflows` is no workflow.
        ValueError: two have the same name, or two are dynamic.
    """
    from perdure.sdk.workflow.definition import WorkflowDefinition, definition_of

    definitions: list[WorkflowDefinition] = []
    items = workflows.values() if isinstance(workflows, Mapping) else workflows
    for item in items:
        found = item if isinstance(item, WorkflowDefinition) else definition_of(item)
        if found is None:
            raise TypeError(f"workflows: decorated functions and classes, got {item!r}")
        definitions.append(found)
    dynamic = [definition for definition in definitions if definition.dynamic]
    if len(dynamic) > 1:
        raise ValueError(f"workflows: {len(dynamic)} are dynamic, at most one can be")
    return RunSettings(
        workflows=by_name("workflow", [d for d in definitions if not d.dynamic]),
        converter=converter,
        namespace=namespace,
        task_queue=task_queue,
        interceptors=tuple(interceptors),
        failure_exception_types=tuple(failure_exception_types),
        eager_activities=eager_activities,
        dynamic=dynamic[0] if dynamic else None,
    )
