"""What a worker can be told: the options of ``Worker``, and their limits."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypedDict

from perdure.sdk.interceptors import Interceptor
from perdure.sdk.options import check_name

__all__ = ["WorkerFields", "WorkerOptions"]


class WorkerFields(TypedDict, total=False):
    """The options of `Worker` as keyword arguments; see `WorkerOptions`."""

    workflows: Iterable[Any] | None
    activities: Iterable[Any] | None
    interceptors: Sequence[Interceptor]
    identity: str | None
    max_concurrent_activities: int
    max_concurrent_local_activities: int
    max_concurrent_workflow_tasks: int
    max_processes: int | None
    max_cached_runs: int
    max_activities_per_second: float | None
    pollers: int
    graceful_shutdown_timeout: timedelta
    deadlock_timeout: timedelta | None
    workflow_failure_exception_types: Sequence[type[BaseException]]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOptions:
    """The options of a worker.

    Args:
        workflows: what ``@workflow`` made; default: all that was defined so far.
        activities: what ``@activity`` made, bound methods, or instances with such methods;
            default: all functions that were defined so far.
        interceptors: inside of the client's.
        identity: who works, for histories; default: the client's.
        max_concurrent_activities: how many run at a time.
        max_concurrent_local_activities: the same for local ones.
        max_concurrent_workflow_tasks: how many are worked on at a time.
        max_processes: child processes for activities with ``executor="process"``; default: one a
            CPU.
        max_cached_runs: how many runs are kept in memory; others are replayed when they go on.
        max_activities_per_second: limit for the whole task queue, over all its workers.
        pollers: polls open at a time for each kind of task, of a remote service.
        graceful_shutdown_timeout: how long running activities may take to finish at the end. What
            is left then is cancelled, and failed so that another worker takes it at once.
        deadlock_timeout: how long workflow code may compute without waiting. After a tenth of it a
            warning names the place; after all of it the workflow task fails. None: for ever.
        workflow_failure_exception_types: exceptions that fail a run, in place of its workflow task.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """

    workflows: Iterable[Any] | None = None
    activities: Iterable[Any] | None = None
    interceptors: Sequence[Interceptor] = ()
    identity: str | None = None
    max_concurrent_activities: int = 100
    max_concurrent_local_activities: int = 100
    max_concurrent_workflow_tasks: int = 100
    max_processes: int | None = None
    max_cached_runs: int = 1000
    max_activities_per_second: float | None = None
    pollers: int = 5
    graceful_shutdown_timeout: timedelta = field(default=timedelta(seconds=10))
    deadlock_timeout: timedelta | None = field(default=timedelta(seconds=20))
    workflow_failure_exception_types: Sequence[type[BaseException]] = ()

    def __post_init__(self) -> None:
        check_name("identity", self.identity)
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: 1 or more, got {value}")
        if self.max_cached_runs < 0:
            raise ValueError(f"max_cached_runs: 0 or more, got {self.max_cached_runs}")
        rate = self.max_activities_per_second
        if rate is not None and not rate > 0:
            raise ValueError(f"max_activities_per_second: more than 0, or None, got {rate}")
        if self.graceful_shutdown_timeout < timedelta(0):
            raise ValueError(
                f"graceful_shutdown_timeout: not negative, got {self.graceful_shutdown_timeout}"
            )
        if self.deadlock_timeout is not None and self.deadlock_timeout <= timedelta(0):
            raise ValueError(
                f"deadlock_timeout: more than 0, or None for no limit, got {self.deadlock_timeout}"
            )

    @property
    def processes(self) -> int:
        """How many child processes there may be."""
        return self.max_processes or os.cpu_count() or 1

    @property
    def deadlock_timeout_s(self) -> float:
        """Seconds; infinite for no limit."""
        limit = self.deadlock_timeout
        return math.inf if limit is None else limit.total_seconds()


_COUNTS = (
    "max_concurrent_activities", "max_concurrent_local_activities", "max_concurrent_workflow_tasks",
    "max_processes", "pollers",
)  # fmt: skip
