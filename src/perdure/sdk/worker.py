"""The worker: it runs workflows and activities for a client's namespace.

async with client.worker():                      # everything defined so far
    ...
await client.worker("billing", activities=[charge, refund]).run()   # until it is cancelled
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

from perdure.sdk.activity import Activity
from perdure.sdk.activity_worker import ActivityWorker
from perdure.sdk.interceptors import WorkflowInterceptor
from perdure.sdk.leaving import Leaving
from perdure.sdk.options import DEFAULT_TASK_QUEUE, check_name
from perdure.sdk.registry import ACTIVITIES, WORKFLOWS, by_name
from perdure.sdk.runtime.processor import WorkflowTaskProcessor, poll_trouble
from perdure.sdk.worker_options import WorkerFields, WorkerOptions
from perdure.sdk.workflow.definition import WorkflowDefinition, definition_of

if TYPE_CHECKING:
    from perdure.sdk.client import Client

__all__ = ["Worker", "defined_in"]

_log = logging.getLogger("perdure.worker")


class Worker:
    """Runs workflows and activities of one task queue. Made by `Client.worker`.

    Use it as an async context manager, or await `run`.

    Args:
        client: whose service, namespace, converter and interceptors are used.
        task_queue: default: the client's, else "default".
        given: see `WorkerOptions`.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """

    def __init__(
        self, client: Client, task_queue: str | None = None, **given: Unpack[WorkerFields]
    ) -> None:
        check_name("task_queue", task_queue)
        options = WorkerOptions(**given)
        self.client = client
        self.task_queue = task_queue or client.task_queue or DEFAULT_TASK_QUEUE
        self.identity = options.identity or client.identity
        chosen = WORKFLOWS if options.workflows is None else options.workflows
        self.workflows = workflow_definitions(chosen)
        self.activities = activity_definitions(options.activities)
        if not self.workflows and not self.activities:
            raise ValueError("workflows, activities: nothing is defined for this worker to run")
        self._grace_s = options.graceful_shutdown_timeout.total_seconds()
        every = (*client.interceptors, *options.interceptors)
        leaving = Leaving(
            client.service,
            namespace=client.namespace,
            task_queue=self.task_queue,
            identity=self.identity,
        )
        trouble = poll_trouble(self.task_queue)
        self._activity_worker = ActivityWorker(
            client,
            self.task_queue,
            self.activities,
            interceptors=every,
            identity=self.identity,
            leaving=leaving,
            trouble=trouble,
            slots=options.max_concurrent_activities,
            pollers=options.pollers,
            local_slots=options.max_concurrent_local_activities,
            process_slots=options.processes,
            tasks_per_second=options.max_activities_per_second,
        )
        eager = self._activity_worker.takes_eagerly
        self._workflow_worker = WorkflowTaskProcessor(
            client.service,
            namespace=client.namespace,
            task_queue=self.task_queue,
            identity=self.identity,
            leaving=leaving,
            trouble=trouble,
            workflows=self.workflows,
            converter=client.converter,
            interceptors=[i for i in every if isinstance(i, WorkflowInterceptor)],
            max_cached_runs=options.max_cached_runs,
            pollers=options.pollers,
            max_concurrent_tasks=options.max_concurrent_workflow_tasks,
            run_local_activity=self._activity_worker.run_local,
            activity_slots=self._activity_worker if eager else None,
            failure_exception_types=tuple(options.workflow_failure_exception_types),
            deadlock_timeout_s=options.deadlock_timeout_s,
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
