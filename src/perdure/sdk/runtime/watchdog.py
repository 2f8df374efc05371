"""Finds workflow code that blocks: one thread per process, nothing per activation but a counter."""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from perdure.sdk.runtime.run import Run

_log = logging.getLogger("perdure.workflow")
_real_monotonic = time.monotonic

_WARN_SHARE: Final = 0.1
"""After this share of its deadlock timeout, code that blocks is named in the log."""

_LOOK_SHARE: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0


class WorkflowBlockedError(BaseException):
    """Workflow code ran longer than the deadlock timeout without waiting.

    It is thrown into the thread that blocks, and is no `Exception`, so that no handler of the user
    swallows it.
    """

    def __str__(self) -> str:
        return (
            "workflow code ran longer than the deadlock timeout without waiting; move what takes "
            "long into an activity"
        )


class Slot:
    """What one thread is doing. `count` is odd while workflow code runs there."""

    __slots__ = ("count", "lock", "raising", "run", "seen", "since", "thread_id", "warned")

    def __init__(self, thread_id: int) -> None:
        self.count = 0
        self.lock = threading.Lock()
        self.raising = False
        self.run: Run | None = None
        self.seen = 0
        self.since = 0.0
        self.thread_id = thread_id
        self.warned = False


class Watchdog:
    """Warns of blocked workflow code after a while, and ends it after its deadlock timeout.

    To end it is to raise there, which fails the workflow task; the run itself goes on when the code
    is fixed. Code that blocks inside one C call ends when the call returns.
    """

    def __init__(self) -> None:
        self._pause_s = _LONGEST_PAUSE_S
        self._slots: dict[int, Slot] = {}
        self._local = threading.local()
        self._users = 0
        self._stop = threading.Event()
        self._guard = threading.Lock()

    # --- per activation -------------------------------------------------------------------------

    def enter(self, run: Run) -> Slot:
        """Workflow code begins on this thread."""
        try:
            slot: Slot = self._local.slot
        except AttributeError:
            slot = self._local.slot = Slot(threading.get_ident())
            self._slots[slot.thread_id] = slot
        slot.run = run
        slot.count += 1
        return slot

    def leave(self, slot: Slot) -> None:
        """It is over.

        Raises:
            WorkflowBlockedError: the watchdog had to end it.
        """
        slot.count += 1
        slot.run = None
        if slot.raising:
            self._absorb(slot)

    def _absorb(self, slot: Slot) -> None:
        """Take back the exception if it was not delivered yet."""
        try:
            with slot.lock:
                slot.raising = False
                _set_async_exception(slot.thread_id, None)
        except WorkflowBlockedError:
            slot.raising = False

    # --- the thread -----------------------------------------------------------------------------

    def start(self, deadlock_timeout_s: float) -> None:
        """One more worker wants to be watched."""
        with self._guard:
            self._users += 1
            self._pause_s = min(self._pause_s, deadlock_timeout_s * _LOOK_SHARE)
            if self._users == 1:
                self._stop = threading.Event()
                thread = threading.Thread(
                    target=self._watch, args=(self._stop,), name="perdure-watchdog", daemon=True
                )
                thread.start()

    def stop(self) -> None:
        """One worker less; the thread ends with the last."""
        with self._guard:
            self._users -= 1
            assert self._users >= 0, "stop() without start()"
            if self._users == 0:
                self._stop.set()
                self._pause_s = _LONGEST_PAUSE_S

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(self._pause_s):
            self.check(_real_monotonic())

    def check(self, now_s: float) -> None:
        """Look at every thread once."""
        for slot in list(self._slots.values()):
            count = slot.count
            if count != slot.seen:
                slot.seen, slot.since, slot.warned = count, now_s, False
                continue
            run = slot.run
            if count % 2 == 0 or run is None:
                continue
            blocked_s = now_s - slot.since
            limit_s = run.settings.deadlock_timeout_s
            if blocked_s >= limit_s and not slot.raising:
                self._raise(slot, count)
            elif blocked_s >= limit_s * _WARN_SHARE and not slot.warned:
                slot.warned = True
                _log.warning("%s", self._describe(slot, blocked_s))

    def _raise(self, slot: Slot, count: int) -> None:
        with slot.lock:
            slot.raising = True
            if slot.count == count:
                _set_async_exception(slot.thread_id, WorkflowBlockedError)

    def _describe(self, slot: Slot, blocked_s: float) -> str:
        run = slot.run
        name = f"{run.type_name!r} (id {run.workflow_id!r})" if run is not None else "?"
        return (
            f"workflow {name} has been running for {blocked_s:.1f} s without waiting, which stops "
            f"all workflows of this worker; it is at {blocked_place(slot.thread_id)}. Move what "
            "takes long into an activity."
        )


def blocked_place(thread_id: int) -> str:
    """File, line and source of what a thread is executing."""
    frame: Any = sys._current_frames().get(thread_id)
    if frame is None:
        return "an unknown place"
    summary = traceback.extract_stack(frame, limit=1)[0]
    return f"{summary.filename}:{summary.lineno} in {summary.name}: {summary.line}"


def _set_async_exception(thread_id: int, kind: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread_id), ctypes.py_object(kind) if kind is not None else None
    )


WATCHDOG: Final = Watchdog()
"""The process's watchdog: one for all workers."""
