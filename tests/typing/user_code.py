"""Code as users write it: a type checker must know every type in it, and find every mistake.

`test_typing.py` runs mypy on this file. A ``type: ignore`` marks a mistake that must be found: with
``warn_unused_ignores`` one that is not found is an error of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, assert_type

import perdure
from perdure import (
    Client,
    RetryPolicy,
    SearchAttributeKey,
    UpdateHandle,
    WorkflowHandle,
    activity,
    workflow,
)


@dataclass
class Order:
    id: str
    card: str
    cents: int


@dataclass
class Receipt:
    payment: str
    tracking: list[str]


@activity(start_to_close_timeout=timedelta(seconds=10), retry=RetryPolicy(maximum_attempts=5))
async def charge(card: str, cents: int, *, note: str = "") -> str:
    return f"{card}{cents}{note}"


@activity
def ship(order_id: str) -> list[str]:
    activity.heartbeat(order_id)
    return [order_id]


@activity(name="crunch", executor="process")
def crunch(numbers: list[int]) -> int:
    return sum(numbers)


class Warehouse:
    @activity
    async def reserve(self, sku: str, count: int = 1) -> bool:
        return bool(sku and count)

    @activity(heartbeat_timeout=timedelta(seconds=5))
    def pack(self, sku: str) -> float:
        return float(len(sku))


warehouse = Warehouse()


@workflow
async def checkout(order: Order) -> Receipt:
    payment = await charge(order.card, order.cents, note="x")
    assert_type(payment, str)
    tracking = await ship(order.id)
    assert_type(tracking, list[str])
    shipping: Coroutine[Any, Any, list[str]] = ship(order.id)
    assert_type(await shipping, list[str])
    assert_type(await crunch([1]), int)
    assert_type(await charge.options(task_queue="x")(order.card, 1), str)
    assert_type(await ship.local(order.id), list[str])
    assert_type(await asyncio.gather(charge("a", 1), ship("b")), tuple[str, list[str]])
    async with asyncio.TaskGroup() as group:
        packed = group.create_task(warehouse.pack("sku"))
    assert_type(packed.result(), float)
    assert_type(await warehouse.reserve("sku"), bool)
    assert_type(await Warehouse.reserve.unbound()("sku", 2), bool)
    await charge(order.cents, order.card)  # type: ignore[arg-type]
    await charge(order.card)  # type: ignore[call-arg]
    await ship(order_id=3)  # type: ignore[arg-type]
    await warehouse.pack(7)  # type: ignore[arg-type]
    await Warehouse.reserve.unbound()(3)  # type: ignore[arg-type]
    charge.options(start_to_close_timeout=10)  # type: ignore[arg-type]
    charge.options(start_to_close=timedelta(1))  # type: ignore[call-arg]
    return Receipt(payment, tracking)


@workflow
async def nightly(day: str, limit: int = 10) -> int:
    return len(day) + limit


@workflow
async def parent(order: Order) -> None:
    assert_type(await checkout(order), Receipt)
    assert_type(await asyncio.gather(checkout(order), nightly("x")), tuple[Receipt, int])
    await checkout("no order")  # type: ignore[arg-type]


@workflow
class Approval:
    def __init__(self) -> None:
        self.decision: str | None = None

    @workflow.run
    async def run(self, document: str) -> str:
        await workflow.wait_condition(lambda: self.decision is not None)
        return f"{document}{self.decision}"

    @workflow.signal
    def decide(self, decision: str) -> None:
        self.decision = decision

    @workflow.query
    def status(self) -> str | None:
        return self.decision

    @workflow.update
    async def amend(self, text: str) -> int:
        return len(text)

    @workflow.update
    def replace(self, text: str, count: int) -> bytes:
        return text.encode() * count


async def use(client: Client, order: Order) -> None:
    assert_type(await client.execute(checkout, order, id="order-42"), Receipt)
    handle = await client.start(checkout, order, run_timeout=timedelta(hours=1))
    assert_type(handle, WorkflowHandle[Receipt])
    assert_type(await handle.result(), Receipt)
    assert_type(await client.execute(nightly, "monday"), int)
    assert_type(await client.execute(nightly, "monday", 5, task_queue="night"), int)
    assert_type(client.handle_of(checkout, "order-42"), WorkflowHandle[Receipt])
    assert_type(client.handle("order-42", result_type=Receipt), WorkflowHandle[Receipt])
    assert_type(await client.execute("checkout", order), Any)

    await client.execute(checkout, "order")  # type: ignore[arg-type]
    await client.execute(checkout)  # type: ignore[call-arg, arg-type]
    await client.start(nightly, "monday", "5")  # type: ignore
    await client.start(checkout, order, timeout=5)  # type: ignore[call-overload]


async def talk(client: Client) -> None:
    handle = await client.start(Approval, "contract", id="contract-7")
    assert_type(handle, WorkflowHandle[str])
    await handle.signal(Approval.decide, "yes")
    assert_type(await handle.query(Approval.status), str | None)
    assert_type(await handle.update(Approval.amend, "text"), int)
    assert_type(await handle.update(Approval.replace, "text", 3), bytes)
    assert_type(await handle.start_update(Approval.amend, "text"), UpdateHandle[int])
    assert_type(await client.execute(Approval, "contract"), str)
    assert_type(client.handle_of(Approval, "contract-7"), WorkflowHandle[str])

    await handle.signal(Approval.decide, 3)  # type: ignore[arg-type]
    await handle.update(Approval.replace, "text", "3")  # type: ignore
    await client.start(Approval, 3)  # type: ignore[misc]


def attributes() -> None:
    customer = SearchAttributeKey.keyword("CustomerId")
    total = SearchAttributeKey.int("TotalCents")
    found = perdure.SearchAttributes({customer: "c-7", total: 12})
    assert_type(found[customer], str)
    assert_type(found.get(total), int | None)
    assert_type(found.get(total, 0), int)


def script(order: Order) -> None:
    assert_type(perdure.execute(checkout, order, id="order-42"), Receipt)
    assert_type(perdure.execute(Approval, "contract", target="memory://"), str)
