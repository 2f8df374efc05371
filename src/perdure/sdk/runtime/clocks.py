"""Time in workflow code: the start of the workflow task, as in every replay."""

from __future__ import annotations

import ctypes
import datetime as datetime_module
import gc
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from perdure.sdk.errors import NonDeterminismError
from perdure.sdk.runtime.context import remembered, state

_real_time = time.time
_real_time_ns = time.time_ns
_real_sleep = time.sleep
_SECOND_NS: Final = 1_000_000_000


def _time() -> float:
    run = state.guarded
    return _real_time() if run is None else run.now_ns / 1e9


def _time_ns() -> int:
    run = state.guarded
    return _real_time_ns() if run is None else run.now_ns


def _elapsed(original: Callable[[], float]) -> Callable[[], float]:
    def dispatcher() -> float:
        run = state.guarded
        return original() if run is None else (run.now_ns - run.start_ns) / 1e9

    return dispatcher


def _elapsed_ns(original: Callable[[], int]) -> Callable[[], int]:
    def dispatcher() -> int:
        run = state.guarded
        return original() if run is None else run.now_ns - run.start_ns

    return dispatcher


def _calendar(original: Callable[..., Any]) -> Callable[..., Any]:
    """`localtime`, `gmtime` and `ctime`: seconds, or now."""

    def dispatcher(secs: float | None = None, /) -> Any:
        run = state.guarded
        if secs is None and run is not None:
            secs = run.now_ns // _SECOND_NS
        return original(secs)

    return dispatcher


def _formatted(original: Callable[..., Any], *before: Any) -> Callable[..., Any]:
    """`strftime` and `asctime`: a time tuple, or now."""

    def dispatcher(*args: Any) -> Any:
        run = state.guarded
        if run is not None and len(args) == len(before):
            args = (*args, _real_localtime(run.now_ns // _SECOND_NS))
        return original(*args)

    return dispatcher


_real_localtime = time.localtime


def _sleep(seconds: float, /) -> None:
    if state.guarded is not None:
        raise remembered(_no_sleep())
    _real_sleep(seconds)


def _no_sleep() -> NonDeterminismError:
    return NonDeterminismError(
        "time.sleep() in workflow code blocks every workflow of the worker; "
        "use `await asyncio.sleep(...)`, which is a durable timer here"
    )


def install() -> dict[Any, Callable[..., Any]]:
    """Put the dispatchers in place; originals and their dispatchers."""
    dispatchers: dict[str, Callable[..., Any]] = {
        "time": _time,
        "time_ns": _time_ns,
        "sleep": _sleep,
        "strftime": _formatted(time.strftime, "format"),
        "asctime": _formatted(time.asctime),
    }
    for name in ("monotonic", "perf_counter", "process_time", "thread_time"):
        dispatchers[name] = _elapsed(getattr(time, name))
        dispatchers[f"{name}_ns"] = _elapsed_ns(getattr(time, f"{name}_ns"))
    for name in ("localtime", "gmtime", "ctime"):
        dispatchers[name] = _calendar(getattr(time, name))
    replaced = {}
    for name, dispatcher in dispatchers.items():
        original = getattr(time, name)
        dispatcher.__name__ = dispatcher.__qualname__ = name
        dispatcher.__doc__ = original.__doc__
        replaced[original] = dispatcher
        setattr(time, name, dispatcher)
    _patch_datetime()
    return replaced


# --- datetime -----------------------------------------------------------------------------------


def _now(cls: Any, tz: datetime_module.tzinfo | None = None) -> Any:
    run = state.guarded
    if run is None:
        return _real_now.__get__(None, cls)(tz)
    return _moment(cls, run.now_ns, tz)


def _utcnow(cls: Any) -> Any:
    run = state.guarded
    if run is None:
        return _real_utcnow.__get__(None, cls)()
    return _moment(cls, run.now_ns, datetime_module.UTC).replace(tzinfo=None)


def _moment(cls: Any, time_ns: int, tz: datetime_module.tzinfo | None) -> Any:
    seconds, rest_ns = divmod(time_ns, _SECOND_NS)
    return cls.fromtimestamp(seconds, tz).replace(microsecond=rest_ns // 1_000)


_attributes: dict[str, Any] = gc.get_referents(vars(datetime_module.datetime))[0]
_real_now: Any = _attributes["now"]
_real_utcnow: Any = _attributes["utcnow"]
datetime_is_patched = False
"""Do `datetime.now` and `utcnow` give workflow time? Elsewhere than on CPython only the linter
finds them. (`today` asks `time.time`, so it is covered in any case.)"""


def _patch_datetime() -> None:
    """Replace two class methods of `datetime` itself.

    The class is written in C and refuses assignment, and a subclass in its place would break
    ``isinstance``, pickling and every ``from datetime import datetime`` that came before. So the
    entries of the class's own dictionary are replaced, which is what assignment would do.
    """
    global datetime_is_patched
    if sys.implementation.name != "cpython" or not isinstance(_attributes, dict):
        return
    _attributes["now"] = classmethod(_now)
    _attributes["utcnow"] = classmethod(_utcnow)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime_module.datetime))
    datetime_is_patched = True
