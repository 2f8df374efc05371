"""Workflow code that blocks is named, and ended in the end."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from stage import Stage

from perdure.sdk.runtime import run as run_module
from perdure.sdk.runtime.watchdog import Watchdog
from perdure.sdk.workflow import workflow


class _Blocker:
    """A workflow that blocks in Python code until the watchdog has looked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.watchdog = Watchdog()
        monkeypatch.setattr(run_module, "WATCHDOG", self.watchdog)
        self.inside = threading.Event()
        self.looked = threading.Event()

    def program(self) -> Any:
        @workflow(name="blocking")
        async def blocking() -> str:
            self.inside.set()
            while not self.looked.is_set():
                pass
            return "through"

        return blocking

    def run(self, look: Any) -> Stage:
        """Run the program while another thread looks."""
        stage = Stage(self.program())

        def watch() -> None:
            self.inside.wait(10)
            try:
                look()
            finally:
                self.looked.set()

        thread = threading.Thread(target=watch)
        thread.start()
        stage.task()
        thread.join()
        return stage


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    texts = [record.getMessage() for record in caplog.records]
    return [text for text in texts if "without waiting" in text]


def test_a_short_block_is_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocker = _Blocker(monkeypatch)

    def look() -> None:
        blocker.watchdog.check(100.0)
        blocker.watchdog.check(101.9)

    stage = blocker.run(look)
    assert stage.result == "through"
    assert _warnings(caplog) == []


def test_a_block_is_named_once_with_its_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocker = _Blocker(monkeypatch)

    def look() -> None:
        for now_s in (100.0, 102.5, 103.0, 119.0):
            blocker.watchdog.check(now_s)

    with caplog.at_level(logging.WARNING):
        stage = blocker.run(look)
    assert stage.result == "through"
    (text,) = _warnings(caplog)
    assert "'blocking' (id 'stage')" in text
    assert "2.5 s" in text
    assert f"{__file__}:" in text or "threading.py" in text


def test_a_long_block_fails_the_task_and_leaves_the_thread_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocker = _Blocker(monkeypatch)
    raised = threading.Event()

    def look() -> None:
        blocker.watchdog.check(100.0)
        blocker.watchdog.check(121.0)
        raised.wait(0.2)

    stage = blocker.run(look)
    assert "deadlock timeout" in stage.error
    for _ in range(1000):  # a stray exception would be raised here
        pass


def test_an_exception_that_comes_too_late_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog = Watchdog()
    slot = watchdog.enter(None)  # type: ignore[arg-type]
    count = slot.count
    watchdog.check(1.0)
    slot.count += 2  # the code has ended, and other code runs by now
    watchdog._raise(slot, count)
    watchdog.leave(slot)
    assert not slot.raising


def test_the_thread_ends_with_the_last_worker() -> None:
    watchdog = Watchdog()
    watchdog.start(20)
    watchdog.start(0.4)
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("perdure-watchdog") >= 1
    watchdog.stop()
    assert not watchdog._stop.is_set()
    watchdog.stop()
    assert watchdog._stop.is_set()
