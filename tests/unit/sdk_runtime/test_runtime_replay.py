"""Recorded histories replay; changed code is told what differs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import runtime_programs as programs
from stage import Stage

from perdure.sdk.activity import activity
from perdure.sdk.errors import NonDeterminismError, UnknownTypeError
from perdure.sdk.runtime.replayer import parse_history, replay, to_json
from perdure.sdk.workflow import workflow

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_a_history_of_a_temporal_server_replays(path: Path) -> None:
    replay(path.read_text(), programs.WORKFLOWS)


def test_there_are_histories() -> None:
    assert {path.stem for path in HISTORIES} >= {
        "Approval",
        "cancels",
        "counter",
        "failures",
        "nature",
        "parent",
        "primitives",
        "quick",
        "sequence",
        "until_cancelled",
    }


def _camel(value: Any) -> Any:
    """Enum values as older tools wrote them: `EVENT_TYPE_TIMER_FIRED` as `TimerFired`."""
    if isinstance(value, dict):
        return {key: _camel(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_camel(inner) for inner in value]
    if isinstance(value, str):
        for prefix in ("EVENT_TYPE_", "TASK_QUEUE_KIND_"):
            if value.startswith(prefix):
                words = value.removeprefix(prefix).split("_")
                return "".join(word.capitalize() for word in words)
    return value


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_both_ways_of_writing_enums_are_read(path: Path) -> None:
    new = path.read_text()
    old = json.dumps(_camel(json.loads(new)))
    assert '"WorkflowExecutionStarted"' in old
    assert '"Normal"' in old
    assert parse_history(old) == parse_history(new)
    assert parse_history(to_json(parse_history(old))) == parse_history(new)


def _without(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["eventType"] != kind]


def test_a_history_with_a_gap_is_refused() -> None:
    data = json.loads((Path(__file__).parent / "histories" / "sequence.json").read_text())
    data["events"] = _without(data["events"], "EVENT_TYPE_TIMER_STARTED")
    with pytest.raises(ValueError, match="event 23 is missing"):
        replay(data, programs.WORKFLOWS)


@pytest.mark.parametrize("source", ["", "[]", "{}", '{"events": 3}', '{"events": []}', "nonsense"])
def test_what_is_no_history_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="history"):
        replay(source, programs.WORKFLOWS)


def test_an_unknown_workflow_is_named_with_those_that_are_known() -> None:
    path = next(path for path in HISTORIES if path.stem == "counter")
    with pytest.raises(UnknownTypeError, match=r"'counter'.*child, parent"):
        replay(path.read_text(), [programs.parent, programs.child])


# --- changed code ---------------------------------------------------------------------------------


@activity
async def one(n: int) -> int:
    return n


@activity
async def two(n: int) -> int:
    return n


def _recorded() -> Stage:
    @workflow(name="changing")
    async def before() -> int:
        first = await one(1)
        await asyncio.sleep(10)
        return first

    stage = Stage(before)
    stage.task()
    stage.complete_activity("1", 1)
    stage.task()
    stage.fire_timer("1")
    stage.task()
    assert stage.result == 1
    stage.replay()
    return stage


def test_another_activity_is_a_mismatch_that_shows_both_sides() -> None:
    stage = _recorded()

    @workflow(name="changing")
    async def after() -> int:
        return await two(1)

    with pytest.raises(NonDeterminismError) as caught:
        stage.replay(after)
    text = str(caught.value)
    assert "event 5, ActivityTaskScheduled (activity_id='1', activity_type='one')" in text
    assert "ActivityTaskScheduled (activity_id='1', activity_type='two')" in text
    line = after.function.__code__.co_firstlineno + 2
    assert f"{__file__}:{line}" in text


def test_a_timer_in_place_of_an_activity_is_a_mismatch() -> None:
    stage = _recorded()

    @workflow(name="changing")
    async def after() -> int:
        await asyncio.sleep(5)
        return 1

    with pytest.raises(NonDeterminismError, match=r"the code did: +TimerStarted") as caught:
        stage.replay(after)
    assert f"{__file__}:{after.function.__code__.co_firstlineno + 2}" in str(caught.value)


def test_less_than_history_holds_is_a_mismatch() -> None:
    stage = _recorded()

    @workflow(name="changing")
    async def after() -> int:
        await one(1)
        await workflow.wait_condition(lambda: False)
        return 1

    with pytest.raises(NonDeterminismError, match="nothing at this point"):
        stage.replay(after)


def test_more_than_history_holds_is_a_mismatch() -> None:
    stage = _recorded()

    @workflow(name="changing")
    async def after() -> int:
        pending = asyncio.gather(one(1), two(2))
        await pending
        return 1

    with pytest.raises(NonDeterminismError, match="nothing more from this workflow task"):
        stage.replay(after)


def test_another_result_is_no_mismatch_but_another_end_is() -> None:
    stage = _recorded()

    @workflow(name="changing")
    async def other_result() -> int:
        await one(1)
        await asyncio.sleep(99)
        return 5

    stage.replay(other_result)

    @workflow(name="changing")
    async def other_end() -> int:
        await one(1)
        await asyncio.sleep(99)
        workflow.continue_as_new()

    with pytest.raises(NonDeterminismError, match="WorkflowExecutionContinuedAsNew"):
        stage.replay(other_end)


def test_a_patch_lets_old_and_new_histories_replay() -> None:
    old = _recorded()

    @workflow(name="changing")
    async def patched() -> int:
        first = await one(1)
        if workflow.patched("no-sleep"):
            await two(2)
        else:
            await asyncio.sleep(10)
        return first

    old.replay(patched)
    new = Stage(patched)
    new.task()
    new.complete_activity("1", 1)
    new.task()
    assert new.commands == ["record_marker", "schedule_activity_task"]
    new.complete_activity("2", 2)
    new.task()
    new.replay()

    @workflow(name="changing")
    async def deprecated() -> int:
        first = await one(1)
        workflow.deprecate_patch("no-sleep")
        await two(2)
        return first

    new.replay(deprecated)
    newest = Stage(deprecated)
    newest.task()
    newest.complete_activity("1", 1)
    newest.task()
    newest.replay()
    newest.replay(patched)

    @workflow(name="changing")
    async def without() -> int:
        first = await one(1)
        await two(2)
        return first

    newest.replay(without)
    with pytest.raises(NonDeterminismError, match=r"perdure\.patch"):
        new.replay(without)


def test_a_new_patch_is_not_taken_by_a_run_that_is_past_it() -> None:
    stage = _recorded()
    del stage.history[-3:]  # the run still sleeps
    seen = []

    @workflow(name="changing")
    async def after() -> int:
        await one(1)
        seen.append(workflow.patched("late"))
        await asyncio.sleep(10)
        seen.append(workflow.patched("late"))
        return 1

    stage.replay(after)
    assert seen == [False]
