"""Child workflows, and signals and cancellations between workflows."""

from __future__ import annotations

import asyncio

import pytest
from accept_stage import find, story, until

from perdure import (
    ApplicationError,
    ChildWorkflowCancellationType,
    ChildWorkflowError,
    PerdureError,
    WorkflowAlreadyStartedError,
    WorkflowFailedError,
    WorkflowIDReusePolicy,
    WorkflowStatus,
    workflow,
)
from targets import environment

KIND = ChildWorkflowCancellationType


@workflow
class Child:
    def __init__(self) -> None:
        self.told: list[str] = []

    @workflow.run
    async def run(self, how: str = "") -> str:
        if how == "fail":
            raise ApplicationError("child broke", type="Broke")
        if how == "quick":
            return "quick"
        try:
            await workflow.wait_condition(lambda: bool(self.told))
        except asyncio.CancelledError:
            if how == "stubborn":
                return "stayed"
            raise
        return self.told[0]

    @workflow.signal
    def tell(self, what: str) -> None:
        self.told.append(what)


@workflow
async def parent(id: str, how: str, reuse: int) -> str:
    try:
        result = await workflow.execute_child(
            Child, how, id=id, id_reuse_policy=WorkflowIDReusePolicy(reuse)
        )
    except (ChildWorkflowError, WorkflowAlreadyStartedError) as error:
        cause = error.__cause__
        return f"{type(error).__name__}: {type(cause).__name__}: {getattr(cause, 'message', '')}"
    return f"got {result}"


async def test_a_childs_result_and_failure() -> None:
    async with environment() as env, env.client.worker(workflows=[parent, Child], activities=[]):
        done = await env.client.start(parent, "child-done", "quick", 1)
        assert await done.result() == "got quick"
        words = await story(done)
        assert words[:3] == ["Started", "Task", "StartChildWorkflowExecutionInitiated"]
        assert "ChildWorkflowExecutionCompleted" in words
        assert words[-1] == "Completed"
        started = await find(env.client.handle("child-done"), "WorkflowExecutionStarted")
        assert started.parent_workflow_execution.workflow_id == done.id
        assert started.parent_workflow_execution.run_id == done.first_run_id
        assert started.root_workflow_execution.workflow_id == done.id
        failed = await env.client.start(parent, "child-failed", "fail", 1)
        assert await failed.result() == "ChildWorkflowError: ApplicationError: child broke"
        assert "ChildWorkflowExecutionFailed" in await story(failed)


@pytest.mark.parametrize("state", ["open", "closed"])
async def test_a_childs_id_is_taken(state: str) -> None:
    id = f"child-taken-{state}"
    async with environment() as env, env.client.worker(workflows=[parent, Child], activities=[]):
        first = await env.client.start(Child, "quick" if state == "closed" else "", id=id)
        if state == "closed":
            assert await first.result() == "quick"
        reuse = WorkflowIDReusePolicy.REJECT_DUPLICATE
        handle = await env.client.start(parent, id, "quick", int(reuse))
        assert await handle.result() == "ChildWorkflowError: WorkflowAlreadyStartedError: "
        assert await story(handle) == [
            "Started",
            "Task",
            "StartChildWorkflowExecutionInitiated",
            "StartChildWorkflowExecutionFailed",
            "Task",
            "Completed",
        ]
        status = WorkflowStatus.RUNNING if state == "open" else WorkflowStatus.COMPLETED
        assert (await first.describe()).status is status
        if state == "open":
            await first.terminate()


@workflow
async def cancels(id: str, how: str, kind: int) -> str:
    child = workflow.execute_child(
        Child, how, id=id, cancellation_type=ChildWorkflowCancellationType(kind)
    )
    task = asyncio.create_task(child)
    await asyncio.sleep(1)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return "cancelled"
    except ChildWorkflowError as error:
        return f"failed: {type(error.__cause__).__name__}"


ASKED = ["RequestCancelExternalWorkflowExecutionInitiated"]
DELIVERED = [*ASKED, "ExternalWorkflowExecutionCancelRequested"]


@pytest.mark.parametrize(
    ("kind", "how", "result", "child", "words"),
    [
        (KIND.ABANDON, "", "cancelled", WorkflowStatus.TERMINATED, []),
        (KIND.TRY_CANCEL, "", "cancelled", None, ASKED),
        (KIND.WAIT_CANCELLATION_REQUESTED, "", "cancelled", None, DELIVERED),
        (
            KIND.WAIT_CANCELLATION_COMPLETED,
            "",
            "cancelled",
            WorkflowStatus.CANCELED,
            [*DELIVERED, "ChildWorkflowExecutionCanceled"],
        ),
        (
            KIND.WAIT_CANCELLATION_COMPLETED,
            "stubborn",
            "stayed",
            WorkflowStatus.COMPLETED,
            [*DELIVERED, "ChildWorkflowExecutionCompleted"],
        ),
    ],
)
async def test_cancellation_types_of_children(
    kind: int, how: str, result: str, child: WorkflowStatus | None, words: list[str]
) -> None:
    id = f"child-cancel-{int(kind)}-{how}"
    async with environment() as env, env.client.worker(workflows=[cancels, Child], activities=[]):
        handle = await env.client.start(cancels, id, how, int(kind))
        assert await handle.result() == result
        told = await story(handle)
        after = told[told.index("TimerFired") :]
        seen = [word for word in after if "ExternalW" in word or "ChildW" in word]
        # a quick child may have ended before its parent hears that it was asked to
        assert seen[:1] == words[:1]
        assert set(words[2:]) <= set(seen) <= {*words, "ChildWorkflowExecutionCanceled"}
        if child is not None:
            with_child = env.client.handle(id)
            await until(with_child, child.name.capitalize())
            assert (await with_child.describe()).status is child


# --- other workflows ------------------------------------------------------------------------------


@workflow
async def sends(id: str, what: str) -> str:
    other = workflow.external(id)
    try:
        await (other.signal("tell", "hello") if what == "signal" else other.cancel("enough"))
    except PerdureError as error:
        return str(error)
    return "sent"


async def test_signal_another_workflow() -> None:
    async with environment() as env, env.client.worker(workflows=[sends, Child], activities=[]):
        other = await env.client.start(Child, id="signalled")
        handle = await env.client.start(sends, "signalled", "signal", id="signaller")
        assert await handle.result() == "sent"
        assert await other.result() == "hello"
        signal = await find(other, "WorkflowExecutionSignaled")
        assert signal.external_workflow_execution.workflow_id == "signaller"
        assert await story(handle) == [
            "Started",
            "Task",
            "SignalExternalWorkflowExecutionInitiated",
            "ExternalWorkflowExecutionSignaled",
            "Task",
            "Completed",
        ]


async def test_cancel_another_workflow() -> None:
    async with environment() as env, env.client.worker(workflows=[sends, Child], activities=[]):
        other = await env.client.start(Child, id="cancelled-by-other")
        handle = await env.client.start(sends, "cancelled-by-other", "cancel", id="canceller")
        assert await handle.result() == "sent"
        with pytest.raises(WorkflowFailedError, match="was cancelled"):
            await other.result()
        request = await find(other, "WorkflowExecutionCancelRequested")
        assert request.external_workflow_execution.workflow_id == "canceller"
        assert request.external_workflow_execution.run_id == handle.first_run_id
        assert request.external_initiated_event_id == 5
        assert request.cause == "enough"
        again = await env.client.start(sends, "cancelled-by-other", "cancel")
        assert await again.result() == "sent"  # it has ended, which is what was wanted


@pytest.mark.parametrize("what", ["signal", "cancel"])
async def test_a_workflow_that_is_not_there(what: str) -> None:
    async with environment() as env, env.client.worker(workflows=[sends, Child], activities=[]):
        handle = await env.client.start(sends, "not-there", what)
        assert await handle.result() == (
            f"ExternalWorkflowNotFound: Unable to {what} workflow 'not-there': "
            "it does not exist or is closed"
        )
        words = "SignalExternal" if what == "signal" else "RequestCancelExternal"
        assert (await story(handle))[2:4] == [
            f"{words}WorkflowExecutionInitiated",
            f"{words}WorkflowExecutionFailed",
        ]


async def test_a_closed_workflow_takes_no_signal() -> None:
    async with environment() as env, env.client.worker(workflows=[sends, Child], activities=[]):
        other = await env.client.start(Child, "quick", id="closed-other")
        await other.result()
        handle = await env.client.start(sends, "closed-other", "signal")
        assert (await handle.result()).startswith("ExternalWorkflowNotFound")
