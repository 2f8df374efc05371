"""How workflow code waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from perdure.sdk.workflow.inside import Duration, run_here, seconds


class Waiting:
    """Timers and conditions."""

    async def sleep(self, duration: Duration, *, summary: str = "") -> None:
        """A durable timer, as `asyncio.sleep`, with a line for people that tools show."""
        timers = run_here().timers
        timers.summary = summary
        try:
            waiting = asyncio.get_running_loop().create_future()
            handle = asyncio.get_running_loop().call_later(
                seconds(duration), _set_unless_done, waiting
            )
        finally:
            timers.summary = ""
        try:
            await waiting
        finally:
            handle.cancel()

    async def wait_condition(
        self, condition: Callable[[], bool], *, timeout: Duration | None = None
    ) -> bool:
        """Wait until a condition on the workflow's state holds.

        Args:
            condition: looked at whenever the workflow's code has moved; must change nothing.
            timeout: wait no longer than this.

        Returns:
            True if the condition holds, False if the time ran out first.

        Example:
            >>> await workflow.wait_condition(lambda: self.approved, timeout=timedelta(days=7))
        """
        run = run_here()
        run.check_writable("workflow.wait_condition()")
        if run.holds(condition):
            return True
        future = run.loop.create_future()
        run.conditions.append((condition, future))
        if timeout is None:
            await future
            return True
        handle = run.loop.call_later(seconds(timeout), _cancel_unless_done, future)
        try:
            return await future is not _EXPIRED
        finally:
            handle.cancel()

    def all_handlers_finished(self) -> bool:
        """Are no signal or update handlers running? Wait for it before the run returns."""
        return not run_here().handlers.running


_EXPIRED: Any = object()


def _cancel_unless_done(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(_EXPIRED)


def _set_unless_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
