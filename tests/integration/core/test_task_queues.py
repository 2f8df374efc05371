"""What a task queue's description tells: its backlog and its pollers, in both modes."""

from __future__ import annotations

from typing import Any

from harness import QUEUE, Harness, activity_command, settle
from temporalio.api.taskqueue.v1 import TaskQueue, TaskQueueStats
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, DescribeTaskQueueResponse

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
