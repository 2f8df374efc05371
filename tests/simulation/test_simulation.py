"""Seeds of the simulation, and proof that it can fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from perdure.store.contract import Store, Unit, Write

from .simulate import simulate

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "2000"))
CHUNK = 25
PLANTED = range(60)


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_everything_promised_is_kept(first: int) -> None:
    for seed in range(first, first + CHUNK):
        outcome = simulate(seed)
        assert not outcome.wrong, f"uv run python -m tests.simulation --seed {seed}\n{outcome}"
        assert outcome.events


def test_a_seed_is_the_same_each_time() -> None:
    for seed in range(8):
        assert simulate(seed).digest == simulate(seed).digest
    assert simulate(0).digest != simulate(1).digest


def test_crashes_and_faults_do_happen() -> None:
    outcomes = [simulate(seed) for seed in range(20)]
    assert sum(outcome.crashes for outcome in outcomes) > 5


class Wrapped:
    """A store with a bug; all that is not overridden is the real one's."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.commits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def commit(self, units: Sequence[Unit]) -> list[int]:
        self.commits += 1
        return await self.inner.commit([[self.change(write) for write in u] for u in units])

    def change(self, write: Write) -> Write:
        return write


class Forgetful(Wrapped):
    """Now and then says that a commit is done, and drops it."""

    async def commit(self, units: Sequence[Unit]) -> list[int]:
        self.commits += 1
        if self.commits % 7 == 0:
            return []
        return await self.inner.commit(units)


class LosesItems(Wrapped):
    """Does not store what is pending."""

    def change(self, write: Write) -> Write:
        return msgspec.structs.replace(write, put_items=[])


class LosesMessages(Wrapped):
    """Does not store the outbox."""

    def change(self, write: Write) -> Write:
        return msgspec.structs.replace(write, put_messages=[])


@pytest.mark.parametrize("bug", [Forgetful, LosesItems, LosesMessages])
def test_a_planted_bug_is_found(bug: Callable[[Store], Any]) -> None:
    assert any(simulate(seed, wrap=bug).wrong for seed in PLANTED)
