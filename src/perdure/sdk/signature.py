"""What a recorded function takes and returns: binding a call's arguments, and their types.

Arguments travel by position, as in every Temporal SDK. A call's keyword arguments are put at their
place, defaults in between are filled in, and keyword-only parameters follow the others in the order
in which they are declared.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from perdure.sdk.errors import ConversionError

_EMPTY: Final = inspect.Parameter.empty
_KEYWORD_ONLY: Final = inspect.Parameter.KEYWORD_ONLY


class Signature:
    """Parameters and result of one activity, workflow or handler function.

    Types are resolved on first use, because a function may name classes that are defined after it.

    Args:
        function: what the user wrote.
        name: the name for error messages.
        bound: leave out the first parameter (``self``).

    Raises:
        TypeError: the function takes ``**kwargs``, which has no place in a list of arguments.
    """

    __slots__ = (
        "_function",
        "_parameters",
        "_return_type",
        "_signature",
        "_types",
        "minimum",
        "name",
        "positional",
        "variadic",
    )

    def __init__(self, function: Callable[..., Any], name: str, *, bound: bool = False) -> None:
        self._function = function
        self.name = name
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
        if bound:
            parameters = parameters[1:]
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            raise TypeError(
                f"{name}: cannot take **kwargs, since arguments are recorded by position"
            )
        self._signature = signature.replace(parameters=parameters)
        self.variadic = next(
            (p for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), None
        )
        self._parameters = [p for p in parameters if p is not self.variadic]
        if self.variadic is not None and any(p.kind is _KEYWORD_ONLY for p in parameters):
            raise TypeError(
                f"{name}: cannot take keyword-only arguments after *{self.variadic.name}"
            )
        self.positional = sum(p.kind is not _KEYWORD_ONLY for p in self._parameters)
        required = [i + 1 for i, p in enumerate(self._parameters) if p.default is _EMPTY]
        self.minimum = max(required, default=0)
        self._types: tuple[Any, ...] | None = None
        self._return_type: Any = _EMPTY

    # --- the caller's side --------------------------------------------------------------------

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        """The values to record for a call, in order.

        Raises:
            TypeError: the arguments do not fit the parameters.
        """
        if not kwargs:
            count = len(args)
            if self.minimum <= count <= self.positional or (
                self.variadic is not None and count >= self.minimum
            ):
                return args
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        values: list[Any] = []
        last_given = 0
        for parameter in self._parameters:
            if parameter.name in bound.arguments:
                values.append(bound.arguments[parameter.name])
                last_given = len(values)
            else:
                values.append(parameter.default)
        if self.variadic is not None and (rest := bound.arguments.get(self.variadic.name)):
            return [*values, *rest]
        return values[:last_given]

    # --- the callee's side --------------------------------------------------------------------

    def unbind(self, values: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """Positional and keyword arguments to call the function with, from recorded values."""
        if len(values) <= self.positional or self.variadic is not None:
            return values, {}
        named = self._parameters[self.positional :]
        keywords = {p.name: v for p, v in zip(named, values[self.positional :], strict=False)}
        return values[: self.positional], keywords

    def check_count(self, count: int) -> None:
        """Refuse a number of recorded values that the function cannot be called with.

        Raises:
            ConversionError: naming the first missing argument, or the number of extra ones.
        """
        if count < self.minimum:
            missing = next(p for p in self._parameters[count:] if p.default is _EMPTY)
            raise ConversionError(
                f"{self.name}: argument {missing.name!r} is missing "
                f"({count} given, {self.minimum} needed)",
                function=self.name,
                argument=missing.name,
            )
        if count > len(self._parameters) and self.variadic is None:
            raise ConversionError(
                f"{self.name}: {count} arguments given, it takes {len(self._parameters)}",
                function=self.name,
            )

    # --- types --------------------------------------------------------------------------------

    @property
    def types(self) -> tuple[Any, ...]:
        """Declared type of each parameter except ``*args``; `Any` where none is declared.

        Raises:
            ConversionError: an annotation cannot be resolved.
        """
        if self._types is None:
            self._types = tuple(self._resolve(p.annotation, p.name) for p in self._parameters)
        return self._types

    @property
    def return_type(self) -> Any:
        """Declared type of the result; `Any` where none is declared.

        Raises:
            ConversionError: the annotation cannot be resolved.
        """
        if self._return_type is _EMPTY:
            self._return_type = self._resolve(self._signature.return_annotation, "return")
        return self._return_type

    def type_at(self, index: int) -> Any:
        """Declared type of the value at a position, ``*args`` included."""
        if index < len(self.types):
            return self.types[index]
        if self.variadic is not None:
            return self._resolve(self.variadic.annotation, self.variadic.name)
        return Any

    def argument_name(self, index: int) -> str:
        """Name of the parameter at a position, for messages."""
        if index < len(self._parameters):
            return self._parameters[index].name
        return f"{self.variadic.name}[{index - len(self._parameters)}]" if self.variadic else ""

    def _resolve(self, annotation: Any, argument: str) -> Any:
        if annotation is _EMPTY:
            return Any
        if annotation is None:
            return type(None)
        try:
            return _evaluate(annotation, self._function)
        except Exception as error:
            where = "result" if argument == "return" else f"argument {argument!r}"
            raise ConversionError(
                f"{self.name}: the type {annotation!r} of {where} cannot be resolved ({error}); "
                "import it where the program runs, not under TYPE_CHECKING, and define it at the "
                "top level of a module",
                function=self.name,
                argument=argument,
            ) from error


def _evaluate(annotation: Any, function: Callable[..., Any]) -> Any:
    """The type that an annotation, perhaps a string, stands for in its function's module."""
    plain = inspect.unwrap(function)
    plain = getattr(plain, "__func__", plain)
    names = getattr(plain, "__globals__", None)
    if names is None:
        names = vars(sys.modules[plain.__module__])
    holder = type("_Holder", (), {"__annotations__": {"it": annotation}})
    cells = inspect.getclosurevars(plain).nonlocals if inspect.isfunction(plain) else {}
    return typing.get_type_hints(holder, names, cells, include_extras=True)["it"]
