"""Updates: admitted, accepted, completed, rejected; and what becomes of them when things end."""

from __future__ import annotations

import asyncio

import pytest
from api_stage import (
    ACCEPTED,
    COMPLETED,
    Answers,
    Stage,
    continue_as_new,
    execution,
    finish,
    names,
    soon,
    staged,
    timer,
    virtual,
)
from temporalio.api.workflowservice.v1 import (
    ExecuteMultiOperationRequest,
    PollWorkflowExecutionUpdateRequest,
    PollWorkflowExecutionUpdateResponse,
    StartWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
    UpdateWorkflowExecutionResponse,
)

from perdure.api.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from perdure.engine.limits import Limits
from perdure.service.settings import Settings
from perdure.store.sqlite import SqliteStore

ADMITTED = 1


def said(answer: UpdateWorkflowExecutionResponse | PollWorkflowExecutionUpdateResponse) -> str:
    assert answer.stage == COMPLETED
    return answer.outcome.success.payloads[0].data.decode()


async def waiting_run(stage: Stage, workflow_id: str = "a") -> str:
    run_id = await stage.start(workflow_id)
    await stage.step(timer("t"))
    return run_id


async def poll_update(
    stage: Stage, update_id: str = "u", wanted: int = COMPLETED, run_id: str = ""
) -> PollWorkflowExecutionUpdateResponse:
    request = PollWorkflowExecutionUpdateRequest(namespace="default")
    request.update_ref.update_id = update_id
    request.update_ref.workflow_execution.CopyFrom(execution("a", run_id))
    request.wait_policy.lifecycle_stage = wanted  # type: ignore[assignment]
    return await stage.api.poll_workflow_execution_update(request)


# -- the good path ---------------------------------------------------------------------------------


@virtual
async def test_an_update_is_accepted_and_completed_in_one_task() -> None:
    async with staged() as stage:
        run_id = await waiting_run(stage)
        asked = soon(stage.update("a"))
        task = await stage.poll()
        [message] = task.messages
        assert message.event_id == task.started_event_id - 1
        await stage.complete(task, updates=Answers().accept(message).complete("u", "new state"))
        answer = await asked
        assert said(answer) == "new state"
        assert answer.update_ref.update_id == "u"
        assert answer.update_ref.workflow_execution.run_id == run_id
        assert names(await stage.history("a"))[5:] == [
            "WorkflowTaskScheduled",
            "WorkflowTaskStarted",
            "WorkflowTaskCompleted",
            "WorkflowExecutionUpdateAccepted",
            "WorkflowExecutionUpdateCompleted",
        ]


@virtual
async def test_a_caller_may_wait_for_acceptance_only() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        asked = soon(stage.update("a", stage=ACCEPTED))
        finished = soon(stage.update("a"))
        await asyncio.sleep(0.1)
        task = await stage.poll()
        await stage.complete(task, updates=Answers().accept(task.messages[0]))
        answer = await asked
        assert (answer.stage, answer.HasField("outcome")) == (ACCEPTED, False)
        await asyncio.sleep(1)
        assert not finished.done()
        await stage.signal("a")
        await stage.complete(await stage.poll(), updates=Answers().complete("u"))
        assert said(await finished) == "done"
        assert said(await stage.update("a")) == "done"
        assert said(await poll_update(stage)) == "done"
        assert not stage.node.executions.companions


@virtual
async def test_a_rejected_update_leaves_no_trace() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        before = await stage.history("a")
        asked = soon(stage.update("a"))
        task = await stage.poll()
        await stage.complete(task, updates=Answers().reject(task.messages[0], "no"))
        answer = await asked
        assert answer.stage == COMPLETED
        assert answer.outcome.failure.message == "no"
        assert await stage.history("a") == before
        with pytest.raises(NotFound, match='update "u" not found'):
            await poll_update(stage)


@virtual
async def test_the_same_id_again_is_the_same_update() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        many = [soon(stage.update("a")) for _ in range(3)]
        await asyncio.sleep(0.1)
        task = await stage.poll()
        [message] = task.messages
        await stage.complete(task, updates=Answers().accept(message).complete("u", "once"))
        assert [said(await one) for one in many] == ["once"] * 3


@virtual
async def test_without_an_id_each_update_is_another() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        many = [soon(stage.update("a", "")) for _ in range(2)]
        await asyncio.sleep(0.1)
        task = await stage.poll()
        answers = Answers()
        for message in task.messages:
            answers.accept(message).complete(message.protocol_instance_id)
        await stage.complete(task, updates=answers)
        ids = {(await one).update_ref.update_id for one in many}
        assert len(ids) == 2


@virtual
async def test_an_update_rides_a_task_that_is_there_anyway() -> None:
    async with staged() as stage:
        await stage.start("a")
        asked = soon(stage.update("a"))
        await asyncio.sleep(0.1)
        task = await stage.poll()
        answers = Answers().accept(task.messages[0]).complete("u")
        await stage.complete(task, timer("t"), updates=answers)
        assert said(await asked) == "done"


@virtual
async def test_an_update_that_comes_beside_a_running_task_gets_the_next() -> None:
    async with staged() as stage:
        await stage.start("a")
        task = await stage.poll()
        asked = soon(stage.update("a"))
        await asyncio.sleep(0.1)
        await stage.complete(task, timer("t"))
        following = await stage.poll()
        answers = Answers().accept(following.messages[0]).complete("u")
        await stage.complete(following, updates=answers)
        assert said(await asked) == "done"


@virtual
async def test_a_delayed_run_gets_its_update_with_the_first_task() -> None:
    async with staged() as stage:
        await stage.start("a", workflow_start_delay={"seconds": 10})
        asked = soon(stage.update("a"))
        task = await stage.poll()
        answers = Answers().accept(task.messages[0]).complete("u")
        await stage.complete(task, finish(), updates=answers)
        assert said(await asked) == "done"


# -- time and loss ---------------------------------------------------------------------------------


@virtual
async def test_after_a_while_the_caller_is_told_how_far_it_is() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        answer = await stage.update("a")
        assert (answer.stage, answer.HasField("outcome")) == (ADMITTED, False)
        assert (await poll_update(stage, wanted=0)).stage == ADMITTED
        polled = soon(poll_update(stage))
        task = await stage.poll()
        await stage.complete(task, updates=Answers().accept(task.messages[0]))
        assert (await polled).stage == ACCEPTED  # 20 s later
        assert (await poll_update(stage, wanted=0)).stage == ACCEPTED


@virtual
async def test_a_worker_that_vanishes_is_followed_by_another() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        asked = soon(stage.update("a"))
        lost = await stage.poll()
        assert len(lost.messages) == 1
        task = await stage.poll()  # after the task's timeout
        assert len(task.messages) == 1
        answers = Answers().accept(task.messages[0]).complete("u")
        await stage.complete(task, updates=answers)
        assert said(await asked) == "done"
        with pytest.raises(NotFound):
            await stage.complete(lost, updates=Answers().accept(lost.messages[0]))


@virtual
async def test_a_failed_task_sends_the_update_again() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        asked = soon(stage.update("a"))
        await stage.fail(await stage.poll())
        task = await stage.poll()
        answers = Answers().accept(task.messages[0]).complete("u")
        await stage.complete(task, updates=answers)
        assert said(await asked) == "done"


@virtual
async def test_a_worker_that_ignores_updates_rejects_them() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        asked = soon(stage.update("a"))
        await stage.step()
        failure = (await asked).outcome.failure
        assert failure.application_failure_info.type == "UnprocessedUpdate"


@virtual
async def test_a_caller_that_gives_up_does_not_stop_its_update() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        asked = soon(stage.update("a"))
        await asyncio.sleep(0.1)
        asked.cancel()
        await asyncio.sleep(0.1)
        task = await stage.poll()
        answers = Answers().accept(task.messages[0]).complete("u")
        await stage.complete(task, updates=answers)
        assert said(await poll_update(stage)) == "done"


# -- the run ends ----------------------------------------------------------------------------------


@virtual
async def test_an_update_of_a_closed_run_is_refused_and_an_old_one_is_known() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        asked = soon(stage.update("a"))
        task = await stage.poll()
        answers = Answers().accept(task.messages[0]).complete("u")
        await stage.complete(task, finish(), updates=answers)
        assert said(await asked) == "done"
        assert said(await stage.update("a")) == "done"
        with pytest.raises(NotFound, match="workflow execution already completed"):
            await stage.update("a", "other")
        with pytest.raises(NotFound, match='update "other" not found'):
            await poll_update(stage, "other")


@virtual
async def test_a_run_that_closes_under_an_update_refuses_it() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        asked = soon(stage.update("a"))
        await asyncio.sleep(0.1)
        await stage.terminate("a")
        with pytest.raises(NotFound, match="aborted by closing workflow"):
            await asked
        assert not stage.node.executions.companions


@virtual
async def test_an_accepted_update_fails_with_its_run() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        asked = soon(stage.update("a"))
        task = await stage.poll()
        await stage.complete(task, updates=Answers().accept(task.messages[0]))
        await stage.terminate("a")
        failure = (await asked).outcome.failure
        assert failure.application_failure_info.type == "AcceptedUpdateCompletedWorkflow"
        again = await poll_update(stage)
        assert again.outcome.failure == failure


@virtual
async def test_an_update_follows_a_run_that_continues_as_new() -> None:
    async with staged() as stage:
        await stage.start("a")
        task = await stage.poll()
        asked = soon(stage.update("a"))
        await asyncio.sleep(0.1)
        await stage.complete(task, continue_as_new())
        following = await stage.poll()
        assert following.workflow_execution.run_id != task.workflow_execution.run_id
        for _ in range(2):  # the update comes with the first task or with the one after it
            if following.messages:
                break
            await stage.complete(following, timer("t"))
            following = await stage.poll()
        answers = Answers().accept(following.messages[0]).complete("u")
        await stage.complete(following, updates=answers)
        answer = await asked
        assert said(answer) == "done"
        run_id = answer.update_ref.workflow_execution.run_id
        assert run_id == following.workflow_execution.run_id


@virtual
async def test_an_update_of_one_run_does_not_follow() -> None:
    async with staged() as stage:
        run_id = await stage.start("a")
        task = await stage.poll()
        asked = soon(stage.update("a", run_id=run_id))
        await asyncio.sleep(0.1)
        await stage.complete(task, continue_as_new())
        with pytest.raises(ResourceExhausted, match="workflow is closing"):
            await asked


# -- limits and bad requests -----------------------------------------------------------------------


@virtual
async def test_so_many_updates_may_be_under_way() -> None:
    async with staged(
        settings=Settings(limits=Limits(updates_in_flight_max=2, updates_max=3))
    ) as stage:
        await waiting_run(stage)
        asked = [soon(stage.update("a", f"u{n}")) for n in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(ResourceExhausted, match=r"in-flight updates .* \(2\)"):
            await stage.update("a", "u2")
        task = await stage.poll()
        answers = Answers()
        for message in task.messages:
            answers.accept(message).complete(message.protocol_instance_id)
        await stage.complete(task, updates=answers)
        await asyncio.gather(*asked)
        third = soon(stage.update("a", "u2"))
        task = await stage.poll()
        answers = Answers().accept(task.messages[0]).complete("u2")
        await stage.complete(task, updates=answers)
        await third
        with pytest.raises(FailedPrecondition, match=r"total number of distinct updates .*\(3\)"):
            await stage.update("a", "u3")


@virtual
async def test_wrong_requests_are_refused() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        update = stage.api.update_workflow_execution
        request = UpdateWorkflowExecutionRequest(namespace="default")
        with pytest.raises(InvalidArgument, match="Execution is not set"):
            await update(request)
        request.workflow_execution.CopyFrom(execution("a"))
        with pytest.raises(InvalidArgument, match="Update meta is not set"):
            await update(request)
        request.request.meta.SetInParent()
        with pytest.raises(InvalidArgument, match="Update input is not set"):
            await update(request)
        request.request.input.SetInParent()
        with pytest.raises(InvalidArgument, match="Update name is not set"):
            await update(request)
        with pytest.raises(InvalidArgument, match="UpdateId length exceeds limit"):
            await stage.update("a", "x" * 1001)
        with pytest.raises(PermissionDenied):
            await stage.update("a", stage=ADMITTED)
        with pytest.raises(NotFound, match="workflow not found"):
            await stage.update("never")
        with pytest.raises(NotFound, match="workflow execution not found"):
            await stage.update("a", first_execution_run_id="another")
        with pytest.raises(InvalidArgument, match="UpdateRef is not set"):
            await stage.api.poll_workflow_execution_update(
                PollWorkflowExecutionUpdateRequest(namespace="default")
            )
        assert not stage.node.executions.companions


# -- with a start ----------------------------------------------------------------------------------


def start_and_update(conflict: int = 0) -> ExecuteMultiOperationRequest:
    request = ExecuteMultiOperationRequest(namespace="default")
    start = StartWorkflowExecutionRequest(namespace="default", workflow_id="a", request_id="s")
    start.workflow_type.name = "flow"
    start.task_queue.name = "queue"
    start.workflow_id_conflict_policy = conflict  # type: ignore[assignment]
    update = UpdateWorkflowExecutionRequest(namespace="default", workflow_execution=execution("a"))
    update.wait_policy.lifecycle_stage = COMPLETED  # type: ignore[assignment]
    update.request.meta.update_id = "u"
    update.request.input.name = "change"
    request.operations.add().start_workflow.CopyFrom(start)
    request.operations.add().update_workflow.CopyFrom(update)
    return request


@virtual
async def test_a_start_brings_its_update_with_the_first_task() -> None:
    async with staged() as stage:
        polled = soon(stage.poll())
        await asyncio.sleep(0.1)
        asked = soon(stage.api.execute_multi_operation(start_and_update()))
        task = await polled
        answers = Answers().accept(task.messages[0]).complete("u")
        await stage.complete(task, timer("t"), updates=answers)
        started, updated = (await asked).responses
        assert started.start_workflow.started
        assert said(updated.update_workflow) == "done"


@virtual
async def test_an_update_with_start_uses_a_run_that_is_there() -> None:
    async with staged() as stage:
        run_id = await waiting_run(stage)
        asked = soon(stage.api.execute_multi_operation(start_and_update(conflict=2)))
        task = await stage.poll()
        answers = Answers().accept(task.messages[0]).complete("u")
        await stage.complete(task, updates=answers)
        started, updated = (await asked).responses
        assert not started.start_workflow.started
        assert updated.update_workflow.update_ref.workflow_execution.run_id == run_id


@virtual
async def test_an_update_with_start_asked_again_is_done_once_though_the_run_continued() -> None:
    async with staged() as stage:
        asked = soon(stage.api.execute_multi_operation(start_and_update()))
        task = await stage.poll()
        answers = Answers().accept(task.messages[0]).complete("u")
        await stage.complete(task, continue_as_new(), updates=answers)
        first, again = await asked, await stage.api.execute_multi_operation(start_and_update())
        assert again.responses[0].start_workflow.run_id == task.workflow_execution.run_id
        assert again.responses[1] == first.responses[1]


@virtual
async def test_an_update_with_start_that_may_not_start_updates_nothing() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        with pytest.raises(Exception, match="could not be executed"):
            await stage.api.execute_multi_operation(start_and_update(conflict=1))
        assert not stage.node.executions.companions


# -- the process dies ------------------------------------------------------------------------------


def test_what_was_accepted_is_known_after_a_restart(tmp_path: object) -> None:
    path = f"{tmp_path}/runs.db"

    async def before() -> None:
        from perdure.service.node import Node

        node = await Node.open(SqliteStore(path))
        stage = Stage(node)
        await waiting_run(stage)
        asked = soon(stage.update("a", stage=ACCEPTED))
        task = await stage.poll()
        await stage.complete(task, updates=Answers().accept(task.messages[0]))
        assert (await asked).stage == ACCEPTED
        lost = soon(stage.update("a", "never sent"))
        await asyncio.sleep(0.05)
        lost.cancel()
        await node.close()

    async def after() -> None:
        from perdure.service.node import Node

        node = await Node.open(SqliteStore(path))
        stage = Stage(node)
        with pytest.raises(NotFound):
            await poll_update(stage, "never sent")
        asked = soon(poll_update(stage))
        await asyncio.sleep(0)
        await stage.signal("a")
        await stage.complete(await stage.poll(), updates=Answers().complete("u", "after all"))
        assert said(await asked) == "after all"
        await node.close()

    asyncio.run(before())
    asyncio.run(after())
