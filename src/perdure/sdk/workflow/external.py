"""Another workflow, seen from workflow code."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from perdure.sdk.runtime import closing
from perdure.sdk.runtime.externals import Delivery
from perdure.sdk.runtime.run import Run


class ExternalWorkflow:
    """Another workflow in this namespace."""

    __slots__ = ("_run", "id", "run_id")

    def __init__(self, run: Run, id: str, run_id: str) -> None:
        self._run = run
        self.id = id
        self.run_id = run_id

    def signal(self, signal: Any, *args: Any) -> Awaitable[None]:
        """Send a signal; awaiting the answer waits until it is delivered.

        Args:
            signal: a name, or a method with ``@workflow.signal``.

        Raises:
            ApplicationError: the workflow does not exist or is closed.
        """
        if self._run.settings.interceptors:
            return closing.intercepted_signal(self._run, self.id, self.run_id, signal, args)
        return self._run.externals.signal(self.id, self.run_id, signal, args)

    def cancel(self, reason: str = "") -> Delivery:
        """Ask it to cancel; awaiting the answer waits until the request is delivered."""
        return self._run.externals.cancel(self.id, self.run_id, reason)
