"""What ``@workflow`` and the decorators of handlers make."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import replace
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from perdure.sdk.errors import NotInWorkflowError
from perdure.sdk.options import check_name
from perdure.sdk.runtime.children import ChildHandle, ChildOptionFields, ChildOptions
from perdure.sdk.runtime.closing import intercepted_child
from perdure.sdk.runtime.context import current
from perdure.sdk.workflow.definition import (
    DEFINITION_ATTRIBUTE,
    HANDLER_ATTRIBUTE,
    INIT_ATTRIBUTE,
    RUN_ATTRIBUTE,
    Handler,
    HandlerKind,
    UnfinishedPolicy,
    WorkflowDefinition,
    definition_of,
)

if TYPE_CHECKING:
    from perdure.sdk.runtime.run import Run

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])


class Child(Protocol[R_co]):
    """A child workflow that was started. Await it for its result; see `ChildHandle`."""

    def __await__(self) -> Generator[Any, None, R_co]: ...

    @property
    def id(self) -> str: ...

    @property
    def run_id(self) -> str: ...

    def done(self) -> bool: ...

    def signal(self, signal: Any, *args: Any) -> Awaitable[None]: ...

    def cancel(self, reason: str = "") -> None: ...


class Workflow(Generic[P, R_co]):
    """A workflow that is a function.

    Called in a workflow it starts a child and gives its result; called anywhere else it just runs.

    Attributes:
        name: the type name that is recorded in histories.
        function: what was decorated.
        definition: what the worker needs to know of it.
    """

    def __init__(
        self,
        function: Callable[P, Coroutine[Any, Any, R_co]],
        definition: WorkflowDefinition,
        options: ChildOptions,
    ) -> None:
        functools.update_wrapper(cast(Any, self), function)
        self.function = function
        self.name = definition.name
        self.definition = definition
        self.child_options = options
        setattr(self, DEFINITION_ATTRIBUTE, definition)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, R_co]:
        run = current()
        if run is None:
            return self.function(*args, **kwargs)
        values = self.definition.signature.bind(args, kwargs)
        return execute_child(run, self.definition, self.name, values, self.child_options)

    async def start(self, *args: P.args, **kwargs: P.kwargs) -> Child[R_co]:
        """Start it as a child; returns once the child has a run.

        Raises:
            ChildWorkflowError: the child could not be started; its cause says why.
            NotInWorkflowError: not called from a workflow.
        """
        run = current()
        if run is None:
            raise NotInWorkflowError(
                f"{self.name}.start() starts a child, so it belongs in a workflow; "
                "from outside use client.start()"
            )
        values = self.definition.signature.bind(args, kwargs)
        return await start_child(run, self.definition, self.name, values, self.child_options)

    def options(self, **overrides: Unpack[ChildOptionFields]) -> Workflow[P, R_co]:
        """The same workflow with other options for starting it as a child; see `ChildOptions`.

        Raises:
            TypeError, ValueError: naming the option that is wrong.

        Example:
            >>> await ship.options(id=f"ship-{order.id}")(order)
        """
        return Workflow(self.function, self.definition, merged(self.child_options, dict(overrides)))

    def __repr__(self) -> str:
        return f"<workflow {self.name} of {self.definition.origin}>"


def merged(options: ChildOptions, overrides: dict[str, Any]) -> ChildOptions:
    """Options with some replaced; those that are None stay as they are."""
    unknown = overrides.keys() - set(ChildOptions.__dataclass_fields__)
    if unknown:
        raise TypeError(
            f"{', '.join(sorted(unknown))}: no option of a child workflow; there are: "
            f"{', '.join(sorted(ChildOptions.__dataclass_fields__))}"
        )
    given = {name: value for name, value in overrides.items() if value is not None}
    return replace(options, **given) if given else options


# --- children -----------------------------------------------------------------------------------


async def start_child(
    run: Run,
    definition: WorkflowDefinition | None,
    name: str,
    args: Sequence[Any],
    options: ChildOptions,
    result_type: Any = Any,
) -> Child[Any]:
    """Start a child and wait until it has a run."""
    signature = definition.signature if definition is not None else None
    if run.settings.interceptors:
        return cast(
            "Child[Any]",
            await intercepted_child(run, name, args, signature, options, result_type),
        )
    call = run.children.start(name, args, signature, options, result_type)
    await call.started
    return cast("Child[Any]", ChildHandle(run, call))


async def execute_child(
    run: Run,
    definition: WorkflowDefinition | None,
    name: str,
    args: Sequence[Any],
    options: ChildOptions,
    result_type: Any = Any,
) -> Any:
    """Start a child and wait for its result."""
    if run.settings.interceptors:
        return await (await start_child(run, definition, name, args, options, result_type))
    signature = definition.signature if definition is not None else None
    return await run.children.start(name, args, signature, options, result_type)


def child_target(target: Any) -> tuple[str, WorkflowDefinition | None]:
    """Type name and definition of a workflow given as an object or by name.

    Raises:
        TypeError: it is no workflow.
    """
    if isinstance(target, str):
        return target, None
    definition = definition_of(target)
    if definition is None:
        raise TypeError(f"workflow: a workflow or the name of one, got {target!r}")
    return definition.name, definition


# --- methods of a workflow class ----------------------------------------------------------------


class Update(Generic[P, R_co]):
    """An update handler of a workflow class. `validator` decorates its validator."""

    def __init__(self, function: Callable[P, Any], handler: Handler) -> None:
        functools.update_wrapper(cast(Any, self), function)
        self.function = function
        setattr(self, HANDLER_ATTRIBUTE, handler)

    def validator(self, function: F) -> F:
        """Decorate the method that looks at an update's arguments before it is accepted.

        It takes the same arguments and must change nothing. If it raises, the update is rejected
        and leaves no trace in history.
        """
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{function.__name__}: a validator must be a plain `def`")
        handler: Handler = getattr(self, HANDLER_ATTRIBUTE)
        handler.validator = function
        return function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return cast(R_co, self.function(*args, **kwargs))

    @overload
    def __get__(self, instance: None, owner: type) -> Update[P, R_co]: ...

    @overload
    def __get__(
        self: Update[Concatenate[Any, Q], R], instance: object, owner: type | None = None
    ) -> Callable[Q, R]: ...

    def __get__(self, instance: object | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return functools.partial(cast(Any, self.function), instance)


class _UpdateDecorator(Protocol):
    def __call__(self, function: Callable[P, R], /) -> Update[P, R]: ...


def make_handler(
    kind: HandlerKind,
    function: Callable[..., Any],
    name: str | None,
    dynamic: bool,
    description: str,
    unfinished: UnfinishedPolicy = "warn",
) -> Handler:
    """Examine a handler method.

    Raises:
        TypeError, ValueError: naming what is wrong with it.
    """
    check_name("name", name)
    if dynamic and name is not None:
        raise ValueError("name: a dynamic handler takes every name, so it cannot have one")
    if kind == "query" and inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__name__}: a query handler must be a plain `def`")
    if not callable(function):
        raise TypeError(f"@workflow.{kind}: a method, got {function!r}")
    return Handler(
        kind=kind,
        name=None if dynamic else name or function.__name__,
        function=function,
        description=description or (inspect.getdoc(function) or "").split("\n\n")[0],
        unfinished=unfinished,
    )


class HandlerDecorators:
    """The decorators for methods of a workflow class."""

    def run(self, function: F) -> F:
        """Decorate the method that is the workflow itself: one ``async def`` per class."""
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"@workflow.run: {function.__name__} must be an `async def`")
        setattr(function, RUN_ATTRIBUTE, True)
        return function

    def init(self, function: F) -> F:
        """Decorate ``__init__`` to give it the arguments of the run method."""
        if function.__name__ != "__init__":
            raise TypeError(f"@workflow.init: goes on __init__, not on {function.__name__}")
        setattr(function, INIT_ATTRIBUTE, True)
        return function

    @overload
    def signal(self, function: F, /) -> F: ...

    @overload
    def signal(
        self,
        /,
        *,
        name: str | None = None,
        dynamic: bool = False,
        description: str = "",
        unfinished: UnfinishedPolicy = "warn",
    ) -> Callable[[F], F]: ...

    def signal(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        dynamic: bool = False,
        description: str = "",
        unfinished: UnfinishedPolicy = "warn",
    ) -> Any:
        """Decorate a method that a signal calls.

        Args:
            name: what senders name it by; default: the method's name.
            dynamic: take every signal that has no handler of its own; called with the name and the
                list of raw arguments (`RawValue`).
            description: one line for people; default: the docstring's first paragraph.
            unfinished: "warn" or "abandon" when the run ends before an ``async`` handler does.
        """

        def decorate(function: F) -> F:
            handler = make_handler("signal", function, name, dynamic, description, unfinished)
            setattr(function, HANDLER_ATTRIBUTE, handler)
            return function

        return decorate if function is None else decorate(function)

    @overload
    def query(self, function: F, /) -> F: ...

    @overload
    def query(
        self, /, *, name: str | None = None, dynamic: bool = False, description: str = ""
    ) -> Callable[[F], F]: ...

    def query(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        dynamic: bool = False,
        description: str = "",
    ) -> Any:
        """Decorate a plain method that answers a query. It must change nothing.

        Args: as for `signal`.
        """

        def decorate(function: F) -> F:
            handler = make_handler("query", function, name, dynamic, description)
            setattr(function, HANDLER_ATTRIBUTE, handler)
            return function

        return decorate if function is None else decorate(function)

    @overload
    def update(self, function: Callable[P, R], /) -> Update[P, R]: ...

    @overload
    def update(
        self,
        /,
        *,
        name: str | None = None,
        dynamic: bool = False,
        description: str = "",
        unfinished: UnfinishedPolicy = "warn",
    ) -> _UpdateDecorator: ...

    def update(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        dynamic: bool = False,
        description: str = "",
        unfinished: UnfinishedPolicy = "warn",
    ) -> Any:
        """Decorate a method that changes the workflow and answers the caller.

        Args: as for `signal`.

        Example:
            >>> @workflow.update
            ... async def amend(self, text: str) -> int: ...
            >>> @amend.validator
            ... def check(self, text: str) -> None: ...
        """

        def decorate(function: Callable[..., Any]) -> Update[..., Any]:
            handler = make_handler("update", function, name, dynamic, description, unfinished)
            return Update(function, handler)

        return decorate if function is None else decorate(function)
