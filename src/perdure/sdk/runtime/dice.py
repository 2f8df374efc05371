"""Randomness in workflow code: a stream per calling function, the same in every replay."""

from __future__ import annotations

import os
import random
import secrets
import uuid
from collections.abc import Callable
from typing import Any, Final

from perdure.sdk.runtime.context import state
from perdure.sdk.runtime.streams import caller

_RANDOM_METHODS: Final = (
    "betavariate",
    "binomialvariate",
    "choice",
    "choices",
    "expovariate",
    "gammavariate",
    "gauss",
    "getrandbits",
    "lognormvariate",
    "normalvariate",
    "paretovariate",
    "randbytes",
    "randint",
    "random",
    "randrange",
    "sample",
    "shuffle",
    "triangular",
    "uniform",
    "vonmisesvariate",
    "weibullvariate",
)

_real_urandom = os.urandom
_real_seed = random.Random.seed


def _method(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def dispatcher(*args: Any, **kwargs: Any) -> Any:
        run = state.guarded
        if run is None:
            return original(*args, **kwargs)
        return getattr(run.streams.get(caller()), name)(*args, **kwargs)

    dispatcher.__name__ = dispatcher.__qualname__ = name
    dispatcher.__doc__ = original.__doc__
    return dispatcher


def _urandom(size: int, /) -> bytes:
    run = state.guarded
    return _real_urandom(size) if run is None else run.streams.get(caller()).randbytes(size)


def _seed(self: random.Random, a: Any = None, version: int = 2) -> None:
    """``random.Random()`` without a seed takes one from the run."""
    run = state.guarded
    if a is None and run is not None:
        a = run.streams.get(caller()).getrandbits(128)
    _real_seed(self, a, version)


def _uuid1(node: int | None = None, clock_seq: int | None = None) -> uuid.UUID:
    run = state.guarded
    if run is None:
        return _real_uuid1(node, clock_seq)
    # Version 1 is the time and the machine; neither replays, so it is random like version 4.
    return uuid.UUID(int=run.streams.get(caller()).getrandbits(128), version=1)


_real_uuid1 = uuid.uuid1


def install() -> dict[Any, Callable[..., Any]]:
    """Put the dispatchers in place; originals and their dispatchers."""
    replaced: dict[Any, Callable[..., Any]] = {}
    for name in _RANDOM_METHODS:
        original = getattr(random, name, None)
        if original is not None:
            replaced[original] = _method(name, original)
            setattr(random, name, replaced[original])
    replaced[os.urandom] = _urandom
    replaced[uuid.uuid1] = _uuid1
    os.urandom = _urandom
    uuid.uuid1 = _uuid1
    # These took their sources by name when they were imported.
    random._urandom = _urandom  # type: ignore[attr-defined]
    random.Random.seed = _seed  # type: ignore[method-assign]
    assert secrets.token_bytes.__module__ == "secrets"
    return replaced
