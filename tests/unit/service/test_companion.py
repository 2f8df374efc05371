"""What waits beside a run: queries and updates, and what a run's tasks do to them."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest
from temporalio.api.enums.v1 import QueryResultType
from temporalio.api.query.v1 import WorkflowQuery, WorkflowQueryResult
from temporalio.api.update.v1 import Outcome
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest,
)

from perdure.api.errors import ResourceExhausted, WorkflowNotReady
from perdure.engine.updates import ACCEPTED, ADMITTED, COMPLETED
from perdure.service import tokens
from perdure.service.companion import Companions, RunCompanion, Unblocked


class Stage:
    """A companion with its surroundings noted down."""

    def __init__(self, holder: int = 0) -> None:
        self.wakes = 0
        self.attempt = 0
        self.emptied = 0
        self.holder = holder
        self.companion = RunCompanion(self._wake, lambda: self.attempt, self._empty, 3, holder)

    def _wake(self) -> None:
        self.wakes += 1

    def _empty(self, companion: RunCompanion) -> None:
        self.emptied += 1

    def start(self, stamp: int) -> PollWorkflowTaskQueueResponse:
        """A workflow task is handed out."""
        task = PollWorkflowTaskQueueResponse(started_event_id=9, task_token=token(stamp))
        self.companion.on_task_started(task)
        return task

    def complete(
        self,
        stamp: int,
        answers: dict[str, str] | None = None,
        messages: list[str] | None = None,
        by: int | None = None,
    ) -> None:
        """That task's answer is durable; `by`: the node that handed it out."""
        holder = self.holder if by is None else by
        done = RespondWorkflowTaskCompletedRequest(task_token=token(stamp, holder))
        for query_id in answers or {}:
            result = WorkflowQueryResult(result_type=QueryResultType.QUERY_RESULT_TYPE_ANSWERED)
            done.query_results[query_id].CopyFrom(result)
        for update_id in messages or []:
            done.messages.add(protocol_instance_id=update_id)
        self.companion.on_task_applied(done)
        self.companion.on_task_completed(done)


def token(stamp: int, node: int = 0) -> bytes:
    return tokens.encode(tokens.WORKFLOW, 1, b"12345678", 8, 9, stamp=stamp, node=node)


def query(name: str = "state") -> WorkflowQuery:
    return WorkflowQuery(query_type=name)


@pytest.fixture
async def stage() -> Stage:
    return Stage()


# -- queries ---------------------------------------------------------------------------------------


async def test_a_query_rides_the_next_task_and_is_answered_with_it(stage: Stage) -> None:
    query_id, answer = stage.companion.add_query(query())
    assert stage.start(1).queries[query_id].query_type == "state"
    assert not answer.done()
    stage.complete(1, {query_id: "yes"})
    assert answer.result().result_type == QueryResultType.QUERY_RESULT_TYPE_ANSWERED
    assert stage.emptied == 1


async def test_a_query_that_came_too_late_waits_for_the_next_task(stage: Stage) -> None:
    stage.start(1)
    query_id, answer = stage.companion.add_query(query())
    stage.attempt = 1  # another task is there already
    stage.complete(1)
    assert not answer.done()
    assert query_id in stage.start(2).queries


async def test_a_query_carried_by_the_next_task_stays_with_it(stage: Stage) -> None:
    stage.start(1)
    query_id, answer = stage.companion.add_query(query())
    stage.start(2)  # within the commit of task 1's answer
    stage.complete(1)
    assert not answer.done()
    stage.complete(2, {query_id: "yes"})
    assert answer.done()


async def test_a_query_is_unblocked_when_no_task_follows(stage: Stage) -> None:
    stage.start(1)
    _, answer = stage.companion.add_query(query())
    stage.complete(1)
    with pytest.raises(Unblocked):
        answer.result()


async def test_a_query_that_the_worker_ignored_is_unblocked(stage: Stage) -> None:
    _, answer = stage.companion.add_query(query())
    stage.start(1)
    stage.attempt = 1
    stage.complete(1)
    with pytest.raises(Unblocked):
        answer.result()


async def test_a_lost_task_sends_the_query_again_until_it_fails_too_often(stage: Stage) -> None:
    query_id, answer = stage.companion.add_query(query())
    stage.start(1)
    stage.attempt = 2
    stage.companion.on_task_lost()
    assert query_id in stage.start(2).queries
    stage.attempt = 3
    stage.companion.on_task_lost()
    with pytest.raises(WorkflowNotReady):
        answer.result()


async def test_so_many_queries_wait_for_one_task(stage: Stage) -> None:
    for _ in range(3):
        stage.companion.add_query(query())
    with pytest.raises(ResourceExhausted, match="query buffer is full"):
        stage.companion.add_query(query())


async def test_a_query_given_up_leaves_nothing(stage: Stage) -> None:
    query_id, answer = stage.companion.add_query(query())
    stage.companion.remove_query(query_id)
    assert answer.cancelled()
    assert not stage.start(1).queries
    assert stage.emptied == 1


# -- updates ---------------------------------------------------------------------------------------


async def test_an_update_is_sent_accepted_and_completed(stage: Stage) -> None:
    update = stage.companion.add_update("u", b"request")
    assert stage.companion.admitted == {"u": b"request"}
    [message] = stage.start(1).messages
    assert (message.protocol_instance_id, message.event_id) == ("u", 8)
    waiter = stage.companion.wait_update(update)
    stage.companion.on_update_results([("u", ACCEPTED, b"")])
    assert waiter.done()
    assert (update.stage, update.outcome) == (ACCEPTED, b"")
    assert stage.companion.admitted == {}
    end = stage.companion.wait_update(update)
    stage.companion.on_update_results([("u", COMPLETED, b"out")])
    assert end.done()
    assert (update.stage, update.outcome) == (COMPLETED, b"out")
    assert stage.companion.find_update("u") is None
    assert stage.emptied == 1


async def test_an_update_that_the_worker_ignored_is_rejected(stage: Stage) -> None:
    update = stage.companion.add_update("u", b"request")
    waiter = stage.companion.wait_update(update)
    stage.start(1)
    stage.complete(1)
    assert waiter.done()
    assert update.stage == COMPLETED
    failure = Outcome.FromString(update.outcome).failure
    assert failure.application_failure_info.type == "UnprocessedUpdate"


async def test_an_update_with_the_next_task_is_not_the_former_ones_to_answer(stage: Stage) -> None:
    stage.start(1)
    update = stage.companion.add_update("u", b"request")
    stage.start(2)  # within the commit of task 1's answer
    stage.complete(1)
    assert update.stage == ADMITTED
    assert stage.wakes == 0


async def test_an_update_that_came_while_a_task_ran_asks_for_another(stage: Stage) -> None:
    stage.start(1)
    stage.companion.add_update("u", b"request")
    stage.complete(1)
    assert stage.wakes == 1
    assert len(stage.start(2).messages) == 1


async def test_what_an_open_commit_answers_is_not_sent_again_unless_it_is_lost(
    stage: Stage,
) -> None:
    query_id, _ = stage.companion.add_query(query())
    for update_id in ("answered", "ignored"):
        stage.companion.add_update(update_id, b"request")
    stage.start(1)
    stage.companion.add_update("late", b"request")
    done = RespondWorkflowTaskCompletedRequest(task_token=token(1))
    done.messages.add(protocol_instance_id="answered")
    done.query_results[query_id].SetInParent()
    stage.companion.on_task_applied(done)
    assert stage.companion.take_answer() is done
    assert stage.companion.take_answer() is None
    following = stage.start(2)  # within the same commit, or one that stacks on it
    assert [message.protocol_instance_id for message in following.messages] == ["late"]
    assert not following.queries
    stage.companion.on_task_undone(done)
    again = stage.start(3)
    assert len(again.messages) == 3
    assert query_id in again.queries


async def test_a_companion_that_went_away_does_not_take_its_successor_along() -> None:
    class Executions:
        companions: ClassVar[dict[int, object]] = {}

        def cached(self, key: int) -> None:
            return None

    executions = Executions()
    companions = Companions(executions, 3)  # type: ignore[arg-type]
    first = companions.of(1)
    query_id, _ = first.add_query(query())
    first.remove_query(query_id)
    assert executions.companions == {}
    second = companions.of(1)
    assert second is not first
    _, answer = second.add_query(query())
    first.on_task_completed(RespondWorkflowTaskCompletedRequest(task_token=token(1)))
    assert companions.known(1) is second
    assert executions.companions == {1: second}
    second.on_closed()
    with pytest.raises(Unblocked):
        answer.result()
    assert executions.companions == {}


async def test_a_heartbeat_leaves_updates_alone(stage: Stage) -> None:
    update = stage.companion.add_update("u", b"request")
    stage.start(1)
    stage.companion.on_task_completed(
        RespondWorkflowTaskCompletedRequest(
            task_token=token(1), force_create_new_workflow_task=True
        )
    )
    assert update.stage == ADMITTED


async def test_a_lost_task_sends_the_update_again(stage: Stage) -> None:
    stage.companion.add_update("u", b"request")
    stage.start(1)
    stage.companion.on_task_lost()
    assert stage.wakes == 1
    assert len(stage.start(2).messages) == 1


async def test_closing_tells_all_to_look_again(stage: Stage) -> None:
    _, answer = stage.companion.add_query(query())
    update = stage.companion.add_update("u", b"request")
    waiter = stage.companion.wait_update(update)
    stage.companion.on_closed()
    for future in (answer, waiter):
        with pytest.raises(Unblocked):
            future.result()
    with pytest.raises(Unblocked):  # one who comes to wait after that
        stage.companion.wait_update(update)
    assert stage.emptied >= 1


async def test_a_follower_that_gives_up_leaves_nothing(stage: Stage) -> None:
    update = stage.companion.add_update("u", b"", ACCEPTED)
    update.callers = 1
    stage.companion.wait_update(update).cancel()
    await asyncio.sleep(0)
    stage.companion.release()
    assert stage.companion.find_update("u") is update
    assert update.waiters == []
    update.callers = 0
    stage.companion.release()
    assert stage.companion.find_update("u") is None


async def test_an_admitted_update_outlives_its_callers(stage: Stage) -> None:
    update = stage.companion.add_update("u", b"request")
    stage.companion.wait_update(update).cancel()
    await asyncio.sleep(0)
    stage.companion.release()
    assert stage.companion.find_update("u") is update
    assert stage.emptied == 0


# -- several nodes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [0, 7])  # it handed out nothing but the task, or queries, too
async def test_what_another_node_handed_out_settles_nothing_of_here(other: int) -> None:
    stage = Stage(holder=3)
    query_id, answer = stage.companion.add_query(query())
    update = stage.companion.add_update("u", b"request")
    stage.attempt = 1
    stage.start(1)  # in vain: the other node was faster
    stage.complete(1, {query_id: "to a query of theirs"}, by=other)
    assert not answer.done()
    assert update.stage == ADMITTED
    assert stage.wakes == 1
    stage.start(2)
    stage.complete(2, {query_id: "to this one"})
    assert answer.done()
    assert update.stage == COMPLETED  # it was sent, and had no answer: it is rejected
