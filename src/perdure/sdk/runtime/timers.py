"""Durable timers of one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.history.v1 import HistoryEvent

from perdure.sdk.runtime.loop import Timer

if TYPE_CHECKING:
    from perdure.sdk.runtime.run import Run

_STARTED: Final = EventType.EVENT_TYPE_TIMER_STARTED
_CANCELED: Final = EventType.EVENT_TYPE_TIMER_CANCELED
_SECOND_NS: Final = 1_000_000_000


class Timers:
    """Timers by their id, a number in the run."""

    __slots__ = ("_count", "pending", "run", "summary")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.pending: dict[str, Timer] = {}
        self.summary = ""
        self._count = 0

    def start(self, timer: Timer, delay_ns: int) -> None:
        """Emit the command that starts a timer."""
        run = self.run
        run.check_writable("a timer (asyncio.sleep, asyncio.timeout, ...)")
        self._count += 1
        timer.timer_id = timer_id = str(self._count)
        self.pending[timer_id] = timer
        command = None
        if not run.replaying:
            command = run.new_command()
            command.command_type = CommandType.COMMAND_TYPE_START_TIMER
            attributes = command.start_timer_command_attributes
            attributes.timer_id = timer_id
            timeout = attributes.start_to_fire_timeout
            timeout.seconds = delay_ns // _SECOND_NS
            timeout.nanos = delay_ns % _SECOND_NS
            if self.summary:
                command.user_metadata.summary.CopyFrom(run.converter.encode(self.summary))
        timer.record = run.emit(_STARTED, (timer_id,), command)

    def cancel(self, timer: Timer) -> None:
        """Take a timer back, or emit the command that cancels it."""
        run = self.run
        if self.pending.pop(timer.timer_id, None) is None:
            return  # it never became a timer: its delay was zero
        if run.take_back(timer.record):
            return
        command = None
        if not run.replaying:
            command = run.new_command()
            command.command_type = CommandType.COMMAND_TYPE_CANCEL_TIMER
            command.cancel_timer_command_attributes.timer_id = timer.timer_id
        run.emit(_CANCELED, (timer.timer_id,), command)

    def fired(self, event: HistoryEvent) -> None:
        """TimerFired."""
        timer = self.pending.pop(event.timer_fired_event_attributes.timer_id, None)
        if timer is not None:
            timer.pending = False
            self.run.loop.ready.append(timer)
