"""Signals, queries and updates of one run: finding the handler, converting, running it."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.history.v1 import HistoryEvent

from perdure.sdk.converter import RawValue
from perdure.sdk.errors import ApplicationError, ConversionError
from perdure.sdk.interceptors import (
    HandleQuery,
    HandleSignal,
    HandleUpdate,
    WorkflowInterceptor,
    chain,
)
from perdure.sdk.runtime.loop import Task

if TYPE_CHECKING:
    from perdure.sdk.runtime.run import Run
    from perdure.sdk.runtime.updates import UpdateRequest
    from perdure.sdk.workflow.definition import Handler, HandlerKind

MAXIMUM_BUFFERED_SIGNALS: Final = 10_000
"""Signals kept for a handler that may come; the server's own limit of signals in a run."""


@dataclass(frozen=True, slots=True)
class UpdateInfo:
    """Which update the calling handler works on."""

    id: str
    name: str


current_update: contextvars.ContextVar[UpdateInfo | None] = contextvars.ContextVar(
    "perdure_current_update", default=None
)


class Handlers:
    """The handlers of one run, those of the class and those set at run time."""

    __slots__ = ("_buffered", "_set", "run", "running")

    def __init__(self, run: Run) -> None:
        self.run = run
        self._set: dict[tuple[HandlerKind, str | None], Handler | None] = {}
        self._buffered: list[tuple[str, Payloads, Mapping[str, Payload]]] = []
        self.running: dict[Task[Any], Handler] = {}

    # --- finding ------------------------------------------------------------------------------

    def find(self, kind: HandlerKind, name: str) -> Handler | None:
        """The handler for a name: set at run time, of the class, or dynamic."""
        if self._set:
            for key in ((kind, name), (kind, None)):
                handler = self._set.get(key)
                if handler is not None:
                    return handler
        return self.run.definition.handler(kind, name)

    def names(self, kind: HandlerKind) -> list[str]:
        """Names that are known, for error messages."""
        added = [name for (k, name), h in self._set.items() if k == kind and name and h]
        return sorted({*self.run.definition.names(kind), *added})

    def set(self, kind: HandlerKind, name: str | None, handler: Handler | None) -> None:
        """Set or remove a handler; signals that were waiting for it are delivered."""
        self._set[kind, name] = handler
        if kind == "signal" and handler is not None:
            waiting, self._buffered = self._buffered, []
            for signal, payloads, headers in waiting:
                self._deliver(signal, payloads, headers)

    def get(self, kind: HandlerKind, name: str | None) -> Handler | None:
        """The handler set for exactly this name (None: the dynamic one)."""
        key = (kind, name)
        return self._set[key] if key in self._set else self.run.definition.handlers.get(key)

    # --- signals ------------------------------------------------------------------------------

    def signaled(self, event: HistoryEvent) -> None:
        """WorkflowExecutionSignaled."""
        attributes = event.workflow_execution_signaled_event_attributes
        self._deliver(attributes.signal_name, attributes.input, attributes.header.fields)

    def _deliver(self, name: str, payloads: Payloads, headers: Mapping[str, Payload]) -> None:
        run = self.run
        handler = self.find("signal", name)
        if handler is None:
            if len(self._buffered) < MAXIMUM_BUFFERED_SIGNALS:
                self._buffered.append((name, payloads, headers))
            run.warn(
                f"signal {name!r} has no handler and is kept for one; known signals: "
                f"{', '.join(self.names('signal')) or 'none'}"
            )
            return
        try:
            args = self.arguments(handler, name, payloads)
        except ConversionError as error:
            run.warn(f"signal {name!r} is dropped, its arguments do not convert: {error}")
            return
        hooked = run.settings.interceptors
        if not hooked and not handler.is_async:
            run.loop.call_soon(self._call_signal, handler, args)
            return
        call = HandleSignal(signal=name, args=args, headers=dict(headers) if hooked else {})
        self.start(handler, self._run_signal(handler, call), f"signal {name}")

    def _call_signal(self, handler: Handler, args: Sequence[Any]) -> None:
        try:
            self.invoke(handler, args)
        except Exception as error:
            self.run.code_failed(error)

    async def _run_signal(self, handler: Handler, call: HandleSignal) -> None:
        async def innermost(call: HandleSignal) -> None:
            result = self.invoke(handler, call.args)
            if inspect.isawaitable(result):
                await result

        interceptors = self.run.settings.interceptors
        try:
            await chain(interceptors, WorkflowInterceptor, "handle_signal", innermost)(call)
        except BaseException as error:
            self.run.code_failed(error)

    # --- queries ------------------------------------------------------------------------------

    def query(self, name: str, payloads: Payloads, headers: Mapping[str, Payload]) -> Any:
        """The handler's answer.

        Raises:
            ApplicationError: no such query; the message lists those that there are.
            ConversionError: the arguments do not convert.
            Exception: the handler's own.
        """
        handler = self.find("query", name)
        if handler is None:
            raise ApplicationError(
                f"Query handler for {name!r} expected but not found, known queries: "
                f"[{' '.join(self.names('query'))}]",
                type="UnknownQuery",
                non_retryable=True,
            )
        args = self.arguments(handler, name, payloads)
        call = HandleQuery(query=name, args=args, headers=dict(headers))
        return chain(
            self.run.settings.interceptors,
            WorkflowInterceptor,
            "handle_query",
            lambda call: self.invoke(handler, call.args),
        )(call)

    # --- updates ------------------------------------------------------------------------------

    def validate(self, handler: Handler, call: HandleUpdate) -> None:
        """Run the validator, which must change nothing.

        Raises:
            Exception: the validator's own: the update is to be rejected.
        """

        def innermost(call: HandleUpdate) -> None:
            if handler.validator is not None:
                self._apply(handler.validator, handler, call.args)

        interceptors = self.run.settings.interceptors
        chain(interceptors, WorkflowInterceptor, "validate_update", innermost)(call)

    def start_update(self, handler: Handler, request: UpdateRequest, call: HandleUpdate) -> None:
        """Start the handler of an accepted update."""
        context = contextvars.copy_context()
        context.run(current_update.set, UpdateInfo(request.update_id, call.update))
        coroutine = self._run_update(handler, request, call)
        self.start(handler, coroutine, f"update {call.update}", context)

    async def _run_update(
        self, handler: Handler, request: UpdateRequest, call: HandleUpdate
    ) -> None:
        async def innermost(call: HandleUpdate) -> Any:
            result = self.invoke(handler, call.args)
            return await result if inspect.isawaitable(result) else result

        run = self.run
        try:
            result = await chain(
                run.settings.interceptors, WorkflowInterceptor, "handle_update", innermost
            )(call)
            run.updates.complete(request, handler, result)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) or run.is_failure(error):
                run.updates.fail(request, error)
            else:
                run.code_failed(error)

    # --- common -------------------------------------------------------------------------------

    def arguments(self, handler: Handler, name: str, payloads: Payloads) -> Sequence[Any]:
        """A handler's arguments. A dynamic one gets the name and the raw payloads.

        Raises:
            ConversionError: naming the argument.
        """
        if handler.name is None:
            return name, [RawValue(payload) for payload in payloads.payloads]
        return self.run.converter.arguments(payloads, handler.signature)

    def invoke(self, handler: Handler, args: Sequence[Any]) -> Any:
        """Call a handler; what it returns may be awaitable."""
        return self._apply(handler.function, handler, args)

    def _apply(self, function: Callable[..., Any], handler: Handler, args: Sequence[Any]) -> Any:
        positional, named = handler.signature.unbind(args)
        if handler.bound:
            return function(self.run.instance, *positional, **named)
        return function(*positional, **named)

    def start(
        self,
        handler: Handler,
        coroutine: Any,
        name: str,
        context: contextvars.Context | None = None,
    ) -> None:
        """Run a handler's coroutine as a task that `all_handlers_finished` waits for."""
        task = self.run.loop.create_task(coroutine, name=name, context=context)
        self.running[task] = handler
        task.add_done_callback(self._finished)

    def _finished(self, task: Any) -> None:
        self.running.pop(task, None)
