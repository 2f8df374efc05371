"""Reset: to which points, and what of the signals and updates after them is applied again."""

from __future__ import annotations

import pytest
from accept_stage import find, story, until

from perdure import ResetReapply, RPCError, WorkflowNotFoundError, WorkflowStatus, workflow
from targets import environment


@workflow
class Ledger:
    def __init__(self) -> None:
        self.entries: list[str] = []
        self.closed = False

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait_condition(lambda: self.closed)
        return self.entries

    @workflow.signal
    def note(self, entry: str) -> None:
        self.entries.append(entry)

    @workflow.signal
    def close(self) -> None:
        self.closed = True

    @workflow.update
    async def add(self, entry: str) -> int:
        self.entries.append(entry)
        return len(self.entries)

    @add.validator
    def check(self, entry: str) -> None:
        if entry == "bad":
            raise ValueError("no")


RESET = ["Started", "WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskFailed"]
ACCEPTED = ["UpdateAccepted", "UpdateCompleted"]


@pytest.mark.parametrize(
    ("reapply", "result", "told"),
    [
        (
            ResetReapply.ALL,
            ["n", "u"],
            [*RESET, "UpdateAdmitted", "Signaled", "Signaled", "Task", *ACCEPTED, "Completed"],
        ),
        (ResetReapply.SIGNALS, ["n"], [*RESET, "Signaled", "Signaled", "Task", "Completed"]),
        (ResetReapply.NONE, None, [*RESET, "Task"]),
    ],
)
async def test_what_is_applied_again(
    reapply: ResetReapply, result: list[str] | None, told: list[str]
) -> None:
    id = f"reapplied-{reapply.name}"
    async with environment() as env, env.client.worker(workflows=[Ledger], activities=[]):
        handle = await env.client.start(Ledger, id=id)
        await until(handle, "Task")
        await handle.update(Ledger.add, "u")
        await handle.signal(Ledger.note, "n")
        await handle.signal(Ledger.close)
        assert await handle.result() == ["u", "n"]
        again = await handle.reset(to="first", reason="try again", reapply=reapply)
        assert again.run_id != handle.first_run_id
        if result is None:
            await until(again, "Task")
            assert (await again.describe()).status is WorkflowStatus.RUNNING
            assert (await env.client.handle(id).describe()).run_id == again.run_id
        else:
            # signals come before updates in a workflow task, in a replay as in the first execution
            assert await again.result() == result
        assert await story(again) == told
        failed = await find(again, "WorkflowTaskFailed")
        assert failed.failure.message == "try again"
        assert (failed.base_run_id, failed.new_run_id) == (handle.first_run_id, again.run_id)
        if result is None:
            await again.terminate()


async def test_an_open_run_is_ended_by_its_reset() -> None:
    async with environment() as env, env.client.worker(workflows=[Ledger], activities=[]):
        handle = await env.client.start(Ledger, id="reset-open")
        await handle.update(Ledger.add, "a")
        await handle.update(Ledger.add, "b")
        again = await handle.reset(to="last")
        base = env.client.handle("reset-open", run_id=handle.first_run_id)
        assert (await base.describe()).status is WorkflowStatus.TERMINATED
        await again.signal(Ledger.close)
        assert await again.result() == ["a", "b"]
        third = await again.reset(to="first")  # of a run that came of a reset, and has ended
        assert await third.result() == ["a", "b"]


@pytest.mark.parametrize("cached", [1, 100])
async def test_updates_of_a_reset_are_replayed(cached: int) -> None:
    async with environment() as env:
        options = {"workflows": [Ledger], "activities": []}
        async with env.client.worker(**options):
            handle = await env.client.start(Ledger, id=f"reset-replayed-{cached}")
            await handle.update(Ledger.add, "a")
            again = await handle.reset(to="first")
            await until(again, "UpdateCompleted")
        async with env.client.worker(**options, max_cached_runs=cached):
            assert await again.update(Ledger.add, "b") == 2
            await again.signal(Ledger.close)
            assert await again.result() == ["a", "b"]


async def test_points_that_are_none() -> None:
    async with environment() as env, env.client.worker(workflows=[Ledger], activities=[]):
        handle = await env.client.start(Ledger, id="reset-nowhere")
        await handle.signal(Ledger.close)
        await handle.result()
        before = await story(handle)
        for event_id in (1, 99):
            with pytest.raises(
                RPCError,
                match=r"Workflow task finish ID must be > 1 && <= workflow last event ID",
            ):
                await handle.reset(to=event_id)
        with pytest.raises(RPCError):
            await handle.reset(to=2)
        assert await story(handle) == before
        assert (await env.client.handle("reset-nowhere").describe()).run_id == handle.first_run_id
        with pytest.raises(WorkflowNotFoundError, match="workflow not found for ID: nowhere"):
            await env.client.handle("nowhere").reset(to=4)
