"""Runs that find no room in the worker's cache are replayed, and end all the same."""

from __future__ import annotations

import asyncio

import pytest

from perdure import activity, workflow
from perdure.testing import environment


@activity
async def add(a: int, b: int) -> int:
    return a + b


@workflow
async def total(numbers: int) -> int:
    result = 0
    for number in range(numbers):
        result = await add(result, number)
        await asyncio.sleep(60)
    return result


@pytest.mark.parametrize("size", [0, 1, 2])
async def test_any_cache_size_gives_the_same_result(size: int) -> None:
    async with (
        environment() as env,
        env.client.worker(workflows=[total], activities=[add], max_cached_runs=size),
    ):
        runs = [env.client.execute(total, 5) for _ in range(4)]
        assert await asyncio.gather(*runs) == [10] * 4
