"""What the decorators know of a workflow: its function, its handlers, their types."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from perdure.sdk.errors import UsageError
from perdure.sdk.options import check_name
from perdure.sdk.runtime.children import ChildOptions
from perdure.sdk.signature import Signature

HANDLER_ATTRIBUTE: Final = "__perdure_handler__"
RUN_ATTRIBUTE: Final = "__perdure_run__"
INIT_ATTRIBUTE: Final = "__perdure_init__"
DEFINITION_ATTRIBUTE: Final = "__perdure_workflow__"

HandlerKind = Literal["signal", "query", "update"]
UnfinishedPolicy = Literal["warn", "abandon"]


@dataclass(slots=True)
class Handler:
    """One signal, query or update handler.

    Attributes:
        name: what callers name it by; None for the dynamic handler, which gets the name and the
            list of raw arguments.
        function: takes the workflow object first, if `bound`.
        validator: of an update.
        unfinished: warn when the run ends while the handler is not finished, or do not.
    """

    kind: HandlerKind
    name: str | None
    function: Callable[..., Any]
    description: str = ""
    validator: Callable[..., Any] | None = None
    unfinished: UnfinishedPolicy = "warn"
    bound: bool = True
    signature: Signature = field(init=False)

    def __post_init__(self) -> None:
        label = f"{self.kind} {self.name or '(dynamic)'}"
        self.signature = Signature(self.function, label, bound=self.bound)

    @property
    def is_async(self) -> bool:
        """Is it an ``async def``?"""
        return inspect.iscoroutinefunction(self.function)


@dataclass(slots=True, weakref_slot=True, eq=False)
class WorkflowDefinition:
    """A workflow type.

    Attributes:
        name: type name in histories; None for the dynamic workflow, which takes every other type.
        function: the coroutine function; takes the object first if there is a class.
        cls: the class, or None for a workflow that is a function.
        init_takes_arguments: does ``__init__`` want the run's arguments?
        failure_exception_types: exceptions that fail the run instead of the workflow task.
        defaults: options for starting it as a child.
        task_queue: where starts go that name no queue.
        origin: ``module:qualname`` of what was decorated.
    """

    name: str
    function: Callable[..., Any]
    cls: type | None
    signature: Signature
    origin: str
    init_takes_arguments: bool = False
    dynamic: bool = False
    handlers: Mapping[tuple[HandlerKind, str | None], Handler] = field(default_factory=dict)
    failure_exception_types: tuple[type[BaseException], ...] = ()
    defaults: ChildOptions = field(default_factory=ChildOptions)

    def handler(self, kind: HandlerKind, name: str) -> Handler | None:
        """The handler for a name, else the dynamic one, else None."""
        return self.handlers.get((kind, name)) or self.handlers.get((kind, None))

    def names(self, kind: HandlerKind) -> list[str]:
        """Names of the handlers of one kind."""
        return sorted(name for k, name in self.handlers if k == kind and name is not None)


def make_definition(
    target: Any,
    *,
    name: str | None,
    dynamic: bool,
    failure_exception_types: Sequence[type[BaseException]],
    defaults: ChildOptions,
) -> WorkflowDefinition:
    """Examine what ``@workflow`` was put on.

    Raises:
        TypeError, UsageError: naming what is wrong with it.
    """
    check_name("name", name)
    for kind in failure_exception_types:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError(f"failure_exception_types: exception classes, got {kind!r}")
    shown = name or str(getattr(target, "__name__", ""))
    common: dict[str, Any] = {
        "name": shown,
        "dynamic": dynamic,
        "failure_exception_types": tuple(failure_exception_types),
        "defaults": defaults,
        "origin": f"{target.__module__}:{target.__qualname__}",
    }
    if isinstance(target, type):
        return _of_class(target, shown, common)
    if not inspect.iscoroutinefunction(target):
        raise TypeError(f"@workflow: {shown} must be an `async def` function or a class")
    return WorkflowDefinition(
        function=target, cls=None, signature=Signature(target, shown), **common
    )


def _of_class(cls: type, shown: str, common: dict[str, Any]) -> WorkflowDefinition:
    runs = [value for _, value in _members(cls) if hasattr(value, RUN_ATTRIBUTE)]
    if len(runs) != 1:
        raise UsageError(
            f"@workflow: class {shown} needs exactly one method with @workflow.run, "
            f"it has {len(runs)}"
        )
    signature = Signature(runs[0], shown, bound=True)
    init = cls.__init__  # type: ignore[misc]
    wants = hasattr(init, INIT_ATTRIBUTE)
    if init is not object.__init__:
        parameters = list(inspect.signature(init).parameters.values())[1:]
        required = [p.name for p in parameters if p.default is p.empty and p.kind < 2]
        if required and not wants:
            raise UsageError(
                f"@workflow: {shown}.__init__ has the parameters {', '.join(required)}; put "
                "@workflow.init on it to give it the arguments of the run method"
            )
    return WorkflowDefinition(
        function=runs[0],
        cls=cls,
        signature=signature,
        init_takes_arguments=wants,
        handlers=_handlers(cls, shown),
        **common,
    )


def _members(cls: type) -> list[tuple[str, Any]]:
    """Attributes of a class and its bases, each name once, the most derived first."""
    found: dict[str, Any] = {}
    for kind in cls.__mro__:
        for name, value in vars(kind).items():
            found.setdefault(name, value)
    return list(found.items())


def _handlers(cls: type, shown: str) -> dict[tuple[HandlerKind, str | None], Handler]:
    handlers: dict[tuple[HandlerKind, str | None], Handler] = {}
    for _, value in _members(cls):
        handler = getattr(value, HANDLER_ATTRIBUTE, None)
        if not isinstance(handler, Handler):
            continue
        key = (handler.kind, handler.name)
        if key in handlers:
            raise UsageError(
                f"@workflow: class {shown} has two {handler.kind} handlers named "
                f"{handler.name or '(dynamic)'}"
            )
        handlers[key] = handler
    return handlers


def definition_of(target: Any) -> WorkflowDefinition | None:
    """The definition behind a decorated function, a class, or a class's run method."""
    found = getattr(target, DEFINITION_ATTRIBUTE, None)
    if isinstance(found, WorkflowDefinition) and (
        not isinstance(target, type) or found.cls is target
    ):
        return found
    return None


def handler_name(kind: HandlerKind, target: Any) -> tuple[str, Signature | None]:
    """Name and types of a handler given by name or as the decorated method.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(target, str):
        return target, None
    handler = getattr(target, HANDLER_ATTRIBUTE, None)
    if not isinstance(handler, Handler) or handler.kind != kind or handler.name is None:
        raise TypeError(f"{kind}: a name or a method with @workflow.{kind}, got {target!r}")
    return handler.name, handler.signature
