"""Options of activities, workflows and calls: durations, retry policies and policies by name.

Everything is checked when the option object is made, so that a mistake is reported where it was
written, with the argument's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from enum import IntEnum
from typing import Any, Final, Literal, TypedDict

from temporalio.api.common.v1 import RetryPolicy as RetryPolicyMessage

from perdure.api.times import duration, timedelta_ns

DEFAULT_TASK_QUEUE: Final = "default"
"""The task queue of workers and starts that name none."""

DEFAULT_START_TO_CLOSE_TIMEOUT: Final = timedelta(minutes=10)
"""How long one attempt of an activity may take when no timeout was given."""

MAXIMUM_ID_SIZE_BYTES: Final = 1000
"""Limit of workflow ids, task queue names and type names."""


class WorkflowIDReusePolicy(IntEnum):
    """May a workflow id be used again once its former run is closed?"""

    UNSPECIFIED = 0
    ALLOW_DUPLICATE = 1
    ALLOW_DUPLICATE_FAILED_ONLY = 2
    REJECT_DUPLICATE = 3
    TERMINATE_IF_RUNNING = 4


class WorkflowIDConflictPolicy(IntEnum):
    """What a start does when a run of the same workflow id is open."""

    UNSPECIFIED = 0
    FAIL = 1
    USE_EXISTING = 2
    TERMINATE_EXISTING = 3


class ParentClosePolicy(IntEnum):
    """What happens to a child workflow when its parent closes."""

    UNSPECIFIED = 0
    TERMINATE = 1
    ABANDON = 2
    REQUEST_CANCEL = 3


class ActivityCancellationType(IntEnum):
    """What cancelling a call of an activity does in the workflow."""

    TRY_CANCEL = 0
    """Ask the activity to stop, and go on at once."""
    WAIT_CANCELLATION_COMPLETED = 1
    """Ask the activity to stop, and wait for how it ends."""
    ABANDON = 2
    """Do not tell the activity; go on at once."""


class ChildWorkflowCancellationType(IntEnum):
    """What cancelling a call of a child workflow does in the parent."""

    ABANDON = 0
    """Do not tell the child; go on at once."""
    TRY_CANCEL = 1
    """Ask the child to cancel, and go on at once."""
    WAIT_CANCELLATION_COMPLETED = 2
    """Ask the child to cancel, and wait for how it ends."""
    WAIT_CANCELLATION_REQUESTED = 3
    """Ask the child to cancel, and wait until it was asked."""


class QueryRejectCondition(IntEnum):
    """When a query is refused because of the run's status."""

    UNSPECIFIED = 0
    NONE = 1
    NOT_OPEN = 2
    NOT_COMPLETED_CLEANLY = 3


class WorkflowStatus(IntEnum):
    """State of a run."""

    UNSPECIFIED = 0
    RUNNING = 1
    COMPLETED = 2
    FAILED = 3
    CANCELED = 4
    TERMINATED = 5
    CONTINUED_AS_NEW = 6
    TIMED_OUT = 7
    PAUSED = 8


class UpdateWaitStage(IntEnum):
    """How far an update has to be before the call that sent it returns."""

    ADMITTED = 1
    ACCEPTED = 2
    COMPLETED = 3


class ResetReapply(IntEnum):
    """What happens, after a reset, to the signals and updates that came after the reset point."""

    SIGNALS = 1
    NONE = 2
    ALL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How something that failed is tried again.

    Args:
        initial_interval: wait before the second attempt.
        backoff_coefficient: factor from one wait to the next, at least 1.
        maximum_interval: the longest wait; default: 100 times the initial interval.
        maximum_attempts: attempts in all; 0 for no limit.
        non_retryable_error_types: exception classes, or their names, that are not retried.

    Raises:
        ValueError, TypeError: naming the argument that is out of range.
    """

    initial_interval: timedelta = timedelta(seconds=1)
    backoff_coefficient: float = 2.0
    maximum_interval: timedelta | None = None
    maximum_attempts: int = 0
    non_retryable_error_types: Sequence[str | type[BaseException]] = ()

    def __post_init__(self) -> None:
        check_duration("initial_interval", self.initial_interval)
        check_duration("maximum_interval", self.maximum_interval)
        if not isinstance(self.backoff_coefficient, int | float) or self.backoff_coefficient < 1:
            raise ValueError(f"backoff_coefficient: at least 1, got {self.backoff_coefficient!r}")
        if not isinstance(self.maximum_attempts, int) or self.maximum_attempts < 0:
            raise ValueError(f"maximum_attempts: 0 or more, got {self.maximum_attempts!r}")
        if self.maximum_interval is not None and self.maximum_interval < self.initial_interval:
            raise ValueError(
                f"maximum_interval: {self.maximum_interval} is shorter than "
                f"initial_interval {self.initial_interval}"
            )
        if isinstance(self.non_retryable_error_types, str):
            raise TypeError("non_retryable_error_types: a list of names or classes, not one name")
        object.__setattr__(self, "non_retryable_error_types", tuple(self.non_retryable_error_types))

    def to_message(self) -> RetryPolicyMessage:
        """This policy as the API's message."""
        message = RetryPolicyMessage(
            initial_interval=duration(timedelta_ns(self.initial_interval)),
            backoff_coefficient=self.backoff_coefficient,
            maximum_attempts=self.maximum_attempts,
            non_retryable_error_types=[type_name(kind) for kind in self.non_retryable_error_types],
        )
        if self.maximum_interval is not None:
            message.maximum_interval.CopyFrom(duration(timedelta_ns(self.maximum_interval)))
        return message

    @classmethod
    def from_message(cls, message: RetryPolicyMessage) -> RetryPolicy:
        """The policy that an API message describes; fields that are not set get the defaults."""
        longest = message.maximum_interval.ToTimedelta()
        first = message.initial_interval.ToTimedelta() or timedelta(seconds=1)
        return cls(
            initial_interval=first,
            backoff_coefficient=max(message.backoff_coefficient, 1.0)
            if message.backoff_coefficient
            else 2.0,
            maximum_interval=max(longest, first) if longest else None,
            maximum_attempts=message.maximum_attempts,
            non_retryable_error_types=tuple(message.non_retryable_error_types),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Priority:
    """Order among the tasks of one queue.

    Args:
        key: 1 is served first, 5 last; None for the default of 3.
        fairness_key: tasks of different keys get their share of the queue each.
        fairness_weight: the share of this key, relative to 1.
    """

    key: int | None = None
    fairness_key: str = ""
    fairness_weight: float | None = None

    def __post_init__(self) -> None:
        if self.key is not None and self.key < 1:
            raise ValueError(f"key: 1 or more, got {self.key}")
        if self.fairness_weight is not None and self.fairness_weight <= 0:
            raise ValueError(f"fairness_weight: more than 0, got {self.fairness_weight}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityOptions:
    """How calls of an activity are made. None stands for "not given".

    Args:
        task_queue: where the activity runs; default: the workflow's task queue.
        start_to_close_timeout: limit of one attempt. When neither this nor
            `schedule_to_close_timeout` is given, it is 10 minutes.
        schedule_to_close_timeout: limit of all attempts together.
        schedule_to_start_timeout: limit of waiting for a worker.
        heartbeat_timeout: longest silence of a running attempt.
        retry: retry policy; default: retry without end, 1 s, 2 s, 4 s … 100 s apart.
        cancellation_type: what cancelling the call does.
        activity_id: default: a number of its own in the run.
        summary: one line for people, shown by tools.
        priority: order among the queue's tasks.
        local: run in the process of the workflow's worker, recorded as a marker when done: for
            short calls only.
        local_retry_threshold: of a local activity, the longest wait that is not given to a durable
            timer.
        eager: let the worker that schedules the activity start it at once if it has a free slot.

    Raises:
        ValueError, TypeError: naming the argument that is wrong.
    """

    task_queue: str | None = None
    start_to_close_timeout: timedelta | None = None
    schedule_to_close_timeout: timedelta | None = None
    schedule_to_start_timeout: timedelta | None = None
    heartbeat_timeout: timedelta | None = None
    retry: RetryPolicy | None = None
    cancellation_type: ActivityCancellationType | None = None
    activity_id: str | None = None
    summary: str | None = None
    priority: Priority | None = None
    local: bool | None = None
    local_retry_threshold: timedelta | None = None
    eager: bool | None = None

    def __post_init__(self) -> None:
        for name in _ACTIVITY_DURATIONS:
            check_duration(name, getattr(self, name))
        check_name("task_queue", self.task_queue)
        check_name("activity_id", self.activity_id)
        if self.retry is not None and not isinstance(self.retry, RetryPolicy):
            raise TypeError(f"retry: a RetryPolicy, got {self.retry!r}")

    def merged(self, **overrides: Any) -> ActivityOptions:
        """A copy in which each given override that is not None takes the place of its field.

        Raises:
            TypeError: an override is no option of an activity.
        """
        unknown = overrides.keys() - ACTIVITY_OPTION_NAMES
        if unknown:
            raise TypeError(
                f"{', '.join(sorted(unknown))}: no option of an activity; there are: "
                f"{', '.join(sorted(ACTIVITY_OPTION_NAMES))}"
            )
        given = {name: value for name, value in overrides.items() if value is not None}
        return replace(self, **given) if given else self

    @property
    def effective_start_to_close_timeout(self) -> timedelta | None:
        """The timeout of one attempt, with the default when no timeout at all was given."""
        if self.start_to_close_timeout is None and self.schedule_to_close_timeout is None:
            return DEFAULT_START_TO_CLOSE_TIMEOUT
        return self.start_to_close_timeout


class ActivityOptionFields(TypedDict, total=False):
    """The fields of `ActivityOptions` as keyword arguments."""

    task_queue: str | None
    start_to_close_timeout: timedelta | None
    schedule_to_close_timeout: timedelta | None
    schedule_to_start_timeout: timedelta | None
    heartbeat_timeout: timedelta | None
    retry: RetryPolicy | None
    cancellation_type: ActivityCancellationType | None
    activity_id: str | None
    summary: str | None
    priority: Priority | None
    local: bool | None
    local_retry_threshold: timedelta | None
    eager: bool | None


Executor = Literal["thread", "process"]
"""Where a plain ``def`` activity runs."""

_ACTIVITY_DURATIONS: Final = (
    "start_to_close_timeout",
    "schedule_to_close_timeout",
    "schedule_to_start_timeout",
    "heartbeat_timeout",
    "local_retry_threshold",
)

ACTIVITY_OPTION_NAMES: Final = frozenset(field.name for field in fields(ActivityOptions))


def check_duration(argument: str, value: Any) -> None:
    """Refuse what is no positive `timedelta`; None passes.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if value is None:
        return
    if not isinstance(value, timedelta):
        raise TypeError(f"{argument}: a datetime.timedelta, got {value!r}")
    if value <= timedelta(0):
        raise ValueError(f"{argument}: more than zero, got {value}")


def check_name(argument: str, value: Any, *, required: bool = False) -> None:
    """Refuse an id or a name that is no string, empty or over 1,000 bytes; None passes if optional.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if value is None and not required:
        return
    if not isinstance(value, str):
        raise TypeError(f"{argument}: a string, got {value!r}")
    if not value:
        raise ValueError(f"{argument}: must not be empty")
    size_bytes = len(value.encode())
    if size_bytes > MAXIMUM_ID_SIZE_BYTES:
        raise ValueError(f"{argument}: {size_bytes} bytes, at most {MAXIMUM_ID_SIZE_BYTES}")


def type_name(kind: str | type[BaseException]) -> str:
    """The name that failures of an exception class are recorded under."""
    return kind if isinstance(kind, str) else kind.__name__


def timedelta_or_none(length_ns: int) -> timedelta | None:
    """A timedelta for nanoseconds; None for 0, which messages use for "not set"."""
    return timedelta(microseconds=length_ns // 1000) if length_ns else None


__all__ = [
    "ACTIVITY_OPTION_NAMES",
    "ActivityCancellationType",
    "ActivityOptionFields",
    "ActivityOptions",
    "ChildWorkflowCancellationType",
    "DEFAULT_START_TO_CLOSE_TIMEOUT",
    "DEFAULT_TASK_QUEUE",
    "Executor",
    "ParentClosePolicy",
    "Priority",
    "QueryRejectCondition",
    "ResetReapply",
    "RetryPolicy",
    "UpdateWaitStage",
    "WorkflowIDConflictPolicy",
    "WorkflowIDReusePolicy",
    "WorkflowStatus",
    "check_duration",
    "check_name",
    "timedelta_or_none",
    "type_name",
]
