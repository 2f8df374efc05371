"""A node that cannot start leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from perdure.service.node import Node
from perdure.store.contract import Store, StoreUnavailable


@pytest.mark.parametrize(
    "step", ["namespaces.open", "matching.open", "courier.open", "alarms.open", "ids.open"]
)
async def test_a_node_that_cannot_start_leaves_no_task(
    make_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def fail(*_: object) -> None:
        raise StoreUnavailable("gone")

    await (await Node.open(make_store())).close()  # the tables are there
    before = asyncio.all_tasks()
    node = Node(make_store())
    part, _, method = step.partition(".")
    monkeypatch.setattr(getattr(node, part), method, fail)
    with pytest.raises(StoreUnavailable, match="gone"):
        await node.start()
    assert asyncio.all_tasks() == before
