"""A worker's limit of activities per second holds for its whole task queue."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from perdure import activity, workflow
from targets import environment

begun: list[datetime] = []


@activity(start_to_close_timeout=timedelta(minutes=5))
async def note() -> None:
    begun.append(activity.info().started_time)


@workflow
async def many(count: int) -> None:
    await asyncio.gather(*(note() for _ in range(count)))


async def test_activities_are_given_out_at_their_rate() -> None:
    begun.clear()
    async with environment() as env:
        first = env.client.worker(workflows=[many], activities=[note], max_activities_per_second=2)
        second = env.client.worker(workflows=[many], activities=[note], max_activities_per_second=2)
        async with first, second:
            await env.client.execute(many, 11)
    assert len(begun) == 11
    assert max(begun) - min(begun) >= timedelta(seconds=3.9)  # two at once, then every half second
