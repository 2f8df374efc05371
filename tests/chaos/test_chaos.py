"""Nodes, workers and databases are really killed, and everything ends right."""

from __future__ import annotations

from pathlib import Path

import pytest

from .storm import ORDERS_PER_S, chaos

SECONDS = 180


@pytest.mark.timeout(900)
def test_nothing_is_lost_or_done_twice_while_everything_breaks(tmp_path: Path) -> None:
    report = chaos(tmp_path / "storm", seconds=SECONDS, seed=1)
    assert report.events["replica lost"] == report.events["replica back"] == 1
    assert report.events["promotion"] == 1
    assert report.events["node"] > 0
    assert report.found.runs > 20
    assert report.found.told > 20
    assert report.events["shop"] > 0
    assert report.in_shops.runs > SECONDS * ORDERS_PER_S
