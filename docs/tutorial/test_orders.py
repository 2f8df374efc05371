import asyncio

from retries import pay

import perdure
from approval import Approval


async def approve() -> str:
    async with perdure.connect("memory://") as client, client.worker():
        handle = await client.start(Approval, "a text", id="notice-1")
        await handle.signal(Approval.decide, "approved")
        return await handle.result()


def test_an_approved_text_is_returned() -> None:
    assert asyncio.run(approve()) == "approved: a text"


def test_a_stolen_card_is_declined() -> None:
    result = perdure.execute(pay, "stolen", 1999, target="memory://")
    assert result == "declined: the bank said no"
