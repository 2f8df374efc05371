"""Child workflows, and signals and cancellations to other workflows."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, FailureError
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

from referee.env import Env
from referee.program import program
from referee.raw import RawWorker, command, complete_workflow, payloads, start_timer

SECOND = timedelta(seconds=1)


@workflow.defn
class Child:
    def __init__(self) -> None:
        self.texts: list[str] = []

    @workflow.run
    async def run(self, what: str) -> str:
        if what == "fails":
            raise ApplicationError("child broke", "detail", type="Broke", non_retryable=True)
        if what == "waits":
            await workflow.wait_condition(lambda: bool(self.texts))
        if what == "sleeps":
            await asyncio.sleep(3600)
        if what == "goes on":
            workflow.continue_as_new("last")
        return f"{what} {' '.join(self.texts)}"

    @workflow.signal
    def add(self, text: str) -> None:
        self.texts.append(text)


def _words(error: BaseException | None) -> str:
    words = []
    while error is not None:
        words.append(f"{type(error).__name__}({error})")
        error = error.__cause__
    return " <- ".join(words)


@workflow.defn
class Parent:
    """Starts one child, and does with it what it is told."""

    @workflow.run
    async def run(self, what: str, how: str, options: dict[str, Any]) -> str:
        for key, value in options.items():
            if key.endswith("timeout"):
                options[key] = timedelta(seconds=value)
        if "retries" in options:
            options["retry_policy"] = RetryPolicy(
                initial_interval=timedelta(milliseconds=20), maximum_attempts=options.pop("retries")
            )
        options.setdefault("id", f"{workflow.info().workflow_id}-child")
        for name, kind in (
            ("cancellation_type", ChildWorkflowCancellationType),
            ("parent_close_policy", ParentClosePolicy),
            ("id_reuse_policy", WorkflowIDReusePolicy),
        ):
            if name in options:
                options[name] = kind[options[name]]
        try:
            handle = await workflow.start_child_workflow(Child.run, what, **options)
            if how:
                await asyncio.sleep(0.5)  # until the child has done its first task
            match how:
                case "ends":
                    return "left it"
                case "fails":
                    raise ApplicationError("parent broke", non_retryable=True)
                case "signals":
                    await handle.signal(Child.add, "from the parent")
                case "cancels":
                    handle.cancel()
            return await handle
        except ApplicationError:
            raise
        except (FailureError, asyncio.CancelledError) as error:
            return _words(error)


async def _parent(env: Env, what: str, how: str = "", **options: Any) -> None:
    handle = await env.start(Parent.run, what, how, options)
    try:
        env.note("result", await handle.result())
    except Exception as error:
        await env.error("error", _raise(error))


async def _raise(error: BaseException) -> None:
    raise error


@program
async def test_child_completes(env: Env) -> None:
    await _parent(env, "done")


@program
async def test_child_options_are_recorded(env: Env) -> None:
    await _parent(
        env,
        "done",
        execution_timeout=300,
        run_timeout=200,
        task_timeout=20,
        retries=2,
        memo={"key": "value"},
        static_summary="a child",
        static_details="its details",
    )


@program
async def test_child_fails(env: Env) -> None:
    await _parent(env, "fails")


@program
async def test_child_retries(env: Env) -> None:
    await _parent(env, "fails", retries=2)


@program
async def test_child_times_out(env: Env) -> None:
    await _parent(env, "sleeps", run_timeout=1)


@program
async def test_child_is_signalled(env: Env) -> None:
    await _parent(env, "waits", "signals")


@program
async def test_child_continues_as_new(env: Env) -> None:
    await _parent(env, "goes on")


@program
async def test_child_id_is_taken(env: Env) -> None:
    other = await env.start(Child.run, "waits", id=f"{env.id()}-child")
    await env.until_event(other, "WORKFLOW_TASK_COMPLETED")
    await _parent(env, "done")


@program
async def test_child_id_was_used(env: Env) -> None:
    other = await env.start(Child.run, "done", id=f"{env.id()}-child")
    await other.result()
    await _parent(env, "done", id_reuse_policy="REJECT_DUPLICATE")


@program
async def test_child_is_cancelled_and_awaited(env: Env) -> None:
    await _parent(env, "sleeps", "cancels")


@program
async def test_child_is_cancelled_request_only(env: Env) -> None:
    options = {"cancellation_type": "WAIT_CANCELLATION_REQUESTED"}
    await _parent(env, "sleeps", "cancels", **options)


@program
async def test_child_is_terminated(env: Env) -> None:
    handle = await env.start(Parent.run, "sleeps", "", {})
    await env.until_event(handle, "CHILD_WORKFLOW_EXECUTION_STARTED")
    child = env.client.get_workflow_handle(f"{env.id()}-child")
    await env.until_event(child, "WORKFLOW_TASK_COMPLETED")
    await child.terminate("enough")
    env.note("result", await handle.result())


async def _closed(env: Env, policy: str, status: str) -> None:
    """The parent ends; then the child, as the policy says."""
    handle = await env.start(Parent.run, "sleeps", "ends", {"parent_close_policy": policy})
    env.note("result", await handle.result())
    child = env.client.get_workflow_handle(f"{env.id()}-child")
    await env.until_event(child, status)


@program
async def test_parent_close_terminates(env: Env) -> None:
    await _closed(env, "TERMINATE", "WORKFLOW_EXECUTION_TERMINATED")


@program
async def test_parent_close_cancels(env: Env) -> None:
    await _closed(env, "REQUEST_CANCEL", "WORKFLOW_EXECUTION_CANCELED")


@program
async def test_parent_close_abandons(env: Env) -> None:
    await _closed(env, "ABANDON", "TIMER_STARTED")


@program
async def test_parent_failure_terminates_the_child(env: Env) -> None:
    handle = await env.start(Parent.run, "sleeps", "fails", {})
    await env.error("result", handle.result())
    child = env.client.get_workflow_handle(f"{env.id()}-child")
    await env.until_event(child, "WORKFLOW_EXECUTION_TERMINATED")


# --- other workflows ----------------------------------------------------------------------------


@workflow.defn
class Reaches:
    """Signals or cancels another workflow."""

    @workflow.run
    async def run(self, workflow_id: str, how: str) -> str:
        other = workflow.get_external_workflow_handle(workflow_id)
        try:
            if how == "signal":
                await other.signal("add", "from outside")
            else:
                await other.cancel()
        except FailureError as error:
            return _words(error)
        return "reached"


@program
async def test_external_signal(env: Env) -> None:
    other = await env.start(Child.run, "waits", id=env.id("other"))
    await env.until_event(other, "WORKFLOW_TASK_COMPLETED")
    handle = await env.start(Reaches.run, other.id, "signal")
    env.note("result", await handle.result())
    env.note("other", await other.result())


@program
async def test_external_signal_to_nobody(env: Env) -> None:
    handle = await env.start(Reaches.run, env.id("nobody"), "signal")
    env.note("result", await handle.result())


@program
async def test_external_signal_to_closed(env: Env) -> None:
    other = await env.start(Child.run, "done", id=env.id("other"))
    await other.result()
    handle = await env.start(Reaches.run, other.id, "signal")
    env.note("result", await handle.result())


@program
async def test_external_cancel(env: Env) -> None:
    other = await env.start(Child.run, "sleeps", id=env.id("other"))
    await env.until_event(other, "TIMER_STARTED")
    handle = await env.start(Reaches.run, other.id, "cancel")
    env.note("result", await handle.result())
    await env.error("other", other.result())


@program
async def test_external_cancel_of_nobody(env: Env) -> None:
    handle = await env.start(Reaches.run, env.id("nobody"), "cancel")
    env.note("result", await handle.result())


@program
async def test_external_cancel_of_closed(env: Env) -> None:
    other = await env.start(Child.run, "done", id=env.id("other"))
    await other.result()
    handle = await env.start(Reaches.run, other.id, "cancel")
    env.note("result", await handle.result())


@program
async def test_external_signal_to_itself(env: Env) -> None:
    handle = await env.start(Reaches.run, env.id(), "signal")
    env.note("result", await handle.result())


# --- by hand ------------------------------------------------------------------------------------


async def _commands(env: Env, *commands: Any) -> RawWorker:
    """A run whose first answer holds these commands, and all that follows from it."""
    raw = env.raw_worker()
    await raw.start()
    await raw.step(*commands)
    return raw


def _child(env: Env, suffix: str = "child", **attributes: Any) -> Any:
    attributes.setdefault("workflow_type", {"name": "Raw"})
    attributes.setdefault("task_queue", {"name": env.id("children")})
    return command("START_CHILD_WORKFLOW_EXECUTION", workflow_id=env.id(suffix), **attributes)


@program
async def test_child_by_hand(env: Env) -> None:
    raw = await _commands(env, _child(env, input=payloads("x"), control="mine"))
    await raw.step(start_timer("t"))
    children = RawWorker(env, env.id("children"))
    await children.step(complete_workflow("child's"))
    await raw.step(complete_workflow())


@program
async def test_child_inherits_task_queue_and_namespace(env: Env) -> None:
    await _commands(env, _child(env, task_queue=None))
    parent = env.client.get_workflow_handle(env.id())
    await env.until_event(parent, "CHILD_WORKFLOW_EXECUTION_STARTED")


@program
async def test_child_ends_before_the_parent_heard_of_it(env: Env) -> None:
    raw = await _commands(env, _child(env))
    children = RawWorker(env, env.id("children"))
    await children.step(complete_workflow("quick"))
    parent = env.client.get_workflow_handle(env.id())
    await env.until_event(parent, "CHILD_WORKFLOW_EXECUTION_COMPLETED")
    await raw.step(complete_workflow())


@program
async def test_external_signal_by_hand(env: Env) -> None:
    signal = command(
        "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION",
        namespace="default",
        execution={"workflow_id": env.id("nobody")},
        signal_name="s",
        control="mine",
        input=payloads("x"),
    )
    raw = await _commands(env, signal)
    await raw.step(complete_workflow())


@program
async def test_external_cancel_by_hand(env: Env) -> None:
    cancel = command(
        "REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION",
        namespace="default",
        workflow_id=env.id("nobody"),
        control="mine",
        reason="because",
    )
    raw = await _commands(env, cancel)
    await raw.step(complete_workflow())
