"""`workflow`: the decorator, and the namespace of what workflow code may ask for."""

from __future__ import annotations

import asyncio
import random as random_module
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import contextmanager
from datetime import datetime, timedelta
from logging import LoggerAdapter, getLogger
from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar, TypeVarTuple, Unpack, overload
from uuid import UUID

from temporalio.api.enums.v1 import CommandType, EventType

from perdure.api.times import datetime_of
from perdure.sdk import search_attributes
from perdure.sdk.errors import ContinueAsNew, NotInWorkflowError
from perdure.sdk.options import ActivityOptionFields, ActivityOptions, RetryPolicy
from perdure.sdk.registry import WORKFLOWS
from perdure.sdk.runtime import closing
from perdure.sdk.runtime.children import ChildOptionFields, ChildOptions
from perdure.sdk.runtime.context import current, state
from perdure.sdk.runtime.externals import Delivery
from perdure.sdk.runtime.guards import adopt
from perdure.sdk.runtime.handlers import UpdateInfo, current_update
from perdure.sdk.runtime.info import WorkflowInfo
from perdure.sdk.runtime.run import Run
from perdure.sdk.runtime.streams import caller
from perdure.sdk.search_attributes import AnyAttributes
from perdure.sdk.workflow.decorators import (
    Child,
    HandlerDecorators,
    Workflow,
    child_target,
    execute_child,
    make_handler,
    merged,
    start_child,
)
from perdure.sdk.workflow.definition import (
    DEFINITION_ATTRIBUTE,
    HandlerKind,
    make_definition,
)

P = ParamSpec("P")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")
T = TypeVar("T")
C = TypeVar("C", bound=type)

Duration = timedelta | float
"""A length of time: a timedelta, or seconds."""


class _Decorator(Protocol):
    @overload
    def __call__(self, target: C, /) -> C: ...

    @overload
    def __call__(self, target: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...


def _run() -> Run:
    run = current()
    if run is None:
        raise NotInWorkflowError(
            "Not in a workflow: this works only in code that a worker runs as a workflow"
        )
    return run


def _seconds(value: Duration) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else value


class _Calls(HandlerDecorators):
    """Decorating, activities, children and other workflows."""

    @overload
    def __call__(self, target: C, /) -> C: ...

    @overload
    def __call__(self, target: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...

    @overload
    def __call__(
        self,
        /,
        *,
        name: str | None = None,
        dynamic: bool = False,
        failure_exception_types: Sequence[type[BaseException]] = (),
        **child_options: Unpack[ChildOptionFields],
    ) -> _Decorator: ...

    def __call__(
        self,
        target: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        dynamic: bool = False,
        failure_exception_types: Sequence[type[BaseException]] = (),
        **child_options: Any,
    ) -> Any:
        """Make a workflow of an ``async def`` function or of a class.

        Args:
            name: type name in histories; default: the name of the function or class.
            dynamic: take every type that the worker has no other workflow for; it is called with
                the type name and the list of raw arguments (`RawValue`).
            failure_exception_types: exceptions that fail the run. All others, apart from
                perdure's failures and time-outs, fail only the workflow task: the run stays open
                and goes on with mended code.
            child_options: defaults for starting it as a child, as of `ChildOptions`.

        Raises:
            TypeError, ValueError, UsageError: naming what is wrong.
        """
        defaults = merged(ChildOptions(), child_options)

        def decorate(target: Any) -> Any:
            definition = make_definition(
                target,
                name=name,
                dynamic=dynamic,
                failure_exception_types=failure_exception_types,
                defaults=defaults,
            )
            adopt(definition.function)
            WORKFLOWS.add(definition)
            if definition.cls is None:
                return Workflow(target, definition, defaults)
            setattr(target, DEFINITION_ATTRIBUTE, definition)
            setattr(definition.function, DEFINITION_ATTRIBUTE, definition)
            return target

        return decorate if target is None else decorate(target)

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
        run = _run()
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
        return await execute_child(_run(), definition, name, values, made, result_type)

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
        return await start_child(_run(), definition, name, values, made, result_type)

    def external(self, id: str, run_id: str = "") -> ExternalWorkflow:
        """A handle of another workflow in this namespace, to signal or cancel it."""
        return ExternalWorkflow(_run(), id, run_id)

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
        run = _run()
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


class _State(_Calls):
    """Time, randomness, waiting and the run's own facts."""

    def info(self) -> WorkflowInfo:
        """Facts about the run.

        Raises:
            NotInWorkflowError: not called from workflow code.
        """
        info = _run().info
        assert info is not None, "there is a run, so it was started"
        return info

    def in_workflow(self) -> bool:
        """Is the calling code workflow code?"""
        return current() is not None

    def now(self) -> datetime:
        """Workflow time in UTC: when the current workflow task started. Equal in every replay."""
        return datetime_of(_run().now_ns)

    def time_ns(self) -> int:
        """Workflow time in nanoseconds since the epoch."""
        return _run().now_ns

    def is_replaying(self) -> bool:
        """Is this code being replayed? For logging and metrics; never decide by it."""
        return _run().replaying

    def random(self, stream: str | None = None) -> random_module.Random:
        """A random number generator that replays.

        Args:
            stream: name of the stream; default: the calling function's. Streams do not affect each
                other, so a new call in one place shifts nothing elsewhere.
        """
        return _run().streams.get(stream or caller())

    def uuid4(self, stream: str | None = None) -> UUID:
        """A random UUID that replays, from a stream as `random`."""
        return _run().streams.uuid4(stream or caller())

    async def sleep(self, duration: Duration, *, summary: str = "") -> None:
        """A durable timer, as `asyncio.sleep`, with a line for people that tools show."""
        timers = _run().timers
        timers.summary = summary
        try:
            waiting = asyncio.get_running_loop().create_future()
            handle = asyncio.get_running_loop().call_later(
                _seconds(duration), _set_unless_done, waiting
            )
        finally:
            timers.summary = ""
        try:
            await waiting
        finally:
            handle.cancel()

    async def wait_condition(
        self, condition: Callable[[], bool], *, timeout: Duration | None = None
    ) -> bool:
        """Wait until a condition on the workflow's state holds.

        Args:
            condition: looked at whenever the workflow's code has moved; must change nothing.
            timeout: wait no longer than this.

        Returns:
            True if the condition holds, False if the time ran out first.

        Example:
            >>> await workflow.wait_condition(lambda: self.approved, timeout=timedelta(days=7))
        """
        run = _run()
        run.check_writable("workflow.wait_condition()")
        if run.holds(condition):
            return True
        future = run.loop.create_future()
        run.conditions.append((condition, future))
        if timeout is None:
            await future
            return True
        handle = run.loop.call_later(_seconds(timeout), _cancel_unless_done, future)
        try:
            return await future is not _EXPIRED
        finally:
            handle.cancel()

    def all_handlers_finished(self) -> bool:
        """Are no signal or update handlers running? Wait for it before the run returns."""
        return not _run().handlers.running

    def current_update_info(self) -> UpdateInfo | None:
        """Which update the calling handler works on; None outside of update handlers."""
        return current_update.get()

    @contextmanager
    def unsafe(self) -> Iterator[None]:
        """A block in which time, randomness and I/O are the real ones.

        For what has no part in the workflow's decisions, such as a metrics library that opens a
        socket. Do not await in the block.
        """
        guarded, state.guarded = state.guarded, None
        try:
            yield
        finally:
            state.guarded = guarded


class _Namespace(_State):
    """The decorator `workflow`, and what workflow code may ask for."""

    def patched(self, id: str) -> bool:
        """May this run take the new way? False where a run went the old way before the change.

        Example:
            >>> if workflow.patched("check-fraud-first"):
            ...     await check_fraud(order)
        """
        return _run().markers.patched(id)

    def deprecate_patch(self, id: str) -> None:
        """Put this in place of `patched` when no open run takes the old way any more."""
        _run().markers.deprecate(id)

    def side_effect(self, function: Callable[[], T], type: Any = Any) -> T:
        """The value that a function gives when this line is first reached, recorded in history.

        For what is quick and cannot fail, such as reading a setting. Everything else is an
        activity.

        Args:
            type: what the recorded value is converted to in a replay.
        """
        run = _run()

        def call() -> T:
            with self.unsafe():
                return function()

        value: T = run.markers.side_effect(call, type)
        return value

    def memo(self) -> Mapping[str, Any]:
        """The run's memo."""
        return _run().memo()

    def upsert_memo(self, values: Mapping[str, Any]) -> None:
        """Change memo values; None removes one."""
        run = _run()
        run.check_writable("workflow.upsert_memo()")
        command = run.new_command()
        command.command_type = CommandType.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES
        fields = command.modify_workflow_properties_command_attributes.upserted_memo.fields
        for name, value in values.items():
            fields[name].CopyFrom(run.converter.encode(value))
            if value is None:
                run.memo_payloads.pop(name, None)
            else:
                run.memo_payloads[name] = fields[name]
        run.emit(EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED, (), command)

    def upsert_search_attributes(self, values: AnyAttributes) -> None:
        """Change search attributes, by key or by name; None removes one.

        Raises:
            ConversionError: naming the attribute whose value does not fit its type.
        """
        run = _run()
        run.check_writable("workflow.upsert_search_attributes()")
        command = run.new_command()
        command.command_type = CommandType.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES
        attributes = command.upsert_workflow_search_attributes_command_attributes
        changed = search_attributes.of(values)
        changed.fill(attributes.search_attributes)
        names = {key.name for key in changed}
        kept = {key: v for key, v in run.search_attributes.items() if key.name not in names}
        added = {key: value for key, value in changed.items() if value is not None}
        run.search_attributes = kept | added
        run.emit(EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES, (), command)

    # --- handlers set at run time -----------------------------------------------------------------

    def set_signal_handler(self, name: str | None, handler: Callable[..., Any] | None) -> None:
        """Set or remove (None) the handler of a signal. Signals that waited for it are delivered.

        Args:
            name: None for the dynamic handler, called with the name and the raw arguments.
        """
        _set_handler("signal", name, handler)

    def set_query_handler(self, name: str | None, handler: Callable[..., Any] | None) -> None:
        """Set or remove the handler of a query; as `set_signal_handler`."""
        _set_handler("query", name, handler)

    def set_update_handler(
        self,
        name: str | None,
        handler: Callable[..., Any] | None,
        *,
        validator: Callable[..., Any] | None = None,
    ) -> None:
        """Set or remove the handler of an update and its validator; as `set_signal_handler`."""
        _set_handler("update", name, handler, validator)

    def get_signal_handler(self, name: str | None) -> Callable[..., Any] | None:
        """The handler of a signal, None if there is none."""
        return _get_handler("signal", name)

    def get_query_handler(self, name: str | None) -> Callable[..., Any] | None:
        """The handler of a query, None if there is none."""
        return _get_handler("query", name)

    def get_update_handler(self, name: str | None) -> Callable[..., Any] | None:
        """The handler of an update, None if there is none."""
        return _get_handler("update", name)

    @property
    def logger(self) -> LoggerAdapter[Any]:
        """Logs with the run's identity, and is silent in a replay."""
        return _LOGGER


class ExternalWorkflow:
    """Another workflow in this namespace."""

    __slots__ = ("_run", "id", "run_id")

    def __init__(self, run: Run, id: str, run_id: str) -> None:
        self._run = run
        self.id = id
        self.run_id = run_id

    def signal(self, signal: Any, *args: Any) -> Awaitable[None]:
        """Send a signal; awaiting the answer waits until it is delivered.

        Args:
            signal: a name, or a method with ``@workflow.signal``.

        Raises:
            ApplicationError: the workflow does not exist or is closed.
        """
        if self._run.settings.interceptors:
            return closing.intercepted_signal(self._run, self.id, self.run_id, signal, args)
        return self._run.externals.signal(self.id, self.run_id, signal, args)

    def cancel(self, reason: str = "") -> Delivery:
        """Ask it to cancel; awaiting the answer waits until the request is delivered."""
        return self._run.externals.cancel(self.id, self.run_id, reason)


_EXPIRED: Any = object()


def _cancel_unless_done(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(_EXPIRED)


def _set_unless_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _set_handler(
    kind: HandlerKind,
    name: str | None,
    function: Callable[..., Any] | None,
    validator: Callable[..., Any] | None = None,
) -> None:
    run = _run()
    if function is None:
        run.handlers.set(kind, name, None)
        return
    handler = make_handler(kind, function, name, name is None, "")
    handler.bound = False
    handler.__post_init__()
    handler.validator = validator
    run.handlers.set(kind, name, handler)


def _get_handler(kind: HandlerKind, name: str | None) -> Callable[..., Any] | None:
    run = _run()
    handler = run.handlers.get(kind, name)
    if handler is None:
        return None
    function: Callable[..., Any] = handler.function
    if handler.bound:
        bound: Callable[..., Any] = function.__get__(run.instance)
        return bound
    return function


class _WorkflowLogger(LoggerAdapter[Any]):
    """Adds which run it is to every record, and drops records of a replay."""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        run = current()
        if run is None:
            self.logger.log(level, msg, *args, **kwargs)
            return
        if run.replaying or not self.logger.isEnabledFor(level):
            return
        guarded, state.guarded = state.guarded, None  # handlers may open files
        try:
            kwargs.setdefault("stacklevel", 1)
            kwargs["stacklevel"] += 1
            text, added = self.process(msg, kwargs)
            self.logger.log(level, text, *args, **added)
        finally:
            state.guarded = guarded

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        run = current()
        if run is None:
            return msg, kwargs
        facts = {
            "workflow_id": run.workflow_id,
            "workflow_run_id": run.run_id,
            "workflow_type": run.type_name,
        }
        kwargs["extra"] = {**(kwargs.get("extra") or {}), "perdure": facts}
        return f"{msg} ({run.type_name}, workflow {run.workflow_id})", kwargs


_LOGGER = _WorkflowLogger(getLogger("perdure.workflow"), {})

workflow = _Namespace()
"""The decorator that makes a workflow, and the namespace of what one may ask for."""

__all__ = ["Duration", "ExternalWorkflow", "workflow"]
