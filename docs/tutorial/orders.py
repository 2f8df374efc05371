import asyncio
from dataclasses import dataclass
from pathlib import Path

import perdure
from perdure import activity, workflow


@dataclass
class Order:
    id: str
    card: str
    cents: int


@dataclass
class Receipt:
    payment: str
    tracking: str


def note(line: str) -> None:
    print(line, flush=True)
    with Path("ledger.txt").open("a") as ledger:
        ledger.write(line + "\n")


@activity
async def charge(card: str, cents: int) -> str:
    note(f"charge {cents} cents to {card}")
    return "payment-1"


@activity
def pack(order_id: str) -> None:
    note(f"pack {order_id}")


@activity
def ship(order_id: str) -> str:
    note(f"ship {order_id}")
    return "parcel-1"


@workflow
async def checkout(order: Order) -> Receipt:
    payment = await charge(order.card, order.cents)
    await pack(order.id)
    await asyncio.sleep(10)  # the parcel service comes by
    tracking = await ship(order.id)
    return Receipt(payment, tracking)


async def main() -> None:
    order = Order("order-42", "card-7", 1999)
    async with perdure.connect("sqlite:///orders.db") as client, client.worker():
        handle = await client.start(checkout, order, id=order.id, request_id=order.id)
        print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main())
