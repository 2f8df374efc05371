"""`workflow`: the decorator, and the namespace of what workflow code may ask for."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from logging import LoggerAdapter
from typing import Any, ParamSpec, Protocol, TypeVar, Unpack, overload

from perdure.sdk.registry import WORKFLOWS
from perdure.sdk.runtime.children import ChildOptionFields, ChildOptions
from perdure.sdk.runtime.guards import adopt
from perdure.sdk.workflow.calling import Calling
from perdure.sdk.workflow.decorators import HandlerDecorators, Workflow, merged
from perdure.sdk.workflow.definition import DEFINITION_ATTRIBUTE, make_definition
from perdure.sdk.workflow.dynamic import DynamicHandlers
from perdure.sdk.workflow.facts import Facts
from perdure.sdk.workflow.logger import LOGGER
from perdure.sdk.workflow.recording import Recording
from perdure.sdk.workflow.waiting import Waiting

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


class _Decorator(Protocol):
    @overload
    def __call__(self, target: C, /) -> C: ...

    @overload
    def __call__(self, target: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...


class _Namespace(HandlerDecorators, Calling, Facts, Waiting, Recording, DynamicHandlers):
    """The decorator `workflow`, and what workflow code may ask for."""

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

    @property
    def logger(self) -> LoggerAdapter[Any]:
        """Logs with the run's identity, and is silent in a replay."""
        return LOGGER


workflow = _Namespace()
"""The decorator that makes a workflow, and the namespace of what one may ask for."""

__all__ = ["workflow"]
