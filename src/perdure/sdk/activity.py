"""Activities: functions that touch the world.

`activity` is the decorator and the namespace of what an activity may ask for while it runs:

    @activity(start_to_close_timeout=timedelta(seconds=10))
    async def charge(card: str, cents: int) -> str:
        activity.heartbeat("asking the bank")
        ...

Called in a workflow, it is scheduled, retried and recorded. Called anywhere else, it just runs: an
``async def`` in the caller's loop, a plain ``def`` in a thread, so both are awaited everywhere.
``charge.function`` is the undecorated function, for synchronous code.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Coroutine, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pickle import PicklingError
from types import MethodType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from perdure.sdk import activity_context
from perdure.sdk.activity_context import ActivityInfo, CancellationReason
from perdure.sdk.errors import CompleteAsync
from perdure.sdk.options import ActivityOptionFields, ActivityOptions, Executor, check_name
from perdure.sdk.registry import ACTIVITIES
from perdure.sdk.runtime import context as workflow_context
from perdure.sdk.signature import Signature

if TYPE_CHECKING:
    from perdure.sdk.client import Client

__all__ = ["Activity", "ActivityInfo", "CancellationReason", "activity"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class ActivityCall(Protocol[P, R_co]):
    """What can be called as an activity."""

    # `object` in place of `Any`: mypy takes an `Any` for a reason to doubt which overload of
    # `asyncio.gather` is meant.
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, R_co]:
        """Call it."""

    def options(self, **overrides: Unpack[ActivityOptionFields]) -> ActivityCall[P, R_co]:
        """A copy with other options."""


class Activity(Generic[P, R_co]):
    """A decorated function. Call it as the function; see `activity` for what happens.

    Attributes:
        name: the type name that is recorded in histories.
        function: what was decorated; a bound method if this was reached through an instance.
        defaults: the options given to the decorator.
        is_async: was it an ``async def``?
        executor: where a plain ``def`` runs.
        auto_heartbeat: does the worker report for it while it runs?
        origin: ``module:qualname`` of the function.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        defaults: ActivityOptions,
        executor: Executor = "thread",
        auto_heartbeat: bool = False,
    ) -> None:
        functools.update_wrapper(cast(Any, self), function)
        self.function = function
        self.name = name
        self.defaults = defaults
        self.executor: Executor = executor
        self.auto_heartbeat = auto_heartbeat
        self.is_async = _is_async(function)
        self.is_method = False
        self.origin = f"{function.__module__}:{getattr(function, '__qualname__', name)}"
        self.signature = Signature(function, name)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, R_co]:
        run = workflow_context.current()
        if run is not None:
            values = self.signature.bind(args, kwargs)
            return _scheduled(run, self, values)
        if self.is_async:
            call: Coroutine[object, object, R_co] = self.function(*args, **kwargs)
            return call
        return asyncio.to_thread(self.function, *args, **kwargs)

    def options(self, **overrides: Unpack[ActivityOptionFields]) -> Activity[P, R_co]:
        """A copy with other options, for one call or many. What is None is left as it was.

        Raises:
            TypeError, ValueError: naming the option that is wrong.

        Example:
            >>> await charge.options(start_to_close_timeout=timedelta(hours=1))(card, cents)
        """
        copy = self._copied()
        copy.defaults = self.defaults.merged(**overrides)
        return copy

    @property
    def local(self) -> ActivityCall[P, R_co]:  # no `Activity`, which would be bound as a method
        """A copy that runs in the worker of the workflow, with less to record: for short calls."""
        return self.options(local=True)

    def unbound(self: Activity[Concatenate[Any, Q], R]) -> Activity[Q, R]:
        """A method's activity as it is called without its instance, which only the worker has.

        Example:
            >>> await Payments.charge.unbound()(card, cents)  # inside a workflow
        """
        copy = cast("Activity[Q, R]", self._copied())
        copy.signature = Signature(self.function, self.name, bound=True)
        return copy

    # --- methods ------------------------------------------------------------------------------

    def __set_name__(self, owner: type, name: str) -> None:
        self.is_method = True

    @overload
    def __get__(self, instance: None, owner: type) -> Activity[P, R_co]: ...

    @overload
    def __get__(
        self: Activity[Concatenate[Any, Q], R], instance: object, owner: type | None = None
    ) -> Activity[Q, R]: ...

    def __get__(self, instance: object | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        copy = self._copied()
        copy.function = MethodType(self.function, instance)
        copy.signature = Signature(copy.function, self.name)
        copy.is_method = False
        return copy

    def _copied(self) -> Activity[P, R_co]:
        copy: Activity[P, R_co] = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if isinstance(self.function, MethodType):
            return getattr, (self.function.__self__, self.function.__name__)
        if "<locals>" in self.origin:
            raise PicklingError(f"{self.origin} is inside of a function")
        module, qualname = self.origin.split(":")
        found = _imported(module, qualname)
        if found is not self.function and not isinstance(found, Activity):
            raise PicklingError(f"{self.origin} is something else than the activity's function")
        return _imported, (module, qualname)

    def __repr__(self) -> str:
        return f"<activity {self.name} of {self.origin}>"


async def _scheduled(run: Any, called: Activity[..., Any], values: Sequence[Any]) -> Any:
    """Schedule an activity when the call is awaited, as any coroutine starts when it is awaited."""
    defaults = called.defaults
    return await run.schedule_activity(
        called.name, values, called.signature, defaults, local=bool(defaults.local)
    )


def _imported(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module) or __import__(module, fromlist=["_"])
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


class _Decorator(Protocol):
    """What `activity(…)` with options gives."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Activity[P, R]: ...


class _Namespace:
    """The decorator `activity`, and what a running activity may ask for."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Activity[P, R]: ...

    @overload
    def __call__(
        self,
        *,
        name: str | None = None,
        executor: Executor = "thread",
        auto_heartbeat: bool = False,
        **options: Unpack[ActivityOptionFields],
    ) -> _Decorator: ...

    def __call__(  # type: ignore[misc]  # the options of signature 3 are in **options
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        executor: Executor = "thread",
        auto_heartbeat: bool = False,
        **options: Any,
    ) -> Any:
        """Make an activity of a function.

        Args:
            name: type name in histories; default: the function's name.
            executor: where a plain ``def`` runs: "thread", or "process" for work that holds the
                GIL; arguments and results are then pickled, and the function must be importable.
            auto_heartbeat: let the worker report for it as long as it runs. It tells that the
                worker is alive, not that the function gets anywhere.
            options: as of `ActivityOptions`.

        Raises:
            TypeError, ValueError: naming the argument that is wrong.
        """
        check_name("name", name)
        if executor not in ("thread", "process"):
            raise ValueError(f'executor: "thread" or "process", got {executor!r}')
        defaults = ActivityOptions().merged(**options)

        def decorate(function: Callable[..., Any]) -> Activity[..., Any]:
            _check_function(function, executor)
            made: Activity[..., Any] = Activity(
                function,
                name=name or function.__name__,
                defaults=defaults,
                executor=executor,
                auto_heartbeat=auto_heartbeat,
            )
            ACTIVITIES.add(made)
            return made

        return decorate if function is None else decorate(function)

    # --- while it runs ------------------------------------------------------------------------

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """Logs with the activity's identity: in the message, and as ``extra``."""
        return _LOGGER

    def info(self) -> ActivityInfo:
        """Facts about the running attempt.

        Raises:
            NotInActivityError: not called from a running activity.
        """
        return activity_context.current().info

    def in_activity(self) -> bool:
        """Is the calling code part of a running activity?"""
        return activity_context.running.get() is not None

    def heartbeat(self, *details: Any) -> None:
        """Tell the server that the activity is alive and how far it is.

        Call it as often as you like: reports are thinned out to one per 80 % of the heartbeat
        timeout (of 30 s without one). The details are given to the next attempt if this one fails.

        Raises:
            asyncio.CancelledError: in a plain ``def`` activity, if it is to stop. An ``async def``
                is cancelled at its next await.
            ConversionError: the details do not convert.
            NotInActivityError: not called from a running activity.
        """
        activity_context.current().heartbeat(details)

    def is_cancelled(self) -> bool:
        """Is the running activity to stop?"""
        return activity_context.current().look()

    def cancellation_reason(self) -> CancellationReason | None:
        """Why the running activity is to stop; None if it is not."""
        context = activity_context.current()
        context.look()
        return context.reason

    def is_worker_shutting_down(self) -> bool:
        """Has the worker begun to stop? What runs may finish within its grace period."""
        return activity_context.current().is_worker_shutting_down

    async def wait_for_cancelled(self) -> None:
        """Wait until the running ``async def`` activity is told to stop."""
        await activity_context.current().wait_for_cancelled()

    def wait_for_cancelled_sync(self, timeout: timedelta | None = None) -> bool:
        """Wait in a plain ``def`` activity until it is told to stop; False after the timeout."""
        timeout_s = None if timeout is None else timeout.total_seconds()
        return activity_context.current().wait_for_cancelled_sync(timeout_s)

    def shield(self) -> AbstractContextManager[None]:
        """A block of a plain ``def`` activity in which heartbeats raise no cancellation."""
        return activity_context.current().shield()

    def raise_complete_async(self) -> NoReturn:
        """End the function but not the activity: `Client.activity_handle` will complete it.

        Raises:
            CompleteAsync: always; it is no `Exception`.
        """
        activity_context.current()
        raise CompleteAsync

    def client(self) -> Client:
        """The client of the worker that runs the activity.

        Raises:
            NotInActivityError: not called from a running activity, or from one in a child process.
        """
        return activity_context.current().client


def _check_function(function: Any, executor: Executor) -> None:
    if isinstance(function, Activity):
        raise TypeError(f"{function.name} is an activity already")
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"activity: a function or a method, got {function!r}")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{function.__name__}: a generator cannot be an activity")
    if executor == "process" and _is_async(function):
        raise TypeError(f"executor: {function.__name__} is async and cannot run in a process")


class _ActivityLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds who is running to every record."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        context = activity_context.running.get()
        if context is None:
            return msg, kwargs
        info = context.info
        facts: Mapping[str, Any] = {
            "activity_id": info.activity_id,
            "activity_type": info.activity_type,
            "attempt": info.attempt,
            "workflow_id": info.workflow_id,
            "workflow_run_id": info.workflow_run_id,
        }
        kwargs["extra"] = {**(kwargs.get("extra") or {}), "perdure": facts}
        who = f"{info.activity_type}, attempt {info.attempt}, workflow {info.workflow_id}"
        return f"{msg} ({who})", kwargs


_LOGGER = _ActivityLogger(logging.getLogger("perdure.activity"), {})

activity = _Namespace()
"""The decorator that makes an activity, and the namespace of what one may ask for."""
