"""Tests that are `virtual` run over a node on SQLite, in memory, and over one on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import skipping_loop
from api_stage import Ground, stand_on

from perdure.service import neighbours
from perdure.store.postgres import PostgresStore

_BEATS_APART_S = 600.0
"""Hours pass in no time, and each sign of life is a statement that nobody waits for here."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a node by itself on both databases."""
    if getattr(metafunc.function, "is_virtual", False):
        metafunc.parametrize("ground", ["memory", "postgres"], indirect=True)


@pytest.fixture(autouse=True)
def ground(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the test stands on."""
    if getattr(request, "param", "memory") == "postgres":
        dsn: str = request.getfixturevalue("postgres_dsn")
        usage = skipping_loop.Usage(monkeypatch)
        monkeypatch.setattr(neighbours, "BEAT_S", _BEATS_APART_S)
        stand_on(
            Ground(
                lambda: PostgresStore(dsn),
                lambda main: skipping_loop.run(main, lambda: usage.count > 0),
            )
        )
    yield
    stand_on(Ground())
