"""Priority and fairness of tasks, and what an operator sets for a task queue."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio.api.taskqueue.v1 import RateLimit
from temporalio.api.workflowservice.v1 import UpdateTaskQueueConfigRequest

from referee.env import Env
from referee.program import program
from referee.raw import RawWorker, command, complete_workflow, schedule_activity

ACTIVITY = "TASK_QUEUE_TYPE_ACTIVITY"
WORKFLOW = "TASK_QUEUE_TYPE_WORKFLOW"
RateLimitUpdate = UpdateTaskQueueConfigRequest.RateLimitUpdate


async def _until_queued(raw: RawWorker, count: int) -> None:
    """Temporal starts a run first and queues its task a little later: one that comes while the
    others are already polled for may overtake them."""
    async with asyncio.timeout(30):
        while True:
            seen = await raw.env.call(
                "DescribeTaskQueue",
                task_queue={"name": raw.queue},
                task_queue_type=WORKFLOW,
                report_stats=True,
            )
            if seen.stats.approximate_backlog_count >= count:
                return
            await asyncio.sleep(0.05)


async def _names(raw: RawWorker, count: int) -> list[str]:
    tasks = [await raw.workflow_task() for _ in range(count)]
    return [task.workflow_execution.workflow_id.rpartition("-")[2] for task in tasks]


@program
async def test_queue_gives_out_by_priority(env: Env) -> None:
    raw = env.raw_worker()
    for name, key in [("low", 5), ("usual", 0), ("high", 1), ("third", 3)]:
        await raw.start(name, priority={"priority_key": key})
    await _until_queued(raw, 4)
    env.note("order", await _names(raw, 4))


@program
async def test_queue_shares_among_fairness_keys(env: Env) -> None:
    raw = env.raw_worker()
    for number in range(20):
        await raw.start(f"a{number}", priority={"fairness_key": "a"})
    for number in range(2):
        await raw.start(f"b{number}", priority={"fairness_key": "b"})
    await _until_queued(raw, 22)
    names = await _names(raw, 22)
    # Temporal throws dice within a key, so only the gist can be compared.
    env.note("the few wait for the many", "b" in {name[0] for name in names[12:]})


@program
async def test_priority_is_inherited_field_by_field(env: Env) -> None:
    raw = env.raw_worker()
    own = {"priority_key": 2, "fairness_key": "k", "fairness_weight": 2}
    await raw.start(priority=own)
    child = command(
        "START_CHILD_WORKFLOW_EXECUTION",
        workflow_id=env.id("child"),
        workflow_type={"name": "Raw"},
        task_queue={"name": env.id("children")},
        priority={"fairness_key": "other"},
    )
    await raw.step(
        schedule_activity("plain", raw.queue),
        schedule_activity("later", raw.queue, priority={"priority_key": 5}),
        child,
    )
    tasks = [await raw.activity_task() for _ in range(2)]
    for task in sorted(tasks, key=lambda task: str(task.activity_id)):
        env.note(task.activity_id, task.priority)
    children = RawWorker(env, env.id("children"))
    await children.workflow_task()
    for suffix in ("", "child"):
        seen = await env.call(
            "DescribeWorkflowExecution", execution={"workflow_id": env.id(suffix)}
        )
        env.note("described", seen.workflow_execution_info.priority)
        env.note("pending", [activity.priority for activity in seen.pending_activities])


@program
async def test_priority_goes_on_with_continue_as_new(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start(priority={"priority_key": 4, "fairness_key": "k"})
    await raw.step(
        command(
            "CONTINUE_AS_NEW_WORKFLOW_EXECUTION",
            workflow_type={"name": "Raw"},
            task_queue={"name": raw.queue},
        )
    )
    await raw.step(complete_workflow())


BAD: list[dict[str, Any]] = [
    {"priority_key": -1},
    {"fairness_key": "x" * 65},
    {"fairness_weight": -1.0},
]


@program
async def test_bad_priority_of_a_workflow(env: Env) -> None:
    for number, priority in enumerate(BAD):
        await env.error("start", env.raw_worker().start(str(number), priority=priority))


@program
async def test_bad_priority_of_an_activity(env: Env) -> None:
    raw = env.raw_worker()
    for number, priority in enumerate(BAD):
        await raw.start(str(number))
        task = await raw.workflow_task()
        wrong = schedule_activity("a", raw.queue, priority=priority)
        await env.error("answer", raw.complete(task, wrong))
        which = {"workflow_id": env.id(str(number))}
        await env.call("TerminateWorkflowExecution", workflow_execution=which)


@program
async def test_bad_priority_of_a_child(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    task = await raw.workflow_task()
    child = command(
        "START_CHILD_WORKFLOW_EXECUTION",
        workflow_id=env.id("child"),
        workflow_type={"name": "Raw"},
        task_queue={"name": raw.queue},
        priority={"priority_key": -1},
    )
    await env.error("answer", raw.complete(task, child))


async def _configure(env: Env, kind: str = ACTIVITY, **fields: Any) -> Any:
    fields.setdefault("task_queue", env.id("queue"))
    return await env.call("UpdateTaskQueueConfig", identity="me", task_queue_type=kind, **fields)


@program
async def test_queue_configured(env: Env) -> None:
    limit = RateLimitUpdate(rate_limit={"requests_per_second": 50}, reason="because")
    env.note("limited", (await _configure(env, update_queue_rate_limit=limit)).config)
    weights = {"a": 2.0, "b": 0.5}
    env.note(
        "weighed",
        len(
            (
                await _configure(env, set_fairness_weight_overrides=weights)
            ).config.fairness_weight_overrides
        ),
    )
    env.note("less", (await _configure(env, unset_fairness_weight_overrides=["a", "no"])).config)
    env.note("free", (await _configure(env, update_queue_rate_limit=RateLimitUpdate())).config)
    seen = await env.call(
        "DescribeTaskQueue",
        task_queue={"name": env.id("queue")},
        task_queue_type=ACTIVITY,
        report_config=True,
    )
    env.note("described", seen.config)


FIVE = RateLimit(requests_per_second=5)

WRONG: list[dict[str, Any]] = [
    {"set_fairness_weight_overrides": {"a": -1.0}},
    {"set_fairness_weight_overrides": {"a": 1.0}, "unset_fairness_weight_overrides": ["a"]},
    {"set_fairness_weight_overrides": {"a" * 70: 1.0}},
    {"update_queue_rate_limit": RateLimitUpdate(rate_limit={"requests_per_second": -5})},
    {"update_queue_rate_limit": RateLimitUpdate(rate_limit=FIVE, reason="r" * 1_001)},
    {
        "update_queue_rate_limit": RateLimitUpdate(rate_limit=FIVE),
        "kind": "TASK_QUEUE_TYPE_WORKFLOW",
    },
]


@program
async def test_queue_configured_wrongly(env: Env) -> None:
    for wrong in WRONG:
        await env.error("answer", _configure(env, **wrong))
