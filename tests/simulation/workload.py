"""What the simulation runs: workflows that interpret plans, and the ledger of what was promised."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from perdure import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    RetryPolicy,
    activity,
    workflow,
)

from .refusals import Evidence

Step = list[Any]
ANYTHING = "*"
KINDS = ("step", "steps", "timer", "local", "dice", "child", "tell", "race", "broken", "again")


@dataclass
class Plan:
    """One workflow: its steps, and how often it is signalled and updated before it may end."""

    id: str
    steps: list[Step]
    signals: int = 0
    updates: int = 0
    cancel: bool = False
    fails: bool = False


@dataclass
class Ledger:
    """What happened outside of the store, by the simulation's own books."""

    rng: random.Random
    evidence: Evidence
    clocks_differ_ns: int = 0  # by how much the clocks of nodes may differ
    started: set[str] = field(default_factory=set)  # acknowledged: workflow ids
    signals: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    updates: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    cancelled: set[str] = field(default_factory=set)
    results: dict[str, Any] = field(default_factory=dict)
    began: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    completed: list[tuple[int, int]] = field(default_factory=list)  # run key, scheduled event id


class World:
    """The ledger that activities write to: one simulation at a time."""

    ledger: Ledger


def _began() -> Ledger:
    info = activity.info()
    ledger = World.ledger
    now_ns = asyncio.get_running_loop().now_ns()  # type: ignore[attr-defined]
    ledger.began[info.workflow_run_id, info.activity_id].append(now_ns)
    return ledger


@activity(
    start_to_close_timeout=timedelta(seconds=30),
    retry=RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=8)),
)
async def work(number: int) -> int:
    ledger = _began()
    await asyncio.sleep(ledger.rng.random() * ledger.rng.choice([0.01, 0.01, 2.0]))
    if ledger.rng.random() < 0.2:
        raise RuntimeError("at random")
    return number * 2


@activity(start_to_close_timeout=timedelta(seconds=30))
async def quick(number: int) -> int:
    if World.ledger.rng.random() < 0.2:
        raise RuntimeError("at random")
    return number * 2


@activity(start_to_close_timeout=timedelta(seconds=20), heartbeat_timeout=timedelta(seconds=5))
async def slow() -> str:
    _began()
    for _ in range(5):
        activity.heartbeat()
        await asyncio.sleep(1)
    return "done"


@activity(start_to_close_timeout=timedelta(seconds=30))
async def broken() -> None:
    _began()
    raise ApplicationError("for good", type="Broken", non_retryable=True)


@workflow
class Program:
    """Does what its plan says, and ends when it has been signalled and updated as often."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.done: list[str] = []

    @workflow.run
    async def run(self, plan: Plan, results: list[Any], names: list[str]) -> list[Any]:
        self.names[:0] = names
        for position, step in enumerate(plan.steps):
            if step[0] == "again":
                rest = Plan(**{**vars(plan), "steps": plan.steps[position + 1 :]})
                workflow.continue_as_new(rest, [*results, "again"], self.names)
            results.append(await getattr(self, f"_{step[0]}")(*step[1:]))
        await workflow.wait_condition(
            lambda: self._heard(plan) and workflow.all_handlers_finished()
        )
        if plan.fails:
            raise ApplicationError("as planned", type="Planned")
        return results

    def _heard(self, plan: Plan) -> bool:
        own = {name for name in self.names if name.startswith(f"{plan.id}/")}
        return len(own) >= plan.signals and len(set(self.done)) >= plan.updates

    @workflow.signal
    def poke(self, name: str) -> None:
        self.names.append(name)

    @workflow.query
    def heard(self) -> list[str]:
        return self.names

    @workflow.update
    async def amend(self, name: str) -> str:
        if name.endswith("bad"):
            self.done.append(name)
            raise ApplicationError(name, type="Bad")
        await work(1)
        self.done.append(name)
        return f"did {name}"

    async def _step(self, number: int) -> int:
        return await work(number)

    async def _steps(self, numbers: list[int]) -> list[int]:
        return list(await asyncio.gather(*(work(number) for number in numbers)))

    async def _timer(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "slept"

    async def _local(self, number: int) -> int:
        return await quick.local(number)

    async def _dice(self) -> int:
        thrown: int = workflow.side_effect(lambda: World.ledger.rng.randrange(6), int)
        return thrown

    async def _child(self, plan: dict[str, Any]) -> Any:
        made = Plan(**plan)
        try:
            return await workflow.execute_child(Program.run, made, [], [], id=made.id)
        except ChildWorkflowError:
            return "child failed"

    async def _tell(self, target: str, name: str) -> str:
        try:
            await workflow.external(target).signal(Program.poke, name)
        except ApplicationError:
            return f"missed {name}"
        return f"told {name}"

    async def _race(self, seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                await slow()
        except TimeoutError:
            pass
        return "raced"

    async def _broken(self) -> str:
        try:
            await broken()
        except ActivityError:
            return "broken"
        return "mended"


WORKFLOWS = [Program]
ACTIVITIES = [work, quick, slow, broken]


def expected(plan: Plan) -> list[Any] | str:
    """What the plan must come to; ANYTHING where chance decides."""
    if plan.fails:
        return "failed"
    return [_expected(step) for step in plan.steps]


def _expected(step: Step) -> Any:
    match step:
        case ["step" | "local", number]:
            return number * 2
        case ["steps", numbers]:
            return [number * 2 for number in numbers]
        case ["child", plan]:
            result = expected(Plan(**plan))
            return "child failed" if result == "failed" else result
    fixed = {"timer": "slept", "race": "raced", "broken": "broken", "again": "again"}
    return fixed.get(step[0], ANYTHING)


def agrees(result: Any, wanted: Any) -> bool:
    """Whether a result is what was expected."""
    if wanted == ANYTHING:
        return True
    if isinstance(wanted, list) and isinstance(result, list):
        return len(result) == len(wanted) and all(map(agrees, result, wanted))
    return bool(result == wanted)


def make_plans(rng: random.Random) -> list[Plan]:
    """A few workflows that know of each other."""
    ids = [f"w{n}" for n in range(rng.randint(1, 4))]
    return [_plan(rng, workflow_id, ids, 0) for workflow_id in ids]


def _plan(rng: random.Random, workflow_id: str, ids: list[str], depth: int) -> Plan:
    root = depth == 0
    plan = Plan(workflow_id, [], fails=rng.random() < 0.1)
    if root:
        plan.signals = rng.choice([0, 0, 1, 4, 12])
        plan.updates = rng.choice([0, 0, 0, 1, 3])
        plan.cancel = rng.random() < 0.15
    for position in range(rng.randint(1, 5)):
        kind = rng.choice(KINDS)
        if (kind == "again" and (plan.updates or not root)) or (kind == "child" and depth > 1):
            kind = "step"
        plan.steps.append(_step(rng, kind, f"{workflow_id}.{position}", ids, depth))
    return plan


def _step(rng: random.Random, kind: str, name: str, ids: list[str], depth: int) -> Step:
    match kind:
        case "step" | "local":
            return [kind, rng.randrange(100)]
        case "steps":
            return [kind, [rng.randrange(100) for _ in range(rng.randint(2, 5))]]
        case "timer":
            return [kind, rng.choice([0.001, 0.5, 3, 60])]
        case "race":
            return [kind, rng.choice([0.5, 3.0])]
        case "tell":
            return [kind, rng.choice(ids), name]
        case "child":
            return [kind, vars(_plan(rng, f"{name}.c", ids, depth + 1))]
    return [kind]
