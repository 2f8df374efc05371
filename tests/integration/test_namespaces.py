"""The RPCs about namespaces, search attributes and the node itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from api_stage import Stage, execution, staged, virtual
from google.protobuf.duration_pb2 import Duration
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import IndexedValueType, NamespaceState
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    ListClustersRequest,
    ListSearchAttributesRequest,
    RemoveSearchAttributesRequest,
)
from temporalio.api.workflowservice.v1 import (
    DeprecateNamespaceRequest,
    DescribeNamespaceRequest,
    DescribeWorkflowExecutionRequest,
    GetClusterInfoRequest,
    GetSystemInfoRequest,
    ListNamespacesRequest,
    ListWorkflowExecutionsRequest,
    RegisterNamespaceRequest,
    StartWorkflowExecutionRequest,
    UpdateNamespaceRequest,
)

from perdure.api.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NamespaceAlreadyExists,
    NamespaceNotFound,
    NotFound,
    Unavailable,
)
from perdure.store.contract import StoreUnavailable

DAY = Duration(seconds=86_400)
KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
INT = IndexedValueType.INDEXED_VALUE_TYPE_INT


async def register(stage: Stage, name: str = "n", **fields: Any) -> None:
    fields.setdefault("workflow_execution_retention_period", DAY)
    await stage.api.register_namespace(RegisterNamespaceRequest(namespace=name, **fields))


async def start_in(stage: Stage, namespace: str, workflow_id: str, **fields: Any) -> None:
    request = StartWorkflowExecutionRequest(
        namespace=namespace, workflow_id=workflow_id, request_id=workflow_id, **fields
    )
    request.workflow_type.name = "flow"
    request.task_queue.name = "queue"
    await stage.api.start_workflow_execution(request)


@virtual
async def test_a_namespace_is_described_as_registered() -> None:
    async with staged() as stage:
        await register(stage, "n", description="ours", owner_email="a@b", data={"team": "x"})
        by_name = await stage.api.describe_namespace(DescribeNamespaceRequest(namespace="n"))
        info = by_name.namespace_info
        assert (info.name, info.description, info.owner_email) == ("n", "ours", "a@b")
        assert dict(info.data) == {"team": "x"}
        assert info.state == NamespaceState.NAMESPACE_STATE_REGISTERED
        assert by_name.config.workflow_execution_retention_ttl == DAY
        by_id = await stage.api.describe_namespace(DescribeNamespaceRequest(id=info.id))
        assert by_id == by_name


@virtual
async def test_only_what_works_is_advertised() -> None:
    async with staged() as stage:
        found = await stage.api.describe_namespace(DescribeNamespaceRequest(namespace="default"))
        able = {field.name for field, _ in found.namespace_info.capabilities.ListFields()}
        assert able == {
            "eager_workflow_start", "sync_update", "async_update", "worker_heartbeats",
            "poller_autoscaling", "workflow_pause", "worker_poll_complete_on_shutdown",
        }  # fmt: skip
        system = await stage.api.get_system_info(GetSystemInfoRequest())
        assert system.server_version
        assert not system.capabilities.nexus
        cluster = await stage.api.get_cluster_info(GetClusterInfoRequest())
        assert cluster.persistence_store in type(stage.node.store).__name__.lower()
        clusters = await stage.api.list_clusters(ListClustersRequest())
        assert [found.cluster_name for found in clusters.clusters] == [cluster.cluster_name]


@virtual
async def test_namespaces_keep_their_runs_apart() -> None:
    async with staged() as stage:
        await register(stage)
        await start_in(stage, "n", "a")
        with pytest.raises(NotFound):
            await stage.describe("a")
        found = await stage.api.list_workflow_executions(
            ListWorkflowExecutionsRequest(namespace="default")
        )
        assert not found.executions
        theirs = await stage.api.describe_workflow_execution(
            DescribeWorkflowExecutionRequest(namespace="n", execution=execution("a"))
        )
        assert theirs.workflow_execution_info.execution.workflow_id == "a"


@virtual
async def test_namespaces_are_listed_by_page() -> None:
    async with staged() as stage:
        for name in ("c", "a", "b"):
            await register(stage, name)
        found: list[str] = []
        request = ListNamespacesRequest(page_size=3)
        while True:
            page = await stage.api.list_namespaces(request)
            found += [one.namespace_info.name for one in page.namespaces]
            if not page.next_page_token:
                break
            request.next_page_token = page.next_page_token
        assert found == ["a", "b", "c", "default"]


@virtual
async def test_an_update_changes_what_it_names() -> None:
    async with staged() as stage:
        await register(stage, description="old", data={"a": "1"})
        request = UpdateNamespaceRequest(namespace="n")
        request.update_info.data["b"] = "2"
        request.config.workflow_execution_retention_ttl.FromSeconds(2 * 86_400)
        changed = await stage.api.update_namespace(request)
        assert changed.namespace_info.description == "old"
        assert dict(changed.namespace_info.data) == {"a": "1", "b": "2"}
        assert changed.config.workflow_execution_retention_ttl.seconds == 2 * 86_400
        bad = UpdateNamespaceRequest(namespace="n", config=NamespaceConfig())
        bad.config.workflow_execution_retention_ttl.FromSeconds(1)
        with pytest.raises(InvalidArgument, match="retention"):
            await stage.api.update_namespace(bad)


@virtual
async def test_a_deprecated_namespace_takes_no_new_runs() -> None:
    async with staged() as stage:
        await register(stage)
        await start_in(stage, "n", "a")
        await stage.api.deprecate_namespace(DeprecateNamespaceRequest(namespace="n"))
        with pytest.raises(FailedPrecondition, match="invalid state: Deprecated"):
            await start_in(stage, "n", "b")
        found = await stage.api.list_workflow_executions(
            ListWorkflowExecutionsRequest(namespace="n")
        )
        assert len(found.executions) == 1


@virtual
async def test_bad_namespaces_are_refused() -> None:
    async with staged() as stage:
        with pytest.raises(InvalidArgument, match="Namespace not set"):
            await register(stage, "")
        with pytest.raises(InvalidArgument, match="retention"):
            await register(stage, "n", workflow_execution_retention_period=Duration())
        with pytest.raises(InvalidArgument, match="length exceeds"):
            await register(stage, "n" * 1001)
        await register(stage)
        with pytest.raises(NamespaceAlreadyExists):
            await register(stage)
        for call, request in (
            (stage.api.describe_namespace, DescribeNamespaceRequest(namespace="x")),
            (stage.api.describe_namespace, DescribeNamespaceRequest(id="x")),
            (stage.api.update_namespace, UpdateNamespaceRequest(namespace="x")),
            (stage.api.deprecate_namespace, DeprecateNamespaceRequest(namespace="x")),
        ):
            with pytest.raises(NamespaceNotFound):
                await call(request)  # type: ignore[operator]


# -- search attributes -----------------------------------------------------------------------------


@virtual
async def test_attributes_are_added_listed_and_removed() -> None:
    async with staged() as stage:
        api = stage.api
        add = AddSearchAttributesRequest(namespace="default")
        add.search_attributes["Customer"] = KEYWORD
        await api.add_search_attributes(add)
        await api.add_search_attributes(add)  # the same again
        found = await api.list_search_attributes(ListSearchAttributesRequest(namespace="default"))
        assert dict(found.custom_attributes) == {"Customer": KEYWORD}
        assert found.system_attributes["WorkflowId"] == KEYWORD
        add.search_attributes["Customer"] = INT
        with pytest.raises(AlreadyExists, match="Customer already exists with type Keyword"):
            await api.add_search_attributes(add)
        remove = RemoveSearchAttributesRequest(namespace="default", search_attributes=["Customer"])
        await api.remove_search_attributes(remove)
        with pytest.raises(NotFound, match="Customer doesn't exist"):
            await api.remove_search_attributes(remove)


@virtual
async def test_changes_at_the_same_time_are_all_kept() -> None:
    async with staged() as stage:
        adds = [AddSearchAttributesRequest(namespace="default") for _ in range(5)]
        for number, add in enumerate(adds):
            add.search_attributes[f"Word{number}"] = KEYWORD
        await asyncio.gather(*map(stage.api.add_search_attributes, adds))
        found = await stage.api.list_search_attributes(
            ListSearchAttributesRequest(namespace="default")
        )
        assert sorted(found.custom_attributes) == [f"Word{number}" for number in range(5)]


@virtual
async def test_attributes_belong_to_their_namespace() -> None:
    async with staged() as stage:
        await register(stage)
        add = AddSearchAttributesRequest(namespace="n")
        add.search_attributes["Customer"] = KEYWORD
        await stage.api.add_search_attributes(add)
        listed = stage.api.list_workflow_executions
        await listed(ListWorkflowExecutionsRequest(namespace="n", query="Customer = 'x'"))
        with pytest.raises(InvalidArgument, match="Customer"):
            await listed(ListWorkflowExecutionsRequest(namespace="default", query="Customer = 'x'"))


@virtual
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("WorkflowId", KEYWORD, "reserved by system"),
        ("TemporalChangeVersion", KEYWORD, "reserved by system"),
        ("Nothing", IndexedValueType.INDEXED_VALUE_TYPE_UNSPECIFIED, "has no type"),
        ("a`b", KEYWORD, "backticks"),
    ],
)
async def test_bad_attributes_are_refused(
    name: str, kind: IndexedValueType.ValueType, message: str
) -> None:
    async with staged() as stage:
        add = AddSearchAttributesRequest(namespace="default")
        add.search_attributes["Good"] = KEYWORD
        add.search_attributes[name] = kind
        with pytest.raises(InvalidArgument, match=message):
            await stage.api.add_search_attributes(add)
        found = await stage.api.list_search_attributes(ListSearchAttributesRequest())
        assert not found.custom_attributes


@virtual
async def test_requests_without_attributes_are_refused() -> None:
    async with staged() as stage:
        with pytest.raises(InvalidArgument, match="SearchAttributes are not set"):
            await stage.api.add_search_attributes(AddSearchAttributesRequest())
        with pytest.raises(InvalidArgument, match="SearchAttributes are not set"):
            await stage.api.remove_search_attributes(RemoveSearchAttributesRequest())
        with pytest.raises(InvalidArgument, match="non-custom search attributes: RunId"):
            await stage.api.remove_search_attributes(
                RemoveSearchAttributesRequest(search_attributes=["RunId"])
            )


@virtual
async def test_a_change_that_cannot_be_stored_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged() as stage:

        async def fail(row: object, former: object) -> None:
            raise StoreUnavailable("disk full")

        with monkeypatch.context() as patched:
            patched.setattr(stage.node.store, "put_namespace", fail)
            with pytest.raises(Unavailable, match="disk full"):
                await register(stage)
        with pytest.raises(NamespaceNotFound):
            await stage.api.describe_namespace(DescribeNamespaceRequest(namespace="n"))


@virtual
async def test_without_auto_registration_an_unknown_attribute_is_refused() -> None:
    from perdure.service.settings import Settings

    async with staged(settings=Settings(auto_register_search_attributes=False)) as stage:
        value = Payload(metadata={"encoding": b"json/plain"}, data=json.dumps("x").encode())
        with pytest.raises(InvalidArgument, match="no mapping defined for search attribute New"):
            await stage.start("a", search_attributes={"indexed_fields": {"New": value}})
