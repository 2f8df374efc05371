"""What a run knows: its own facts, the time, chance."""

from __future__ import annotations

import random as random_module
from datetime import datetime
from uuid import UUID

from perdure.api.times import datetime_of
from perdure.sdk.runtime.context import current
from perdure.sdk.runtime.handlers import UpdateInfo, current_update
from perdure.sdk.runtime.info import WorkflowInfo
from perdure.sdk.runtime.streams import caller
from perdure.sdk.workflow.inside import run_here


class Facts:
    """The run's own facts, time and randomness."""

    def info(self) -> WorkflowInfo:
        """Facts about the run.

        Raises:
            NotInWorkflowError: not called from workflow code.
        """
        info = run_here().info
        assert info is not None, "there is a run, so it was started"
        return info

    def in_workflow(self) -> bool:
        """Is the calling code workflow code?"""
        return current() is not None

    def now(self) -> datetime:
        """Workflow time in UTC: when the current workflow task started. Equal in every replay."""
        return datetime_of(run_here().now_ns)

    def time_ns(self) -> int:
        """Workflow time in nanoseconds since the epoch."""
        return run_here().now_ns

    def is_replaying(self) -> bool:
        """Is this code being replayed? For logging and metrics; never decide by it."""
        return run_here().replaying

    def random(self, stream: str | None = None) -> random_module.Random:
        """A random number generator that replays.

        Args:
            stream: name of the stream; default: the calling function's. Streams do not affect each
                other, so a new call in one place shifts nothing elsewhere.
        """
        return run_here().streams.get(stream or caller())

    def uuid4(self, stream: str | None = None) -> UUID:
        """A random UUID that replays, from a stream as `random`."""
        return run_here().streams.uuid4(stream or caller())

    def current_update_info(self) -> UpdateInfo | None:
        """Which update the calling handler works on; None outside of update handlers."""
        return current_update.get()
