"""What workflow code calls: activities, children, other workflows, its own next run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack, overload

from perdure.sdk.errors import ContinueAsNew
from perdure.sdk.options import ActivityOptionFields, ActivityOptions, RetryPolicy
from perdure.sdk.runtime.children import ChildOptionFields, ChildOptions
from perdure.sdk.search_attributes import AnyAttributes
from perdure.sdk.workflow.decorators import (
    Child,
    child_target,
    execute_child,
    merged,
    start_child,
)
from perdure.sdk.workflow.external import ExternalWorkflow
from perdure.sdk.workflow.inside import run_here

R = TypeVar("R")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Calling:
    """Activities, children, other workflows, the next run."""

    def execute_activity(
        self,
        activity: Any,
        *args: Any,
        result_type: Any = Any,
        **options: Unpack[ActivityOptionFields],
    ) -> Awaitable[Any]:
        """Schedule an activity that is known by name only, such as one in another language.

        Args:
            activity: a type name, or an activity object.
            result_type: what the result is converted to.
            options: as of `ActivityOptions`.
        """
        run = run_here()
        if not isinstance(activity, str):
            awaitable: Awaitable[Any] = activity.options(**options)(*args)
            return awaitable
        made = ActivityOptions().merged(**options)
        return run.schedule_activity(
            activity, args, None, made, local=bool(made.local), result_type=result_type
        )

    async def map(
        self,
        function: Callable[[T], Awaitable[R]],
        items: Iterable[T],
        *,
        concurrency: int = 100,
    ) -> list[R]:
        """Call an activity (or any coroutine function) for each item, some at a time.

        Args:
            concurrency: how many calls are open at once. Keep it well below the server's limit of
                2,000 pending activities.

        Returns:
            The results in the order of the items.

        Raises:
            ValueError: concurrency is less than 1.
            Exception: the first that a call raised; the other calls are cancelled.

        Example:
            >>> sizes = await workflow.map(measure, paths, concurrency=20)
        """
        if concurrency < 1:
            raise ValueError(f"concurrency: 1 or more, got {concurrency}")
        results: dict[int, R] = {}
        remaining = enumerate(items)

        async def work() -> None:
            for index, item in remaining:
                results[index] = await function(item)

        workers = [asyncio.create_task(work()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*workers)
        except BaseException:
            for worker in workers:
                worker.cancel()
            raise
        return [results[index] for index in range(len(results))]

    @overload
    async def execute_child(
        self,
        workflow: Callable[[Any, *Ts], Coroutine[Any, Any, R]],
        /,
        *args: *Ts,
        **options: Unpack[ChildOptionFields],
    ) -> R: ...

    @overload
    async def execute_child(
        self,
        workflow: Any,
        /,
        *args: Any,
        result_type: Any = Any,
        **options: Unpack[ChildOptionFields],
    ) -> Any: ...

    async def execute_child(  # type: ignore[misc]  # mypy does not match *Ts with *Any
        self, workflow: Any, /, *args: Any, result_type: Any = Any, **options: Any
    ) -> Any:
        """Start a child workflow, given as an object, a class's run method or by name; its result.

        Args:
            result_type: of a workflow known by name only.
            options: as of `ChildOptions`.

        Raises:
            ChildWorkflowError: it failed; `cause` says how.
        """
        name, definition = child_target(workflow)
        made = merged(definition.defaults if definition else ChildOptions(), options)
        values = definition.signature.bind(args, {}) if definition else args
        return await execute_child(run_here(), definition, name, values, made, result_type)

    @overload
    async def start_child(
        self,
        workflow: Callable[[Any, *Ts], Coroutine[Any, Any, R]],
        /,
        *args: *Ts,
        **options: Unpack[ChildOptionFields],
    ) -> Child[R]: ...

    @overload
    async def start_child(
        self,
        workflow: Any,
        /,
        *args: Any,
        result_type: Any = Any,
        **options: Unpack[ChildOptionFields],
    ) -> Child[Any]: ...

    async def start_child(  # type: ignore[misc]  # mypy does not match *Ts with *Any
        self, workflow: Any, /, *args: Any, result_type: Any = Any, **options: Any
    ) -> Child[Any]:
        """Start a child workflow and return its handle once it has a run. As `execute_child`."""
        name, definition = child_target(workflow)
        made = merged(definition.defaults if definition else ChildOptions(), options)
        values = definition.signature.bind(args, {}) if definition else args
        return await start_child(run_here(), definition, name, values, made, result_type)

    def external(self, id: str, run_id: str = "") -> ExternalWorkflow:
        """A handle of another workflow in this namespace, to signal or cancel it."""
        return ExternalWorkflow(run_here(), id, run_id)

    def continue_as_new(
        self,
        *args: Any,
        workflow: Any = None,
        task_queue: str | None = None,
        run_timeout: timedelta | None = None,
        task_timeout: timedelta | None = None,
        retry: RetryPolicy | None = None,
        memo: Mapping[str, Any] | None = None,
        search_attributes: AnyAttributes | None = None,
    ) -> NoReturn:
        """End this run and start the next one with these arguments and an empty history.

        Args:
            workflow: another workflow or its name; default: the same.
            task_queue, run_timeout, task_timeout, retry, memo, search_attributes: of the next run;
                default: as they are now.

        Raises:
            ContinueAsNew: always. It is no `Exception`.
        """
        run = run_here()
        options = {
            "task_queue": task_queue,
            "run_timeout": run_timeout,
            "task_timeout": task_timeout,
            "retry": retry,
            "memo": memo,
            "search_attributes": search_attributes,
        }
        run.check_writable("workflow.continue_as_new()")
        raise ContinueAsNew(workflow, args, options)
