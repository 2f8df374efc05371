"""When, and whether, a failed attempt is made again."""

from __future__ import annotations

from temporalio.api.common.v1 import RetryPolicy as RetryPolicyMessage
from temporalio.api.enums.v1 import RetryState, TimeoutType
from temporalio.api.failure.v1 import Failure

from perdure.api.times import SECOND_NS, duration_ns
from perdure.engine.state import RetryPolicy

DEFAULT_INTERVAL_NS = SECOND_NS
DEFAULT_COEFFICIENT = 2.0
DEFAULT_MAXIMUM_FACTOR = 100
LONGEST_NS = 100 * 365 * 86_400 * SECOND_NS
"""What a backoff is cut to, so that powers never overflow."""


def policy(message: RetryPolicyMessage) -> RetryPolicy:
    """A policy from its message, with Temporal's defaults for what is not set."""
    initial = duration_ns(message.initial_interval) or DEFAULT_INTERVAL_NS
    return RetryPolicy(
        initial,
        message.backoff_coefficient or DEFAULT_COEFFICIENT,
        duration_ns(message.maximum_interval) or initial * DEFAULT_MAXIMUM_FACTOR,
        message.maximum_attempts,
        list(message.non_retryable_error_types),
    )


def message_of(policy: RetryPolicy) -> RetryPolicyMessage:
    """The message for a policy."""
    message = RetryPolicyMessage()
    message.initial_interval.FromNanoseconds(policy.initial_interval_ns)
    message.backoff_coefficient = policy.backoff_coefficient
    message.maximum_interval.FromNanoseconds(policy.maximum_interval_ns)
    message.maximum_attempts = policy.maximum_attempts
    message.non_retryable_error_types.extend(policy.non_retryable_types)
    return message


def mistake(message: RetryPolicyMessage) -> str:
    """What is wrong with a policy, in a sentence; empty when nothing is."""
    initial = duration_ns(message.initial_interval)
    maximum = duration_ns(message.maximum_interval)
    if message.maximum_attempts == 1:
        return ""  # retries are off, so nothing else of it matters
    if initial < 0:
        return "InitialInterval cannot be negative on retry policy."
    if message.backoff_coefficient and message.backoff_coefficient < 1:
        return "BackoffCoefficient cannot be less than 1 on retry policy."
    if maximum < 0:
        return "MaximumInterval cannot be negative on retry policy."
    if maximum and initial and maximum < initial:
        return "MaximumInterval cannot be less than InitialInterval on retry policy."
    if message.maximum_attempts < 0:
        return "MaximumAttempts cannot be negative on retry policy."
    return ""


def backoff_ns(policy: RetryPolicy, attempt: int) -> int:
    """The pause after `attempt` (from 1) has failed."""
    try:
        exact = policy.initial_interval_ns * policy.backoff_coefficient ** (attempt - 1)
        pause = int(min(exact, LONGEST_NS))
    except OverflowError:
        pause = LONGEST_NS
    return min(pause, policy.maximum_interval_ns) if policy.maximum_interval_ns else pause


def decide(
    policy: RetryPolicy | None,
    attempt: int,
    now_ns: int,
    deadline_ns: int,
    failure: Failure | None,
) -> tuple[int, int]:
    """(pause in ns, 0) when the attempt is to be followed by another, else (-1, RetryState).

    `deadline_ns`: no attempt may begin after it; 0 for none. `failure` None: the worker was lost.
    """
    if policy is None:
        return -1, RetryState.RETRY_STATE_RETRY_POLICY_NOT_SET
    if failure is not None and not is_retryable(failure, policy.non_retryable_types):
        return -1, RetryState.RETRY_STATE_NON_RETRYABLE_FAILURE
    if policy.maximum_attempts and attempt >= policy.maximum_attempts:
        return -1, RetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED
    pause = backoff_ns(policy, attempt)
    if failure is not None and failure.HasField("application_failure_info"):
        info = failure.application_failure_info
        if info.HasField("next_retry_delay"):
            pause = duration_ns(info.next_retry_delay)
    if deadline_ns and now_ns + pause > deadline_ns:
        return -1, RetryState.RETRY_STATE_TIMEOUT
    return pause, 0


def is_retryable(failure: Failure, non_retryable_types: list[str]) -> bool:
    """Whether a failure of this kind may be tried again at all."""
    kind = failure.WhichOneof("failure_info")
    if kind in ("terminated_failure_info", "canceled_failure_info"):
        return False
    if kind == "timeout_failure_info":
        timeout = failure.timeout_failure_info.timeout_type
        if timeout not in (
            TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE,
            TimeoutType.TIMEOUT_TYPE_HEARTBEAT,
        ):
            return False
        return f"TemporalTimeout:{_TIMEOUT_NAMES[timeout]}" not in non_retryable_types
    if kind == "server_failure_info":
        return not failure.server_failure_info.non_retryable
    if kind == "application_failure_info":
        info = failure.application_failure_info
        return not info.non_retryable and info.type not in non_retryable_types
    return True


_TIMEOUT_NAMES = {
    int(TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE): "StartToClose",
    int(TimeoutType.TIMEOUT_TYPE_HEARTBEAT): "Heartbeat",
}
