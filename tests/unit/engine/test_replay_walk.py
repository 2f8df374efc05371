"""Whatever happens to a run, in whatever order: its state is what its history says."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from sample_runs import NOW_NS
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payloads
from temporalio.api.enums.v1 import CommandType, EventType, WorkflowTaskFailedCause
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import History, HistoryEvent
from temporalio.api.protocol.v1 import Message
from temporalio.api.update.v1 import Acceptance, Rejection, Response
from temporalio.api.workflowservice.v1 import (
    RequestCancelWorkflowExecutionRequest,
    ResetWorkflowExecutionRequest,
    RespondWorkflowTaskCompletedRequest,
    SignalWorkflowExecutionRequest,
)

from perdure.api.errors import InvalidArgument, RPCError
from perdure.api.times import SECOND_NS
from perdure.engine import (
    activities,
    alarms,
    children,
    commands,
    external,
    lifecycle,
    replay,
    reset,
    workflow_tasks,
)
from perdure.engine.execution import Execution
from perdure.engine.lifecycle import StartRun
from perdure.engine.outbox import CancelRun, ChildClosed, SignalRun, StartChild
from perdure.engine.state import RetryPolicy
from perdure.engine.transition import Transition

STEPS = 150
CHILD_CLOSED = (
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED,
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED,
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED,
)


class Walk:
    """One run under random operations; after each, it is compared with its replay."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_ns = NOW_NS
        self.names = 0
        self.events: list[HistoryEvent] = []
        self.messages: list[StartChild | SignalRun | CancelRun] = []
        begin = StartRun(
            namespace="default",
            namespace_id="ns-id",
            workflow_id="flow-1",
            run_id="run-1",
            workflow_type="Flow",
            task_queue="orders",
            retry=RetryPolicy(SECOND_NS, 2.0, 100 * SECOND_NS, 0),
            first_task_backoff_ns=self.random.choice((0, 5 * SECOND_NS)),
        )
        self.run = lifecycle.new_execution(1, begin, self.now_ns)
        self.do(lambda tx: lifecycle.start(tx, begin))

    def do(self, operation: Callable[[Transition], object]) -> Transition:
        tx = Transition(self.run, self.now_ns, self.random)
        try:
            operation(tx)
        except RPCError:
            assert not tx.has_events
        self.events += History.FromString(tx.events).events
        self.messages += [
            m for m in tx.messages if isinstance(m, StartChild | SignalRun | CancelRun)
        ]
        by_history = replay.rebuild(1, self.run.info, self.events)
        assert replay.differences(self.run, by_history) == []
        return tx

    def name(self) -> str:
        self.names += 1
        return f"n{self.names}"

    def step(self) -> None:
        self.now_ns += self.random.choice((0, 1, SECOND_NS, 7 * SECOND_NS))
        self.random.choice(
            (
                self.start_task, self.start_task, self.complete_task, self.complete_task,
                self.complete_task, self.fail_task, self.activity, self.activity, self.deliver,
                self.deliver, self.close_child, self.ring, self.from_outside,
            )
        )()  # fmt: skip

    # -- the worker --------------------------------------------------------------------------------

    def start_task(self) -> None:
        self.do(lambda tx: workflow_tasks.start(
            tx, identity="w", request_id=self.name(), in_process=self.random.random() < 0.5
        ))  # fmt: skip

    def complete_task(self) -> None:
        answer = RespondWorkflowTaskCompletedRequest(identity="w")
        for _ in range(self.random.randrange(4)):
            self.add_command(answer.commands.add())
        self.add_update_messages(answer)
        if self.random.random() < 0.3:
            answer.sticky_attributes.worker_task_queue.name = "sticky-1"
            answer.sticky_attributes.schedule_to_start_timeout.seconds = 5
        self.do(lambda tx: commands.complete(tx, answer))

    def add_command(self, command: Command) -> None:
        """One command of the kinds whose answers come later."""
        kind = self.random.randrange(7)
        if kind == 0:
            command.command_type = CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK
            activity = command.schedule_activity_task_command_attributes
            activity.activity_id = self.name()
            activity.activity_type.name = "charge"
            activity.start_to_close_timeout.seconds = 10
            activity.retry_policy.maximum_attempts = self.random.choice((1, 3))
        elif kind == 1:
            command.command_type = CommandType.COMMAND_TYPE_START_TIMER
            timer = command.start_timer_command_attributes
            timer.timer_id = self.name()
            timer.start_to_fire_timeout.seconds = self.random.randrange(1, 20)
        elif kind == 2:
            command.command_type = CommandType.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION
            child = command.start_child_workflow_execution_command_attributes
            child.workflow_id = self.name()
            child.workflow_type.name = "Kid"
        elif kind == 3:
            command.command_type = CommandType.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION
            signal = command.signal_external_workflow_execution_command_attributes
            signal.execution.workflow_id = "other"
            signal.signal_name = "go"
        elif kind == 4:
            command.command_type = (
                CommandType.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION
            )
            command.request_cancel_external_workflow_execution_command_attributes.workflow_id = "o"
        else:
            self.add_ending(command, kind)

    def add_ending(self, command: Command, kind: int) -> None:
        """A command that cancels something, or else changes the memo."""
        if kind == 5 and self.run.timers:
            command.command_type = CommandType.COMMAND_TYPE_CANCEL_TIMER
            timer_id = self.random.choice(list(self.run.timers))
            command.cancel_timer_command_attributes.timer_id = timer_id
        elif kind == 6 and self.run.activities:
            command.command_type = CommandType.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK
            chosen = self.random.choice(list(self.run.activities))
            command.request_cancel_activity_task_command_attributes.scheduled_event_id = chosen
        else:
            command.command_type = CommandType.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES
            memo = command.modify_workflow_properties_command_attributes.upserted_memo
            memo.fields[self.random.choice("abc")].data = self.name().encode()

    def add_update_messages(self, answer: RespondWorkflowTaskCompletedRequest) -> None:
        for update in self.run.updates.values():
            if update.accepted_event_id and not update.completed_event_id:
                body = Response()
                body.meta.update_id = update.update_id
                body.outcome.success.SetInParent()
                answer.messages.append(packed(update.update_id, body))
        if self.random.random() < 0.3:
            update_id = self.name()
            accepted = Acceptance(
                accepted_request_message_id="m", accepted_request_sequencing_event_id=1
            )
            accepted.accepted_request.meta.update_id = update_id
            rejected = Rejection()
            rejected.rejected_request.meta.update_id = update_id
            answer.messages.append(
                packed(update_id, accepted if self.random.random() < 0.7 else rejected)
            )

    def fail_task(self) -> None:
        cause = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR
        if self.random.random() < 0.5:
            self.do(lambda tx: workflow_tasks.fail(tx, cause, Failure(message="no"), "w"))
        else:
            self.do(workflow_tasks.take_back)

    def activity(self) -> None:
        if not self.run.activities:
            return
        activity = self.random.choice(list(self.run.activities.values()))
        result = Payloads(payloads=[{"data": b"1"}]).SerializeToString()
        failure = Failure(message="no")
        failure.application_failure_info.type = "Oops"
        operation: Callable[[Transition], object] = self.random.choice(
            (
                lambda tx: activities.complete(tx, activity, result, "w"),
                lambda tx: activities.fail(tx, activity, failure, "w"),
                lambda tx: activities.cancel(tx, activity, b"", "w"),
                lambda tx: activities.take_back(tx, activity),
                lambda tx: activities.heartbeat(tx, activity, b"", False),
            )
        )
        if not activity.started_ns:
            operation = lambda tx: activities.start(  # noqa: E731
                tx, activity.scheduled_event_id, identity="w", request_id="r", in_process=False
            )
        self.do(operation)

    # -- other runs --------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Answer a message; now and then twice, or out of order."""
        if not self.messages:
            return
        message = self.random.choice(self.messages)
        if self.random.random() < 0.8:
            self.messages.remove(message)
        good = self.random.random() < 0.7
        match message:
            case StartChild(initiated_event_id=initiated) if good:
                self.do(lambda tx: children.started(tx, initiated, message.run_id, key=9))
            case StartChild(initiated_event_id=initiated):
                self.do(lambda tx: children.start_failed(tx, initiated, 1))
            case SignalRun() if good:
                self.do(lambda tx: external.signaled(tx, message))
            case SignalRun():
                self.do(lambda tx: external.signal_failed(tx, message, 1))
            case CancelRun() if good:
                self.do(lambda tx: external.cancelled(tx, message))
            case CancelRun():
                self.do(lambda tx: external.cancel_failed(tx, message, 1))

    def close_child(self) -> None:
        if self.run.children:
            child = self.random.choice(list(self.run.children.values()))
            message = ChildClosed(
                1, child.initiated_event_id, child.workflow_id, "last",
                self.random.choice(CHILD_CLOSED), b"",
            )  # fmt: skip
            self.do(lambda tx: children.closed(tx, message))

    # -- time and people ---------------------------------------------------------------------------

    def ring(self) -> None:
        self.do(alarms.ring)

    def from_outside(self) -> None:
        if self.random.random() < 0.1:
            asked = RequestCancelWorkflowExecutionRequest(request_id=self.name())
            self.do(lambda tx: lifecycle.request_cancel(tx, asked))
        else:
            signal = SignalWorkflowExecutionRequest(signal_name="go", request_id=self.name())
            self.do(lambda tx: lifecycle.signal(tx, signal))


def packed(update_id: str, body: Acceptance | Rejection | Response) -> Message:
    message = Message(id=f"{update_id}/{type(body).__name__}", protocol_instance_id=update_id)
    message.body.Pack(body)
    return message


@pytest.mark.parametrize("seed", range(40))
def test_state_equals_replay_on_a_random_walk(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(STEPS):
        walk.step()
    walk.do(lambda tx: lifecycle.terminate(tx, "enough"))
    assert not walk.run.is_open


@pytest.mark.parametrize("seed", range(100, 115))
def test_any_reset_of_a_random_walk_is_a_whole_run(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(STEPS):
        walk.step()
    made = 0
    for finish_event_id in range(2, len(walk.events)):
        request = ResetWorkflowExecutionRequest(
            workflow_task_finish_event_id=finish_event_id, reason="again"
        )
        try:
            tx = reset.reset(
                request, walk.run, walk.events, [], key=2, run_id="run-2",
                now_ns=walk.now_ns, rng=walk.random,
            )  # fmt: skip
        except InvalidArgument:
            continue
        made += 1
        check_whole(tx.run, tx)
    assert made


def check_whole(run: Execution, tx: Transition) -> None:
    history = list(History.FromString(tx.events).events)
    assert [event.event_id for event in history] == list(range(1, run.state.next_event_id))
    assert replay.differences(run, replay.rebuild(2, run.info, history)) == []
    assert set(tx.changed) == set(run.items)
    assert run.state.wake_at_ns == alarms.next_ns(run)
