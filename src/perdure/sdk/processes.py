"""Child processes for activities that hold the GIL.

A child runs one activity at a time. It reports heartbeats through a queue, under the number of the
call, and reads from shared memory whether it is to stop, at a slot that the activity holds while it
runs. Children end with their parent, however that ends.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Final

from temporalio.api.failure.v1 import Failure

from perdure.sdk import activity_context
from perdure.sdk.activity_context import ActivityContext, ActivityInfo, CancellationReason
from perdure.sdk.converter import Converter
from perdure.sdk.errors import ApplicationError, CompleteAsync, NotInActivityError
from perdure.sdk.failures import error_from, failure_from

if TYPE_CHECKING:
    from perdure.sdk.client import Client

__all__ = ["Processes"]

_REASONS: Final = list(CancellationReason)
_WATCH_INTERVAL_S: Final = 0.05

Heartbeat = Callable[[Sequence[Any]], None]


class Processes:
    """Runs activities in up to `maximum` child processes, started when they are first needed.

    Belongs to one event loop.
    """

    def __init__(self, maximum: int) -> None:
        assert maximum > 0
        self._maximum = maximum
        self._context = multiprocessing.get_context("spawn")
        self._pool: ProcessPoolExecutor | None = None
        self._heartbeats: Any = None
        self._flags: Any = None
        self._numbers = itertools.count()
        self._listeners: dict[int, _Listener] = {}
        self._free = list(range(maximum))
        self._slot_free = asyncio.Semaphore(maximum)

    async def run(
        self,
        activity: Any,
        args: Sequence[Any],
        keywords: Mapping[str, Any],
        info: ActivityInfo,
        on_heartbeat: Heartbeat,
        on_slot: Callable[[Callable[[CancellationReason], None]], None],
    ) -> Any:
        """Run an activity in a child and return its result.

        Args:
            on_heartbeat: called in the event loop with the details of each heartbeat.
            on_slot: called once with a function that tells the child to stop.

        Raises:
            FailureError: what it raised, with type, message, causes and the child's stack trace.
            asyncio.CancelledError, CompleteAsync: as it raised.
            ApplicationError: the child died, or something does not pickle.
        """
        async with self._slot_free:
            pool = self._started()
            slot = self._free.pop()
            self._flags[slot] = 0
            number = next(self._numbers)
            listener = self._listeners[number] = _Listener(on_heartbeat)
            on_slot(lambda reason: self._tell(slot, reason))
            try:
                call = _pickled((activity, tuple(args), dict(keywords)))
                future = asyncio.get_running_loop().run_in_executor(
                    pool, _run_in_child, number, slot, info, call
                )
                outcome = await asyncio.shield(future)
                await listener.heard_all.wait()  # the outcome may overtake the last heartbeats
                return _outcome(outcome)
            except BrokenProcessPool as error:
                if self._pool is pool:
                    self._pool = None
                raise ApplicationError(
                    "A child process died while it ran an activity", type="ChildProcessDied"
                ) from error
            finally:
                del self._listeners[number]
                self._free.append(slot)

    def close(self) -> None:
        """Stop the children; those that still run an activity are killed."""
        pool, self._pool = self._pool, None
        if pool is not None:
            children = list((getattr(pool, "_processes", None) or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            if self._listeners:
                for child in children:
                    child.terminate()
        if self._heartbeats is not None:
            self._heartbeats.put(None)
            self._heartbeats = None

    def _tell(self, slot: int, reason: CancellationReason) -> None:
        self._flags[slot] = _REASONS.index(reason) + 1

    def _started(self) -> ProcessPoolExecutor:
        if self._flags is None:
            self._flags = self._context.Array("b", self._maximum, lock=False)
            self._heartbeats = self._context.SimpleQueue()
            loop = asyncio.get_running_loop()
            listen = threading.Thread(
                target=self._listen,
                args=(self._heartbeats, loop),
                name="perdure-child-heartbeats",
                daemon=True,
            )
            listen.start()
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._maximum,
                mp_context=self._context,
                initializer=_initialize_child,
                initargs=(self._heartbeats, self._flags),
            )
        return self._pool

    def _listen(self, heartbeats: Any, loop: asyncio.AbstractEventLoop) -> None:
        while (message := heartbeats.get()) is not None:
            try:
                loop.call_soon_threadsafe(self._heard, *message)
            except RuntimeError:  # the loop is closed
                return

    def _heard(self, number: int, details: bytes | None) -> None:
        listener = self._listeners.get(number)
        if listener is None:
            return
        if details is None:
            listener.heard_all.set()
        else:
            listener.on_heartbeat(pickle.loads(details))


class _Listener:
    """Who hears the heartbeats of one call."""

    def __init__(self, on_heartbeat: Heartbeat) -> None:
        self.on_heartbeat = on_heartbeat
        self.heard_all = asyncio.Event()


def _pickled(call: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps(call)
    except Exception as error:
        raise ApplicationError(
            f"{call[0].name}: cannot be sent to a child process: {error}; the function must be at "
            "the top level of a module, and arguments must pickle",
            type="PicklingError",
            non_retryable=True,
        ) from error


def _outcome(outcome: tuple[str, Any]) -> Any:
    kind, value = outcome
    if kind == "result":
        return pickle.loads(value)
    if kind == "cancelled":
        raise asyncio.CancelledError(value)
    if kind == "async":
        raise CompleteAsync
    raise error_from(Failure.FromString(value), Converter())


# --- in the child -------------------------------------------------------------------------------


class _Child:
    """What the initializer leaves for the activities of a child process."""

    heartbeats: Any = None
    flags: Any = None


class _ChildContext(ActivityContext):
    """A running attempt, seen from its child process."""

    def __init__(self, number: int, slot: int, info: ActivityInfo) -> None:
        super().__init__()
        self._number = number
        self._slot = slot
        self._info = info

    def make_info(self) -> ActivityInfo:
        raise AssertionError("a child is given its info")

    @property
    def client(self) -> Client:
        raise NotInActivityError("activity.client(): an activity in a child process has no client")

    def heartbeat(self, details: Sequence[Any]) -> None:
        for value in details:
            Converter().encode(value)  # tell a mistake here, where it was made
        _Child.heartbeats.put((self._number, pickle.dumps(tuple(details))))
        self.check_cancelled()

    def check_cancelled(self) -> None:
        self.look()
        super().check_cancelled()

    def wait_for_cancelled_sync(self, timeout_s: float | None) -> bool:
        give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.look():
            if give_up_at is not None and time.monotonic() >= give_up_at:
                return False
            time.sleep(_WATCH_INTERVAL_S)
        return True

    def look(self) -> bool:
        """Read from the parent whether to stop."""
        flag = _Child.flags[self._slot]
        if flag:
            self.mark_cancelled(_REASONS[flag - 1])
        return bool(flag)


def _initialize_child(heartbeats: Any, flags: Any) -> None:
    _Child.heartbeats, _Child.flags = heartbeats, flags
    threading.Thread(target=_end_with_parent, name="perdure-parent", daemon=True).start()


def _end_with_parent() -> None:
    """Children of a process that was killed would otherwise wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_in_child(number: int, slot: int, info: ActivityInfo, call: bytes) -> tuple[str, Any]:
    context = _ChildContext(number, slot, info)
    token = activity_context.running.set(context)
    try:
        activity, args, keywords = pickle.loads(call)
        # By its name in its module, that is the plain function where @activity is no decorator.
        function = getattr(activity, "function", activity)
        return "result", pickle.dumps(function(*args, **keywords))
    except asyncio.CancelledError as error:
        return "cancelled", str(error)
    except CompleteAsync:
        return "async", None
    except BaseException as error:
        return "failure", failure_from(error, Converter()).SerializeToString()
    finally:
        activity_context.running.reset(token)
        _Child.heartbeats.put((number, None))
