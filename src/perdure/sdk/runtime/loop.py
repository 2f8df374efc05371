"""The event loop of one run: it moves when history moves, and always in the same order.

It implements what asyncio's own primitives need (`sleep`, `gather`, `wait`, `as_completed`,
`timeout`, `TaskGroup`, `Event`, `Queue`, `Lock` …) and refuses the rest by name. `call_later` is a
durable timer.

Sets of tasks or futures, which `asyncio.wait` returns, are iterated in the order of their hashes.
By default that is a memory address, so tasks and futures made here hash to a number in the order of
their creation instead. The numbers start at a place that depends on the run, or else the first
tasks of many runs would all collide in asyncio's set of all tasks.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from perdure.sdk.errors import NonDeterminismError
from perdure.sdk.runtime.context import remembered

if TYPE_CHECKING:
    from perdure.sdk.runtime.run import Run

T = TypeVar("T")

_copy_context = contextvars.copy_context


class Handle(asyncio.Handle):
    """A callback in the queue. Made for each step, so it skips the base class's debug support."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
    ) -> None:
        self._callback = callback
        self._args = args
        self._context = context
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def __repr__(self) -> str:
        return f"<Handle {self._callback!r}{' cancelled' if self._cancelled else ''}>"


class Timer(asyncio.TimerHandle):
    """A durable timer: a command to start it, an event when it fires."""

    __slots__ = ("pending", "record", "run", "timer_id")

    def __init__(
        self,
        run: Run,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
    ) -> None:
        self._callback = callback
        self._args = args
        self._context = context
        self._cancelled = False
        self._when = when
        self._scheduled = True
        self.run = run
        self.pending = True
        self.timer_id = ""
        self.record: Any = None

    def cancel(self) -> None:
        self._cancelled = True  # also when it has fired, and its callback is yet to run
        if self.pending:
            self.pending = False
            self.run.timers.cancel(self)

    def __hash__(self) -> int:
        return hash((self._when, self.timer_id))

    def __repr__(self) -> str:
        return f"<Timer {self.timer_id} when={self._when}>"


class Task(asyncio.Task[T]):
    """asyncio's task with a hash that replays."""

    __slots__ = ("hash_value",)
    hash_value: int

    def __hash__(self) -> int:
        return self.hash_value


class Future(asyncio.Future[T]):
    """asyncio's future with a hash that replays."""

    __slots__ = ("hash_value",)

    def __init__(self, *, loop: WorkflowLoop) -> None:
        super().__init__(loop=loop)
        loop.sequence = self.hash_value = loop.sequence + 1

    def __hash__(self) -> int:
        return self.hash_value


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable


def first_hash(seed: str) -> int:
    """Where the hashes of a run's tasks begin: spread evenly, the same in every replay."""
    data = seed.encode()
    return zlib.crc32(data) << 28 ^ zlib.crc32(data[::-1])


class WorkflowLoop(asyncio.AbstractEventLoop):
    """See the module's text. `sequence` is the hash that was given out last."""

    def __init__(self, run: Run, first_hash: int) -> None:
        self.run = run
        self.sequence = first_hash
        self._first_hash = first_hash
        self.ready: deque[Handle | Timer] = deque()
        self.tasks: list[weakref.ref[Task[Any]]] = []
        self._prune_at = 64

    def restart(self, first_hash: int) -> None:
        """Give out hashes from here on; only before there is any task."""
        assert not self.tasks, "tasks were made before the first event"
        self.sequence = self._first_hash = first_hash

    # --- driven by the run --------------------------------------------------------------------

    def run_ready(self) -> None:
        """Run callbacks until none is left.

        Raises:
            BaseException: whatever a callback that is not a task's step raised.
        """
        ready = self.ready
        popleft = ready.popleft
        while ready:
            handle = popleft()
            if not handle._cancelled:
                handle._context.run(handle._callback, *handle._args)

    # --- what asyncio calls -------------------------------------------------------------------

    def time(self) -> float:
        """Seconds of workflow time since the run started."""
        run = self.run
        return (run.now_ns - run.start_ns) / 1e9

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        handle = Handle(callback, args, _copy_context() if context is None else context)
        self.ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Timer:
        return self._timer(delay, callback, args, context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Timer:
        return self._timer(when - self.time(), callback, args, context)

    def _timer(
        self,
        delay: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
    ) -> Timer:
        run = self.run
        # Whole microseconds, since `when - time()` is off by a few nanoseconds.
        delay_ns = round(delay * 1_000_000) * 1_000
        if context is None:
            context = _copy_context()
        timer = Timer(run, self.time() + max(delay, 0.0), callback, args, context)
        if delay_ns <= 0:
            self.ready.append(Handle(_fire_now, (timer,), context))
        else:
            run.timers.start(timer, delay_ns)
        return timer

    def create_future(self) -> Future[Any]:
        return Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T] | Awaitable[T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **eager: Any,
    ) -> Task[T]:
        """A task. Unlike asyncio's own it takes any awaitable, such as a scheduled activity."""
        if not iscoroutine(coro):
            coro = _as_coroutine(coro)  # type: ignore[arg-type]
        task: Task[T] = Task.__new__(Task)
        self.sequence = number = self.sequence + 1
        task.hash_value = number
        if name is None:
            name = f"Task-{number - self._first_hash}"
        task.__init__(coro, loop=self, name=name, context=context)  # type: ignore[misc]
        tasks = self.tasks
        tasks.append(weakref.ref(task))
        if len(tasks) >= self._prune_at:
            tasks[:] = [ref for ref in tasks if (known := ref()) is not None and not known.done()]
            self._prune_at = max(64, 2 * len(tasks))
        return task

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """Debug mode would read the clock: ignored."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Log what nobody will hear of otherwise, such as a failed task nobody awaited."""
        self.run.log_loop_problem(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.run.log_loop_problem(context)

    async def shutdown_asyncgens(self) -> None:
        """Nothing to shut down: asynchronous generators are not tracked."""


def _fire_now(timer: Timer) -> None:
    if timer.pending:
        timer.pending = False
        timer._callback(*timer._args)


_REFUSED_BECAUSE: Final = {
    "run_in_executor": "threads and processes do not replay",
    "call_soon_threadsafe": "another thread's timing does not replay",
    "run_forever": "the loop of a workflow is run by its history",
    "run_until_complete": "the loop of a workflow is run by its history",
    "stop": "the loop of a workflow is run by its history",
    "close": "the loop of a workflow is run by its history",
}


def _refuse(name: str) -> Callable[..., NoReturn]:
    reason = _REFUSED_BECAUSE.get(name, "I/O does not replay")

    def refused(self: WorkflowLoop, *args: Any, **kwargs: Any) -> NoReturn:
        raise remembered(NonDeterminismError(
            f"loop.{name}() was called in workflow code, but {reason}: "
            "call it in an activity and await the activity here"
        ))  # fmt: skip

    refused.__name__ = name
    return refused


def _refuse_the_rest() -> None:
    for name, value in vars(asyncio.AbstractEventLoop).items():
        public = not name.startswith("_") and callable(value)
        if public and name not in vars(WorkflowLoop):
            setattr(WorkflowLoop, name, _refuse(name))


_refuse_the_rest()
