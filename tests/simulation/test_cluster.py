"""Seeds of the simulation of three nodes on one database, and proof that it can fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from perdure.store.contract import Store, Unit

from .cluster import simulate_cluster
from .shared import Database
from .test_simulation import LosesItems, LosesMessages, Wrapped

SEEDS = int(os.environ.get("CLUSTER_SEEDS", "300"))
CHUNK = 15
ONCE_FAILED = [
    910,  # an update that one node completed, another ended the run of, and a third was asked for
    460,  # two nodes wrote a run with the same state, and one took the other's commit for its own
]
PLANTED = range(60)


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_everything_promised_is_kept_by_three_nodes(first: int) -> None:
    for seed in range(first, first + CHUNK):
        outcome = simulate_cluster(seed)
        again = f"uv run python -m tests.simulation --cluster --seed {seed}"
        assert not outcome.wrong, f"{again}\n{outcome}"
        assert outcome.events


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_what_failed_once_does_not_fail_again(seed: int) -> None:
    assert not simulate_cluster(seed).wrong


def test_a_seed_of_three_nodes_is_the_same_each_time() -> None:
    for seed in range(8):
        assert simulate_cluster(seed).digest == simulate_cluster(seed).digest


def test_nodes_do_crash() -> None:
    assert sum(simulate_cluster(seed).crashes for seed in range(20)) > 10


class LastOneWins(Wrapped):
    """Does not look which version a write is based on."""

    async def commit(self, units: Sequence[Unit]) -> list[int]:
        versions: dict[int, int] = {}
        changed: list[Unit] = []
        for unit in units:
            writes = []
            for write in unit:
                if write.based_on and write.key not in versions:
                    loaded = await self.inner.load(write.key)
                    versions[write.key] = loaded.version if loaded else 0
                based_on = versions.get(write.key, 0)
                version = based_on + write.version - write.based_on
                versions[write.key] = version
                writes.append(msgspec.structs.replace(write, based_on=based_on, version=version))
            changed.append(writes)
        return await self.inner.commit(changed)


@pytest.mark.parametrize("bug", [LastOneWins, LosesItems, LosesMessages])
def test_a_planted_bug_is_found_with_three_nodes(bug: Callable[[Store], Any]) -> None:
    assert any(simulate_cluster(seed, wrap=bug).wrong for seed in PLANTED)


def test_late_commits_that_are_not_made_to_be_over_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def look_only(_database: Database, _unit: Unit) -> bool:
        return False

    monkeypatch.setattr(Database, "fence", look_only)
    assert any(simulate_cluster(seed).wrong for seed in PLANTED)
