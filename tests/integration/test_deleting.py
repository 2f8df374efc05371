"""Delete: runs and namespaces, and what others see of it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from api_stage import Stage, activity, child, execution, finish, names, soon, staged, virtual
from google.protobuf.duration_pb2 import Duration
from temporalio.api.operatorservice.v1 import DeleteNamespaceRequest
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    ListWorkflowExecutionsRequest,
    RegisterNamespaceRequest,
    StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
)

from perdure.api.errors import (
    InvalidArgument,
    NamespaceAlreadyExists,
    NamespaceNotFound,
    NotFound,
    Unavailable,
)
from perdure.service.namespaces import DELETED
from perdure.service.node import Node
from perdure.store.contract import Record, StoreUnavailable, StoreUndelivered
from perdure.store.query import Query
from perdure.store.sqlite import SqliteStore


async def delete(stage: Stage, workflow_id: str, run_id: str = "") -> None:
    await stage.api.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace="default", workflow_execution=execution(workflow_id, run_id)
        )
    )


async def register(stage: Stage, name: str) -> None:
    await stage.api.register_namespace(
        RegisterNamespaceRequest(
            namespace=name, workflow_execution_retention_period=Duration(seconds=86_400)
        )
    )


async def start_in(stage: Stage, namespace: str, workflow_id: str) -> None:
    request = StartWorkflowExecutionRequest(
        namespace=namespace, workflow_id=workflow_id, request_id=workflow_id
    )
    request.workflow_type.name = "flow"
    request.task_queue.name = "queue"
    await stage.api.start_workflow_execution(request)


@virtual
async def test_a_closed_run_is_gone() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(finish())
        await delete(stage, "a")
        for call in (stage.describe, stage.history):
            with pytest.raises(NotFound):
                await call("a")
        request = ListWorkflowExecutionsRequest(namespace="default")
        assert not (await stage.api.list_workflow_executions(request)).executions
        with pytest.raises(NotFound):
            await delete(stage, "a")


@virtual
async def test_an_open_run_is_stopped_and_gone_and_its_tasks_are_void() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(activity("1"))
        await delete(stage, "a")
        with pytest.raises(NotFound):
            await stage.signal("a")
        polled = soon(stage.poll_activity())
        await asyncio.sleep(1)
        assert not polled.done()
        polled.cancel()


@virtual
async def test_one_run_of_many_is_deleted() -> None:
    async with staged() as stage:
        old = await stage.start("a")
        await stage.step(finish())
        new = await stage.start("a")
        await delete(stage, "a", old)
        assert (await stage.describe("a")).workflow_execution_info.execution.run_id == new
        with pytest.raises(NotFound):
            await stage.describe("a", old)


@virtual
async def test_the_id_may_be_used_again() -> None:
    async with staged() as stage:
        await stage.start("a")
        await delete(stage, "a")
        await stage.start("a")
        assert len(await stage.history("a")) == 2


@virtual
async def test_a_parent_hears_of_its_deleted_child() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(child("b"))
        await asyncio.sleep(1)
        await delete(stage, "b")
        assert "ChildWorkflowExecutionTerminated" in names(await stage.history("a"))


@virtual
async def test_children_of_a_deleted_parent_are_stopped() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(child("b"))
        await asyncio.sleep(1)
        await delete(stage, "a")
        assert names(await stage.history("b"))[-1] == "WorkflowExecutionTerminated"


@virtual
async def test_deleting_twice_at_once_is_told_to_one() -> None:
    async with staged() as stage:
        await stage.start("a")
        outcomes = await asyncio.gather(
            delete(stage, "a"), delete(stage, "a"), return_exceptions=True
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "NotFound"]


@virtual
async def test_a_failing_store_is_told_and_the_call_may_be_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with staged() as stage:
        await stage.start("a")

        async def fail(key: int) -> bool:
            raise StoreUnavailable("broken")

        with monkeypatch.context() as patched:
            patched.setattr(stage.node.store, "delete", fail)
            with pytest.raises(Unavailable):
                await delete(stage, "a")
        assert names(await stage.history("a"))[-1] == "WorkflowExecutionTerminated"
        await delete(stage, "a")
        with pytest.raises(NotFound):
            await stage.describe("a")


@virtual
async def test_wrong_requests_are_refused() -> None:
    async with staged() as stage:
        with pytest.raises(InvalidArgument, match="Execution is not set"):
            await stage.api.delete_workflow_execution(
                DeleteWorkflowExecutionRequest(namespace="default")
            )


# -- namespaces ------------------------------------------------------------------------------------


@virtual
async def test_a_deleted_namespace_is_gone_with_its_runs_only() -> None:
    async with staged() as stage:
        await register(stage, "n")
        await stage.start("a")
        await start_in(stage, "n", "b")
        with pytest.raises(NamespaceAlreadyExists):
            await register(stage, "n")
        await stage.api.delete_namespace(DeleteNamespaceRequest(namespace="n"))
        with pytest.raises(NamespaceNotFound):
            await start_in(stage, "n", "c")
        await register(stage, "n")  # waits until it is empty
        assert await stage.node.store.list_runs(Query("n")) == []
        assert len(await stage.history("a")) == 2
        await start_in(stage, "n", "b")


@virtual
async def test_a_namespace_that_another_node_deleted_is_emptied_before_its_name_is_given_away() -> (
    None
):
    async with staged() as stage:
        await register(stage, "n")
        await start_in(stage, "n", "a")
        node = stage.node
        deleted = msgspec.structs.replace(node.namespaces.get("n"), state=int(DELETED))
        assert await node.store.put_namespace(deleted.row(), node.namespaces.get("n").row().body)
        del node.namespaces._all["n"], node.namespaces._stored["n"]  # it has heard of neither
        await register(stage, "n")
        assert node.namespaces.get("n").id != deleted.id
        assert await node.store.list_runs(Query("n")) == []


@virtual
async def test_default_stays_and_unknown_ones_are_told() -> None:
    async with staged() as stage:
        with pytest.raises(InvalidArgument, match="default cannot be deleted"):
            await stage.api.delete_namespace(DeleteNamespaceRequest(namespace="default"))
        with pytest.raises(NamespaceNotFound):
            await stage.api.delete_namespace(DeleteNamespaceRequest(namespace="n"))


def test_a_deletion_goes_on_after_a_restart(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{tmp_path}/runs.db"

    async def before() -> None:
        node = await Node.open(SqliteStore(path))
        stage = Stage(node)
        await register(stage, "n")
        await start_in(stage, "n", "a")
        with monkeypatch.context() as patched:
            patched.setattr(node.purger, "start", lambda name: None)
            await stage.api.delete_namespace(DeleteNamespaceRequest(namespace="n"))
        await node.close()

    async def after() -> None:
        node = await Node.open(SqliteStore(path))
        await node.purger.start(node.namespaces.deleted()[0])
        assert await node.store.list_runs(Query("n")) == []
        await node.close()

    asyncio.run(before())
    asyncio.run(after())


@virtual
async def test_closed_runs_are_let_go_after_the_retention_and_open_ones_kept() -> None:
    async with staged() as stage:
        await register(stage, "n")  # a day
        await start_in(stage, "n", "closed")
        await start_in(stage, "n", "open")
        await stage.start("other")
        await stage.step(finish())
        closed = TerminateWorkflowExecutionRequest(
            namespace="n", workflow_execution=execution("closed")
        )
        await stage.api.terminate_workflow_execution(closed)
        await asyncio.sleep(23 * 3600)
        assert len(await stage.node.store.list_runs(Query("n"))) == 2
        await asyncio.sleep(3 * 3600)
        [left] = await stage.node.store.list_runs(Query("n"))
        assert left.workflow_id == "open"
        assert (await stage.describe("other")).workflow_execution_info.close_time


async def close_in(stage: Stage, namespace: str, workflow_id: str) -> None:
    """Start a run and end it."""
    await start_in(stage, namespace, workflow_id)
    await stage.api.terminate_workflow_execution(
        TerminateWorkflowExecutionRequest(
            namespace=namespace, workflow_execution=execution(workflow_id)
        )
    )


@virtual
async def test_retention_removes_runs_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged() as stage:
        await register(stage, "n")
        for number in range(130):
            await close_in(stage, "n", f"w{number}")
        store, removed = stage.node.store, []
        delete = store.delete

        async def counted(*keys: int) -> int:
            removed.append(len(keys))
            return await delete(*keys)

        monkeypatch.setattr(store, "delete", counted)
        await asyncio.sleep(26 * 3600)
        assert await store.list_runs(Query("n")) == []
        assert max(removed) == 50
        assert sum(removed) == 130


@virtual
async def test_no_sweep_starts_beside_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged() as stage:
        await register(stage, "n")
        store, list_runs = stage.node.store, stage.node.store.list_runs
        under_way, most, go_on = 0, 0, asyncio.Event()

        async def slow(query: Query) -> list[Record]:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                await go_on.wait()
                return await list_runs(query)
            finally:
                under_way -= 1

        monkeypatch.setattr(store, "list_runs", slow)
        await asyncio.sleep(2 * 3600)
        assert under_way == 1
        await register(stage, "m")  # while the first sweep goes on
        await asyncio.sleep(3 * 3600)
        assert most == 1
        go_on.set()
        await asyncio.sleep(2 * 3600)
        go_on.clear()
        await asyncio.sleep(2 * 3600)
        assert under_way == 1, "there is a next one"
    assert under_way == 0, "it ends with the node"
    assert most == 1


@virtual
async def test_retention_goes_on_after_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged() as stage:
        await register(stage, "n")
        await close_in(stage, "n", "w")
        with monkeypatch.context() as patched:
            patched.delattr("perdure.service.deleting.position")
            await asyncio.sleep(26 * 3600)
        assert "runs of n cannot be let go" in caplog.text
        await close_in(stage, "n", "later")
        await asyncio.sleep(26 * 3600)
        assert await stage.node.store.list_runs(Query("n")) == []


@virtual
async def test_a_run_that_cannot_be_let_go_yet_waits_for_the_next_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with staged() as stage:
        for namespace in ("m", "n"):
            await register(stage, namespace)
            await close_in(stage, namespace, "w")
        store, delete = stage.node.store, stage.node.store.delete
        kept = await stage.node.executions.resolve("m", "w")

        async def delete_some(*keys: int) -> int:
            if kept in keys:
                raise StoreUndelivered("not yet")
            return await delete(*keys)

        with monkeypatch.context() as patched:
            patched.setattr(store, "delete", delete_some)
            await asyncio.sleep(26 * 3600)
            assert len(await store.list_runs(Query("m"))) == 1
            assert await store.list_runs(Query("n")) == []
        await asyncio.sleep(2 * 3600)
        assert await store.list_runs(Query("m")) == []


@virtual
async def test_a_run_that_cannot_be_read_is_removed_like_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with staged() as stage:
        await register(stage, "n")
        for workflow_id in ("bad", "good"):
            await start_in(stage, "n", workflow_id)
        bad = await stage.node.executions.resolve("n", "bad")
        entry = stage.node.executions.cached(bad)
        assert entry is not None
        stage.node.executions.drop(entry)
        load = stage.node.store.load

        async def spoiled(key: int) -> object:
            loaded = await load(key)
            return msgspec.structs.replace(loaded, state=b"?") if key == bad and loaded else loaded

        monkeypatch.setattr(stage.node.store, "load", spoiled)
        await stage.api.delete_namespace(DeleteNamespaceRequest(namespace="n"))
        await stage.node.purger.start(stage.node.namespaces.deleted()[0])
        assert await stage.node.store.list_runs(Query("n")) == []


@virtual
async def test_a_run_that_cannot_be_removed_keeps_no_other_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with staged() as stage:
        await register(stage, "n")
        for workflow_id in ("bad", "good"):
            await start_in(stage, "n", workflow_id)
        bad = await stage.node.executions.resolve("n", "bad")
        transact = stage.node.executions.transact

        async def failing(key: int, operation: Any) -> Any:
            if key == bad:
                raise TypeError("unforeseen")
            return await transact(key, operation)

        monkeypatch.setattr(stage.node.executions, "transact", failing)
        await stage.api.delete_namespace(DeleteNamespaceRequest(namespace="n"))
        await stage.node.purger.start(stage.node.namespaces.deleted()[0])
        [left] = await stage.node.store.list_runs(Query("n"))
        assert left.workflow_id == "bad"


@virtual
async def test_without_retention_nothing_wakes_the_node() -> None:
    async with staged() as stage:
        assert stage.node.purger._alarm is None


@virtual
async def test_a_run_that_cannot_be_removed_yet_keeps_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with staged() as stage:
        await register(stage, "away")
        for name in "abc":
            await start_in(stage, "away", name)
        store, delete_usually = stage.node.store, stage.node.store.delete
        kept = [record.key for record in await store.list_runs(Query("away", limit=1))]

        async def delete_some(key: int) -> bool:
            if key in kept:
                raise StoreUndelivered("not yet")
            return await delete_usually(key)

        monkeypatch.setattr(store, "delete", delete_some)
        await stage.node.service.delete_namespace(DeleteNamespaceRequest(namespace="away"))
        await asyncio.sleep(60)
        [deleted] = stage.node.namespaces.deleted()
        left = await store.list_runs(Query(deleted.name, limit=9))
        assert [record.key for record in left] == kept
        kept.clear()
        await asyncio.sleep(60)
        assert not await store.list_runs(Query(deleted.name, limit=9))
