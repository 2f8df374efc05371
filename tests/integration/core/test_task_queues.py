"""What a task queue's description tells: its backlog and its pollers, in both modes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from harness import QUEUE, Harness, activity_command, settle
from temporalio.api.common.v1 import Priority
from temporalio.api.taskqueue.v1 import TaskQueue, TaskQueueStats
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    PollActivityTaskQueueRequest,
)

WORKFLOW, ACTIVITY, NEXUS = 1, 2, 3
ENHANCED = 1


async def described(node: Harness, **fields: Any) -> DescribeTaskQueueResponse:
    request = DescribeTaskQueueRequest(
        namespace="default", task_queue=TaskQueue(name=QUEUE), **fields
    )
    answer: DescribeTaskQueueResponse = await node.service.describe_task_queue(request)
    return answer


def told(stats: TaskQueueStats) -> tuple[int, int]:
    """(tasks that wait, seconds for which the oldest does)."""
    return stats.approximate_backlog_count, stats.approximate_backlog_age.seconds


async def test_the_backlog_with_its_age(node: Harness) -> None:
    for number in range(3):
        await node.start(f"wf-{number}")
        await node.clock.advance(1)
    answer = await described(node, report_stats=True)
    assert told(answer.stats) == (3, 3)
    assert told(answer.stats_by_priority_key[3]) == (3, 3)
    assert not (await described(node)).HasField("stats")
    await node.take()
    assert told((await described(node, report_stats=True)).stats) == (2, 2)


async def test_the_enhanced_mode_shows_both_types(node: Harness) -> None:
    await node.start("wf-0")
    await node.complete(await node.take(), activity_command("a"), activity_command("b"))
    await node.start("wf-1")
    await node.clock.advance(2)
    types = (await described(node, api_mode=ENHANCED)).versions_info[""].types_info
    assert {kind: told(info.stats) for kind, info in types.items()} == {
        WORKFLOW: (1, 2),
        ACTIVITY: (2, 2),
    }
    assert [poller.identity for poller in types[WORKFLOW].pollers] == ["worker"]
    assert not types[ACTIVITY].pollers


async def test_the_enhanced_mode_shows_what_is_asked_for(node: Harness) -> None:
    poll = node.poll_activity()
    await settle()
    asked = [ACTIVITY, ACTIVITY, NEXUS, 17]
    answer = await described(node, api_mode=ENHANCED, task_queue_types=asked)
    types = answer.versions_info[""].types_info
    assert list(types) == [ACTIVITY]
    assert told(types[ACTIVITY].stats) == (0, 0)
    assert [poller.identity for poller in types[ACTIVITY].pollers] == ["worker"]
    poll.cancel()


async def test_a_poll_that_is_open_for_long_is_seen_now(node: Harness) -> None:
    poll = node.poll()
    await settle()
    await node.clock.advance(30)
    [poller] = (await described(node)).pollers
    assert poller.last_access_time.ToNanoseconds() == node.clock.now_ns()
    poll.cancel()


# -- how fast tasks come and go --------------------------------------------------------------------


async def test_rates_of_the_last_half_minute(node: Harness) -> None:
    for number in range(20):
        await node.start(f"wf-{number}")
        await node.clock.advance(1)
    for _ in range(10):
        await node.take()
    stats = (await described(node, report_stats=True)).stats
    assert stats.tasks_add_rate == pytest.approx(1, rel=0.3)
    assert stats.tasks_dispatch_rate == pytest.approx(stats.tasks_add_rate / 2, rel=0.01)
    await node.clock.advance(60)
    stats = (await described(node, report_stats=True)).stats
    assert (stats.tasks_add_rate, stats.tasks_dispatch_rate) == (0, 0)


async def test_statistics_by_priority(node: Harness) -> None:
    for name, key in [("a", 1), ("b", 1), ("c", 5)]:
        await node.start(name, priority=Priority(priority_key=key))
        await node.clock.advance(1)
    shown = (await described(node, report_stats=True)).stats_by_priority_key
    assert {level: told(stats)[0] for level, stats in shown.items()} == {1: 2, 3: 0, 5: 1}
    assert shown[1].tasks_add_rate > shown[5].tasks_add_rate > 0 == shown[3].tasks_add_rate


# -- the rate of a queue ---------------------------------------------------------------------------


async def test_eager_activities_take_their_share_of_the_rate(node: Harness) -> None:
    asked = PollActivityTaskQueueRequest(namespace="default", task_queue=TaskQueue(name=QUEUE))
    asked.task_queue_metadata.max_tasks_per_second.value = 1
    poll = asyncio.ensure_future(node.service.poll_activity_task_queue(asked))
    await settle()
    poll.cancel()
    await node.start()
    commands = [activity_command(name, eager=True) for name in "abc"]
    answer = await node.complete(await node.take(), *commands)
    assert [task.activity_id for task in answer.activity_tasks] == ["a"]
    second = node.poll_activity()
    await settle()
    assert not second.done()
    await node.clock.advance(1)
    assert (await second).activity_id == "b"
