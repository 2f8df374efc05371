"""Trouble that lasts is told now and then."""

from __future__ import annotations

import logging

import pytest

from perdure.api import trouble
from perdure.api.trouble import Trouble


def test_it_is_told_at_its_beginning_now_and_then_and_at_its_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(trouble.time, "monotonic", lambda: now_s)
    matter = Trouble(logging.getLogger("perdure.tests"), "the moon cannot be seen")
    with caplog.at_level(logging.INFO, "perdure.tests"):
        matter.over()
        for _ in range(100):  # fifty seconds
            matter.met("clouds")
            now_s += 0.5
        matter.over()
        matter.over()
        matter.met("fog")
    assert [record.getMessage() for record in caplog.records] == [
        "the moon cannot be seen: clouds",
        "the moon cannot be seen, for 30 s now: clouds",
        "over after 50.0 s: the moon cannot be seen",
        "the moon cannot be seen: fog",
    ]
