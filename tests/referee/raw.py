"""A worker by hand: it takes one task, and answers it, exactly when the program says so."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payload, Payloads, WorkflowType
from temporalio.api.enums.v1 import CommandType, TaskQueueKind
from temporalio.api.failure.v1 import Failure
from temporalio.api.taskqueue.v1 import StickyExecutionAttributes, TaskQueue

if TYPE_CHECKING:
    from referee.env import Env

STICKY_TIMEOUT = timedelta(seconds=10)


def payload(text: str) -> Payload:
    """A JSON string as the SDK would write it."""
    return Payload(metadata={"encoding": b"json/plain"}, data=f'"{text}"'.encode())


def payloads(*texts: str) -> Payloads:
    """Some of them."""
    return Payloads(payloads=[payload(text) for text in texts])


def failure(message: str, kind: str = "Error", *, non_retryable: bool = False) -> Failure:
    """An application failure."""
    made = Failure(message=message, source="referee")
    made.application_failure_info.type = kind
    made.application_failure_info.non_retryable = non_retryable
    return made


def command(kind: str, **attributes: Any) -> Command:
    """A command by its name: ``command("START_TIMER", timer_id="1", …)``."""
    made: dict[str, Any] = {f"{kind.lower()}_command_attributes": attributes}
    return Command(command_type=CommandType.Value(f"COMMAND_TYPE_{kind}"), **made)


def start_timer(timer_id: str, seconds: float = 3600) -> Command:
    """A timer that is not going to fire during a test, unless it is told to."""
    timeout = timedelta(seconds=seconds)
    return command("START_TIMER", timer_id=timer_id, start_to_fire_timeout=timeout)


def complete_workflow(result: str = "done") -> Command:
    """The end."""
    return command("COMPLETE_WORKFLOW_EXECUTION", result=payloads(result))


def schedule_activity(activity_id: str, queue: str, **attributes: Any) -> Command:
    """An activity of the type ``Act``, of ten seconds and one attempt unless told otherwise."""
    attributes.setdefault("start_to_close_timeout", timedelta(seconds=10))
    attributes.setdefault("retry_policy", {"maximum_attempts": 1})
    return command(
        "SCHEDULE_ACTIVITY_TASK",
        activity_id=activity_id,
        activity_type={"name": "Act"},
        task_queue={"name": queue},
        **attributes,
    )


class RawWorker:
    """Polls one task queue, by hand.

    Args:
        env: whose server.
        queue: the task queue's name.
        sticky: the name of a sticky queue to be used from the first answer on.
    """

    def __init__(self, env: Env, queue: str, *, sticky: str = "") -> None:
        self.env = env
        self.queue = queue
        self.sticky = f"{queue}-{sticky}" if sticky else ""

    async def start(self, suffix: str = "", **fields: Any) -> Any:
        """Start a workflow of the type ``Raw`` on this worker's queue."""
        fields.setdefault("workflow_id", self.env.id(suffix))
        fields.setdefault("request_id", f"request-{fields['workflow_id']}")
        fields.setdefault("workflow_type", WorkflowType(name="Raw"))
        fields.setdefault("task_queue", TaskQueue(name=self.queue))
        return await self.env.call("StartWorkflowExecution", **fields)

    async def workflow_task(self, *, sticky: bool = False) -> Any:
        """Take the next workflow task; there must be one within seconds."""
        queue = TaskQueue(name=self.queue)
        if sticky:
            assert self.sticky
            kind = TaskQueueKind.TASK_QUEUE_KIND_STICKY
            queue = TaskQueue(name=self.sticky, kind=kind, normal_name=self.queue)
        task = await self.env.call("PollWorkflowTaskQueue", task_queue=queue)
        assert task.task_token, "no workflow task came"
        return task

    async def activity_task(self) -> Any:
        """Take the next activity task; there must be one within seconds."""
        queue = TaskQueue(name=self.queue)
        task = await self.env.call("PollActivityTaskQueue", task_queue=queue)
        assert task.task_token, "no activity task came"
        return task

    async def complete(self, task: Any, *commands: Command, **fields: Any) -> Any:
        """Answer a workflow task."""
        if self.sticky:
            fields["sticky_attributes"] = StickyExecutionAttributes(
                worker_task_queue=TaskQueue(
                    name=self.sticky,
                    kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY,
                    normal_name=self.queue,
                ),
                schedule_to_start_timeout=STICKY_TIMEOUT,
            )
        return await self.env.call(
            "RespondWorkflowTaskCompleted",
            task_token=task.task_token,
            commands=commands,
            **fields,
        )

    async def step(self, *commands: Command, **fields: Any) -> Any:
        """Take a workflow task and answer it with these commands; returns the task."""
        task = await self.workflow_task()
        await self.complete(task, *commands, **fields)
        return task
