"""One run, driven through the engine by hand."""

from __future__ import annotations

import random

from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.history.v1 import History, HistoryEvent
from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest

from perdure.engine import commands, lifecycle, workflow_tasks
from perdure.engine.execution import Execution
from perdure.engine.lifecycle import StartRun
from perdure.engine.transition import Transition

SECOND = 1_000_000_000
RESULT = Payloads(payloads=[Payload(data=b"1", metadata={"encoding": b"json/plain"})])


class Play:
    """One run, driven step by step."""

    def __init__(self, **changes: object) -> None:
        values: dict[str, object] = {
            "namespace": "default", "namespace_id": "n", "workflow_id": "w", "run_id": "r",
            "workflow_type": "flow", "task_queue": "queue",
        }  # fmt: skip
        start = StartRun(**(values | changes))  # type: ignore[arg-type]
        self.now = 1_000 * SECOND
        self.rng = random.Random(1)
        self.run: Execution = lifecycle.new_execution(1, start, self.now)
        self.history = b""
        self.last = self.do(lambda tx: lifecycle.start(tx, start))

    def do(self, operation: object) -> Transition:
        tx = Transition(self.run, self.now, self.rng)
        self.result = operation(tx)  # type: ignore[operator]
        self.run.state.version += 1
        self.history += tx.events
        return tx

    def take(self) -> None:
        self.do(
            lambda tx: workflow_tasks.start(tx, identity="me", request_id="q", in_process=False)
        )

    def answer(self, *answer: Command) -> Transition:
        request = RespondWorkflowTaskCompletedRequest(commands=answer, identity="me")
        return self.do(lambda tx: commands.complete(tx, request))

    @property
    def events(self) -> list[HistoryEvent]:
        return list(History.FromString(self.history).events)

    @property
    def types(self) -> list[str]:
        return [EventType.Name(e.event_type).removeprefix("EVENT_TYPE_") for e in self.events]


def activity(activity_id: str = "1") -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK)
    wanted = command.schedule_activity_task_command_attributes
    wanted.activity_id = activity_id
    wanted.activity_type.name = "work"
    wanted.start_to_close_timeout.FromSeconds(10)
    wanted.input.CopyFrom(RESULT)
    return command


def finish() -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
    command.complete_workflow_execution_command_attributes.result.CopyFrom(RESULT)
    return command
