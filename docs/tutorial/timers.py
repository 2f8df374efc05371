import asyncio
from datetime import timedelta

import perdure
from perdure import activity, workflow


@activity
async def ask_for_review(order_id: str) -> str:
    return f"asked about {order_id}"


@activity(heartbeat_timeout=timedelta(seconds=1), auto_heartbeat=True)
async def slow_survey(order_id: str) -> str:
    await asyncio.sleep(3600)
    return "the customer answered"


@workflow
async def follow_up(order_id: str, wait_s: float) -> list[str]:
    await workflow.sleep(timedelta(seconds=wait_s), summary="let the parcel arrive")
    asked = await ask_for_review(order_id)
    try:
        async with asyncio.timeout(wait_s):
            answer = await slow_survey(order_id)
    except TimeoutError:
        answer = "no answer"
    return [asked, answer]


if __name__ == "__main__":
    print(perdure.execute(follow_up, "order-42", 0.5, target="sqlite:///timers.db", id="t-1"))
