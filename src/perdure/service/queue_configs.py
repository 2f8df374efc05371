"""What an operator sets for one task queue: a rate for the queue, and weights of fairness keys.

Kept with the queue's namespace, as serialised ``temporal.api.taskqueue.v1.TaskQueueConfig``.
"""

from __future__ import annotations

from typing import Final

from temporalio.api.common.v1 import Priority
from temporalio.api.enums.v1 import RateLimitSource
from temporalio.api.taskqueue.v1 import RateLimitConfig, TaskQueueConfig
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueResponse,
    UpdateTaskQueueConfigRequest,
)

from perdure.api.errors import InvalidArgument, Unimplemented
from perdure.api.times import timestamp
from perdure.engine import priorities
from perdure.service.queue import WORKFLOW, QueueKey, TaskQueue

_REASON_MAX: Final = 1_000
_WEIGHTS_MAX: Final = 1_000

_SYSTEM_PER_SECOND: Final = 100_000
"""What a queue without a limit of its own says; nothing holds it to that."""


def name_of(key: QueueKey) -> str:
    """Under which a queue's configuration is kept in its namespace."""
    return f"{key.kind}:{key.name}"


def check(request: UpdateTaskQueueConfigRequest) -> None:
    """Raise unless a request can be applied.

    Raises:
        InvalidArgument: a rate, weight, key or reason that cannot be.
        Unimplemented: a limit for each fairness key.
    """
    if request.HasField("update_fairness_key_rate_limit_default"):
        raise Unimplemented(
            "A rate limit for each fairness key is not offered; limit the queue, or set weights."
        )
    update = request.update_queue_rate_limit
    if request.HasField("update_queue_rate_limit"):
        if update.HasField("rate_limit") and request.task_queue_type in (0, WORKFLOW):
            raise InvalidArgument("Setting rate limit on workflow task queues is not allowed.")
        if not 0 <= update.rate_limit.requests_per_second < float("inf"):
            raise InvalidArgument(
                "RequestsPerSecond for UpdateQueueRateLimit rate limit must be non-negative."
            )
    if len(update.reason) > _REASON_MAX:
        raise InvalidArgument(
            f"UpdateQueueRateLimit.Reason field too long (max {_REASON_MAX} characters)."
        )
    removed = set(request.unset_fairness_weight_overrides)
    for key, weight in request.set_fairness_weight_overrides.items():
        if key in removed:
            raise InvalidArgument(
                f'fairness weight override key "{key}" present in both set and unset lists'
            )
        if not 0 < weight < float("inf"):
            raise InvalidArgument(
                f'invalid fairness weight weight for key "{key}": must be greater than zero'
            )
        fault = priorities.fault(Priority(fairness_key=key))
        if fault:
            raise InvalidArgument(fault)


def applied(
    config: TaskQueueConfig, request: UpdateTaskQueueConfigRequest, now_ns: int
) -> TaskQueueConfig:
    """The configuration after a request that was checked. Raises InvalidArgument: too many keys."""
    made = TaskQueueConfig()
    made.CopyFrom(config)
    if request.HasField("update_queue_rate_limit"):
        update = request.update_queue_rate_limit
        limit = RateLimitConfig()
        if update.HasField("rate_limit"):
            limit.rate_limit.CopyFrom(update.rate_limit)
        limit.metadata.reason = update.reason
        limit.metadata.update_identity = request.identity
        limit.metadata.update_time.CopyFrom(timestamp(now_ns))
        made.queue_rate_limit.CopyFrom(limit)
    for key in request.unset_fairness_weight_overrides:
        made.fairness_weight_overrides.pop(key, None)
    made.fairness_weight_overrides.update(request.set_fairness_weight_overrides)
    if len(made.fairness_weight_overrides) > _WEIGHTS_MAX:
        raise InvalidArgument(
            f"A task queue has at most {_WEIGHTS_MAX} fairness weight overrides: unset some."
        )
    return made


def put_in_force(queue: TaskQueue, config: TaskQueueConfig) -> None:
    """Let a queue follow its configuration; what workers asked for comes after it."""
    rate = config.queue_rate_limit
    limited = rate.HasField("rate_limit")
    queue.set_rate(rate.rate_limit.requests_per_second if limited else None)
    queue.ranking.weights = dict(config.fairness_weight_overrides)


def show_rate(response: DescribeTaskQueueResponse, queue: TaskQueue | None) -> None:
    """Say how fast a queue's tasks are given out, and who said so."""
    shown = response.effective_rate_limit
    if queue is None or queue.rate is None:
        shown.requests_per_second = _SYSTEM_PER_SECOND
        shown.rate_limit_source = RateLimitSource.RATE_LIMIT_SOURCE_SYSTEM
        return
    shown.requests_per_second = queue.rate.per_second
    shown.rate_limit_source = (
        RateLimitSource.RATE_LIMIT_SOURCE_API
        if queue.operator_rate is not None
        else RateLimitSource.RATE_LIMIT_SOURCE_WORKER
    )
