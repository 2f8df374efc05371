"""Workflow code that blocks is ended after the worker's own deadlock timeout, and can be mended."""

from __future__ import annotations

from datetime import timedelta

import pytest

import perdure
from perdure import workflow

attempts: list[str] = []


@workflow
async def stuck_once() -> str:
    with workflow.unsafe():
        attempts.append("begun")
        mended = len(attempts) > 1
    while not mended:
        pass
    return "went on"


async def test_the_task_fails_and_the_run_goes_on() -> None:
    attempts.clear()
    async with (
        perdure.connect("memory://") as client,
        client.worker(
            workflows=[stuck_once], activities=[], deadlock_timeout=timedelta(milliseconds=300)
        ),
    ):
        handle = await client.start(stuck_once)
        assert await handle.result() == "went on"
        history = await handle.fetch_history()
    failures = [
        event.workflow_task_failed_event_attributes.failure.message
        for event in history.events
        if event.HasField("workflow_task_failed_event_attributes")
    ]
    assert len(failures) == 1
    assert "deadlock timeout" in failures[0]


async def test_a_deadlock_timeout_of_nothing_is_refused() -> None:
    async with perdure.connect("memory://") as client:
        with pytest.raises(ValueError, match="deadlock_timeout: more than 0"):
            client.worker(workflows=[stuck_once], activities=[], deadlock_timeout=timedelta(0))
        with pytest.raises(ValueError, match="max_activities_per_second"):
            client.worker(workflows=[stuck_once], activities=[], max_activities_per_second=0)
