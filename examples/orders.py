"""Orders: a saga. Charge, ship, and give the money back if the goods cannot be shipped.

    python examples/orders.py                 # 20 orders, state in orders.db
    python examples/orders.py --orders 200

Kill it whenever you like and start it again: it goes on where it was cut off, and no order is
charged or shipped twice. The functions below say what happens to an order, nothing about failures
of machines: how often a call is tried again is declared beside it, and going on after a crash is
perdure's work.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

import outside
import perdure
from perdure import ActivityError, Client, RetryPolicy, activity, workflow

PATIENT = RetryPolicy(
    initial_interval=timedelta(milliseconds=20),
    maximum_interval=timedelta(milliseconds=200),
    non_retryable_error_types=[outside.AddressUnknown],
)


@dataclass
class Order:
    id: str
    card: str
    cents: int
    address: str
    review_after_s: float = 0.1


@dataclass
class Receipt:
    payment: str
    tracking: str


@activity(start_to_close_timeout=timedelta(seconds=10), retry=PATIENT)
async def charge(card: str, cents: int) -> str:
    """Take money from a card; returns the payment's number."""
    key = outside.call_key()
    await outside.call("payments", key)
    outside.note_once("payments", key, cents=cents, card=card)
    return f"payment-{key}"


@activity(start_to_close_timeout=timedelta(seconds=10), retry=PATIENT)
async def refund(payment: str, cents: int) -> None:
    """Give the money of a payment back."""
    await outside.call("payments", outside.call_key())
    outside.note_once("payments", f"refund of {payment}", cents=-cents)


@activity(start_to_close_timeout=timedelta(seconds=10), retry=PATIENT)
async def ship(order_id: str, address: str) -> str:
    """Hand the goods to the parcel service; returns the tracking number."""
    key = outside.call_key()
    await outside.call("parcels", key)
    if address == "nowhere":
        raise outside.AddressUnknown(f"no delivery to {address!r}")
    outside.note_once("parcels", key, order=order_id)
    return f"parcel-{order_id}"


@activity(start_to_close_timeout=timedelta(seconds=10), retry=PATIENT)
def ask_for_review(order_id: str) -> None:
    """Write to the customer. A plain function: it runs in a thread."""
    outside.note("call", "mail", outside.call_key())
    outside.note_once("mail", order_id)


@workflow
async def checkout(order: Order) -> Receipt:
    """What happens to one order, from the payment to the letter weeks later."""
    payment = await charge(order.card, order.cents)
    try:
        tracking = await ship(order.id, order.address)
    except ActivityError:
        await refund(payment, order.cents)
        raise
    await asyncio.sleep(order.review_after_s)  # a durable timer; it could as well be two weeks
    await ask_for_review(order.id)
    return Receipt(payment, tracking)


def make_orders(count: int) -> list[Order]:
    """The same orders every time; each fifth goes to an address that does not exist."""
    return [
        Order(
            id=f"order-{n}",
            card=f"card-{n % 7}",
            cents=1000 + 37 * n,
            address="nowhere" if n % 5 == 4 else f"{n} Main Street",
        )
        for n in range(count)
    ]


async def place(client: Client, order: Order) -> str:
    """Place one order, or find it again if it was placed before; returns how it ended.

    The request id says which placing this is: the same one twice gets the same run, open or closed.
    """
    handle = await client.start(checkout, order, id=order.id, request_id=order.id)
    try:
        await handle.result()
    except perdure.WorkflowFailedError:
        return "refunded"
    return "shipped"


async def run(client: Client, count: int, *, quiet: bool = False) -> Counter[str]:
    """Place all orders at once and wait for their ends."""
    outcomes: Counter[str] = Counter()

    async def one(order: Order) -> None:
        outcome = await place(client, order)
        outcomes[outcome] += 1
        if not quiet:
            print(f"  {order.id:10} {outcome:9} ({outcomes.total()}/{count})", flush=True)

    await asyncio.gather(*(one(order) for order in make_orders(count)))
    return outcomes


async def main(arguments: argparse.Namespace) -> None:
    async with perdure.connect(arguments.db) as client, client.worker():
        outcomes = await run(client, arguments.orders)
    print(f"{outcomes['shipped']} shipped, {outcomes['refunded']} refunded")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--db", default="sqlite:///orders.db", help="where runs are kept")
    parser.add_argument("--orders", type=int, default=20, help="how many orders to place")
    try:
        asyncio.run(main(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit("interrupted; start it again to go on")
