"""What runs on the server that is killed: workflows and activities of the official SDK.

Every activity notes its execution in the books of the outside world (see examples/outside.py), with
its run, its id and its attempt: so the checker can tell what really was executed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, CancelledError

import outside

QUEUE = "faults"

TASK_TIMEOUT = timedelta(seconds=2)
"""How long a workflow task may be lost with the process that had it."""

ATTEMPT_TIMEOUT = timedelta(seconds=2)
RETRY = RetryPolicy(initial_interval=timedelta(milliseconds=50), backoff_coefficient=1.0)


@activity.defn
async def pay(key: str) -> str:
    """A step: noted, slow now and then, and often failing."""
    info = activity.info()
    await outside.call(
        "ledger",
        key,
        run_id=info.workflow_run_id,
        activity_id=info.activity_id,
        attempt=info.attempt,
    )
    return receipt(key)


@activity.defn
async def quote(key: str) -> int:
    """A local activity's work."""
    return len(key)


def receipt(key: str) -> str:
    """What `pay` answers."""
    return f"paid-{key}"


async def step(key: str) -> str:
    """One call of `pay` by a workflow."""
    return await workflow.execute_activity(
        pay, key, start_to_close_timeout=ATTEMPT_TIMEOUT, retry_policy=RETRY
    )


@workflow.defn
class Steps:
    """Activities one after the other, with a local activity and timers between them."""

    @workflow.run
    async def run(self, count: int) -> list[str]:
        name = workflow.info().workflow_id
        done = []
        for number in range(count):
            done.append(await step(f"{name}/{number}"))
            if number % 3 == 1:
                await asyncio.sleep(0.1)
            if number % 3 == 2:
                await workflow.execute_local_activity(
                    quote, name, start_to_close_timeout=ATTEMPT_TIMEOUT
                )
        return done


@workflow.defn
class Account:
    """Signals and updates, each with an activity, until a signal closes it."""

    def __init__(self) -> None:
        self.balance = 0
        self.received: list[str] = []
        self.deposits: list[str] = []
        self.withdrawals: list[str] = []
        self.is_closed = False

    @workflow.run
    async def run(self) -> dict[str, Any]:
        await workflow.wait_condition(lambda: self.is_closed)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return {
            "balance": self.balance,
            "deposits": sorted(self.deposits),
            "withdrawals": sorted(self.withdrawals),
        }

    @workflow.signal
    async def deposit(self, word: str, cents: int) -> None:
        self.received.append(word)
        await step(word)
        self.balance += cents
        self.deposits.append(word)

    @workflow.update
    async def withdraw(self, word: str, cents: int) -> int:
        self.received.append(word)
        await step(word)
        self.balance -= cents
        self.withdrawals.append(word)
        return self.balance

    @withdraw.validator
    def _can_withdraw(self, word: str, cents: int) -> None:
        if cents <= 0:
            raise ApplicationError(f"{word}: {cents} cents cannot be withdrawn")

    @workflow.signal
    def close(self) -> None:
        self.is_closed = True

    @workflow.query
    def heard(self) -> list[str]:
        return self.received


@dataclass
class Link:
    """What one run of a `Chain` hands to the next."""

    left: int
    words: list[str] = field(default_factory=list)
    is_finished: bool = False


@workflow.defn
class Chain:
    """Continues as new again and again while signals arrive; the last run waits for `finish`."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.is_finished = False

    @workflow.run
    async def run(self, link: Link) -> list[str]:
        name = workflow.info().workflow_id
        self.words += link.words
        self.is_finished = self.is_finished or link.is_finished
        await step(f"{name}/{link.left}")
        await asyncio.sleep(0.05)
        if link.left:
            workflow.continue_as_new(Link(link.left - 1, self.words, self.is_finished))
        await workflow.wait_condition(lambda: self.is_finished)
        return sorted(set(self.words))

    @workflow.signal
    def tell(self, word: str) -> None:
        self.words.append(word)

    @workflow.signal
    def finish(self) -> None:
        self.is_finished = True


@workflow.defn
class Sleeper:
    """Sleeps until it is cancelled."""

    @workflow.run
    async def run(self) -> None:
        await asyncio.sleep(3600)


@workflow.defn
class Messenger:
    """A child that does a step and signals its parent."""

    @workflow.run
    async def run(self, parent: str) -> str:
        name = workflow.info().workflow_id
        await step(f"{name}/0")
        await workflow.get_external_workflow_handle(parent).signal("call_back", name)
        return name


@workflow.defn
class Family:
    """Children that work, children that signal back, and one that is cancelled."""

    def __init__(self) -> None:
        self.called: list[str] = []

    @workflow.signal
    def call_back(self, name: str) -> None:
        self.called.append(name)

    @workflow.run
    async def run(self, count: int) -> dict[str, Any]:
        name = workflow.info().workflow_id
        sleeper = await workflow.start_child_workflow(
            Sleeper.run, id=f"{name}-sleeper", task_timeout=TASK_TIMEOUT
        )
        ends = await asyncio.gather(
            *(
                workflow.execute_child_workflow(
                    Steps.run, 2, id=f"{name}-steps-{n}", task_timeout=TASK_TIMEOUT
                )
                for n in range(count)
            ),
            *(
                workflow.execute_child_workflow(
                    Messenger.run, name, id=f"{name}-messenger-{n}", task_timeout=TASK_TIMEOUT
                )
                for n in range(count)
            ),
        )
        sleeper.cancel()
        try:
            await sleeper
        except Exception as error:
            cause = error.__cause__
            slept = "cancelled" if isinstance(cause, CancelledError) else repr(error)
        else:
            slept = "slept"
        return {"steps": ends[:count], "called": sorted(self.called), "sleeper": slept}


WORKFLOWS = [Steps, Account, Chain, Sleeper, Messenger, Family]
ACTIVITIES = [pay, quote]
