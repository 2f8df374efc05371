"""Signals, queries and updates."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.client import WorkflowHandle, WorkflowUpdateStage
from temporalio.common import QueryRejectCondition
from temporalio.exceptions import ApplicationError

from referee.env import Env
from referee.program import program
from referee.raw import RawWorker, command, complete_workflow, failure, payloads, start_timer

RUN_ID = "11111111-2222-4333-8444-555555555555"  # of no run


@workflow.defn
class Box:
    """Holds texts; open until it is told to end."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.end = ""

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait_condition(lambda: self.end != "")
        if self.end == "fail":
            raise ApplicationError("told to fail", type="Told", non_retryable=True)
        return self.texts

    @workflow.signal
    def add(self, text: str) -> None:
        self.texts.append(text)

    @workflow.signal
    def finish(self, how: str) -> None:
        self.end = how

    @workflow.signal
    def breaks(self) -> None:
        raise ApplicationError("signal handler failed", type="Handler")

    @workflow.query
    def count(self) -> int:
        return len(self.texts)

    @workflow.query
    def fails(self) -> int:
        raise ValueError("no answer")

    @workflow.update
    async def put(self, text: str) -> int:
        if text == "broken":
            raise ApplicationError("cannot be put", "detail", type="Broken")
        if text == "slow":
            await asyncio.sleep(0.2)
        if text == "waits":
            await workflow.wait_condition(lambda: self.end != "")
        self.texts.append(text)
        return len(self.texts)

    @put.validator
    def check(self, text: str) -> None:
        if text == "bad":
            raise ApplicationError("bad is not allowed", type="Bad")


async def _box(env: Env, suffix: str = "") -> WorkflowHandle[Any, Any]:
    """A box that is done with its first workflow task."""
    handle = await env.start(Box.run, id=env.id(suffix))
    await env.until_event(handle, "WORKFLOW_TASK_COMPLETED")
    return handle


async def _ended(env: Env, how: str = "ok") -> WorkflowHandle[Any, Any]:
    handle = await _box(env)
    await handle.signal(Box.finish, how)
    await env.until_event(handle, f"WORKFLOW_EXECUTION_{'COMPLETED' if how == 'ok' else 'FAILED'}")
    return handle


# --- signals ------------------------------------------------------------------------------------


@program
async def test_signals_in_order(env: Env) -> None:
    handle = await _box(env)
    for number in range(3):
        await handle.signal(Box.add, f"text {number}")
        await env.until_event(handle, "WORKFLOW_TASK_COMPLETED", 2 + number)
    await handle.signal(Box.finish, "ok")
    env.note("result", await handle.result())


@program
async def test_signal_unknown_to_the_workflow(env: Env) -> None:
    handle = await _box(env)
    await handle.signal("who knows", "this")
    await env.until_event(handle, "WORKFLOW_TASK_COMPLETED", 2)


@program
async def test_signal_handler_that_fails(env: Env) -> None:
    handle = await _box(env)
    await handle.signal(Box.breaks)
    await env.error("result", handle.result())


@program
async def test_signal_to_nobody(env: Env) -> None:
    nobody = env.client.get_workflow_handle(env.id("nobody"))
    await env.error("signal", nobody.signal(Box.add, "x"))
    other = env.client.get_workflow_handle(env.id("nobody"), run_id=RUN_ID)
    await env.error("signal to a run", other.signal(Box.add, "x"))


@program
async def test_signal_to_closed(env: Env) -> None:
    handle = await _ended(env)
    await env.error("signal", handle.signal(Box.add, "x"))


@program
async def test_signal_with_one_request_id_twice(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    for request_id in ("a", "a", "b"):
        response = await env.call(
            "SignalWorkflowExecution",
            workflow_execution={"workflow_id": env.id()},
            signal_name="go",
            request_id=request_id,
        )
        env.note("response", response)


@program
async def test_signal_bad_requests(env: Env) -> None:
    rpc, raw = "SignalWorkflowExecution", env.raw_worker()
    await raw.start()
    here = {"workflow_id": env.id()}
    await env.error("no execution", env.call(rpc, signal_name="s"))
    await env.error("no id", env.call(rpc, workflow_execution={}, signal_name="s"))
    bad = {"workflow_id": env.id(), "run_id": "abc"}
    await env.error("bad run id", env.call(rpc, workflow_execution=bad, signal_name="s"))
    await env.error("no name", env.call(rpc, workflow_execution=here))
    long = env.call(rpc, workflow_execution=here, signal_name="s" * 1001)
    await env.error("long name", long)
    long = env.call(rpc, workflow_execution=here, signal_name="s", request_id="r" * 1001)
    await env.error("long request id", long)
    large = env.call(rpc, workflow_execution=here, signal_name="s", input=payloads("x" * 2_200_000))
    await env.error("large input", large)


@program
async def test_signal_buffered_while_a_task_runs(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    task = await raw.workflow_task()
    signal = {"workflow_execution": {"workflow_id": env.id()}, "input": payloads("now")}
    await env.call("SignalWorkflowExecution", signal_name="first", **signal)
    await env.call("SignalWorkflowExecution", signal_name="second", **signal)
    env.note("events meanwhile", len(await env.events(env.id())))
    await raw.complete(task, start_timer("t"))
    await raw.step(complete_workflow())


@program
async def test_signal_that_makes_completion_impossible(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    task = await raw.workflow_task()
    await env.call(
        "SignalWorkflowExecution", workflow_execution={"workflow_id": env.id()}, signal_name="new"
    )
    await env.error("complete", raw.complete(task, complete_workflow()))
    await raw.step(complete_workflow())


def _link(workflow_id: str) -> dict[str, Any]:
    return {
        "workflow_event": {"namespace": "default", "workflow_id": workflow_id, "run_id": RUN_ID}
    }


@program
async def test_signal_header_and_links_are_recorded(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start(links=[_link("x")])
    await env.call(
        "SignalWorkflowExecution",
        workflow_execution={"workflow_id": env.id()},
        signal_name="s",
        header={"fields": {"key": payloads("value").payloads[0]}},
        links=[_link("y")],
    )


# --- queries ------------------------------------------------------------------------------------


@program
async def test_query(env: Env) -> None:
    handle = await _box(env)
    await handle.signal(Box.add, "x")
    env.note("count", await handle.query(Box.count))


@program
async def test_query_right_after_start(env: Env) -> None:
    handle = await env.start(Box.run)
    env.note("count", await handle.query(Box.count))
    await env.until_event(handle, "WORKFLOW_TASK_COMPLETED")


@program
async def test_query_that_fails(env: Env) -> None:
    handle = await _box(env)
    await env.error("fails", handle.query(Box.fails))


@program
async def test_query_unknown(env: Env) -> None:
    handle = await _box(env)
    await env.error("unknown", handle.query("who knows"))


@program
async def test_query_nobody(env: Env) -> None:
    nobody = env.client.get_workflow_handle(env.id("nobody"))
    await env.error("query", nobody.query(Box.count))


@program
async def test_query_completed(env: Env) -> None:
    handle = await _ended(env)
    env.note("count", await handle.query(Box.count))


@program
async def test_query_failed(env: Env) -> None:
    handle = await _ended(env, "fail")
    env.note("count", await handle.query(Box.count))


@program
async def test_query_reject_conditions(env: Env) -> None:
    handle = await _box(env)
    not_open = QueryRejectCondition.NOT_OPEN
    unclean = QueryRejectCondition.NOT_COMPLETED_CLEANLY
    env.note("open", await handle.query(Box.count, reject_condition=not_open))
    await handle.signal(Box.finish, "fail")
    await env.error("result", handle.result())
    await env.error("not open", handle.query(Box.count, reject_condition=not_open))
    await env.error("not clean", handle.query(Box.count, reject_condition=unclean))


@program
async def test_query_completed_cleanly_is_not_rejected(env: Env) -> None:
    handle = await _ended(env)
    unclean = QueryRejectCondition.NOT_COMPLETED_CLEANLY
    env.note("clean", await handle.query(Box.count, reject_condition=unclean))


@program
async def test_query_rejected_as_it_is_on_the_wire(env: Env) -> None:
    await _ended(env)
    execution = {"workflow_id": env.id()}
    response = await env.call(
        "QueryWorkflow",
        execution=execution,
        query={"query_type": "count"},
        query_reject_condition=2,
    )
    env.note("response", response)


@program
async def test_query_before_the_first_task_fails(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start(workflow_start_delay=timedelta(seconds=60))
    query = env.call(
        "QueryWorkflow", execution={"workflow_id": env.id()}, query={"query_type": "q"}
    )
    await env.error("during the delay", query)


@program
async def test_query_terminated_before_its_first_task(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await env.call("TerminateWorkflowExecution", workflow_execution={"workflow_id": env.id()})
    query = env.call(
        "QueryWorkflow", execution={"workflow_id": env.id()}, query={"query_type": "q"}
    )
    await env.error("query", query)


@program
async def test_query_bad_requests(env: Env) -> None:
    rpc, here = "QueryWorkflow", {"workflow_id": env.id()}
    query = {"query_type": "q"}
    await env.error("no execution", env.call(rpc, query=query))
    await env.error("no id", env.call(rpc, execution={}, query=query))
    bad = {"workflow_id": env.id(), "run_id": "abc"}
    await env.error("bad run id", env.call(rpc, execution=bad, query=query))
    await env.error("nobody", env.call(rpc, execution=here, query=query))
    await env.error("no query", env.call(rpc, execution=here))
    await env.error("no namespace", env.call(rpc, execution=here, query=query, namespace=""))
    await env.error("namespace", env.call(rpc, execution=here, query=query, namespace="nope"))


@program
async def test_query_answered_by_hand(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(start_timer("t"))
    query = {"query_type": "state", "query_args": payloads("a")}
    asked = asyncio.create_task(
        env.call("QueryWorkflow", execution={"workflow_id": env.id()}, query=query)
    )
    task = await raw.workflow_task()
    env.note("task query", task.query)
    env.note("events", len(task.history.events))
    env.note("started event id", task.started_event_id)
    env.note("attempt", task.attempt)
    await env.call(
        "RespondQueryTaskCompleted",
        task_token=task.task_token,
        completed_type=1,
        query_result=payloads("answer"),
    )
    env.note("answer", await asked)


@program
async def test_query_failed_by_hand(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(start_timer("t"))
    asked = asyncio.create_task(
        env.call(
            "QueryWorkflow", execution={"workflow_id": env.id()}, query={"query_type": "state"}
        )
    )
    task = await raw.workflow_task()
    await env.call(
        "RespondQueryTaskCompleted",
        task_token=task.task_token,
        completed_type=2,
        error_message="it broke",
        failure=failure("it broke", "Query"),
    )
    await env.error("answer", asked)
    again = env.call("RespondQueryTaskCompleted", task_token=task.task_token, completed_type=1)
    await env.error("answered twice", again)


@program
async def test_query_beside_a_workflow_task(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(start_timer("t"))
    await env.call(
        "SignalWorkflowExecution", workflow_execution={"workflow_id": env.id()}, signal_name="s"
    )
    asked = asyncio.create_task(
        env.call(
            "QueryWorkflow", execution={"workflow_id": env.id()}, query={"query_type": "state"}
        )
    )
    await asyncio.sleep(0.2)
    task = await raw.workflow_task()
    env.note("queries", [query.query_type for query in task.queries.values()])
    results = {key: {"result_type": 1, "answer": payloads("with the task")} for key in task.queries}
    await raw.complete(task, start_timer("u"), query_results=results)
    env.note("answer", await asked)


@program
async def test_query_of_an_old_run(env: Env) -> None:
    first = await _ended(env)
    second = await env.start(Box.run)
    await env.until_event(second, "WORKFLOW_TASK_COMPLETED")
    await second.signal(Box.add, "new")
    old = env.client.get_workflow_handle(env.id(), run_id=first.result_run_id)
    env.note("old", await old.query(Box.count))
    env.note("new", await second.query(Box.count))


# --- updates ------------------------------------------------------------------------------------


@program
async def test_update_completes(env: Env) -> None:
    handle = await _box(env)
    env.note("first", await handle.execute_update(Box.put, "a", id="u1"))
    env.note("second", await handle.execute_update(Box.put, "b", id="u2"))


@program
async def test_update_rejected_leaves_no_trace(env: Env) -> None:
    handle = await _box(env)
    await env.error("bad", handle.execute_update(Box.put, "bad", id="u1"))
    await env.error("again", handle.execute_update(Box.put, "bad", id="u1"))


@program
async def test_update_rejected_then_accepted(env: Env) -> None:
    handle = await _box(env)
    await env.error("bad", handle.execute_update(Box.put, "bad", id="u1"))
    env.note("good", await handle.execute_update(Box.put, "good", id="u2"))


@program
async def test_update_fails(env: Env) -> None:
    handle = await _box(env)
    await env.error("broken", handle.execute_update(Box.put, "broken", id="u1"))
    await env.error("again", handle.execute_update(Box.put, "broken", id="u1"))


@program
async def test_update_unknown_is_rejected(env: Env) -> None:
    handle = await _box(env)
    await env.error("unknown", handle.execute_update("who knows", id="u1"))


@program
async def test_update_accepted_then_polled(env: Env) -> None:
    handle = await _box(env)
    update = await handle.start_update(
        Box.put, "slow", id="u1", wait_for_stage=WorkflowUpdateStage.ACCEPTED
    )
    env.note("result", await update.result())


@program
async def test_update_deduplicated(env: Env) -> None:
    handle = await _box(env)
    env.note("first", await handle.execute_update(Box.put, "a", id="u1"))
    env.note("second", await handle.execute_update(Box.put, "other", id="u1"))
    later = handle.get_update_handle("u1")
    env.note("polled", await later.result())


@program
async def test_update_known_after_close(env: Env) -> None:
    handle = await _box(env)
    await handle.execute_update(Box.put, "a", id="u1")
    await handle.signal(Box.finish, "ok")
    await handle.result()
    env.note("polled", await handle.get_update_handle("u1").result())
    env.note("again", await handle.execute_update(Box.put, "a", id="u1"))
    await env.error("new", handle.execute_update(Box.put, "a", id="u2"))
    await env.error("poll new", handle.get_update_handle("u2").result())


@program
async def test_update_cut_off_by_termination(env: Env) -> None:
    handle = await _box(env)
    update = await handle.start_update(
        Box.put, "waits", id="u1", wait_for_stage=WorkflowUpdateStage.ACCEPTED
    )
    await handle.terminate("enough")
    await env.error("result", update.result())


@program
async def test_update_unfinished_when_the_run_completes(env: Env) -> None:
    raw, task = await _update_task(env)
    await raw.complete(task, *_accept(task), messages=[_acceptance(task)])
    await env.call(
        "SignalWorkflowExecution", workflow_execution={"workflow_id": env.id()}, signal_name="s"
    )
    await raw.step(complete_workflow())
    poll = env.call(
        "PollWorkflowExecutionUpdate",
        update_ref={"workflow_execution": {"workflow_id": env.id()}, "update_id": "u1"},
        wait_policy={"lifecycle_stage": 3},
    )
    try:
        env.note("polled", await poll)
    except Exception as error:
        await env.error("polled", _raise(error))


async def _raise(error: BaseException) -> None:
    raise error


async def _update_task(env: Env) -> tuple[RawWorker, Any]:
    """A run by hand, and the workflow task that carries its first update."""
    raw = env.raw_worker()
    await raw.start()
    await raw.step(start_timer("t"))
    call = env.call(
        "UpdateWorkflowExecution",
        workflow_execution={"workflow_id": env.id()},
        request={
            "meta": {"update_id": "u1", "identity": "referee"},
            "input": {"name": "put", "args": payloads("x")},
        },
        wait_policy={"lifecycle_stage": 2},
    )
    env.background(call)
    return raw, await raw.workflow_task()


def _accept(task: Any) -> list[Any]:
    return [command("PROTOCOL_MESSAGE", message_id=f"{task.messages[0].id}/accept")]


def _acceptance(task: Any) -> dict[str, Any]:
    from google.protobuf.any_pb2 import Any as Packed
    from temporalio.api.update.v1 import Acceptance, Request

    message = task.messages[0]
    request = Request()
    message.body.Unpack(request)
    body = Packed()
    body.Pack(
        Acceptance(
            accepted_request_message_id=message.id,
            accepted_request_sequencing_event_id=message.event_id,
            accepted_request=request,
        )
    )
    return {
        "id": f"{message.id}/accept",
        "protocol_instance_id": message.protocol_instance_id,
        "body": body,
    }


@program
async def test_update_task_as_a_worker_gets_it(env: Env) -> None:
    raw, task = await _update_task(env)
    env.note("started event id", task.started_event_id)
    env.note("events", len(task.history.events))
    env.note("message", task.messages[0])
    await raw.complete(task, *_accept(task), messages=[_acceptance(task)])


@program
async def test_update_poll_bad_requests(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    rpc, here = "PollWorkflowExecutionUpdate", {"workflow_id": env.id()}
    wait = {"lifecycle_stage": 2}
    await env.error("no ref", env.call(rpc, wait_policy=wait))
    unknown = {"workflow_execution": here, "update_id": "nope"}
    await env.error("unknown", env.call(rpc, update_ref=unknown, wait_policy=wait))
    unnamed = {"workflow_execution": here}
    await env.error("no update id", env.call(rpc, update_ref=unnamed, wait_policy=wait))
    nobody = {"workflow_execution": {"workflow_id": env.id("nobody")}, "update_id": "u"}
    await env.error("nobody", env.call(rpc, update_ref=nobody, wait_policy=wait))


@program
async def test_update_bad_requests(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    rpc, here = "UpdateWorkflowExecution", {"workflow_id": env.id()}
    meta = {"update_id": "u1"}
    request = {"meta": meta, "input": {"name": "put"}}
    wait = {"lifecycle_stage": 2}
    await env.error("no request", env.call(rpc, workflow_execution=here, wait_policy=wait))
    no_input = {"meta": meta}
    await env.error(
        "no input", env.call(rpc, workflow_execution=here, request=no_input, wait_policy=wait)
    )
    no_name = {"meta": meta, "input": {}}
    await env.error(
        "no name", env.call(rpc, workflow_execution=here, request=no_name, wait_policy=wait)
    )
    long = {"meta": {"update_id": "u" * 1001}, "input": {"name": "put"}}
    await env.error(
        "long id", env.call(rpc, workflow_execution=here, request=long, wait_policy=wait)
    )
    await env.error("no id", env.call(rpc, request=request, wait_policy=wait))
    nobody = {"workflow_id": env.id("nobody")}
    await env.error(
        "nobody", env.call(rpc, workflow_execution=nobody, request=request, wait_policy=wait)
    )
    bad = {"workflow_id": env.id(), "run_id": "abc"}
    await env.error(
        "bad run id", env.call(rpc, workflow_execution=bad, request=request, wait_policy=wait)
    )
    await env.error(
        "admitted only",
        env.call(
            rpc,
            workflow_execution=here,
            request=request,
            wait_policy={"lifecycle_stage": 1},
        ),
    )
    other = {
        "workflow_execution": here,
        "request": request,
        "wait_policy": wait,
        "first_execution_run_id": RUN_ID,
    }
    await env.error("another chain", env.call(rpc, **other))


@program
async def test_updates_in_flight_are_limited(env: Env) -> None:
    handle = await _box(env)
    for number in range(10):
        await handle.start_update(
            Box.put, "waits", id=f"u{number}", wait_for_stage=WorkflowUpdateStage.ACCEPTED
        )
    one_more = env.call(
        "UpdateWorkflowExecution",
        workflow_execution={"workflow_id": env.id()},
        request={"meta": {"update_id": "u10"}, "input": {"name": "put", "args": payloads("x")}},
        wait_policy={"lifecycle_stage": 2},
    )
    await env.error("one more", one_more)
