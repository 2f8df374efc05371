"""Clients of the simulation: they try again until they are answered, with the same request ids."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest

from perdure import (
    ApplicationError,
    CancelledFailure,
    Client,
    QueryFailedError,
    UpdateFailedError,
    WorkflowAlreadyStartedError,
    WorkflowFailedError,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
    WorkflowNotFoundError,
)
from perdure.api.errors import NotFound, RPCError

from .workload import Ledger, Plan, Program

GONE = (WorkflowNotFoundError, NotFound)


@dataclass
class Errand:
    """Something a client must have done: it is tried again after failures and crashes."""

    name: str
    act: Callable[[Client], Awaitable[None]]
    done: bool = False


class Customer:
    """Who starts one workflow, talks with it, and waits for its result."""

    def __init__(self, plan: Plan, ledger: Ledger, rng: random.Random) -> None:
        self.plan, self.ledger, self.rng = plan, ledger, rng
        self.within_s = rng.choice([4.0, 20.0])  # all that it has to say
        self.first = Errand("start", self.start)
        self.others = [Errand("result", self.result)]
        for number in range(plan.signals):
            self.others.append(Errand("signal", self.signalling(f"{plan.id}/s{number}")))
        for number in range(plan.updates):
            bad = "bad" if rng.random() < 0.2 else ""
            self.others.append(Errand("update", self.updating(f"{plan.id}/u{number}{bad}")))
        for _ in range(rng.choice([0, 0, 1])):
            self.others.append(Errand("query", self.query))
        if plan.cancel:
            self.others.append(Errand("cancel", self.cancel))

    async def run(self, client: Client) -> None:
        """Do all that is not done yet."""
        await self.insist(self.first, client)
        await asyncio.gather(*(self.insist(errand, client) for errand in self.others))

    async def insist(self, errand: Errand, client: Client) -> None:
        if errand.name not in ("start", "result") and not errand.done:
            await asyncio.sleep(self.rng.random() * self.within_s)
        while not errand.done:
            try:
                await errand.act(client)
                errand.done = True
            except RPCError:
                await asyncio.sleep(self.rng.random())

    def left(self) -> list[str]:
        """What is not done yet, for reports."""
        return [f"{e.name} {self.plan.id}" for e in (self.first, *self.others) if not e.done]

    async def start(self, client: Client) -> None:
        try:
            await client.start(
                Program,
                self.plan,
                [],
                [],
                id=self.plan.id,
                request_id=f"start {self.plan.id}",
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            )
        except WorkflowAlreadyStartedError:
            pass  # by this very request, whose answer was lost; it went on as new since
        self.ledger.started.add(self.plan.id)

    async def result(self, client: Client) -> None:
        handle = client.handle_of(Program, self.plan.id)
        try:
            found: Any = await handle.result()
        except WorkflowFailedError as error:
            cause = error.cause
            if isinstance(cause, CancelledFailure):
                found = "cancelled"
            else:
                assert isinstance(cause, ApplicationError), f"{self.plan.id}: {cause!r}"
                assert cause.type == "Planned", f"{self.plan.id}: {cause!r}"
                found = "failed"
        self.ledger.results[self.plan.id] = found

    def signalling(self, name: str) -> Callable[[Client], Awaitable[None]]:
        async def signal(client: Client) -> None:
            request = SignalWorkflowExecutionRequest(
                namespace="default",
                workflow_execution=WorkflowExecution(workflow_id=self.plan.id),
                signal_name="poke",
                request_id=name,
            )
            client.converter.fill(request.input, [name])
            try:
                await client.calls("signal_workflow_execution", request)
            except GONE:
                return  # ended: cancelled, or by this very signal, whose answer was lost
            else:
                self.ledger.signals[self.plan.id].add(name)

        return signal

    def updating(self, name: str) -> Callable[[Client], Awaitable[None]]:
        async def update(client: Client) -> None:
            handle = client.handle_of(Program, self.plan.id)
            try:
                answer = await handle.update(Program.amend, name, id=name)
            except UpdateFailedError as error:
                cause = error.cause
                if not (isinstance(cause, ApplicationError) and cause.type == "Bad"):
                    assert self.plan.cancel, f"update {name}: {cause!r}"
                    return
                answer = "bad"
            except GONE:
                assert self.plan.cancel, f"update {name} came too late"
                return
            assert answer == ("bad" if name.endswith("bad") else f"did {name}")
            self.ledger.updates[self.plan.id][name] = answer

        return update

    async def query(self, client: Client) -> None:
        acknowledged = set(self.ledger.signals[self.plan.id])
        try:
            heard = await client.handle_of(Program, self.plan.id).query(Program.heard)
        except (*GONE, QueryFailedError):
            return
        missing = acknowledged - set(heard)
        assert not missing, f"a query does not see acknowledged signals {missing}"

    async def cancel(self, client: Client) -> None:
        try:
            await client.handle_of(Program, self.plan.id).cancel()
        except GONE:
            return
        self.ledger.cancelled.add(self.plan.id)
