"""The worker: it runs workflows and activities for a client's namespace.

async with client.worker():                      # everything defined so far
    ...
await client.worker("billing", activities=[charge, refund]).run()   # until it is cancelled
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypedDict

from perdure.sdk.activity import Activity
from perdure.sdk.activity_worker import ActivityWorker
from perdure.sdk.interceptors import Interceptor, WorkflowInterceptor
from perdure.sdk.options import DEFAULT_TASK_QUEUE, check_name
from perdure.sdk.registry import ACTIVITIES, WORKFLOWS, by_name
from perdure.sdk.runtime.processor import WorkflowTaskProcessor
from perdure.sdk.workflow.definition import WorkflowDefinition, definition_of

if TYPE_CHECKING:
    from perdure.sdk.client import Client

__all__ = ["Worker", "WorkerFields", "defined_in"]

_log = logging.getLogger("perdure.worker")

DEFAULT_GRACE: Final = timedelta(seconds=10)


class WorkerFields(TypedDict, total=False):
    """The options of `Worker` as keyword arguments."""

    workflows: Iterable[Any] | None
    activities: Iterable[Any] | None
    interceptors: Sequence[Interceptor]
    identity: str | None
    max_concurrent_activities: int
    max_concurrent_local_activities: int
    max_concurrent_workflow_tasks: int
    max_processes: int | None
    max_cached_runs: int
    max_activities_per_second: float | None
    pollers: int
    graceful_shutdown_timeout: timedelta
    workflow_failure_exception_types: Sequence[type[BaseException]]


class Worker:
    """Runs workflows and activities of one task queue. Made by `Client.worker`.

    Use it as an async context manager, or await `run`.

    Args:
        client: whose service, namespace, converter and interceptors are used.
        task_queue: default: the client's, else "default".
        workflows: what ``@workflow`` made; default: all that was defined so far.
        activities: what ``@activity`` made, bound methods, or instances with such methods;
            default: all functions that were defined so far.
        interceptors: inside of the client's.
        identity: who works, for histories; default: the client's.
        max_concurrent_activities: how many run at a time.
        max_concurrent_local_activities: the same for local ones.
        max_concurrent_workflow_tasks: how many are worked on at a time.
        max_processes: child processes for activities with ``executor="process"``; default: one a
            CPU.
        max_cached_runs: how many runs are kept in memory; others are replayed when they go on.
        max_activities_per_second: limit for the whole task queue, over all its workers.
        pollers: polls open at a time for each kind of task, of a remote service.
        graceful_shutdown_timeout: how long running activities may take to finish at the end. What
            is left then is cancelled, and failed so that another worker takes it at once.
        workflow_failure_exception_types: exceptions that fail a run, in place of its workflow task.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """

    def __init__(
        self,
        client: Client,
        task_queue: str | None = None,
        *,
        workflows: Iterable[Any] | None = None,
        activities: Iterable[Any] | None = None,
        interceptors: Sequence[Interceptor] = (),
        identity: str | None = None,
        max_concurrent_activities: int = 100,
        max_concurrent_local_activities: int = 100,
        max_concurrent_workflow_tasks: int = 100,
        max_processes: int | None = None,
        max_cached_runs: int = 1000,
        max_activities_per_second: float | None = None,
        pollers: int = 5,
        graceful_shutdown_timeout: timedelta = DEFAULT_GRACE,
        workflow_failure_exception_types: Sequence[type[BaseException]] = (),
    ) -> None:
        check_name("task_queue", task_queue)
        check_name("identity", identity)
        _check_limits(
            max_concurrent_activities=max_concurrent_activities,
            max_concurrent_local_activities=max_concurrent_local_activities,
            max_concurrent_workflow_tasks=max_concurrent_workflow_tasks,
            pollers=pollers,
            max_processes=1 if max_processes is None else max_processes,
        )
        if max_cached_runs < 0:
            raise ValueError(f"max_cached_runs: 0 or more, got {max_cached_runs}")
        if graceful_shutdown_timeout < timedelta(0):
            raise ValueError(
                f"graceful_shutdown_timeout: not negative, got {graceful_shutdown_timeout}"
            )
        self.client = client
        self.task_queue = task_queue or client.task_queue or DEFAULT_TASK_QUEUE
        self.identity = identity or client.identity
        self.workflows = workflow_definitions(WORKFLOWS if workflows is None else workflows)
        self.activities = activity_definitions(activities)
        if not self.workflows and not self.activities:
            raise ValueError("workflows, activities: nothing is defined for this worker to run")
        self._grace_s = graceful_shutdown_timeout.total_seconds()
        every = (*client.interceptors, *interceptors)
        self._activity_worker = ActivityWorker(
            client,
            self.task_queue,
            self.activities,
            interceptors=every,
            identity=self.identity,
            slots=max_concurrent_activities,
            pollers=pollers,
            local_slots=max_concurrent_local_activities,
            process_slots=max_processes or os.cpu_count() or 1,
            tasks_per_second=max_activities_per_second,
        )
        self._workflow_worker = WorkflowTaskProcessor(
            client.service,
            namespace=client.namespace,
            task_queue=self.task_queue,
            identity=self.identity,
            workflows=self.workflows,
            converter=client.converter,
            interceptors=[i for i in every if isinstance(i, WorkflowInterceptor)],
            max_cached_runs=max_cached_runs,
            pollers=pollers,
            max_concurrent_tasks=max_concurrent_workflow_tasks,
            run_local_activity=self._activity_worker.run_local,
            take_activities=(
                self._activity_worker.take if self._activity_worker.takes_eagerly else None
            ),
            failure_exception_types=tuple(workflow_failure_exception_types),
        )
        self._running: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return (
            f"<Worker of {self.task_queue!r}: workflows {sorted(self.workflows)}, "
            f"activities {sorted(self.activities)}>"
        )

    # --- life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until `shutdown` is called or the caller is cancelled; then stop gracefully.

        Raises:
            RPCError: the service refuses to be polled.
            RuntimeError: the worker was run before.
        """
        if self._running is not None:
            raise RuntimeError("a worker runs only once: make another one")
        self._running = asyncio.get_running_loop().create_task(self._serve(), name="perdure-worker")
        try:
            await asyncio.shield(self._running)
        except asyncio.CancelledError:
            await self.shutdown()
            raise

    async def shutdown(self) -> None:
        """Stop polling, let activities finish within the grace period, hand back what is left.

        Returns when the worker has stopped. Calling it again waits for the same end.
        """
        if self._running is None:
            return
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def _serve(self) -> None:
        """Run both parts; if one fails, stop the other."""
        parts = []
        if self.workflows:
            parts.append(asyncio.create_task(self._workflow_worker.run()))
        if self.activities:
            parts.append(asyncio.create_task(self._activity_worker.run()))
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            failed = [part for part in parts if part.done() and not part.cancelled()]
            if any(part.exception() for part in failed):
                await self._stop_parts(0.0)
            for part in parts:
                part.cancel()
            await asyncio.wait(parts)
        for part in parts:
            if not part.cancelled():
                part.result()

    async def _stop(self) -> None:
        assert self._running is not None
        await self._stop_parts(self._grace_s)
        await asyncio.wait([self._running])

    async def _stop_parts(self, grace_s: float) -> None:
        outcomes = await asyncio.gather(
            self._workflow_worker.shutdown(),
            self._activity_worker.shutdown(grace_s),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                _log.error("Stopping the worker: %r", outcome, exc_info=outcome)

    # --- as a context manager -----------------------------------------------------------------

    async def __aenter__(self) -> Worker:
        body = asyncio.current_task()
        assert body is not None
        self._run = asyncio.create_task(self.run())

        def ended(task: asyncio.Task[None]) -> None:
            """A worker that cannot work must not leave its user waiting in the block."""
            if not task.cancelled() and task.exception() is not None and self._stopping is None:
                body.cancel("the worker failed")

        self._run.add_done_callback(ended)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = self._run.done() and not self._run.cancelled() and self._run.exception()
        if not failed:
            await asyncio.sleep(0)  # `run` may not have begun
            await self.shutdown()
            with suppress(asyncio.CancelledError):
                await self._run
            return
        body = asyncio.current_task()
        if body is not None and isinstance(error, asyncio.CancelledError):
            body.uncancel()
        self._run.result()


# --- what a worker runs ---------------------------------------------------------------------------


def workflow_definitions(given: Iterable[Any]) -> dict[str, WorkflowDefinition]:
    """Workflows by type name.

    Raises:
        TypeError: naming what is no workflow.
        ValueError: two have the same name.
    """
    definitions = []
    for workflow in given:
        found = workflow if isinstance(workflow, WorkflowDefinition) else definition_of(workflow)
        if found is None:
            raise TypeError(f"workflows: {workflow!r} is no workflow; put @workflow on it")
        definitions.append(found)
    return by_name("workflow", definitions)


def activity_definitions(given: Iterable[Any] | None) -> dict[str, Activity[..., Any]]:
    """Activities by type name; all that are defined if none are given.

    Raises:
        TypeError: naming what is no activity.
        ValueError: two have the same name.
    """
    if given is None:
        return by_name("activity", [made for made in ACTIVITIES if not made.is_method])
    definitions: list[Activity[..., Any]] = []
    for item in given:
        found = [item] if isinstance(item, Activity) else _methods(item)
        if not found:
            raise TypeError(f"activities: {item!r} is no activity; put @activity on it")
        for made in found:
            if made.is_method:
                raise TypeError(
                    f"activities: {made.name} is a method; give it bound to an instance, "
                    f"or give the instance"
                )
        definitions.extend(found)
    return by_name("activity", definitions)


def defined_in(*modules: str) -> tuple[list[Any], list[Any]]:
    """Workflows and activities that modules, and the packages below them, have defined."""
    activities = [made for made in ACTIVITIES.in_module(*modules) if not made.is_method]
    return WORKFLOWS.in_module(*modules), activities


def _methods(instance: Any) -> list[Activity[..., Any]]:
    """The activities among an object's methods."""
    kind = type(instance)
    names = [n for n in dir(kind) if isinstance(getattr(kind, n, None), Activity)]
    return [getattr(instance, name) for name in names]


def _check_limits(**limits: int) -> None:
    for argument, value in limits.items():
        if value < 1:
            raise ValueError(f"{argument}: 1 or more, got {value}")
