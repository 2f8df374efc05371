"""Recorded histories, tried with today's code."""

from __future__ import annotations

import json

import pytest
from google.protobuf import json_format
from temporalio.api.history.v1 import History

from perdure import NonDeterminismError, activity, workflow
from perdure.testing import Replayer, environment


@activity
async def first() -> int:
    return 1


@activity
async def second() -> int:
    return 2


@workflow(name="steps")
async def steps() -> int:
    return await first() + await second()


@workflow(name="steps")
async def other_steps() -> int:
    return await second() + await first()


async def recorded() -> str:
    async with (
        environment() as env,
        env.client.worker(workflows=[steps], activities=[first, second]),
    ):
        handle = await env.client.start(steps)
        assert await handle.result() == 3
        events = [event async for event in handle.history()]
    return json.dumps(json_format.MessageToDict(History(events=events)))


async def test_the_same_code_replays() -> None:
    Replayer([steps]).replay(await recorded())


async def test_a_fetched_history_replays() -> None:
    async with (
        environment() as env,
        env.client.worker(workflows=[steps], activities=[first, second]),
    ):
        handle = await env.client.start(steps)
        await handle.result()
        Replayer([steps]).replay(await handle.fetch_history())


async def test_other_code_does_not_and_is_told_why() -> None:
    history = await recorded()
    with pytest.raises(NonDeterminismError, match="first"):
        Replayer([other_steps]).replay(history)
    results = Replayer([other_steps]).replay_all({"one": history, "none": "{}"})
    assert [result.ok for result in results] == [False, False]
    assert "one" in str(results[0])
    assert all(result.ok for result in Replayer([steps]).replay_all({"one": history}))
