"""Handlers of signals, queries and updates that workflow code sets at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perdure.sdk.workflow.decorators import make_handler
from perdure.sdk.workflow.definition import HandlerKind
from perdure.sdk.workflow.inside import run_here


class DynamicHandlers:
    """Handlers set, removed and looked up by name."""

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


def _set_handler(
    kind: HandlerKind,
    name: str | None,
    function: Callable[..., Any] | None,
    validator: Callable[..., Any] | None = None,
) -> None:
    run = run_here()
    if function is None:
        run.handlers.set(kind, name, None)
        return
    handler = make_handler(kind, function, name, name is None, "")
    handler.bound = False
    handler.__post_init__()
    handler.validator = validator
    run.handlers.set(kind, name, handler)


def _get_handler(kind: HandlerKind, name: str | None) -> Callable[..., Any] | None:
    run = run_here()
    handler = run.handlers.get(kind, name)
    if handler is None:
        return None
    function: Callable[..., Any] = handler.function
    if handler.bound:
        bound: Callable[..., Any] = function.__get__(run.instance)
        return bound
    return function
