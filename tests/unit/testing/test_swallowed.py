"""A forbidden call fails its workflow task even when the code swallows the error."""

from __future__ import annotations

import asyncio
import contextlib

from perdure import workflow
from perdure.testing import environment


@workflow
async def swallower() -> str:
    with contextlib.suppress(Exception):
        open("/etc/hostname").close()  # noqa: ASYNC230
    return "as if nothing had happened"


async def test_what_is_swallowed_is_not_forgiven() -> None:
    async with environment() as env, env.client.worker(workflows=[swallower], activities=[]):
        handle = await env.client.start(swallower)
        for _ in range(200):
            names = [event.event_type async for event in handle.history()]
            if 9 in names:  # WorkflowTaskFailed
                break
            await asyncio.sleep(0.01)
        assert 9 in names
        assert (await handle.describe()).status.name == "RUNNING"
