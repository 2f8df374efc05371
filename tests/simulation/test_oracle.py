"""Random operation sequences give the same answers from the oracle and from a node."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from perdure.api.errors import RPCError, StatusCode
from perdure.testing.virtual_loop import VirtualLoop

from . import model
from .driver import Driver, event_name, status_name
from .nodes import Disk

IDS = st.sampled_from(["a", "b", "c"])
REQUESTS = st.sampled_from(["r1", "r2", "r3", "r4", "r5", "r6"])
MILLISECONDS = st.sampled_from([1, 900, 2_500, 7_000, 60_000])


class Held:
    """A task that the test took, with the run as the oracle knows it."""

    def __init__(
        self, run: model.Run, token: bytes, started: Any, name: str = "", attempt: int = 0
    ):
        self.run, self.token, self.started = run, token, started
        self.name, self.attempt = name, attempt


class NodeAgainstOracle(RuleBasedStateMachine):
    """One node and the oracle, given the same operations in the same order."""

    def __init__(self) -> None:
        super().__init__()
        self.model = model.Model()
        self.expected: Any = None
        self.open()
        self.run_ids: dict[tuple[str, int], str] = {}
        self.tasks: list[Held] = []
        self.activities: list[Held] = []
        self.names = 0

    # -- the node, its database and its time -------------------------------------------------------

    def open(self) -> None:
        """The first process."""
        self.loop: asyncio.AbstractEventLoop = VirtualLoop()
        self.disk = Disk()
        node = self.run(self.disk.open(random.Random(0)))
        self.driver = Driver(node.service)

    def reopen(self) -> None:
        """The process dies and another opens the same database."""
        node = self.run(self.disk.crash_and_open(random.Random(self.names)))
        self.driver = Driver(node.service)

    def close(self) -> None:
        """The end of the world."""
        self.run(self.disk.close())

    def elapsed_ms(self) -> int:
        """How much time has passed."""
        return int(self.loop.time() * 1000)

    async def pass_time(self, length_ms: int) -> None:
        """Let time pass, and what is due happen."""
        await asyncio.sleep(length_ms / 1000)

    # -- both --------------------------------------------------------------------------------------

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    def both(self, expected: Any, actual: Any) -> tuple[Any, Any]:
        """Run the oracle's call and the node's; both answer, or both refuse for the same reason."""
        self.catch_up()
        refusal = None
        answer = result = self.expected = None
        try:
            answer = self.expected = expected()
        except model.Refused as error:
            refusal = str(error)
        try:
            result = self.run(actual)
        except RPCError as error:
            if refusal != StatusCode(error.code).name:
                raise AssertionError(f"node: {error!r}, oracle: {refusal}") from error
        else:
            assert refusal is None, f"the node took what the oracle refuses with {refusal}"
        return answer, result

    def catch_up(self) -> None:
        """Bring the oracle to the node's time: calls cost a little virtual time."""
        self.model.advance(self.elapsed_ms())

    def new_name(self) -> str:
        self.names += 1
        return f"n{self.names}"

    # -- clients -----------------------------------------------------------------------------------

    @rule(
        workflow_id=IDS,
        request=REQUESTS,
        reuse=st.sampled_from(["allow", "failed_only", "reject_duplicate"]),
        conflict=st.sampled_from(["fail", "use_existing", "terminate"]),
    )
    def start(self, workflow_id: str, request: str, reuse: str, conflict: str) -> None:
        if reuse == "reject_duplicate" and conflict == "terminate":
            return  # a combination that a server refuses as such
        run, run_id = self.both(
            lambda: self.model.start(workflow_id, request, reuse, conflict),
            self.driver.start(workflow_id, request, reuse, conflict),
        )
        if run is not None:
            known = self.run_ids.setdefault((workflow_id, run.number), run_id)
            assert known == run_id

    @rule(workflow_id=IDS, request=REQUESTS)
    def signal(self, workflow_id: str, request: str) -> None:
        self.both(
            lambda: self.model.signal(workflow_id, request),
            self.driver.signal(workflow_id, request),
        )

    @rule(workflow_id=IDS)
    def request_cancel(self, workflow_id: str) -> None:
        self.both(
            lambda: self.model.request_cancel(workflow_id),
            self.driver.request_cancel(workflow_id, "cancel"),
        )

    @rule(workflow_id=IDS)
    def terminate(self, workflow_id: str) -> None:
        self.both(lambda: self.model.terminate(workflow_id), self.driver.terminate(workflow_id))

    # -- workers -----------------------------------------------------------------------------------

    @rule()
    def poll_workflow(self) -> None:
        run, task = self.both(self.model.poll_workflow, self.driver.poll_workflow())
        assert (run is None) == (task is None), f"oracle gives {run}, node gives {task}"
        if run is not None:
            assert task.workflow_execution.workflow_id == run.workflow_id
            self.run_ids.setdefault((run.workflow_id, run.number), task.workflow_execution.run_id)
            self.tasks.append(Held(run, task.task_token, run.task))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def complete_task(self, data: st.DataObject) -> None:
        held = self.take(self.tasks, data)
        commands = data.draw(st.lists(st.sampled_from(["activity", "timer", "marker"]), max_size=3))
        named = [(kind, self.argument(kind, data)) for kind in commands]
        named += self.cancellations(held.run, data)
        end = data.draw(st.sampled_from(["", "", "", "complete", "fail", "cancel", "continue"]))
        if end:
            named.append((end, ""))
        self.both(
            lambda: self.model.complete_task(self.still(held), named),
            self.complete(held, named),
        )

    async def complete(self, held: Held, commands: list[tuple[str, str]]) -> None:
        translated = []
        for kind, name in commands:
            if kind == "cancel_activity":
                name = str(await self.scheduled_event_id(held.run, name))
            translated.append((kind, name))
        await self.driver.complete_task(held.token, translated)

    async def scheduled_event_id(self, run: model.Run, activity_id: str) -> int:
        run_id = self.run_ids[run.workflow_id, run.number]
        for event in await self.driver.history(run.workflow_id, run_id):
            if event.activity_task_scheduled_event_attributes.activity_id == activity_id:
                return int(event.event_id)
        raise AssertionError(f"no activity {activity_id} in history")

    def argument(self, kind: str, data: st.DataObject) -> str:
        if kind == "activity":
            attempts = data.draw(st.sampled_from([1, 2, 0]))
            return f"{self.new_name()}:{data.draw(st.sampled_from([5_000, 50_000]))}:{attempts}"
        if kind == "timer":
            return f"{self.new_name()}:{data.draw(MILLISECONDS)}"
        return ""

    def cancellations(self, run: model.Run, data: st.DataObject) -> list[tuple[str, str]]:
        found = []
        if run.timers and data.draw(st.booleans()):
            found.append(("cancel_timer", data.draw(st.sampled_from(sorted(run.timers)))))
        wanted = sorted(a.id for a in run.activities.values() if not a.cancel_requested)
        if wanted and data.draw(st.booleans()):
            found.append(("cancel_activity", data.draw(st.sampled_from(wanted))))
        return found

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def fail_task(self, data: st.DataObject) -> None:
        held = self.take(self.tasks, data)
        if held.started.attempt > 1:
            self.tasks.append(held)  # a second failure is paced by the server: not modelled
            return
        self.both(lambda: self.model.fail_task(self.still(held)), self.driver.fail_task(held.token))

    def still(self, held: Held) -> model.Run:
        """The run, if it is still in the task that was taken."""
        if held.run.task is not held.started:
            raise model.Refused("NOT_FOUND")
        return held.run

    @rule()
    def poll_activity(self) -> None:
        self.catch_up()
        ready = self.model.ready_activities()
        task = self.run(self.driver.poll_activity())
        assert (task is not None) == bool(ready), f"oracle has {ready}, node gives {task}"
        if task is None:
            return
        for run, activity in ready:
            run_id = self.run_ids.get((run.workflow_id, run.number))
            if activity.id == task.activity_id and run_id == task.workflow_execution.run_id:
                assert task.attempt == activity.attempt
                self.model.take_activity(run, activity.id)
                self.activities.append(
                    Held(run, task.task_token, None, activity.id, activity.attempt)
                )
                return
        raise AssertionError(f"the node gives {task.activity_id}, which is not ready: {ready}")

    @precondition(lambda self: self.activities)
    @rule(data=st.data(), how=st.sampled_from(["complete", "fail", "fail for good", "cancel"]))
    def end_activity(self, data: st.DataObject, how: str) -> None:
        held = self.take(self.activities, data)
        run, name, attempt = held.run, held.name, held.attempt
        expected: Any = {
            "complete": lambda: self.model.complete_activity(run, name, attempt),
            "cancel": lambda: self.model.cancel_activity(run, name, attempt),
            "fail": lambda: self.model.fail_activity(run, name, attempt, True),
            "fail for good": lambda: self.model.fail_activity(run, name, attempt, False),
        }[how]
        actual: Any = {
            "complete": self.driver.complete_activity,
            "cancel": self.driver.cancel_activity,
            "fail": lambda token: self.driver.fail_activity(token, True),
            "fail for good": lambda token: self.driver.fail_activity(token, False),
        }[how]
        self.both(expected, actual(held.token))

    def take(self, held: list[Held], data: st.DataObject) -> Held:
        return held.pop(data.draw(st.integers(0, len(held) - 1)))

    # -- time and failures -------------------------------------------------------------------------

    @precondition(lambda self: all(not _retried(run) for run in self.model.runs))
    @rule(length=MILLISECONDS)
    def wait(self, length: int) -> None:
        self.run(self.pass_time(length))
        self.catch_up()

    @rule()
    def restart(self) -> None:
        """The process dies and another opens the same database."""
        self.catch_up()
        self.model.restart()
        self.reopen()

    # -- what must always hold ---------------------------------------------------------------------

    @invariant()
    def histories_agree(self) -> None:
        self.catch_up()
        for run in self.model.runs:
            run_id = self.run_ids.get((run.workflow_id, run.number))
            if run_id is None:
                continue
            seen = self.run(self.driver.describe(run.workflow_id, run_id))
            events = self.run(self.driver.history(run.workflow_id, run_id))
            # A retried task's events are shown to workers, but are not in history yet.
            events = events[: seen.workflow_execution_info.history_length]
            assert [event_name(e.event_type) for e in events] == run.events
            assert [e.event_id for e in events] == list(range(1, len(events) + 1))
            assert status_name(seen.workflow_execution_info.status) == run.status
            pending = {a.activity_id: a.attempt for a in seen.pending_activities}
            assert pending == {a.id: a.attempt for a in run.activities.values()}

    @rule()
    def counts_agree(self) -> None:
        self.catch_up()
        for status in ("Running", "Completed", "Terminated"):
            query = f"ExecutionStatus = '{status}'"
            assert self.run(self.driver.count(query)) == self.model.count(status)

    def teardown(self) -> None:
        self.close()
        self.loop.close()


def _retried(run: model.Run) -> bool:
    """Whether the run's workflow task is a retry: its next time-out is paced by the server."""
    return run.task is not None and run.task.attempt > 1


TestNodeAgainstOracle = NodeAgainstOracle.TestCase
TestNodeAgainstOracle.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # add Phase.shrink to study a failure: it takes long
    derandomize=True,
)
