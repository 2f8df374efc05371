"""So many a second, and no more than a second's worth at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.service.rate import NEVER_NS, Rate
from perdure.store.sharing import CLOCK_SLACK_NS, permitted

SECOND_NS = 1_000_000_000


def given_out(rate: Rate, moments_ns: list[int]) -> list[int]:
    return [now_ns for now_ns in moments_ns if rate.spend(now_ns)]


def test_a_burst_and_then_one_by_one() -> None:
    rate = Rate(4)
    quarter_ns = SECOND_NS // 4
    at_once = given_out(rate, [SECOND_NS] * 10)
    assert len(at_once) == 4
    assert rate.ready_ns() == SECOND_NS + quarter_ns
    later = given_out(rate, [SECOND_NS + quarter_ns] * 3 + [SECOND_NS + 2 * quarter_ns])
    assert later == [SECOND_NS + quarter_ns, SECOND_NS + 2 * quarter_ns]


def test_less_than_one_a_second() -> None:
    rate = Rate(0.5)
    assert given_out(rate, [0, SECOND_NS, 2 * SECOND_NS, 3 * SECOND_NS]) == [0, 2 * SECOND_NS]


def test_nothing_at_all() -> None:
    rate = Rate(0)
    assert not rate.spend(NEVER_NS - 1)


@pytest.mark.parametrize("per_second", [1e-10, 1e-300, 5e-324])
def test_one_in_more_than_a_lifetime(per_second: float) -> None:
    rate = Rate(per_second)
    assert given_out(rate, [0, SECOND_NS, 10**9 * SECOND_NS]) == [0]


@given(st.floats(5e-324, 1e300), st.integers(0, 1 << 61), st.integers(1, 9))
def test_permits_are_given_out_as_long_as_a_burst_lasts(
    per_second: float, now_ns: int, wanted: int
) -> None:
    """At one moment all nodes together get one burst, whatever rate was in force before."""
    burst = max(1, int(per_second))
    due_ns, given_out = now_ns + (1 << 62) + CLOCK_SLACK_NS + 1, 0
    while given_out <= 100:
        count, due_ns = permitted(now_ns, due_ns, per_second, burst, wanted)
        assert now_ns < due_ns < 1 << 63
        given_out += count
        if not count:
            break
    assert given_out == burst or burst > given_out > 100


@pytest.mark.parametrize("wrong", [-1.0, float("inf"), float("nan")])
def test_a_rate_that_is_none(wrong: float) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Rate(wrong)


@given(st.floats(0.1, 1_000), st.lists(st.integers(0, 20 * SECOND_NS), min_size=1, max_size=300))
def test_no_second_gives_out_more_than_two_seconds_worth(
    per_second: float, when: list[int]
) -> None:
    times = given_out(Rate(per_second), sorted(when))
    for begin in times:
        within = [one for one in times if begin <= one < begin + SECOND_NS]
        assert len(within) <= 2 * max(1.0, per_second) + 1
