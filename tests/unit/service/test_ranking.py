"""Ranks: levels first, then fairness keys by weight, then age."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.common.v1 import Priority

from perdure.service.ranking import DEFAULT_LEVEL, LEVELS, Claim, Ranking, claim, level_of
from perdure.store.contract import LEVEL_BITS, Backlog

PASS = (1 << LEVEL_BITS) - 1


def in_order(ranking: Ranking, tasks: list[Claim]) -> list[Claim]:
    """All tasks begin to wait, one after the other; as they would be given out."""
    ranks = [(ranking.next(task), number) for number, task in enumerate(tasks)]
    return [tasks[number] for _, number in sorted(ranks)]


def of_key(name: str, weight: float = 1.0) -> Claim:
    return Claim(DEFAULT_LEVEL, name, weight)


def test_claims() -> None:
    assert claim(b"") == Claim(DEFAULT_LEVEL, "", 1.0)
    assert claim(Priority(priority_key=1).SerializeToString()) == Claim(1, "", 1.0)
    beyond = Priority(priority_key=77, fairness_key="k", fairness_weight=1e9)
    assert claim(beyond.SerializeToString()) == Claim(LEVELS, "k", 1_000.0)


def test_without_a_key_the_oldest_goes_first() -> None:
    ranking = Ranking()
    ranks = [ranking.next(Claim()) for _ in range(50)]
    ranking.taken(ranks[3])
    ranks += [ranking.next(Claim()) for _ in range(50)]
    assert ranks == sorted(ranks)


def test_a_lower_level_goes_first() -> None:
    tasks = [Claim(level) for level in (5, 3, 1, 4, 2, 1)]
    assert [task.level for task in in_order(Ranking(), tasks)] == [1, 1, 2, 3, 4, 5]


def test_a_small_key_does_not_wait_for_a_large_one() -> None:
    tasks = [of_key("large")] * 100 + [of_key("small")] * 5
    first = in_order(Ranking(), tasks)[:10]
    assert Counter(task.fairness_key for task in first) == {"large": 5, "small": 5}


def test_keys_share_by_weight() -> None:
    tasks = [of_key("a", 3.0)] * 100 + [of_key("b", 1.0)] * 100
    first = in_order(Ranking(), tasks)[:40]
    assert Counter(task.fairness_key for task in first) == {"a": 30, "b": 10}


def test_an_operators_weight_goes_before_the_tasks_own() -> None:
    ranking = Ranking()
    ranking.weights = {"b": 4.0}
    tasks = [of_key("a")] * 100 + [of_key("b")] * 100
    first = in_order(ranking, tasks)[:50]
    assert Counter(task.fairness_key for task in first) == {"a": 10, "b": 40}


def test_a_key_cannot_save_up_for_later() -> None:
    ranking = Ranking()
    for _ in range(10):
        rank = ranking.next(of_key("busy"))
        ranking.taken(rank)
    late = in_order(ranking, [of_key("idle")] * 10 + [of_key("busy")] * 10)
    assert Counter(task.fairness_key for task in late[:10]) == {"idle": 5, "busy": 5}


def test_it_goes_on_from_what_waits_in_the_store() -> None:
    before = Ranking()
    ranks = {
        key: [before.next(of_key(key)) for _ in range(count)]
        for key, count in {"x": 9, "y": 3}.items()
    }
    after = Ranking()
    after.restore(
        Backlog("d", "q", 1, 3, key, len(found), found[0], found[-1], 0)
        for key, found in ranks.items()
    )
    assert after.next(of_key("x")) == before.next(of_key("x"))
    assert after.next(of_key("y")) == before.next(of_key("y"))
    assert ranks["x"][0] <= after.next(of_key("new")) <= ranks["x"][2]


def waiting(key: str, *passes: int) -> Backlog:
    """Tasks of a key, of one level."""
    first, last = (DEFAULT_LEVEL << LEVEL_BITS | passes[at] for at in (0, -1))
    return Backlog("d", "q", 1, DEFAULT_LEVEL, key, len(passes), first, last, 0)


def test_a_single_task_that_was_ranked_too_low_takes_no_others_with_it() -> None:
    ranking = Ranking()
    ranking.restore([waiting("a", 50_000, 51_000, 52_000), waiting("b", 1_000)])
    assert 50_000 < ranking.next(of_key("b")) & PASS < 52_000


def test_what_was_given_out_tells_how_far_a_level_is_before_anything_waits() -> None:
    ranking = Ranking()
    ranking.taken(DEFAULT_LEVEL << LEVEL_BITS | 50_000)
    assert ranking.next(of_key("b")) & PASS > 50_000


def test_nothing_waits_any_more() -> None:
    ranking = Ranking()
    first = ranking.next(Claim())
    ranking.reset()
    assert ranking.next(Claim()) == first


@given(
    st.lists(
        st.builds(Claim, st.integers(1, 5), st.sampled_from("abc"), st.floats(0.001, 1_000)),
        max_size=200,
    )
)
def test_ranks_keep_to_their_level_and_their_keys_order(tasks: list[Claim]) -> None:
    ranking = Ranking()
    last: dict[tuple[int, str], int] = {}
    for number, task in enumerate(tasks):
        rank = ranking.next(task)
        assert level_of(rank) == task.level
        place = task.level, task.fairness_key
        assert rank > last.get(place, 0)
        last[place] = rank
        if number % 3 == 0:
            ranking.taken(rank)


@pytest.mark.parametrize("weight", [0.0, -3.0, 1e300])
def test_a_wild_weight_is_bounded(weight: float) -> None:
    ranking = Ranking()
    ranks = [ranking.next(of_key("k", weight)) for _ in range(3)]
    assert ranks == sorted(set(ranks))
