"""perdure: durable execution in Python.

Write ordinary functions; they run to completion through crashes.

    from perdure import activity, workflow

    @activity
    async def charge(card: str, cents: int) -> str: ...

    @workflow
    async def checkout(order: Order) -> str:
        return await charge(order.card, order.cents)

    async with perdure.connect("sqlite:///orders.db") as client, client.worker():
        receipt = await client.execute(checkout, order, id="order-42")
"""

import builtins
from typing import Any

from lazy_loader import attach_stub

from perdure.api import protocol  # noqa: F401  before all that imports messages

# What there is, and where, says __init__.pyi; each name is loaded when it is first asked for.
_load, __dir__, _names = attach_stub(__name__, __file__)
__all__ = [name for name in _names if name not in vars(builtins)]  # for `import *`: TimeoutError


def __getattr__(name: str) -> Any:
    value = globals()[name] = _load(name)  # found at once the next time
    return value
