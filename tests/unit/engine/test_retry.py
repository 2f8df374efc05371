"""When a failed attempt is followed by another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.common.v1 import RetryPolicy as RetryPolicyMessage
from temporalio.api.enums.v1 import RetryState, TimeoutType
from temporalio.api.failure.v1 import Failure

from perdure.engine import retry
from perdure.engine.state import RetryPolicy

SECOND = 1_000_000_000
POLICY = RetryPolicy(SECOND, 2.0, 10 * SECOND, 0, ["Fatal"])


def application(kind: str = "Broken", **fields: object) -> Failure:
    failure = Failure(message="no")
    failure.application_failure_info.type = kind
    for name, value in fields.items():
        setattr(failure.application_failure_info, name, value)
    return failure


def timeout(kind: int) -> Failure:
    failure = Failure()
    failure.timeout_failure_info.timeout_type = kind  # type: ignore[assignment]
    return failure


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (6, 10), (5_000, 10)]
)
def test_pauses_double_up_to_the_maximum(attempt: int, seconds: int) -> None:
    assert retry.backoff_ns(POLICY, attempt) == seconds * SECOND


@given(st.integers(1, 10**9), st.floats(1, 1e6), st.integers(1, 10**18))
def test_pauses_never_overflow_nor_shrink(attempt: int, factor: float, initial: int) -> None:
    policy = RetryPolicy(initial, factor, 0, 0)
    pause = retry.backoff_ns(policy, attempt)
    assert 0 < pause <= retry.LONGEST_NS
    assert retry.backoff_ns(policy, attempt + 1) >= pause


@pytest.mark.parametrize(
    ("failure", "retried"),
    [
        (application(), True),
        (application("Fatal"), False),
        (application(non_retryable=True), False),
        (timeout(TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE), True),
        (timeout(TimeoutType.TIMEOUT_TYPE_HEARTBEAT), True),
        (timeout(TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START), False),
        (timeout(TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE), False),
    ],
)
def test_which_failures_are_retried(failure: Failure, retried: bool) -> None:
    pause, state = retry.decide(POLICY, 1, 0, 0, failure)
    assert (pause >= 0) == retried
    assert (state == 0) == retried


def test_why_there_is_no_other_attempt() -> None:
    three = RetryPolicy(SECOND, 2.0, SECOND, 3)
    state = RetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED
    assert retry.decide(three, 2, 0, 0, application()) == (SECOND, 0)
    assert retry.decide(three, 3, 0, 0, application()) == (-1, state)
    late = RetryState.RETRY_STATE_TIMEOUT
    assert retry.decide(three, 1, 5 * SECOND, 6 * SECOND - 1, application()) == (-1, late)
    assert retry.decide(three, 1, 5 * SECOND, 6 * SECOND, application()) == (SECOND, 0)
    none = RetryState.RETRY_STATE_RETRY_POLICY_NOT_SET
    assert retry.decide(None, 1, 0, 0, application()) == (-1, none)


def test_the_failure_may_say_when_to_try_again() -> None:
    failure = application()
    failure.application_failure_info.next_retry_delay.FromSeconds(33)
    assert retry.decide(POLICY, 1, 0, 0, failure) == (33 * SECOND, 0)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (RetryPolicyMessage(backoff_coefficient=0.5), "BackoffCoefficient"),
        (RetryPolicyMessage(maximum_attempts=-1), "MaximumAttempts"),
        (RetryPolicyMessage(), ""),
        (RetryPolicyMessage(maximum_attempts=1, backoff_coefficient=0.5), ""),
    ],
)
def test_mistakes_are_named(message: RetryPolicyMessage, named: str) -> None:
    assert (named in retry.mistake(message)) if named else retry.mistake(message) == ""


def test_policies_survive_their_message() -> None:
    assert retry.policy(retry.message_of(POLICY)) == POLICY
