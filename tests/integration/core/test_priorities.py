"""Which waiting task goes first: priorities, fairness keys, and what is set for a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from harness import QUEUE, Harness, activity_command, settle
from temporalio.api.common.v1 import Priority
from temporalio.api.enums.v1 import RateLimitSource
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    PollActivityTaskQueueRequest,
    RespondActivityTaskFailedRequest,
    UpdateTaskQueueConfigRequest,
)

from perdure.api.errors import InvalidArgument, ResourceExhausted, Unimplemented
from perdure.service.settings import Settings
from perdure.store.contract import Store

WORKFLOW, ACTIVITY = 1, 2


@pytest.fixture
async def stored(on_disk: Callable[[], Store]) -> AsyncIterator[Harness]:
    harness = await Harness(on_disk).open()
    yield harness
    await harness.close()


async def config_of(node: Harness, kind: int) -> Any:
    request = DescribeTaskQueueRequest(
        namespace="default",
        task_queue=TaskQueue(name=QUEUE),
        task_queue_type=kind,
        report_config=True,
    )
    return await node.service.describe_task_queue(request)


async def order(node: Harness, count: int) -> list[str]:
    """The workflow ids of the next workflow tasks."""
    return [(await node.take()).workflow_execution.workflow_id for _ in range(count)]


def of(key: str, weight: float = 0, level: int = 0) -> Priority:
    return Priority(priority_key=level, fairness_key=key, fairness_weight=weight)


async def test_a_lower_priority_key_goes_first(node: Harness) -> None:
    for name, key in [("low", 5), ("usual", 0), ("high", 1), ("third", 3), ("beyond", 99)]:
        await node.start(name, priority=Priority(priority_key=key))
    assert await order(node, 5) == ["high", "usual", "third", "low", "beyond"]


async def test_an_activity_goes_before_those_of_its_workflow(node: Harness) -> None:
    await node.start("wf", priority=Priority(priority_key=4))
    urgent = activity_command("urgent", priority=Priority(priority_key=2))
    await node.complete(await node.take(), activity_command("a"), activity_command("b"), urgent)
    tasks = [await node.take_activity() for _ in range(3)]
    assert [task.activity_id for task in tasks] == ["urgent", "a", "b"]
    assert [task.priority.priority_key for task in tasks] == [2, 4, 4]


async def test_each_fairness_key_gets_its_share(node: Harness) -> None:
    for number in range(6):
        await node.start(f"a{number}", priority=of("a"))
    for number in range(2):
        await node.start(f"b{number}", priority=of("b"))
    assert sorted(await order(node, 4)) == ["a0", "a1", "b0", "b1"]
    assert await order(node, 4) == ["a2", "a3", "a4", "a5"]


async def test_the_order_outlives_the_node(stored: Harness) -> None:
    node = stored
    for number in range(4):
        await node.start(f"a{number}", priority=of("a"))
    await node.start("first", priority=of("", level=1))
    await node.reopen()
    await node.start("a4", priority=of("a"))
    await node.start("b0", priority=of("b"))
    assert await order(node, 1) == ["first"]
    assert "b0" in await order(node, 3)
    assert (await order(node, 3))[-1] == "a4"


async def test_an_attempt_that_waits_again_keeps_its_priority(node: Harness) -> None:
    await node.start("wf")
    first = activity_command("first", priority=Priority(priority_key=1))
    await node.complete(await node.take(), first)
    task = await node.take_activity()
    await node.service.respond_activity_task_failed(
        RespondActivityTaskFailedRequest(namespace="default", task_token=task.task_token)
    )
    await node.start("other", priority=Priority(priority_key=3))
    await node.complete(await node.take(), activity_command("second"))
    await node.clock.advance(2)
    assert [(await node.take_activity()).activity_id for _ in range(2)] == ["first", "second"]


# -- what is set for a queue -----------------------------------------------------------------------


async def configured(node: Harness, kind: int = ACTIVITY, **fields: Any) -> Any:
    request = UpdateTaskQueueConfigRequest(
        namespace="default", task_queue=QUEUE, task_queue_type=kind, identity="me", **fields
    )
    return (await node.service.update_task_queue_config(request)).config


def at(per_second: float | None) -> UpdateTaskQueueConfigRequest.RateLimitUpdate:
    update = UpdateTaskQueueConfigRequest.RateLimitUpdate(reason="because")
    if per_second is not None:
        update.rate_limit.requests_per_second = per_second
    return update


async def some_activities(node: Harness, count: int) -> None:
    await node.start("wf")
    commands = [activity_command(f"a{number}") for number in range(count)]
    await node.complete(await node.take(), *commands)


async def test_a_rate_set_by_an_operator_holds_at_once_and_after_a_restart(
    stored: Harness,
) -> None:
    node = stored
    await configured(node, update_queue_rate_limit=at(1))
    await some_activities(node, 4)
    for _ in range(2):
        polls = [node.poll_activity() for _ in range(2)]
        await settle()
        assert sum(poll.done() for poll in polls) == 1
        await node.clock.advance(1)
        assert all(poll.done() for poll in polls)
        await node.reopen()
        await node.clock.advance(1)


async def test_an_operators_rate_goes_before_a_workers(node: Harness) -> None:
    request = PollActivityTaskQueueRequest(namespace="default", task_queue=TaskQueue(name=QUEUE))
    request.task_queue_metadata.max_tasks_per_second.value = 7
    poll = asyncio.ensure_future(node.service.poll_activity_task_queue(request))
    await settle()

    async def effective() -> tuple[float, str]:
        described = await config_of(node, ACTIVITY)
        shown = described.effective_rate_limit
        return shown.requests_per_second, RateLimitSource.Name(shown.rate_limit_source)

    assert await effective() == (7, "RATE_LIMIT_SOURCE_WORKER")
    await configured(node, update_queue_rate_limit=at(2))
    assert await effective() == (2, "RATE_LIMIT_SOURCE_API")
    config = await configured(node, update_queue_rate_limit=at(None))
    assert not config.queue_rate_limit.HasField("rate_limit")
    assert await effective() == (7, "RATE_LIMIT_SOURCE_WORKER")
    poll.cancel()


async def test_weights_set_by_an_operator(node: Harness) -> None:
    await configured(node, WORKFLOW, set_fairness_weight_overrides={"b": 3, "gone": 9})
    config = await configured(node, WORKFLOW, unset_fairness_weight_overrides=["gone", "never"])
    assert dict(config.fairness_weight_overrides) == {"b": 3}
    for number in range(4):
        await node.start(f"a{number}", priority=of("a"))
    for number in range(4):
        await node.start(f"b{number}", priority=of("b"))
    assert sorted(await order(node, 4)) == ["a0", "b0", "b1", "b2"]
    shown = await config_of(node, WORKFLOW)
    assert dict(shown.config.fairness_weight_overrides) == {"b": 3}


async def test_changes_at_once_are_all_kept(node: Harness) -> None:
    weights = [{f"key-{number}": number + 1.0} for number in range(5)]
    await asyncio.gather(
        *(configured(node, WORKFLOW, set_fairness_weight_overrides=one) for one in weights)
    )
    shown = await config_of(node, WORKFLOW)
    assert len(shown.config.fairness_weight_overrides) == 5


async def test_too_many_weights(node: Harness) -> None:
    many = {f"key-{number}": 1.0 for number in range(1_001)}
    with pytest.raises(InvalidArgument, match="at most 1000 fairness weight overrides"):
        await configured(node, set_fairness_weight_overrides=many)


async def test_a_limit_for_each_key_is_not_offered(node: Harness) -> None:
    with pytest.raises(Unimplemented, match="limit the queue, or set weights"):
        await configured(node, update_fairness_key_rate_limit_default=at(1))


async def test_too_many_queues_with_a_configuration(make_store: Callable[[], Store]) -> None:
    node = await Harness(make_store, Settings(configured_task_queues_max=1)).open()
    await configured(node, ACTIVITY, update_queue_rate_limit=at(1))
    await configured(node, ACTIVITY, update_queue_rate_limit=at(2))
    with pytest.raises(ResourceExhausted, match="configured_task_queues_max"):
        await configured(node, WORKFLOW, set_fairness_weight_overrides={"k": 2})
    await node.close()
